"""What archives hold, by their names: zip, tar, gzip and bzip2, in each other too.

Nothing is unpacked beyond a budget of octets, names, levels and time, which a whole message shares.
"""

import bz2
import lzma
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Final, cast

from ._budget import BrokenError, Budget, Reads, TooMuchError, exactly, pieces_of, stream_of
from ._tar import is_tar, members_of

_PIECE = 65536
HEAD = 512  # octets that tell what a file is
_DIRECTORY = 512 * 1024  # octets of a zip's, which zipfile reads at once
_MEMORY = 256 * 1024
# Octets of which nothing comes, as in the header of a gzip; a block of bzip2 is smaller.
_SILENT: Final = 1024 * 1024
_ENCRYPTED = 0x1  # of a zip's flags
# zipfile unpacks all others by whole pieces, to gigabytes.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_GZIP: Final = b"\x1f\x8b\x08"
_BZIP2: Final = b"BZh"
_GZIP_FORM: Final = 16 + zlib.MAX_WBITS
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


def files_in(file: Reads, name: str, budget: Budget, level: int = 1) -> Iterator[Inside]:
    """Yield what an archive called `name` holds, and the archives in it; it is read once, forward.

    Raises TooMuchError and BrokenError.
    """
    if level > budget.levels:
        raise TooMuchError(f"archives in each other, more than {budget.levels} deep")
    head = exactly(file, HEAD)
    octets = chain([head], pieces_of(file))
    try:
        if _is_zip(head):
            yield from _in_zip(octets, budget, level)
        elif is_tar(head):
            yield from _in_tar(stream_of(octets), budget, level)
        elif unpacked := _unpacked(octets, head, budget):
            inner = _COMPRESSED.sub(lambda match: ".tar" if "t" in match[1] else "", name)
            yield from _contents(stream_of(unpacked), inner, budget, level)
    except (TooMuchError, BrokenError):
        raise
    except _FAULTS as fault:
        raise BrokenError(f"a broken archive ({type(fault).__name__})") from fault


def _in_zip(octets: Iterator[bytes], budget: Budget, level: int) -> Iterator[Inside]:
    with tempfile.SpooledTemporaryFile(_MEMORY) as copy:
        for piece in octets:  # `writelines` would hold them all
            copy.write(piece)
        copy.seek(0)
        with zipfile.ZipFile(cast("IO[bytes]", _Reluctant(copy))) as archive:
            items = archive.infolist()
            budget.take(names=len(items))
            # All names first: they count also where the contents are broken.
            for item in items:
                yield Inside(item.filename, encrypted=bool(item.flag_bits & _ENCRYPTED))
            for item in items:
                known = item.compress_type in _BOUNDED and not item.flag_bits & _ENCRYPTED
                if known and not item.is_dir():
                    with archive.open(item) as unpacked:
                        file = _Counted(unpacked, budget)
                        yield from _contents(file, item.filename, budget, level)


class _Reluctant:
    """A file that gives no more at once than a zip of reasonable size has in its directory."""

    def __init__(self, file: tempfile.SpooledTemporaryFile[bytes]) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(_DIRECTORY + 1 if size < 0 else min(size, _DIRECTORY + 1))
        if len(data) > _DIRECTORY:
            raise TooMuchError("archives with too many files")
        return data

    def seekable(self) -> bool:
        return True


class _Counted:
    """A file whose octets the budget pays for as they are unpacked."""

    def __init__(self, file: Reads, budget: Budget) -> None:
        self._file = file
        self._budget = budget

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._budget.take(octets=len(data))
        return data


def _in_tar(file: Reads, budget: Budget, level: int) -> Iterator[Inside]:
    for name, member in members_of(file, budget):
        budget.take(names=1)
        yield from _contents(member, name, budget, level)


def _contents(file: Reads, name: str, budget: Budget, level: int) -> Iterator[Inside]:
    """Yield a file in an archive with its first octets, and what it holds if it is one itself."""
    head = exactly(file, HEAD)
    yield Inside(name, head=head)
    if is_archive(head):
        whole = stream_of(chain([head], pieces_of(file)))
        yield from files_in(whole, name, budget, level + 1)


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\3\4", b"PK\5\6", b"PK00PK\3\4"))


def _is_gzip(head: bytes) -> bool:
    return head.startswith(_GZIP)


def _is_bzip2(head: bytes) -> bool:
    return head.startswith(_BZIP2) and head[4:10] == b"1AY&SY"


def _unpacked(octets: Iterator[bytes], head: bytes, budget: Budget) -> Iterator[bytes] | None:
    if _is_gzip(head):
        return _members(octets, _GZIP, lambda: zlib.decompressobj(_GZIP_FORM), budget)
    if _is_bzip2(head):
        return _members(octets, _BZIP2, bz2.BZ2Decompressor, budget)
    return None


def _members(
    octets: Iterator[bytes],
    magic: bytes,
    make: Callable[[], "zlib._Decompress | bz2.BZ2Decompressor"],
    budget: Budget,
) -> Iterator[bytes]:
    """Yield what the members of a file unpack to, one after the other; what follows them is none.

    The readers of the standard library take a member that is empty, and a name of any length, for
    nothing, and are slow at both. So each member counts as a name.
    """
    data = next(octets, b"")
    while data.startswith(magic):
        budget.take(names=1)
        decoder, silent = make(), 0
        while not decoder.eof:
            piece = decoder.decompress(data, _PIECE)
            data = getattr(decoder, "unconsumed_tail", b"")  # that of bzip2 keeps it for itself
            budget.take(octets=len(piece))
            if piece:
                silent = 0
                yield piece
            elif not data and not decoder.eof:
                data = next(octets, b"")
                silent += len(data)
                if not data:
                    raise EOFError
                if silent > _SILENT:
                    raise TooMuchError("archives with long headers")
        data = decoder.unused_data.lstrip(b"\0")  # gzip may be padded
        while len(data) < len(magic) and (more := next(octets, b"")):
            data = (data + more).lstrip(b"\0")
