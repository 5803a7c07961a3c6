"""Plain values and small tools: addresses, replies, files, clocks, threads.

All other folders may import them. They import only Python itself (and `idna`), so each can be read
and tested alone. Code that knows SMTP commands, configuration or hooks belongs in another folder.
"""
