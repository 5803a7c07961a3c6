"""Small texts from web servers that nobody vouches for (RFC 8461 section 3.3).

Over HTTPS with a valid certificate, without redirections or proxies, of bounded size and time.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from typing import Final

from minismtp.delivery.deadlines import Deadlines
from minismtp.delivery.mx import HostFinder, UnreachableError

_SECONDS: Final = 10.0  # for all, from the first address to the end of the body
_CONNECT: Final = 4.0
_SIZE: Final = 65536  # octets


class FetchError(Exception):
    """The text could not be had; says why."""


class _Line:
    """A socket as `Deadlines` wants it."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._socket = sock

    def hang_up(self) -> None:
        socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # of SSLSocket, it forgets TLS


class PolicyFetcher:
    """Fetches texts; `context` verifies the servers' certificates."""

    def __init__(
        self, directory: HostFinder, deadlines: Deadlines, context: ssl.SSLContext, port: int
    ) -> None:
        self._directory = directory
        self._deadlines = deadlines
        self._context = context
        self._port = port

    def get(self, name: str, path: str) -> str:
        """Return the text at a path of a server. Raise FetchError."""
        end = time.monotonic() + _SECONDS
        try:
            hosts = self._directory.at(name, self._port)
        except UnreachableError as error:
            raise FetchError(str(error)) from None
        failure = ""
        for host in hosts:
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                return self._get(name, host.address, path, left)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = f"{host}: {str(error) or type(error).__name__}"
        raise FetchError(failure or f"{name} was not found in time")

    def _get(self, name: str, address: str, path: str, seconds: float) -> str:
        plain = socket.create_connection((address, self._port), min(seconds, _CONNECT))
        plain.settimeout(seconds)
        with (
            self._context.wrap_socket(
                plain, server_hostname=name, do_handshake_on_connect=False
            ) as sock,
            self._deadlines.within(_Line(sock), seconds),
        ):
            sock.do_handshake()
            connection = http.client.HTTPConnection(name)
            connection.sock = sock
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise FetchError(f"{name} says {response.status}")
            kind = response.headers.get_content_type()
            if kind != "text/plain" or "Content-Type" not in response.headers:
                raise FetchError(f"{name} has {kind}, not text/plain")
            body = response.read(_SIZE + 1)
        if len(body) > _SIZE:
            raise FetchError(f"{name} has more than {_SIZE} octets")
        return body.decode("utf-8")
