"""Ports for the servers that tests start."""

import contextlib
import secrets
import socket
from typing import Final

# Below the ports of outgoing connections, which could take a port before its server does.
_FIRST: Final = 10_000
_COUNT: Final = 20_000


def free_port() -> int:
    """Return an unused port of 127.0.0.1."""
    while True:
        port = _FIRST + secrets.randbelow(_COUNT)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
