"""The files in a 7z: names, and octets where Python can unpack them.

The libraries for this unpack the header, of any size, into memory, and make an object for each of
as many files as it claims. Here the budget pays for both.
"""

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

from ._budget import BrokenError, Budget, Limited, Reads, TooMuchError, exactly

SEVEN_ZIP: Final = b"7z\xbc\xaf\x27\x1c"
_PIECE: Final = 65536
_START: Final = 32  # octets before the first stream
_LONGEST: Final = 4 * 1024 * 1024  # octets of a header; there are 100 or so for each file
_LARGEST_DICTIONARY: Final = 64 * 1024 * 1024  # that of 7-Zip's strongest level
# Properties of the header
_END, _HEADER, _ARCHIVE, _ADDITIONAL, _MAIN, _FILES, _PACK, _UNPACK, _SUBSTREAMS, _SIZE = range(10)
_CRC, _FOLDER, _UNPACK_SIZE, _NUMBER, _EMPTY, _NAMES, _ENCODED = 10, 11, 12, 13, 14, 17, 23
_COPY, _DEFLATE, _BZIP2, _ENCRYPTION = b"\0", b"\x04\x01\x08", b"\x04\x02\x02", b"\x06\xf1"
_FILTERS: Final = {
    b"\x03\x01\x01": lzma.FILTER_LZMA1,
    b"\x21": lzma.FILTER_LZMA2,
    b"\x03": lzma.FILTER_DELTA,
    b"\x03\x03\x01\x03": lzma.FILTER_X86,
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file: `data` are its octets, None where they are not looked at."""

    name: str
    encrypted: bool = False
    data: Reads | None = None


@dataclass(slots=True)
class _Folder:
    """Streams that are packed together: `coders` are names and properties, the first to unpack."""

    coders: list[tuple[bytes, bytes]]
    inputs: int
    outputs: int
    size: int = 0
    parts: list[int] = field(default_factory=list)

    @property
    def is_encrypted(self) -> bool:
        return any(name.startswith(_ENCRYPTION) for name, _ in self.coders)


@dataclass(slots=True)
class _Streams:
    """Where packed streams begin, how long each is, and what they make."""

    begin: int = 0
    packed: list[int] = field(default_factory=list)
    folders: list[_Folder] = field(default_factory=list)


def members_of(file: IO[bytes], budget: Budget) -> Iterator[Member]:
    """Yield the names of all files, then those with data, which is to be read at once.

    Raise TooMuchError and BrokenError.
    """
    start = exactly(file, _START)
    offset, size = (int.from_bytes(start[at : at + 8], "little") for at in (12, 20))
    if not size:
        return  # there is no file
    file.seek(_START + offset)
    header = _Header(exactly(file, _checked(size)), budget)
    while (kind := header.number()) == _ENCODED:
        streams = header.streams()
        if any(folder.is_encrypted for folder in streams.folders):
            yield Member("", encrypted=True)
            return
        folder = streams.folders[0]
        if not _can_be_read(folder):
            raise BrokenError("an archive whose names cannot be read (7z)")
        content = _Unpacked(file, _START + streams.begin, streams.packed[0], folder, budget)
        header = _Header(exactly(content, _checked(folder.size)), budget)
    if kind != _HEADER:
        raise BrokenError("a broken archive (7z)")
    streams, names, filled = header.files()
    encrypted = any(folder.is_encrypted for folder in streams.folders)
    yield from (Member(name, encrypted) for name in names)
    yield from _with_data(file, streams, iter(filled), budget)


def _with_data(
    file: IO[bytes], streams: _Streams, names: Iterator[str], budget: Budget
) -> Iterator[Member]:
    place, packed = _START + streams.begin, iter(streams.packed)
    for folder in streams.folders:
        sizes = [next(packed) for _ in range(folder.inputs)]
        content = None
        if folder.inputs == 1 and _can_be_read(folder):
            content = _Unpacked(file, place, sizes[0], folder, budget)
        for size in folder.parts:
            name = next(names, "")
            if content is not None:
                data = Limited(content, size)
                yield Member(name, data=data)
                while data.read(_PIECE):
                    pass
        place += sum(sizes)


def _can_be_read(folder: _Folder) -> bool:
    """Tell whether Python has what unpacks a folder, within reasonable memory."""
    names = [name for name, _ in folder.coders]
    if len(names) == 1 and names[0] in _DECODERS:
        return True
    if not names or _FILTERS.get(names[0]) not in {lzma.FILTER_LZMA1, lzma.FILTER_LZMA2}:
        return False
    filters = [_filter(*coder) for coder in folder.coders if coder[0] in _FILTERS]
    largest = max(each.get("dict_size", 0) for each in filters)
    return len(filters) == len(names) and largest <= _LARGEST_DICTIONARY


def _checked(size: int) -> int:
    if size > _LONGEST:
        raise TooMuchError("archives with too many files")
    return size


class _Copy:
    """A decompressor for what is not compressed."""

    eof = False
    needs_input = True

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        del max_length
        return data


class _Inflate:
    """The one of zlib with the methods of the others."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


_DECODERS: Final[dict[bytes, Any]] = {
    _COPY: _Copy,
    _DEFLATE: _Inflate,
    _BZIP2: bz2.BZ2Decompressor,
}


def _decoder(coders: list[tuple[bytes, bytes]]) -> Any:  # noqa: ANN401 - the decompressors have no common type
    if len(coders) == 1 and coders[0][0] in _DECODERS:
        return _DECODERS[coders[0][0]]()
    filters = [_filter(*coder) for coder in reversed(coders)]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)


