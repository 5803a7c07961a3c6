"""One client, from the greeting to QUIT.

What decides about a command, a login or a message belongs here. Octets are parsed in `smtp`, and
sockets are accepted in `server`. A message is stored before it is acknowledged.
"""
