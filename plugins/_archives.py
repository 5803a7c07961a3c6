"""What archives hold, by their names: zip, tar, gzip and bzip2, in each other too.

Nothing is unpacked beyond a budget of octets, names and levels, which a whole message shares. The
readers of the standard library are kept to it where they can be (zip), and done without where a
header may claim any size (tar).
"""

import bz2
import gzip
import lzma
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol, cast

from ._parts import TooMuchError

HEAD = 512  # octets that tell what a file is
_PIECE = 65536
_BLOCK = 512  # of a tar
_LONGEST_NAME = 65536  # octets
_DIRECTORY = 512 * 1024  # octets of a zip's, which zipfile reads at once
_MEMORY = 256 * 1024
_ENCRYPTED = 0x1  # of a zip's flags
# zipfile unpacks all others by whole pieces, to gigabytes.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_TAR_NAMES = {b"L", b"x"}  # blocks that hold the name of the next file: GNU, and POSIX
_COMPRESSED = re.compile(r"\.(t?gz|t?bz2?|tbz2)$", re.IGNORECASE)
# What zipfile and the decompressors have been seen to raise on broken files.
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, OverflowError, LookupError),
)


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


@dataclass(frozen=True, slots=True)
class Inside:
    """A file in an archive, with its first octets where they were looked at."""

    name: str
    encrypted: bool = False
    head: bytes = b""


def is_archive(head: bytes) -> bool:
    """Tell from the first octets."""
    return any(is_one(head) for is_one in (_is_zip, _is_tar, _is_gzip, _is_bzip2))


def files_in(file: BinaryIO, name: str, budget: Budget, level: int = 1) -> Iterator[Inside]:
    """Give what an archive called `name` holds, and the archives in it.

    Raises TooMuchError and BrokenError.
    """
    if level > budget.levels:
        raise TooMuchError(f"archives in each other, more than {budget.levels} deep")
    head = file.read(HEAD)
    file.seek(0)
    try:
        if _is_zip(head):
            yield from _in_zip(file, budget, level)
        elif _is_tar(head):
            yield from _in_tar(file, budget, level)
        elif unpacked := _unpacked(file, head):
            inner = _COMPRESSED.sub(lambda match: ".tar" if "t" in match[1] else "", name)
            budget.take(names=1)
            with unpacked:
                yield from _contents(unpacked, inner, budget, level)
    except (TooMuchError, BrokenError):
        raise
    except _FAULTS as fault:
        raise BrokenError(f"a broken archive ({type(fault).__name__})") from fault


def _in_zip(file: BinaryIO, budget: Budget, level: int) -> Iterator[Inside]:
    with zipfile.ZipFile(cast("IO[bytes]", _Reluctant(file))) as archive:
        items = archive.infolist()
        budget.take(names=len(items))
        # All names first: they count also where the contents are broken.
        for item in items:
            yield Inside(item.filename, encrypted=bool(item.flag_bits & _ENCRYPTED))
        for item in items:
            known = item.compress_type in _BOUNDED and not item.flag_bits & _ENCRYPTED
            if known and not item.is_dir():
                with archive.open(item) as unpacked:
                    yield from _contents(unpacked, item.filename, budget, level)


class _Reluctant:
    """A file that gives no more at once than a zip of reasonable size has in its directory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(_DIRECTORY + 1 if size < 0 else min(size, _DIRECTORY + 1))
        if len(data) > _DIRECTORY:
            raise TooMuchError("archives with too many files")
        return data

    def seekable(self) -> bool:
        return True


def _in_tar(file: Reads, budget: Budget, level: int) -> Iterator[Inside]:
    longer = ""
    while len(block := _exactly(file, _BLOCK)) == _BLOCK and any(block):
        if not _is_tar(block):
            raise BrokenError("a broken archive (tar)")
        size = _number(block[124:136])
        if block[156:157] in _TAR_NAMES:
            data = _exactly(file, min(size, _LONGEST_NAME))
            longer = _long_name(data, block[156:157]) or longer
            _pass(file, size - len(data) + -size % _BLOCK, budget)
            continue
        parts = [_until_nul(block[345:500]), _until_nul(block[:100])]
        name, longer = longer or "/".join(filter(None, parts)), ""
        member = _Member(file, size)
        budget.take(names=1)
        yield from _contents(member, name, budget, level)
        _pass(file, member.left + -size % _BLOCK, budget)


class _Member:
    """One file of a tar."""

    def __init__(self, file: Reads, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def _contents(file: Reads, name: str, budget: Budget, level: int) -> Iterator[Inside]:
    """Give a file in an archive with its first octets, and what it holds when it is one itself."""
    head = _exactly(file, HEAD)
    budget.take(octets=len(head))
    yield Inside(name, head=head)
    if not is_archive(head):
        return
    with tempfile.SpooledTemporaryFile(_MEMORY) as copy:
        copy.write(head)
        while piece := file.read(_PIECE):
            budget.take(octets=len(piece))
            copy.write(piece)
        copy.seek(0)
        yield from files_in(cast("BinaryIO", copy), name, budget, level + 1)


def _pass(file: Reads, size: int, budget: Budget) -> None:
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        budget.take(octets=len(piece))
        size -= len(piece)


def _exactly(file: Reads, size: int) -> bytes:
    """Read so many octets, fewer only at the end."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\3\4", b"PK\5\6", b"PK00PK\3\4"))


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _is_gzip(head: bytes) -> bool:
    return head.startswith(b"\x1f\x8b\x08")


def _is_bzip2(head: bytes) -> bool:
    return head.startswith(b"BZh") and head[4:10] == b"1AY&SY"


def _unpacked(file: BinaryIO, head: bytes) -> gzip.GzipFile | bz2.BZ2File | None:
    if _is_gzip(head):
        return gzip.GzipFile(fileobj=file, mode="rb")
    return bz2.BZ2File(file) if _is_bzip2(head) else None


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
