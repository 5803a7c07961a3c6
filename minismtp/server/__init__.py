"""The processes: the supervisor, the workers, their sockets, and the page of metrics.

The supervisor opens the sockets and keeps everything else running; it parses nothing that comes
from a stranger.
"""
