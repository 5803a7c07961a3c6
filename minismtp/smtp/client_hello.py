"""The name that a TLS client asks for, read before the handshake (RFC 8446, RFC 6066).

Python's ssl passes the name to a callback as text, and ends the handshake with a traceback if it is
not ASCII. So the server peeks at the octets of the ClientHello before ssl reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0  # both the extension and the type of a name
_RECORD: Final = struct.Struct("!BxxH")  # type, version, length
_PAIR: Final = struct.Struct("!HH")  # type and length of an extension
_MOST: Final = 65536  # octets of records that are looked at
_FIXED: Final = 2 + 32  # version and random


def asked_name(peek: Callable[[int], bytes]) -> bytes:
    """Return the server name in the ClientHello that comes next, b"" if it has no such name.

    `peek(n)` returns the next n octets without taking them, and fewer at the end of the input.
    """
    hello, seen = b"", 0
    while seen < _MOST:
        header = peek(seen + _RECORD.size)[seen:]
        if len(header) < _RECORD.size:
            break
        kind, length = _RECORD.unpack(header)
        if kind != _HANDSHAKE or not length:
            break
        record = peek(seen + _RECORD.size + length)[seen + _RECORD.size :]
        hello += record
        seen += _RECORD.size + length
        if len(record) < length or len(hello) >= 4 + int.from_bytes(hello[1:4], "big"):
            break
    return _name_in(hello) if hello[:1] == bytes([_CLIENT_HELLO]) else b""


def _name_in(hello: bytes) -> bytes:
    at = 4 + _FIXED
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        at += width + int.from_bytes(hello[at : at + width], "big")
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    for kind, body in _extensions(hello[at + 2 : end]):
        if kind == _SERVER_NAME:
            # server_name_list of one entry: length, type, length of the name, name
            length = int.from_bytes(body[3:5], "big")
            return body[5 : 5 + length] if body[2:3] == bytes([_SERVER_NAME]) else b""
    return b""


def _extensions(block: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _PAIR.size <= len(block):
        kind, length = _PAIR.unpack_from(block, at)
        at += _PAIR.size
        yield kind, block[at : at + length]
        at += length
