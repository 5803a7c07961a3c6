"""What archives hold: zip, 7z, rar, tar, gzip, bzip2, xz, zstd and TNEF, in each other too.

Nothing is unpacked beyond a budget of octets, names, levels and time, which a whole message shares.
"""

import bz2
import importlib
import lzma
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, Final, cast

from ._budget import BrokenError, Budget, Reads, TooMuchError, exactly, pieces_of, stream_of
from ._rar import RAR4, RAR5
from ._rar import members_of as members_of_rar
from ._seven_zip import SEVEN_ZIP
from ._seven_zip import members_of as members_of_7z
from ._tar import is_tar, members_of
from ._tnef import TNEF
from ._tnef import members_of as members_of_tnef

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
_XZ: Final = b"\xfd7zXZ\0"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_GZIP_FORM: Final = 16 + zlib.MAX_WBITS
_XZ_MEMORY: Final = 80 * 1024 * 1024  # octets: the strongest level needs 65 MiB
_COMPRESSED = re.compile(r"\.(t?gz|t?bz2?|tbz2|t?xz|txz|t?zst|tzst)$", re.IGNORECASE)
_ZIP: Final = (b"PK\3\4", b"PK\5\6", b"PK00PK\3\4")
_KNOWN: Final = (*_ZIP, _GZIP, _XZ, _ZSTD, SEVEN_ZIP, RAR4, RAR5, TNEF)
# What zipfile and the decompressors have been seen to raise on broken files.
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, OverflowError, LookupError),
)


def _zstd_decoder() -> Callable[[], Any] | None:
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError:  # before Python 3.14: then by the name alone
        return None
    return cast("Callable[[], Any]", module.ZstdDecompressor)


_ZSTD_DECODER: Final = _zstd_decoder()


@dataclass(frozen=True, slots=True)
class Inside:
    """A file in an archive, with its first octets where they were looked at."""

    name: str
    encrypted: bool = False
    head: bytes = b""


def is_archive(head: bytes) -> bool:
    """Tell from the first octets."""
    return head.startswith(_KNOWN) or _is_bzip2(head) or is_tar(head)


def files_in(file: Reads, name: str, budget: Budget, level: int = 1) -> Iterator[Inside]:
    """Yield what an archive called `name` holds, and the archives in it; it is read once, forward.

    Raises TooMuchError and BrokenError.
    """
    if level > budget.levels:
        raise TooMuchError(f"archives in each other, more than {budget.levels} deep")
    head = exactly(file, HEAD)
    octets = chain([head], pieces_of(file))
    try:
        yield from _inside(head, octets, name, budget, level)
    except (TooMuchError, BrokenError):
        raise
    except _FAULTS as fault:
        raise BrokenError(f"a broken archive ({type(fault).__name__})") from fault


def _inside(
    head: bytes, octets: Iterator[bytes], name: str, budget: Budget, level: int
) -> Iterator[Inside]:
    if head.startswith(_ZIP):
        return _in_zip(octets, budget, level)
    if head.startswith(SEVEN_ZIP):
        return _in_7z(octets, name, budget, level)
    if head.startswith((RAR4, RAR5)):
        return _in_rar(stream_of(octets), name, budget, level)
    if head.startswith(TNEF):
        return _in_tnef(stream_of(octets), budget, level)
    if is_tar(head):
        return _in_tar(stream_of(octets), budget, level)
    inner = _COMPRESSED.sub(_unpacked_suffix, name)
    if head.startswith(_ZSTD) and _ZSTD_DECODER is None:
        return iter([Inside(inner)])
    unpacked = _unpacked(octets, head, budget)
    return iter(()) if unpacked is None else _contents(stream_of(unpacked), inner, budget, level)


def _unpacked_suffix(match: re.Match[str]) -> str:
    return ".tar" if match[1][:1] in "tT" else ""


@contextmanager
def _copied(octets: Iterator[bytes]) -> Iterator[tempfile.SpooledTemporaryFile[bytes]]:
    """Make a file that can be sought in; `writelines` would hold all pieces."""
    with tempfile.SpooledTemporaryFile(_MEMORY) as copy:
        for piece in octets:
            copy.write(piece)
        copy.seek(0)
        yield copy


def _in_zip(octets: Iterator[bytes], budget: Budget, level: int) -> Iterator[Inside]:
    with (
        _copied(octets) as copy,
        zipfile.ZipFile(cast("IO[bytes]", _Reluctant(copy))) as archive,
    ):
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


def _in_7z(octets: Iterator[bytes], name: str, budget: Budget, level: int) -> Iterator[Inside]:
    with _copied(octets) as copy:
        for member in members_of_7z(cast("IO[bytes]", copy), budget):
            yield Inside(member.name or name, member.encrypted)
            if member.data is not None:
                yield from _contents(member.data, member.name, budget, level)


def _in_rar(file: Reads, name: str, budget: Budget, level: int) -> Iterator[Inside]:
    for member in members_of_rar(file, budget):
        budget.take(names=1)
        yield Inside(member.name or name, member.encrypted)
        if member.data is not None:
            yield from _contents(member.data, member.name, budget, level)


def _in_tnef(file: Reads, budget: Budget, level: int) -> Iterator[Inside]:
    for name, data in members_of_tnef(file, budget):
        budget.take(names=1)
        yield Inside(name)
        if data is not None:
            yield from _contents(data, name, budget, level)


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


def _is_bzip2(head: bytes) -> bool:
    return head.startswith(_BZIP2) and head[4:10] == b"1AY&SY"


def _unpacked(octets: Iterator[bytes], head: bytes, budget: Budget) -> Iterator[bytes] | None:
    if head.startswith(_GZIP):
        return _members(octets, _GZIP, lambda: zlib.decompressobj(_GZIP_FORM), budget)
    if _is_bzip2(head):
        return _members(octets, _BZIP2, bz2.BZ2Decompressor, budget)
    if head.startswith(_XZ):
        return _members(octets, _XZ, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), budget)
    if head.startswith(_ZSTD):
        return _members(octets, _ZSTD, cast("Callable[[], Any]", _ZSTD_DECODER), budget)
    return None


def _members(
    octets: Iterator[bytes],
    magic: bytes,
    make: Callable[[], "zlib._Decompress | bz2.BZ2Decompressor | lzma.LZMADecompressor"],
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
