"""The queue: what waits, when it is tried again, and who hears of it.

A message leaves the queue only when every recipient is delivered, returned or removed by an
operator. One process runs it; the others reach it through the spool and the database.
"""
