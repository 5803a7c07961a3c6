"""The wire protocols as pure functions and machines: octets in, values out.

What parses or writes SMTP, SASL, PROXY or dot-stuffing belongs here. What decides about a command
does not; that is `session`. Nothing here knows a socket or a clock, so every test can feed the same
octets whole or one by one.
"""
