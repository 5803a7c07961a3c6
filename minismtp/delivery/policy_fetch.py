"""Fetches MTA-STS policies from web servers, which are not trusted (RFC 8461 section 3.3).

A fetch uses HTTPS with a valid certificate, no redirections and no proxies, and its size and time
are bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from typing import Final

from minismtp.delivery.mx import HostFinder, UnreachableError
from minismtp.services.http_client import LineSocket
from minismtp.services.remote import Line

_SECONDS: Final = 10.0  # for everything, from the first address to the end of the body
_CONNECT: Final = 4.0
_SIZE: Final = 65536  # octets


class FetchError(Exception):
    """The text could not be fetched; the message gives the reason."""


class PolicyFetcher:
    """Fetches texts; `context` verifies the certificates of the servers."""

    def __init__(self, host_finder: HostFinder, context: ssl.SSLContext, port: int) -> None:
        self._host_finder = host_finder
        self._context = context
        self._port = port

    def get(self, name: str, path: str) -> str:
        """Return the text at a path of a server. Raise FetchError."""
        end = time.monotonic() + _SECONDS
        try:
            hosts = self._host_finder.at(name, self._port)
        except UnreachableError as error:
            raise FetchError(str(error)) from None
        failure = ""
        for host in hosts:
            if time.monotonic() >= end:
                break
            try:
                return self._get(name, host.address, path, end)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = f"{host}: {str(error) or type(error).__name__}"
        raise FetchError(failure or f"{name} was not found in time")

    def _get(self, name: str, address: str, path: str, end: float) -> str:
        left = end - time.monotonic()
        sock = socket.create_connection((address, self._port), min(left, _CONNECT))
        line = Line(sock, end, "the web server")
        with contextlib.closing(line):
            line.secure(self._context, name)
            connection = http.client.HTTPConnection(name)
            connection.sock = LineSocket(line)
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
