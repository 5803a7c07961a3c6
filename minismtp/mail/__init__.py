"""What a message is: envelope, header, content, session, and the texts that describe them.

These are the values that plugins see. They can be read and written, and they do not know where a
message comes from or goes to.
"""
