"""The contents of archives: zip, 7z, rar, tar, gzip, bzip2, xz, zstd and TNEF, also nested ones.

Unpacking is limited by a budget of octets, names, levels and time for a whole message.
"""

import lzma
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Final, cast

from . import _rar, _sequential, _seven_zip
from ._budget import BrokenError, Budget, Member, Reads, TooMuchError, exactly, pieces_of, stream_of

HEAD = 512  # octets by which the type of a file is recognized
_DIRECTORY = 512 * 1024  # octets of a zip's, which zipfile reads at once
_MEMORY = 256 * 1024
_ENCRYPTED = 0x1  # of a zip's flags
# zipfile unpacks all others by whole pieces, to gigabytes.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ZIP: Final = (b"PK\3\4", b"PK\5\6", b"PK00PK\3\4")
_KNOWN: Final = (*_ZIP, _seven_zip.SIGNATURE, *_rar.SIGNATURES)
# Exceptions that zipfile and the decompressors raise for broken files.
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, OverflowError, LookupError),
)


def is_archive(head: bytes) -> bool:
    """Return whether these are the first octets of an archive."""
    return head.startswith(_KNOWN) or _sequential.is_archive(head)


def files_in(
    file: Reads, name: str, budget: Budget, level: int = 1
) -> Iterator[tuple[Member, bytes]]:
    """Yield the files in an archive called `name`, and in nested ones; read it once, forward.

    Beside a file are its first octets, if they could be read. Raise TooMuchError and BrokenError.
    """
    if level > budget.levels:
        raise TooMuchError(f"archives in each other, more than {budget.levels} deep")
    start = exactly(file, HEAD)
    whole = stream_of(chain([start], pieces_of(file)))
    try:
        for member in _members_of(whole, start, name, budget):
            if member.data is None:
                yield member, b""
                continue
            head = exactly(member.data, HEAD)
            yield member, head
            if is_archive(head):
                inner = stream_of(chain([head], pieces_of(member.data)))
                yield from files_in(inner, member.name, budget, level + 1)
    except (TooMuchError, BrokenError):
        raise
    except _FAULTS as fault:
        raise BrokenError(f"a broken archive ({type(fault).__name__})") from fault


def _members_of(file: Reads, head: bytes, name: str, budget: Budget) -> Iterator[Member]:
    if head.startswith(_ZIP):
        return _in_zip(file, budget)
    if head.startswith(_seven_zip.SIGNATURE):
        return _in_7z(file, budget)
    if head.startswith(_rar.SIGNATURES):
        return _rar.members_of(file, budget)
    return _sequential.members_of(file, head, name, budget)


@contextmanager
def _copied(file: Reads) -> Iterator[tempfile.SpooledTemporaryFile[bytes]]:
    """Return a seekable copy; `writelines` would keep all pieces in memory."""
    with tempfile.SpooledTemporaryFile(_MEMORY) as copy:
        for piece in pieces_of(file):
            copy.write(piece)
        copy.seek(0)
        yield copy


def _in_zip(file: Reads, budget: Budget) -> Iterator[Member]:
    with (
        _copied(file) as copy,
        zipfile.ZipFile(cast("IO[bytes]", _BoundedFile(copy))) as archive,
    ):
        items = archive.infolist()
        budget.take(names=len(items))
        # All names first, because they count even if the contents are broken.
        for item in items:
            yield Member(item.filename, encrypted=bool(item.flag_bits & _ENCRYPTED))
        for item in items:
            known = item.compress_type in _BOUNDED and not item.flag_bits & _ENCRYPTED
            if known and not item.is_dir():
                with archive.open(item) as content:
                    yield Member(item.filename, data=_Counted(content, budget))


def _in_7z(file: Reads, budget: Budget) -> Iterator[Member]:
    with _copied(file) as copy:
        yield from _seven_zip.members_of(cast("IO[bytes]", copy), budget)


class _BoundedFile:
    """A file whose reads are limited to the directory of a zip of reasonable size."""

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
    """A file whose octets count for the budget when they are unpacked."""

    def __init__(self, file: Reads, budget: Budget) -> None:
        self._file = file
        self._budget = budget

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._budget.take(octets=len(data))
        return data
