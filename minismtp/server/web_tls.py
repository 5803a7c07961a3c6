"""The TLS handshake of a web listener, which also answers the challenges of `[tls.acme]`.

Python's ssl has no callback for the protocols that a client offers (ALPN). So, but only while a
challenge waits or there are several certificates, the server peeks at the ClientHello before ssl
reads it. The certificate of a challenge goes to clients that offer `acme-tls/1` alone, which no
browser and no mail program does. So all others get the ordinary one at any time.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from typing import Final

from minismtp.services.acme_tls_challenges import PROTOCOL, TlsChallenges
from minismtp.services.tls import Certificates
from minismtp.smtp.preamble import ClientHello, read_hello

_TIMEVAL: Final = struct.Struct("@ll")  # seconds and microseconds
_NOBODY: Final = ClientHello()


class WebTls:
    """Makes handshakes. Threads share it."""

    def __init__(self, certificates: Certificates, challenges: TlsChallenges) -> None:
        self._certificates = certificates
        self._challenges = challenges

    def secured(self, sock: socket.socket, due: float) -> ssl.SSLSocket:
        """Return a connection after its handshake. `due` is monotonic. Raise OSError."""
        waiting = self._challenges.are_there()
        hello = _peeked(sock, due) if waiting or self._certificates.has_names else _NOBODY
        context = self._challenges.context(hello.name, hello.protocols) if waiting else None
        if context is None:
            context = self._certificates.current(hello.name)
        secured = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            secured.settimeout(seconds_left(due))
            secured.do_handshake()
        except OSError:
            secured.close()
            raise
        return secured


def is_checked(secured: object) -> bool:
    """Return whether the handshake was all that the client wanted, as an authority does."""
    return isinstance(secured, ssl.SSLSocket) and secured.selected_alpn_protocol() == PROTOCOL


def _peeked(sock: socket.socket, due: float) -> ClientHello:
    def peek(count: int) -> bytes:
        # A timeout of Python's makes the socket non-blocking, and then MSG_WAITALL does not wait.
        left = seconds_left(due)
        seconds = int(left)
        period = _TIMEVAL.pack(seconds, int((left - seconds) * 1e6) + 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, period)
        return sock.recv(count, socket.MSG_PEEK | socket.MSG_WAITALL)

    sock.settimeout(None)
    return read_hello(peek)


def seconds_left(due: float) -> float:
    """Return the seconds that are left. Raise TimeoutError if there are none."""
    left = due - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
