"""The files of a Postfix configuration, read as Postfix reads them: main.cf, master.cf, tables.

Nothing here knows minismtp. A file that cannot be read, or a line that Postfix would refuse or
ignore, becomes a `Problem` in words; only main.cf itself is needed. Every loop, of `$name` or of
files in files, has a bound.
"""
