"""One attempt to deliver: find the hosts, speak SMTP to them, and return the results.

An attempt returns a result for each recipient and changes nothing on disk. `mailqueue` decides
whether the message is removed, retried or returned.
"""
