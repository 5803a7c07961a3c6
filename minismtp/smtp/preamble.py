"""What comes before SMTP: the PROXY header of a balancer, and the ClientHello of TLS.

With a PROXY header (versions 1 and 2) a balancer in front of the server says who the client is. The
reader takes exactly the octets of the header, because a TLS handshake may follow.

A ClientHello names the server that the client asks for (RFC 8446, RFC 6066), and the protocols that
it speaks inside TLS (RFC 7301). Python's ssl passes the name to a callback as text, and ends the
handshake with a traceback if it is not ASCII. It has no callback for the protocols. So the server
peeks at the octets before ssl reads them.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from minismtp.values.peer import plain_address

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_LIMIT: Final = 107  # octets with CRLF, section 2.1 of the specification
_V2_LIMIT: Final = 2048  # octets after the fixed part: addresses and TLVs
_V1: Final = re.compile(rb"PROXY (TCP4|TCP6) (\S+) (\S+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_PORT_LIMIT: Final = 65536
# Section 2.2.6 of the specification: what version 2 says of the TLS that the balancer ended.
_TLS: Final = 0x20  # PP2_TYPE_SSL
_FIELD: Final = struct.Struct("!BH")  # type and length, before a value
_TLS_FORM: Final = struct.Struct("!BI")  # client, verify
_SPOKE_TLS: Final = 0x01  # PP2_CLIENT_SSL
_TLS_VERSION: Final = 0x21
_TLS_CIPHER: Final = 0x23
_TLS_WORD: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Of the ClientHello.
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0  # both the extension and the type of a name
_PROTOCOLS: Final = 16  # application_layer_protocol_negotiation
_RECORD: Final = struct.Struct("!BxxH")  # type, version, length
_EXTENSION: Final = struct.Struct("!HH")  # type and length, before a value
_MOST: Final = 65536  # octets of records that are looked at
_MOST_RECORDS: Final = 1024  # each is peeked at together with those before it
_FIXED: Final = 2 + 32  # version and random


class ProxyProblem(Exception):  # noqa: N818 - a fault of the peer
    """The connection does not begin with a valid PROXY header."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Who the client is and which address it called; `peer` is "" for LOCAL and UNKNOWN.

    `local` says that the balancer speaks for itself, as in its health checks. `tls` has the version
    and the cipher of the TLS between client and balancer, as far as the balancer tells them. It is
    None if the header does not mention TLS.
    """

    peer: str
    peer_port: int
    called: str
    local: bool
    tls: tuple[str, str] | None = None


def read_header(receive: Callable[[int], bytes]) -> ProxyHeader:
    """Read one header with `receive(n)`, which returns exactly n octets. Raise ProxyProblem.

    Exceptions of `receive` pass through.
    """
    start = receive(len(_SIGNATURE))
    if start == _SIGNATURE:
        return _version_2(receive)
    if start.startswith(b"PROXY "):
        return _version_1(start, receive)
    raise ProxyProblem("no PROXY header")


def _version_1(line: bytes, receive: Callable[[int], bytes]) -> ProxyHeader:
    while not line.endswith(b"\r\n"):
        if len(line) >= _V1_LIMIT:
            raise ProxyProblem("PROXY line longer than 107 octets")
        line += receive(1)
    if line.startswith(b"PROXY UNKNOWN"):
        return ProxyHeader("", 0, "", local=False)
    match = _V1.fullmatch(line)
    if match is None:
        raise ProxyProblem("malformed PROXY line")
    version = 4 if match[1] == b"TCP4" else 6
    ports = int(match[4]), int(match[5])
    if max(ports) >= _PORT_LIMIT:
        raise ProxyProblem("port out of range in PROXY line")
    return ProxyHeader(
        _address(match[2], version), ports[0], _address(match[3], version), local=False
    )


def _version_2(receive: Callable[[int], bytes]) -> ProxyHeader:
    command, family, size = struct.unpack("!BBH", receive(4))
    if size > _V2_LIMIT:
        raise ProxyProblem("PROXY header too long")
    rest = receive(size) if size else b""
    if command == _LOCAL:
        return ProxyHeader("", 0, "", local=True)
    if command != _PROXY:
        raise ProxyProblem("unknown version or command in PROXY header")
    form = {_TCP4: "!4s4sHH", _TCP6: "!16s16sHH"}.get(family)
    if form is None:
        return ProxyHeader("", 0, "", local=False)
    if size < struct.calcsize(form):
        raise ProxyProblem("PROXY header too short for its addresses")
    source, target, port, _ = struct.unpack_from(form, rest)
    peer, called = (plain_address(str(ipaddress.ip_address(each))) for each in (source, target))
    tls = _tls(rest[struct.calcsize(form) :])
    return ProxyHeader(peer, port, called, local=False, tls=tls)


def _tls(data: bytes) -> tuple[str, str] | None:
    """Return the version and cipher of the client's TLS, None if there was no TLS."""
    said = dict(_fields(data, _FIELD)).get(_TLS, b"")
    if len(said) < _TLS_FORM.size or not said[0] & _SPOKE_TLS:
        return None
    values = dict(_fields(said[_TLS_FORM.size :], _FIELD))
    version, cipher = (
        values.get(kind, b"").decode("latin-1") for kind in (_TLS_VERSION, _TLS_CIPHER)
    )
    return (
        version if _TLS_WORD.fullmatch(version) else "TLS",
        cipher if _TLS_WORD.fullmatch(cipher) else "unknown",
    )


