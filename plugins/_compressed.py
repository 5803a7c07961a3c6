"""Compressed single files: gzip, bzip2, xz and, from Python 3.14 on, zstd."""

import bz2
import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from ._budget import Budget, TooMuchError

_PIECE = 65536
# Octets without output, as in the header of a gzip; a block of bzip2 is smaller.
_SILENT: Final = 1024 * 1024
GZIP: Final = b"\x1f\x8b\x08"
_BZIP2: Final = b"BZh"
XZ: Final = b"\xfd7zXZ\0"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
_GZIP_FORM: Final = 16 + zlib.MAX_WBITS
_XZ_MEMORY: Final = 80 * 1024 * 1024  # octets: the strongest level needs 65 MiB
_SUFFIX: Final = re.compile(r"\.(t?gz|t?bz2?|tbz2|t?xz|txz|t?zst|tzst)$", re.IGNORECASE)


def _zstd_decoder() -> Callable[[], Any] | None:
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError:  # before Python 3.14: then by the name alone
        return None
    return cast("Callable[[], Any]", module.ZstdDecompressor)


_ZSTD_DECODER: Final = _zstd_decoder()


def is_bzip2(head: bytes) -> bool:
    """Return whether these are the first octets of a bzip2 file."""
    return head.startswith(_BZIP2) and head[4:10] == b"1AY&SY"


def without_suffix(name: str) -> str:
    """Return the name of the file inside."""
    return _SUFFIX.sub(lambda match: ".tar" if match[1][:1] in "tT" else "", name)


def unpacked(octets: Iterator[bytes], head: bytes, budget: Budget) -> Iterator[bytes] | None:
    """Return the contents of a file with these first octets, None if it cannot be unpacked."""
    if head.startswith(GZIP):
        return _members(octets, GZIP, lambda: zlib.decompressobj(_GZIP_FORM), budget)
    if is_bzip2(head):
        return _members(octets, _BZIP2, bz2.BZ2Decompressor, budget)
    if head.startswith(XZ):
        return _members(octets, XZ, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), budget)
    if head.startswith(ZSTD) and _ZSTD_DECODER is not None:
        return _members(octets, ZSTD, _ZSTD_DECODER, budget)
    return None


def _members(
    octets: Iterator[bytes], magic: bytes, make: Callable[[], Any], budget: Budget
) -> Iterator[bytes]:
    """Yield the contents of the members of a file, one after the other, without data after them.

    The readers of the standard library accept empty members and names of any length, and are slow
    at both. So each member counts as a name.
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
