"""Archives that are read in one pass: compressed files, tar, and TNEF.

The readers of the standard library let the header of a tar claim any size, and accept empty members
and names of any length in a compressed file, at both of which they are slow.
"""

import bz2
import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

from ._budget import (
    BrokenError,
    Budget,
    Limited,
    Member,
    Reads,
    TooMuchError,
    exactly,
    pieces_of,
    skip,
    stream_of,
)

_PIECE = 65536
# Octets without output, as in the header of a gzip; a block of bzip2 is smaller.
_SILENT: Final = 1024 * 1024
_BZIP2: Final = b"BZh"
_XZ_MEMORY: Final = 80 * 1024 * 1024  # octets: the strongest level needs 65 MiB
_SUFFIX: Final = re.compile(r"\.(t?gz|t?bz2?|tbz2|t?xz|txz|t?zst|tzst)$", re.IGNORECASE)
_BLOCK: Final = 512  # of a tar
_TAR_NAMES: Final = {b"L", b"x"}  # blocks that hold the name of the next file: GNU, and POSIX
_TNEF: Final = b"\x78\x9f\x3e\x22"  # the winmail.dat of Outlook and Exchange (MS-OXTNEF)
_LONGEST: Final = 65536  # octets of a name, and of the properties of a TNEF with names
_TITLE, _DATA, _PROPERTIES = 0x00018010, 0x0006800F, 0x00069005
# PidTagAttachLongFilename, PidTagAttachFilename and PidTagDisplayName, one string of characters of
# 8 or 16 bits: type, tag, how many, and the length.
_NAMED: Final = re.compile(
    rb"([\x1e\x1f])\0(?:\x07\x37|\x04\x37|\x01\x30)\x01\0\0\0(..)\0\0", re.DOTALL
)


def _zstd_decoder() -> Callable[[], Any] | None:
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError:  # before Python 3.14
        return None
    return cast("Callable[[], Any]", module.ZstdDecompressor)


#: The decompressors by the first octets of files; without one the name alone counts.
_DECOMPRESSORS: Final[dict[bytes, Callable[[], Any] | None]] = {
    b"\x1f\x8b\x08": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),  # gzip
    _BZIP2: bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    b"\x28\xb5\x2f\xfd": _zstd_decoder(),
}


def is_archive(head: bytes) -> bool:
    """Return whether these are the first octets of one of these archives."""
    return head.startswith(_TNEF) or _is_tar(head) or _magic_of(head) != b""


def members_of(file: Reads, head: bytes, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the files in an archive called `name`. Raise TooMuchError and BrokenError."""
    if head.startswith(_TNEF):
        yield from _in_tnef(file, budget)
    elif _is_tar(head):
        yield from _in_tar(file, budget)
    else:
        inside = _SUFFIX.sub(lambda match: ".tar" if match[1][:1] in "tT" else "", name)
        magic = _magic_of(head)
        make = _DECOMPRESSORS[magic]
        data = stream_of(_members(pieces_of(file), magic, make, budget)) if make else None
        yield Member(inside, data=data)


def _magic_of(head: bytes) -> bytes:
    """Return the octets that tell how a file is compressed, b"" if it is not."""
    magic = next(filter(head.startswith, _DECOMPRESSORS), b"")
    return b"" if magic == _BZIP2 and head[4:10] != b"1AY&SY" else magic


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _members(
    octets: Iterator[bytes], magic: bytes, make: Callable[[], Any], budget: Budget
) -> Iterator[bytes]:
    """Yield the contents of the members of a file, one after the other, without data after them.

    Each counts as a name, because empty ones and long names take time.
    """
    data = next(octets, b"")
    while data.startswith(magic):
        budget.take(names=1)
        decoder = make()
        yield from decompressed(decoder, octets, budget, data)
        if not decoder.eof:
            raise EOFError
        data = decoder.unused_data.lstrip(b"\0")  # gzip may be padded
        while len(data) < len(magic) and (more := next(octets, b"")):
            data = (data + more).lstrip(b"\0")


def decompressed(
    decoder: Any,  # noqa: ANN401 - the decompressors have no common type
    octets: Iterator[bytes],
    budget: Budget,
    data: bytes = b"",
) -> Iterator[bytes]:
    """Yield what a decompressor makes of `data` and `octets`, up to its end or theirs."""
    silent = 0
    while not decoder.eof:
        piece = decoder.decompress(data, _PIECE)
        data = getattr(decoder, "unconsumed_tail", b"")  # other decompressors keep it themselves
        budget.take(octets=len(piece))
        if piece:
            silent = 0
            yield piece
        elif not data and not decoder.eof:
            data = next(octets, b"")
            silent += len(data)
            if not data:
                return
            if silent > _SILENT:
                raise TooMuchError("archives with long headers")


def _in_tar(file: Reads, budget: Budget) -> Iterator[Member]:
    longer = ""
    while len(block := exactly(file, _BLOCK)) == _BLOCK and any(block):
        if not _is_tar(block):
            raise BrokenError("a broken archive (tar)")
        size = _number(block[124:136])
        if block[156:157] in _TAR_NAMES:
            budget.take()
            text = exactly(file, min(size, _LONGEST))
            longer = _long_name(text, block[156:157]) or longer
            skip(Limited(file, size - len(text) + -size % _BLOCK), budget)
            continue
        parts = [_until_nul(block[345:500]), _until_nul(block[:100])]
        name, longer = longer or "/".join(filter(None, parts)), ""
        budget.take(names=1)
        data = Limited(file, size)
        yield Member(name, data=data)
        skip(Limited(file, data.left + -size % _BLOCK), budget)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU has larger ones in binary
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(_until_nul(field).strip() or "0", 8)


def _until_nul(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _long_name(data: bytes, kind: bytes) -> str:
    if kind == b"L":
        return _until_nul(data)
    # A POSIX record is "<length> path=<name>\n".
    match = re.search(rb"(?:\A|\n)[0-9]{1,10} path=([^\n]*)", data)
    return match[1].decode("utf-8", "replace") if match else ""


def _in_tnef(file: Reads, budget: Budget) -> Iterator[Member]:
    """Yield the names of attachments, and their data, which a longer name may follow."""
    exactly(file, 6)  # the signature, and a key
    title = ""
    while len(head := exactly(file, 9)) == 9:  # noqa: PLR2004 - level, kind, length
        kind, size = (int.from_bytes(head[at : at + 4], "little") for at in (1, 5))
        data = Limited(file, size)
        budget.take()
        found: Iterable[Member] = ()
        if kind == _TITLE:
            title = _until_nul(exactly(data, _LONGEST))
            found = [Member(title)]
        elif kind == _DATA:
            found = [Member(title, data=data)]
        elif kind == _PROPERTIES:
            found = map(Member, _names_in(exactly(data, _LONGEST)))
        for member in found:
            budget.take(names=1)
            yield member
        skip(data, budget)
        exactly(file, 2)  # the checksum


def _names_in(properties: bytes) -> Iterator[str]:
    for match in _NAMED.finditer(properties):
        octets = properties[match.end() : match.end() + int.from_bytes(match[2], "little")]
        text = octets.decode("utf-16-le" if match[1] == b"\x1f" else "utf-8", "replace")
        yield text.partition("\0")[0]
