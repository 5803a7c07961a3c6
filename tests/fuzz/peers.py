"""Peers, as far as parsers need them: each sends the input."""

from __future__ import annotations

import errno
import io
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from minismtp import Content, Found, Line, Message, Resolver, Session
from minismtp.smtp.dot_stuffing import DotDecoder


def text_of(data: bytes) -> str:
    """Return octets as the text of a header field is read."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def pieces_of(data: bytes) -> Iterator[bytes]:
    """Yield the octets one by one, or in some thousand pieces when there are many."""
    size = len(data) // 1024 + 1
    return (data[start : start + size] for start in range(0, len(data), size))


class Peer:
    """A socket whose other end sent the input in small packets and hung up."""

    def __init__(self, data: bytes) -> None:
        self._said = io.BytesIO(data)
        self._packet = len(data) // 256 + 1
        self._waits = True

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return some of it, but nothing before the parser waits for it."""
        if not self._waits or flags & socket.MSG_DONTWAIT:
            raise BlockingIOError
        return self._said.read(min(size, self._packet))

    def send(self, data: bytes) -> int:
        """Ignore the output."""
        return len(data)

    def settimeout(self, seconds: float | None) -> None:
        """Record whether the parser waits."""
        self._waits = seconds != 0

    def getsockopt(self, *_: int) -> bytes:
        """Tell nothing, as a unix socket does."""
        raise OSError(errno.EOPNOTSUPP, "no such option")

    def getsockname(self) -> tuple[str, int]:
        """Return where it was called."""
        return "127.0.0.1", 9925

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Do nothing."""

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def line_of(data: bytes) -> Line:
    """Return a connection to a service that says this."""
    return Line(cast("socket.socket", Peer(data)), time.monotonic() + 1e6, "the service")


class Zone(Resolver):
    """A DNS that answers each question for TXT with the same records, and others with nothing."""

    def __init__(self, *records: bytes) -> None:
        self._found = tuple(_Txt(record) for record in records)

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        """Return the records, whatever the name is."""
        del seconds
        return Found(cast("Any", self._found) if kind == "TXT" else (), name)


class _Txt(SimpleNamespace):
    def __init__(self, record: bytes) -> None:
        pieces = [record[start : start + 255] for start in range(0, len(record), 255)]
        super().__init__(strings=tuple(pieces))


def message_of(data: bytes) -> Message:
    """Return a message of these octets below our trace field."""
    return Message("1a2b.1", Content.of(data), b"Received: from x by y id 1a2b.1\r\n")


def session() -> Session:
    """Return a session of a stranger."""
    return Session(
        id="1a2b",
        listener="smtp",
        kind="mx",
        hostname="mx.example.org",
        peer="192.0.2.1",
        started=1_700_000_000.0,
        helo="client.example",
    )


@contextmanager
def threads_that_fail() -> Iterator[None]:
    """Raise the exception that a thread would log and survive."""
    failures: list[BaseException] = []
    with patch("minismtp.values.threads.report", lambda error, _: failures.append(error)):
        yield
    for error in failures:
        raise error


@contextmanager
def file_of(data: bytes) -> Iterator[Path]:
    """Yield the path of a file with these octets."""
    with tempfile.NamedTemporaryFile(prefix="fuzz-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def decoded(pieces: Iterator[bytes]) -> tuple[bytes, DotDecoder]:
    """Return what a decoder makes of content that comes in these pieces."""
    decoder = DotDecoder(998)
    found = []
    for piece in pieces:
        if decoder.done:
            decoder.rest += piece
        else:
            found.append(decoder.decode(piece))
    return b"".join(found), decoder


class Service:
    """What a plugin has for a service, instead of a `Remote`."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    @contextmanager
    def connect(self) -> Iterator[Line]:
        """Yield a connection to it."""
        yield self.open()

    def open(self) -> Line:
        """Return a connection to it."""
        return line_of(self._said)
