"""What a message is: envelope, header, content, session, and the texts that describe them.

These are the values that plugins see. They know how to be read and written, and not where they come
from or go to.
"""
