"""One client, from the greeting to QUIT: what is answered, and what becomes of it.

The modules decide; octets are parsed in `smtp`, and sockets belong to `server`. A message is stored
before it is acknowledged.
"""
