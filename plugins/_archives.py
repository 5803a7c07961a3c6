"""What archives hold, by their names: zip, tar, gzip and bzip2, in each other too.

Nothing is unpacked beyond a budget of octets, names and levels, which a whole message shares.
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
from typing import IO, BinaryIO, cast

from ._budget import BrokenError, Budget, Reads, TooMuchError, exactly
from ._tar import is_tar, members_of

_PIECE = 65536
HEAD = 512  # octets that tell what a file is
_DIRECTORY = 512 * 1024  # octets of a zip's, which zipfile reads at once
_MEMORY = 256 * 1024
_ENCRYPTED = 0x1  # of a zip's flags
# zipfile unpacks all others by whole pieces, to gigabytes.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_COMPRESSED = re.compile(r"\.(t?gz|t?bz2?|tbz2)$", re.IGNORECASE)
# What zipfile and the decompressors have been seen to raise on broken files.
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, OverflowError, LookupError),
)


@dataclass(frozen=True, slots=True)
class Inside:
    """A file in an archive, with its first octets where they were looked at."""

    name: str
    encrypted: bool = False
    head: bytes = b""


def is_archive(head: bytes) -> bool:
    """Tell from the first octets."""
    return any(is_one(head) for is_one in (_is_zip, is_tar, _is_gzip, _is_bzip2))


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
        elif is_tar(head):
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


def _in_tar(file: BinaryIO, budget: Budget, level: int) -> Iterator[Inside]:
    for name, member in members_of(file, budget):
        budget.take(names=1)
        yield from _contents(member, name, budget, level)


def _contents(file: Reads, name: str, budget: Budget, level: int) -> Iterator[Inside]:
    """Give a file in an archive with its first octets, and what it holds when it is one itself."""
    head = exactly(file, HEAD)
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


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\3\4", b"PK\5\6", b"PK00PK\3\4"))


def _is_gzip(head: bytes) -> bool:
    return head.startswith(b"\x1f\x8b\x08")


def _is_bzip2(head: bytes) -> bool:
    return head.startswith(b"BZh") and head[4:10] == b"1AY&SY"


def _unpacked(file: BinaryIO, head: bytes) -> gzip.GzipFile | bz2.BZ2File | None:
    if _is_gzip(head):
        return gzip.GzipFile(fileobj=file, mode="rb")
    return bz2.BZ2File(file) if _is_bzip2(head) else None
