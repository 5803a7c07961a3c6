"""What the content of a message is made of, in pieces (layer 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from minismtp.message import Message

_PIECE: Final = 65536


def pieces(reader: BinaryIO) -> Iterator[bytes]:
    """Give content as it is."""
    return iter(lambda: reader.read(_PIECE), b"")


def is_ascii(message: Message) -> bool:
    """Whether a message can travel without 8BITMIME."""
    with message.open() as reader:
        return all(piece.isascii() for piece in pieces(reader))
