"""Messages on disk: the spool of the queue and the quarantine.

A message is either stored whole and synced or not there at all, whenever the power fails.
"""
