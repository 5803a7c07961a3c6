"""The queue: which messages wait, when they are tried again, and what their senders are told.

A message leaves the queue only when every recipient is delivered, returned or removed by an
operator. One process runs the queue; others reach it through the spool and the database.
"""