def _filter(name: bytes, properties: bytes) -> dict[str, int]:
    """Read what a coder is told; the function of Python's lzma for this crashes at some."""
    kind = _FILTERS[name]
    if kind == lzma.FILTER_LZMA1:
        rest, lc = divmod(properties[0], 9)
        pb, lp = divmod(rest, 5)
        size = int.from_bytes(properties[1:5], "little")
        return {"id": kind, "dict_size": max(size, 4096), "lc": lc, "lp": lp, "pb": pb}
    if kind == lzma.FILTER_LZMA2:
        return {"id": kind, "dict_size": (2 | properties[0] & 1) << (properties[0] // 2 + 11)}
    return {"id": kind, "dist": properties[0] + 1} if kind == lzma.FILTER_DELTA else {"id": kind}


class _Unpacked:
    """What a packed stream unpacks to, as it is read; the budget pays for it."""

    def __init__(
        self, file: IO[bytes], place: int, packed: int, folder: _Folder, budget: Budget
    ) -> None:
        self._file = file
        self._place = place
        self._packed = packed
        self._budget = budget
        self._decoder = _decoder(folder.coders)
        self._left = folder.size
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        while wanted and not self._rest:
            data = b""
            if self._decoder.needs_input:
                self._file.seek(self._place)
                data = self._file.read(min(_PIECE, self._packed))
                self._place, self._packed = self._place + len(data), self._packed - len(data)
            self._rest = self._decoder.decompress(data, _PIECE)
            self._budget.take(octets=len(self._rest))
            if not self._rest and (self._decoder.eof or not data):
                return b""
        found, self._rest = self._rest[:wanted], self._rest[wanted:]
        self._left -= len(found)
        return found


class _Header:
    """Reads the properties of a header; each step takes octets of it, or of the budget."""

    def __init__(self, octets: bytes, budget: Budget) -> None:
        self._octets = octets
        self._place = 0
        self._budget = budget

    def octets(self, size: int) -> bytes:
        """Read so many octets."""
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
        """Read how many there are of something, each of which takes an octet at least."""
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

    def streams(self) -> _Streams:
        """Read where the streams are, and what they hold."""
        found = _Streams()
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

    def _sizes(self, found: _Streams) -> None:
        count = self.count()
        while kind := self.number():
            if kind == _SIZE:
                found.packed = [self.number() for _ in range(count)]
            elif kind == _CRC:
                self.digests(count)

    def _folders(self, found: _Streams) -> None:
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

    def _folder(self) -> _Folder:
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
        return _Folder(coders, packed, outputs)

    def _parts(self, found: _Streams) -> None:
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

    def files(self) -> tuple[_Streams, list[str], list[str]]:
        """Read the streams, the names of all files, and of those that have octets."""
        streams = _Streams()
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
            data = _Header(self.octets(self.count()), self._budget)
            if kind == _EMPTY:
                empty = data.bits(count)
            elif kind == _NAMES:
                data.octets(1)
                text = data.octets(len(data) - 1).decode("utf-16-le", "replace")
                names = text.split("\0")[:count]
        return names, [name for name, is_empty in zip(names, empty, strict=False) if not is_empty]

    def __len__(self) -> int:
        return len(self._octets)
