"""How much of one message is looked at, and what its archives are read by."""

from dataclasses import dataclass
from typing import Protocol


class TooMuchError(ValueError):
    """There is more of something than will be looked at, as the text says."""


class BrokenError(ValueError):
    """An archive cannot be read."""


class Reads(Protocol):
    """What gives octets."""

    def read(self, size: int = -1, /) -> bytes:
        """Give at most so many."""


@dataclass(slots=True)
class Budget:
    """What may be looked at in one message."""

    octets: int
    names: int
    levels: int

    def take(self, octets: int = 0, names: int = 0) -> None:
        """Count; raises TooMuchError."""
        self.octets -= octets
        self.names -= names
        if self.octets < 0:
            raise TooMuchError("archives that unpack to too much")
        if self.names < 0:
            raise TooMuchError("archives with too many files")


def exactly(file: Reads, size: int) -> bytes:
    """Read so many octets, fewer only at the end."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
