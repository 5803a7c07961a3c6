"""Limits for the checks of one message, and the readers for its archives."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from time import thread_time
from typing import Any, BinaryIO, Protocol, cast

_PIECE = 65536


class TooMuchError(ValueError):
    """A message exceeds a limit of the checks, as the text says."""


class BrokenError(ValueError):
    """An archive cannot be read."""


class Reads(Protocol):
    """An object to read octets from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` octets."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; `data` must be read before the next member, None if it is not read."""

    name: str
    encrypted: bool = False
    data: Reads | None = None


class Budget:
    """The limits for one message; `seconds` are CPU time of this thread."""

    def __init__(self, octets: int, names: int, levels: int, seconds: float = inf) -> None:
        self.levels = levels
        self._octets = octets
        self._names = names
        self._until = thread_time() + seconds

    def take(self, octets: int = 0, names: int = 0) -> None:
        """Count octets and names, and check the clock. Raise TooMuchError."""
        self._octets -= octets
        self._names -= names
        if self._octets < 0:
            raise TooMuchError("archives that unpack to too much")
        if self._names < 0:
            raise TooMuchError("archives with too many files")
        if thread_time() > self._until:
            raise TooMuchError("archives that take too long")


class Limited:
    """The next `size` octets of a file; `left` is the number of those not yet read."""

    def __init__(self, file: Reads, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""
        wanted = self.left if size < 0 else min(size, self.left)
        data = self._file.read(max(0, wanted))
        self.left -= len(data)
        return data


def exactly(file: Reads, size: int) -> bytes:
    """Return `size` octets of a file, fewer only at its end."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def skip(data: Reads, budget: Budget) -> None:
    """Read the rest of a file. Raise TooMuchError."""
    for _ in pieces_of(data):
        budget.take()


def pieces_of(file: Reads) -> Iterator[bytes]:
    """Yield the rest of a file."""
    return iter(lambda: file.read(_PIECE), b"")


def stream_of(pieces: Iterator[bytes]) -> BinaryIO:
    """Return a file of the pieces, to be read forward; empty pieces do not end it."""
    return cast("BinaryIO", io.BufferedReader(_Stream(pieces), _PIECE))


class _Stream(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the buffer protocol has no type in 3.11
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
