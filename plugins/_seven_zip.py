"""The files in a 7z: names, and octets where Python can unpack them.

The libraries for this unpack a header of any size into memory, and make an object for each file
that it claims. Here the budget limits both.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

from ._budget import (
    BrokenError,
    Budget,
    Limited,
    Member,
    Reads,
    TooMuchError,
    exactly,
    skip,
    stream_of,
)
from ._sequential import decompressed
from ._seven_zip_header import ENCODED, HEADER, Folder, Header, Streams

SIGNATURE: Final = b"7z\xbc\xaf\x27\x1c"
_PIECE: Final = 65536
_START: Final = 32  # octets before the first stream
_LONGEST: Final = 4 * 1024 * 1024  # octets of a header; there are 100 or so for each file
_LARGEST_DICTIONARY: Final = 64 * 1024 * 1024  # that of 7-Zip's strongest level
_COPY, _DEFLATE, _BZIP2 = b"\0", b"\x04\x01\x08", b"\x04\x02\x02"
_FILTERS: Final = {
    b"\x03\x01\x01": lzma.FILTER_LZMA1,
    b"\x21": lzma.FILTER_LZMA2,
    b"\x03": lzma.FILTER_DELTA,
    b"\x03\x03\x01\x03": lzma.FILTER_X86,
}


def members_of(file: IO[bytes], budget: Budget) -> Iterator[Member]:
    """Yield the names of all files, then those with data, which must be read at once.

    Raise TooMuchError and BrokenError.
    """
    start = exactly(file, _START)
    offset, size = (int.from_bytes(start[at : at + 8], "little") for at in (12, 20))
    if not size:
        return  # there is no file
    file.seek(_START + offset)
    header = Header(exactly(file, _checked(size)), budget)
    while (kind := header.number()) == ENCODED:
        streams = header.streams()
        if any(folder.is_encrypted for folder in streams.folders):
            yield Member("", encrypted=True)
            return
        folder = streams.folders[0]
        if not _can_be_read(folder):
            raise BrokenError("an archive whose names cannot be read (7z)")
        content = _unpacked(file, _START + streams.begin, streams.packed[0], folder, budget)
        header = Header(exactly(content, _checked(folder.size)), budget)
    if kind != HEADER:
        raise BrokenError("a broken archive (7z)")
    streams, names, filled = header.files()
    encrypted = any(folder.is_encrypted for folder in streams.folders)
    yield from (Member(name, encrypted) for name in names)
    yield from _with_data(file, streams, iter(filled), budget)


def _with_data(
    file: IO[bytes], streams: Streams, names: Iterator[str], budget: Budget
) -> Iterator[Member]:
    place, packed = _START + streams.begin, iter(streams.packed)
    for folder in streams.folders:
        sizes = [next(packed) for _ in range(folder.inputs)]
        content = None
        if folder.inputs == 1 and _can_be_read(folder):
            content = _unpacked(file, place, sizes[0], folder, budget)
        for size in folder.parts:
            name = next(names, "")
            if content is not None:
                data = Limited(content, size)
                yield Member(name, data=data)
                skip(data, budget)
        place += sum(sizes)


def _can_be_read(folder: Folder) -> bool:
    """Return whether Python can unpack a folder within reasonable memory."""
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
    """A decompressor for data that is not compressed."""

    eof = False

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        del max_length
        return data


_DECODERS: Final[dict[bytes, Callable[[], Any]]] = {
    _COPY: _Copy,
    _DEFLATE: lambda: zlib.decompressobj(-zlib.MAX_WBITS),
    _BZIP2: bz2.BZ2Decompressor,
}


def _decoder(coders: list[tuple[bytes, bytes]]) -> Any:  # noqa: ANN401 - the decompressors have no common type
    if len(coders) == 1 and coders[0][0] in _DECODERS:
        return _DECODERS[coders[0][0]]()
    filters = [_filter(*coder) for coder in reversed(coders)]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)


def _filter(name: bytes, properties: bytes) -> dict[str, int]:
    """Read a coder's properties, at some of which the function of Python's lzma crashes."""
    kind = _FILTERS[name]
    if kind == lzma.FILTER_LZMA1:
        rest, lc = divmod(properties[0], 9)
        pb, lp = divmod(rest, 5)
        size = int.from_bytes(properties[1:5], "little")
        return {"id": kind, "dict_size": max(size, 4096), "lc": lc, "lp": lp, "pb": pb}
    if kind == lzma.FILTER_LZMA2:
        return {"id": kind, "dict_size": (2 | properties[0] & 1) << (properties[0] // 2 + 11)}
    return {"id": kind, "dist": properties[0] + 1} if kind == lzma.FILTER_DELTA else {"id": kind}


def _unpacked(file: IO[bytes], place: int, size: int, folder: Folder, budget: Budget) -> Reads:
    """Return the contents of a folder, unpacked on reading; `size` is that in the file."""
    octets = decompressed(_decoder(folder.coders), _octets(file, place, size), budget)
    return Limited(stream_of(octets), folder.size)


def _octets(file: IO[bytes], place: int, size: int) -> Iterator[bytes]:
    """Yield octets of a file that others read too."""
    end = place + size
    while place < end:
        file.seek(place)
        if not (piece := file.read(min(_PIECE, end - place))):
            return
        place += len(piece)
        yield piece
