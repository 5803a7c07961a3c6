"""What is wrong or doubtful in a configuration, and in what it names.

`minismtp check` and the start of the server share these checks. Each yields `Problem` values, which
name the file, line, table and key, say what was expected, and what to do. A check changes nothing.
"""
