"""The header of a 7z: the places of its streams, their coders, and the names of the files."""

from dataclasses import dataclass, field
from typing import Final

from ._budget import BrokenError, Budget

# Properties of the header
_END, HEADER, _ARCHIVE, _ADDITIONAL, _MAIN, _FILES, _PACK, _UNPACK, _SUBSTREAMS, _SIZE = range(10)
_CRC, _FOLDER, _UNPACK_SIZE, _NUMBER, _EMPTY, _NAMES, ENCODED = 10, 11, 12, 13, 14, 17, 23
_ENCRYPTION: Final = b"\x06\xf1"


@dataclass(slots=True)
class Folder:
    """Streams that are packed together: `coders` are names and properties, the first to unpack."""

    coders: list[tuple[bytes, bytes]]
    inputs: int
    outputs: int
    size: int = 0
    parts: list[int] = field(default_factory=list)

    @property
    def is_encrypted(self) -> bool:
        """Return whether a coder encrypts."""
        return any(name.startswith(_ENCRYPTION) for name, _ in self.coders)


@dataclass(slots=True)
class Streams:
    """The begin of the packed streams, their sizes, and their contents."""

    begin: int = 0
    packed: list[int] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)


class Header:
    """Reads the properties of a header; each step uses octets of it, or of the budget."""

    def __init__(self, octets: bytes, budget: Budget) -> None:
        self._octets = octets
        self._place = 0
        self._budget = budget

    def octets(self, size: int) -> bytes:
        """Return the next `size` octets."""
        found = self._octets[self._place : self._place + size]
        if len(found) < size:
            raise BrokenError("a broken archive (7z)")
        self._place += size
        return found

    def number(self) -> int:
        """Read a number: the bits that are set in its first octet say how many follow."""
        first, found, mask = self.octets(1)[0], 0, 0x80
        for shift in range(0, 64, 8):
            if not first & mask:
                return found | (first & (mask - 1)) << shift
            found |= self.octets(1)[0] << shift
            mask >>= 1
        return found

    def count(self) -> int:
        """Read the number of items, each of which has at least one octet."""
        found = self.number()
        if found > len(self._octets) * 8:
            raise BrokenError("a broken archive (7z)")
        return found

    def bits(self, count: int) -> list[bool]:
        """Read a vector of bits, the highest of an octet first."""
        octets = self.octets((count + 7) // 8)
        return [bool(octets[at // 8] & 0x80 >> at % 8) for at in range(count)]

    def digests(self, count: int) -> None:
        """Pass checksums."""
        defined = [True] * count if self.octets(1)[0] else self.bits(count)
        self.octets(4 * sum(defined))

    def streams(self) -> Streams:
        """Read the places and contents of the streams."""
        found = Streams()
        while kind := self.number():
            if kind == _PACK:
                found.begin = self.number()
                self._sizes(found)
            elif kind == _UNPACK:
                self._folders(found)
            elif kind == _SUBSTREAMS:
                self._parts(found)
            else:
                raise BrokenError("a broken archive (7z)")
        return found

    def _sizes(self, found: Streams) -> None:
        count = self.count()
        while kind := self.number():
            if kind == _SIZE:
                found.packed = [self.number() for _ in range(count)]
            elif kind == _CRC:
                self.digests(count)

    def _folders(self, found: Streams) -> None:
        self.number()  # _FOLDER
        count = self.count()
        if self.octets(1)[0]:
            raise BrokenError("a broken archive (7z)")  # it is elsewhere, which no program writes
        found.folders = [self._folder() for _ in range(count)]
        while kind := self.number():
            if kind == _UNPACK_SIZE:
                for folder in found.folders:
                    sizes = [self.number() for _ in range(folder.outputs)]
                    folder.size = max(sizes, default=0)
                    folder.parts = [folder.size]
            elif kind == _CRC:
                self.digests(count)

    def _folder(self) -> Folder:
        coders, inputs, outputs = [], 0, 0
        for _ in range(self.count()):
            flags = self.octets(1)[0]
            name = self.octets(flags & 0x0F)
            if flags & 0x10:
                inputs, outputs = inputs + self.count(), outputs + self.count()
            else:
                inputs, outputs = inputs + 1, outputs + 1
            coders.append((name, self.octets(self.count()) if flags & 0x20 else b""))
        bound = [(self.number(), self.number()) for _ in range(max(0, outputs - 1))]
        packed = max(0, inputs - len(bound))
        if packed > 1:
            for _ in range(packed):
                self.number()
        # The one whose input is bound to no output unpacks first.
        if len(coders) > 1 and bound and bound[0][0] == 0:
            coders.reverse()
        return Folder(coders, packed, outputs)

    def _parts(self, found: Streams) -> None:
        counts = [1] * len(found.folders)
        while kind := self.number():
            if kind == _NUMBER:
                counts = [self.number() for _ in found.folders]
                self._budget.take(names=max(0, sum(counts) - len(counts)))
            elif kind == _SIZE:
                for folder, count in zip(found.folders, counts, strict=True):
                    sizes = [self.number() for _ in range(count - 1)]
                    folder.parts = [*sizes, folder.size - sum(sizes)] if count else []
            elif kind == _CRC:
                self.digests(sum(counts))

    def files(self) -> tuple[Streams, list[str], list[str]]:
        """Read the streams, the names of all files, and of those that have octets."""
        streams = Streams()
        while kind := self.number():
            if kind in (_ADDITIONAL, _MAIN):
                streams = self.streams()
            elif kind == _ARCHIVE:
                while self.number():
                    self.octets(self.count())
            elif kind == _FILES:
                return streams, *self._names()
            else:
                break
        return streams, [], []

    def _names(self) -> tuple[list[str], list[str]]:
        count = self.count()
        self._budget.take(names=count)
        empty, names = [False] * count, [""] * count
        while kind := self.number():
            data = Header(self.octets(self.count()), self._budget)
            if kind == _EMPTY:
                empty = data.bits(count)
            elif kind == _NAMES:
                data.octets(1)
                text = data.octets(len(data) - 1).decode("utf-16-le", "replace")
                names = text.split("\0")[:count]
        return names, [name for name, is_empty in zip(names, empty, strict=False) if not is_empty]

    def __len__(self) -> int:
        return len(self._octets)
