"""One attempt to deliver: find the hosts, speak SMTP to them, and say what came of it.

An attempt returns a result for each recipient and changes nothing on disk; `mailqueue` decides what
follows.
"""
