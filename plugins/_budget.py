"""How much of one message is looked at, and what its archives are read by."""

import io
from collections.abc import Iterator
from math import inf
from time import thread_time
from typing import Any, BinaryIO, Protocol, cast

_PIECE = 65536


class TooMuchError(ValueError):
    """There is more of something than will be looked at, as the text says."""


class BrokenError(ValueError):
    """An archive cannot be read."""


class Reads(Protocol):
    """What gives octets."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most so many."""


class Budget:
    """What may be looked at in one message; `seconds` are CPU time of this thread."""

    def __init__(self, octets: int, names: int, levels: int, seconds: float = inf) -> None:
        self.levels = levels
        self._octets = octets
        self._names = names
        self._until = thread_time() + seconds

    def take(self, octets: int = 0, names: int = 0) -> None:
        """Count, and look at the clock. Raise TooMuchError."""
        self._octets -= octets
        self._names -= names
        if self._octets < 0:
            raise TooMuchError("archives that unpack to too much")
        if self._names < 0:
            raise TooMuchError("archives with too many files")
        if thread_time() > self._until:
            raise TooMuchError("archives that take too long")


class Limited:
    """So many octets of a file; `left` are those that were not read."""

    def __init__(self, file: Reads, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""
        data = self._file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def exactly(file: Reads, size: int) -> bytes:
    """Read so many octets, fewer only at the end."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def pieces_of(file: Reads) -> Iterator[bytes]:
    """Yield what is left of a file."""
    return iter(lambda: file.read(_PIECE), b"")


def stream_of(pieces: Iterator[bytes]) -> BinaryIO:
    """Return a file, to be read forward, of the pieces; empty ones do not end it."""
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