def _fields(data: bytes, form: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the value of each field that is complete; `form` begins a field."""
    place = 0
    while place + form.size <= len(data):
        kind, size = form.unpack_from(data, place)
        place += form.size + size
        if place <= len(data):
            yield kind, data[place - size : place]


def _address(text: bytes, version: int) -> str:
    words = text.decode("ascii", "replace")
    try:
        # No zone, as in fe80::1%eth0: it could be any text.
        address = ipaddress.ip_address("" if "%" in words else words)
    except ValueError:
        raise ProxyProblem("malformed address in PROXY line") from None
    if address.version != version:
        raise ProxyProblem("address of another family in PROXY line")
    return plain_address(words)


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The server name and the protocols that a TLS client asks for, empty without such extensions.

    The octets are as the client sent them, and may be anything.
    """

    name: bytes = b""
    protocols: tuple[bytes, ...] = ()


def read_hello(peek: Callable[[int], bytes]) -> ClientHello:
    """Return what the ClientHello asks for that comes next; an empty one if there is none.

    `peek(n)` returns the next n octets without taking them, and fewer at the end of the input.
    """
    hello, seen = bytearray(), 0
    for _ in range(_MOST_RECORDS):
        header = peek(seen + _RECORD.size)[seen:]
        if len(header) < _RECORD.size:
            break
        kind, length = _RECORD.unpack(header)
        if kind != _HANDSHAKE or not length:
            break
        record = peek(seen + _RECORD.size + length)[seen + _RECORD.size :]
        hello += record
        seen += _RECORD.size + length
        whole = len(hello) >= 4 + int.from_bytes(hello[1:4], "big")
        if len(record) < length or whole or seen >= _MOST:
            break
    return _parsed(bytes(hello)) if hello[:1] == bytes([_CLIENT_HELLO]) else ClientHello()


def _parsed(hello: bytes) -> ClientHello:
    at = 4 + _FIXED
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        at += width + int.from_bytes(hello[at : at + width], "big")
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    name, protocols = b"", tuple[bytes, ...]()
    for kind, body in _fields(hello[at + 2 : end], _EXTENSION):
        if kind == _SERVER_NAME:
            name = name or _name_in(body)
        elif kind == _PROTOCOLS:
            protocols = protocols or tuple(_protocols_in(body))
    return ClientHello(name, protocols)


def _name_in(body: bytes) -> bytes:
    # server_name_list of one entry: length, type, length of the name, name
    length = int.from_bytes(body[3:5], "big")
    return body[5 : 5 + length] if body[2:3] == bytes([_SERVER_NAME]) else b""


def _protocols_in(body: bytes) -> Iterator[bytes]:
    """Yield the names of protocols, each after its length (RFC 7301 section 3.1)."""
    at, end = 2, 2 + int.from_bytes(body[:2], "big")
    while at < min(end, len(body)):
        length = body[at]
        yield body[at + 1 : at + 1 + length]
        at += 1 + length
