"""HTTP for plugins: one request within a time limit, and none while the service is down."""

from __future__ import annotations

import http.client
import io
import ssl
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from minismtp.config.types import SocketAddress
from minismtp.services.remote import Breaker, Line, Remote, RemoteError
from minismtp.values.address import to_ascii

if TYPE_CHECKING:
    from datetime import timedelta

_LIMIT: Final = 1024 * 1024  # octets of an answer
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Answer:
    """A web server's response; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class WebService:
    """A web server at a base URL (http or https); threads may share one.

    It follows no redirect and uses no proxy. `timeout` is for a whole request and its response.
    """

    def __init__(self, url: str, *, timeout: timedelta, tls: ssl.SSLContext | None = None) -> None:
        """Take the base URL. Raise ValueError if it is malformed."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
            raise ValueError(f'expected a URL such as "http://127.0.0.1:11333/", not {url!r}')
        port = parts.port or _PORTS[parts.scheme]
        context = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        host = to_ascii(parts.hostname)
        address = SocketAddress(host, port)
        self._remote = Remote(address, timeout=timeout, tls=context, breaker=Breaker(url))
        self._host = str(address) if parts.port else str(address).rpartition(":")[0]
        self._target = parts.path or "/"
        if parts.query:
            self._target += f"?{parts.query}"

    def request(
        self,
        method: str,
        body: bytes | BinaryIO = b"",
        *,
        size: int | None = None,
        path: str = "",
        headers: Mapping[str, str | Sequence[str]] | None = None,
        limit: int = _LIMIT,
    ) -> Answer:
        """Send a request and return the response. Raise RemoteError without one, or for a 5yz.

        `size` is needed for a `body` that is a file, and is its length in octets. `path` is added
        to the base URL's. `headers` are sent in UTF-8; several values make several fields.
        """
        length = len(body) if isinstance(body, bytes) else size
        if length is None:
            raise ValueError("expected the size of a body that is a file")
        fields = {"Content-Length": str(length), "Connection": "close", **(headers or {})}
        with self._remote.connect() as line:
            connection = http.client.HTTPConnection(self._host)
            connection.sock = LineSocket(line)
            try:
                connection.putrequest(method, self._target + path)
                for name, value in fields.items():
                    for each in [value] if isinstance(value, str) else value:
                        connection.putheader(name, each.encode())
                connection.endheaders(body)
                response = connection.getresponse()
                answer = Answer(
                    response.status,
                    {name.lower(): value for name, value in response.getheaders()},
                    response.read(limit + 1),
                )
                if response.length and len(answer.body) <= limit:
                    raise http.client.IncompleteRead(answer.body, response.length)
            except (http.client.HTTPException, ValueError) as error:
                raise RemoteError(f"{self._host} does not answer in HTTP: {error!r}") from error
            if len(answer.body) > limit:
                raise RemoteError(f"{self._host} answers with more than {limit} octets")
            if answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise RemoteError(f"{self._host} answers {answer.status} {response.reason}")
            return answer


class LineSocket:
    """The methods of a socket that `http.client` needs; the caller of `connect` closes the line."""

    def __init__(self, line: Line) -> None:
        self.sendall = line.send
        self._line = line

    def makefile(self, _mode: str) -> BinaryIO:
        """Return a reader of what the service says."""
        return cast("BinaryIO", io.BufferedReader(_Reader(self._line)))

    def close(self) -> None:
        """Do nothing, because `http.client` closes this too early."""


class _Reader(io.RawIOBase):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the buffer protocol has no type in 3.11
        view = memoryview(buffer).cast("B")
        data = self._line.receive(len(view))
        view[: len(data)] = data
        return len(data)
