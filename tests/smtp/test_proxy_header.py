"""The headers of the PROXY protocol, as its specification has them."""

from __future__ import annotations

import io
import struct
from typing import Final

import pytest

from minismtp.smtp.preamble import ProxyHeader, ProxyProblem, read_header

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
REST: Final = b"EHLO client.example\r\n"


def read(data: bytes) -> tuple[ProxyHeader, bytes]:
    """Read a header from data that ends somewhere. Return it and the rest."""
    stream = io.BytesIO(data)

    def receive(count: int) -> bytes:
        found = stream.read(count)
        if len(found) < count:
            raise EOFError
        return found

    return read_header(receive), stream.read()


def version_2(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n",
            ProxyHeader("192.0.2.1", 56324, "198.51.100.1", local=False),
            id="v1-tcp4",
        ),
        pytest.param(
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            ProxyHeader("255.255.255.255", 65535, "255.255.255.255", local=False),
            id="v1-tcp4-longest",
        ),
        pytest.param(
            b"PROXY TCP6 %s %s 65535 65535\r\n" % ((b"ffff:" * 8)[:-1], (b"ffff:" * 8)[:-1]),
            ProxyHeader(("ffff:" * 8)[:-1], 65535, ("ffff:" * 8)[:-1], local=False),
            id="v1-tcp6-longest",
        ),
        pytest.param(
            b"PROXY UNKNOWN".ljust(105, b"x") + b"\r\n",
            ProxyHeader("", 0, "", local=False),
            id="v1-unknown-of-107-octets",
        ),
        pytest.param(
            version_2(0x21, 0x11, bytes([192, 0, 2, 1, 198, 51, 100, 1]) + b"\xdc\x04\0\x19"),
            ProxyHeader("192.0.2.1", 56324, "198.51.100.1", local=False),
            id="v2-tcp4",
        ),
        pytest.param(
            version_2(0x21, 0x21, bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\1\0\x19TLV"),
            ProxyHeader("::1", 1, "::2", local=False),
            id="v2-tcp6-and-more",
        ),
        pytest.param(version_2(0x20, 0x00, b""), ProxyHeader("", 0, "", local=True), id="v2-local"),
        pytest.param(
            version_2(0x20, 0x11, bytes(12)),
            ProxyHeader("", 0, "", local=True),
            id="v2-local-of-v4",
        ),
        pytest.param(
            version_2(0x21, 0x31, bytes(216)), ProxyHeader("", 0, "", local=False), id="v2-unix"
        ),
        pytest.param(
            version_2(0x21, 0x00, bytes(2048)), ProxyHeader("", 0, "", local=False), id="v2-longest"
        ),
    ],
)
def test_header_is_read_and_nothing_behind_it(header: bytes, expected: ProxyHeader) -> None:
    assert read(header + REST) == (expected, REST)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"EHLO client.example\r\n", id="none"),
        pytest.param(b"PROXY UNKNOWN".ljust(106, b"x") + b"\r\n", id="v1-of-108-octets"),
        pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n", id="v1-port"),
        pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.1 25 65536\r\n", id="v1-called-port"),
        pytest.param(b"PROXY TCP4 2001:db8::1 2001:db8::2 1 25\r\n", id="v1-other-family"),
        pytest.param(b"PROXY TCP4 192.0.2.256 198.51.100.1 1 25\r\n", id="v1-no-address"),
        pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n", id="v1-no-port"),
        pytest.param(b"PROXY TCP4 192.0.2.1\r\n", id="v1-no-addresses"),
        pytest.param(b"PROXY UDP4 192.0.2.1 198.51.100.1 1 25\r\n", id="v1-other-protocol"),
        pytest.param(version_2(0x21, 0x11, bytes(11)), id="v2-short-for-tcp4"),
        pytest.param(version_2(0x21, 0x21, bytes(35)), id="v2-short-for-tcp6"),
        pytest.param(version_2(0x22, 0x11, bytes(12)), id="v2-command"),
        pytest.param(version_2(0x11, 0x11, bytes(12)), id="v2-version"),
        pytest.param(version_2(0x21, 0x00, bytes(2049)), id="v2-too-long"),
    ],
)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(ProxyProblem):
        read(header + REST)


@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 192.0.2.1 ", version_2(0x21, 0x11, bytes(12))[:-1]]
)
def test_header_that_breaks_off_is_left_to_the_reader(header: bytes) -> None:
    with pytest.raises(EOFError):
        read(header)


TCP4 = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + b"\xdc\x04\0\x19"


def field(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def tls_field(client: int, *more: bytes) -> bytes:
    """The specification's section 2.2.6: PP2_TYPE_SSL."""
    return field(0x20, struct.pack("!BI", client, 0) + b"".join(more))


@pytest.mark.parametrize(
    ("fields", "tls"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(field(0x01, b"h2"), None, id="another"),
        pytest.param(tls_field(0x01), ("TLS", "unknown"), id="tls"),
        pytest.param(
            field(0x02, b"mx.example")
            + tls_field(0x01, field(0x21, b"TLSv1.3"), field(0x23, b"TLS_AES_256_GCM_SHA384")),
            ("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
            id="with-version-and-cipher",
        ),
        pytest.param(tls_field(0x07, field(0x21, b"a\r\nb")), ("TLS", "unknown"), id="no-word"),
        pytest.param(tls_field(0x00, field(0x21, b"TLSv1.3")), None, id="not-the-client"),
        pytest.param(tls_field(0x06), None, id="certificate-without-tls"),
        pytest.param(field(0x20, b"\x01\0\0\0"), None, id="short"),
        pytest.param(tls_field(0x01)[:-1], None, id="cut"),
        pytest.param(b"\x20", None, id="type-alone"),
    ],
)
def test_version_2_says_whether_the_client_spoke_tls(
    fields: bytes, tls: tuple[str, str] | None
) -> None:
    header, rest = read(version_2(0x21, 0x11, TCP4 + fields) + REST)
    assert (header.peer, header.tls, rest) == ("192.0.2.1", tls, REST)


def test_address_has_no_zone() -> None:
    with pytest.raises(ProxyProblem):
        read(b"PROXY TCP6 fe80::1%x(y fe80::2 1 25\r\n")
