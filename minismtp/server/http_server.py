"""The HTTP server under the metrics endpoint and under the web listeners.

The standard library reads the requests. This module adds the limits: how many requests are answered
at once, how long one may take, and how many octets one may have. Each request has a thread and a
connection of its own.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import time
from http import HTTPStatus
from typing import Final, TypeAlias

from minismtp.services.http_client import LineSocket
from minismtp.services.remote import Line
from minismtp.values.peer import plain_address
from minismtp.values.threads import surviving

Request: TypeAlias = "socket.socket | tuple[bytes, socket.socket]"
MOST_OCTETS: Final = 1 << 16  # of one request
_LINGER: Final = 1.0  # seconds in which the rest of a request that is too long is read and dropped


class TooLongError(Exception):
    """A request has more octets than one may have."""


class BoundedServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Answers on a socket that listens already. A subclass says which requests it `admits`."""

    daemon_threads = True
    seconds = 10.0  #: for one request
    octets = MOST_OCTETS

    def __init__(self, sock: socket.socket, handler: type[BoundedHandler]) -> None:
        socketserver.BaseServer.__init__(self, sock.getsockname(), handler)
        self.socket = sock

    def admits(self, peer: str) -> bool:
        """Return whether a connection of this peer is served. It may block until there is room."""
        raise NotImplementedError

    def leave(self, peer: str) -> None:
        """Free the place of a connection."""
        raise NotImplementedError

    def process_request(self, request: Request, client_address: object) -> None:
        """Answer in a thread, if there is a place for this client."""
        assert isinstance(request, socket.socket)  # noqa: S101 - this is no datagram server
        peer = peer_of(client_address)
        if not self.admits(peer):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.leave(peer)
            raise

    def process_request_thread(self, request: Request, client_address: object) -> None:
        """Answer, and let the next request begin."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.leave(peer_of(client_address))

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing, because clients may hang up at any time."""


class BoundedHandler(http.server.BaseHTTPRequestHandler):
    """Reads one request, within the limits of the server."""

    server: BoundedServer
    connection: socket.socket
    thread_name = "other"  #: under which unexpected exceptions are logged and counted
    due = 0.0  #: when the request must be over, monotonic; 0 = after the server's `seconds`

    def setup(self) -> None:
        """Set one deadline for the whole request, so that a slow client cannot extend it."""
        super().setup()
        due = self.due or time.monotonic() + self.server.seconds
        line = _MeasuredLine(self.connection, due, self.server.octets)
        self.rfile = LineSocket(line).makefile("rb")  # type: ignore[assignment]

    def handle(self) -> None:
        """Answer the requests of one connection. The client may hang up at any time."""
        with surviving(self.thread_name), contextlib.suppress(OSError):
            try:
                super().handle()
            except TooLongError:
                self.request_version = self.default_request_version = "HTTP/1.0"
                self.close_connection = True
                self.requestline, self.command = "", ""
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                self._drop_rest()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep requests out of the log."""

    def _drop_rest(self) -> None:
        """Read on for a moment. Closing at once would cancel the answer that is on its way."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            due = time.monotonic() + _LINGER
            while (left := due - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(MOST_OCTETS):
                    return


class _MeasuredLine(Line):
    """A connection on which the client may send a number of octets."""

    def __init__(self, sock: socket.socket, due: float, octets: int) -> None:
        super().__init__(sock, due, "client")
        self._left = octets

    def receive(self, size: int = MOST_OCTETS) -> bytes:
        """Return the next octets. Raise TooLongError if there were too many."""
        if not self._left:
            raise TooLongError
        data = super().receive(min(size, self._left))
        self._left -= len(data)
        return data


def peer_of(address: object) -> str:
    """Return the IP address of a client, an IPv4-mapped one as IPv4, or "unix"."""
    if not isinstance(address, tuple):
        return "unix"
    return plain_address(str(address[0]).partition("%")[0])
