"""A message as the octets of DATA or BDAT, in pieces (layer 6; RFC 5321 section 4.5.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from minismtp.message import Message

_PIECE: Final = 65536
_NEWLINE: Final = re.compile(rb"\r\n|\r|\n")


def pieces(reader: BinaryIO) -> Iterator[bytes]:
    """Give content as it is."""
    return iter(lambda: reader.read(_PIECE), b"")


def dotted(reader: BinaryIO, size: int = _PIECE) -> Iterator[bytes]:
    """Give content for DATA, in pieces: lines end with CRLF, dots doubled, the end marked."""
    at_start, held = True, b""
    read: Callable[[], bytes] = lambda: reader.read(size)  # noqa: E731
    for octets in iter(read, b""):
        piece = held + octets
        held = b"\r" if piece.endswith(b"\r") else b""  # its LF may be in the next piece
        piece = piece[: len(piece) - len(held)]
        if not piece.count(b"\r\n") == piece.count(b"\n") == piece.count(b"\r"):
            piece = _NEWLINE.sub(b"\r\n", piece)  # what came by BDAT may have any
        if not piece:
            continue
        stuffed = piece.replace(b"\r\n.", b"\r\n..")
        yield b"." + stuffed if at_start and piece.startswith(b".") else stuffed
        at_start = piece.endswith(b"\n")
    yield (b"" if at_start and not held else b"\r\n") + b".\r\n"


def is_ascii(message: Message) -> bool:
    """Whether a message can travel without 8BITMIME."""
    with message.open() as reader:
        return all(piece.isascii() for piece in pieces(reader))
