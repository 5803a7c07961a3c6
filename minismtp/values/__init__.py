"""Plain values and small tools: addresses, replies, files, clocks, threads.

Everything may import them, and they import nothing but Python, so that each can be read, tested and
trusted alone. Anything that knows SMTP commands, configuration or hooks belongs further up.
"""
