"""The server name of a TLS client, of any octets."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from snippets import MX, SUBMISSIONS

from minismtp.smtp.preamble import ClientHello, read_hello

if TYPE_CHECKING:
    from conftest import Launch, Running

DEFAULT: Final = "mx.example.org"
NAMED: Final = ("mail.example.com", "straße.example", "*.wild.example")
LISTENERS: Final = MX + SUBMISSIONS


def hello(name: bytes, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, *protocols: str) -> bytes:
    """Return the first packet of a client that asks for this name and these protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if protocols:
        context.set_alpn_protocols(protocols)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    # Python accepts only text, so the name is replaced; there is no checksum.
    stand_in = ("x" * 50 + ".") * (len(name) // 51) + "x" * (len(name) % 51)
    connection = context.wrap_bio(incoming, outgoing, server_hostname=stand_in or None)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    said = outgoing.read()
    return said.replace(stand_in.encode(), name) if name else said


def name_in(data: bytes) -> bytes:
    return read_hello(lambda count: data[:count]).name


NAMES: Final = (
    *(b"mx.example.org", b"MX.Example.ORG.", b"\xff\xfe", "straße.example".encode(), b"a", b"\x01"),
    *(b"a" * 253, b"a b", b"..", b"[192.0.2.1]", bytes(range(128, 256))),
)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_name_is_found_as_it_was_sent(name: bytes, version: ssl.TLSVersion) -> None:
    assert name_in(hello(name, version)) == name
    assert name_in(hello(name, version) + b"more") == name


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 16384])
def test_name_is_found_in_any_number_of_records(size: int) -> None:
    whole = hello(b"\xffmail")
    body = whole[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    records = b"".join(whole[:3] + len(part).to_bytes(2, "big") + part for part in parts)
    assert name_in(records) == b"\xffmail"


@pytest.mark.parametrize("protocols", [(), ("acme-tls/1",), ("h2", "http/1.1"), ("a" * 255,) * 3])
@pytest.mark.parametrize("name", [b"", b"mx.example.org"])
def test_protocols_are_found_beside_the_name(name: bytes, protocols: tuple[str, ...]) -> None:
    """RFC 7301 section 3.1."""
    said = hello(name, ssl.TLSVersion.TLSv1_3, *protocols)
    found = read_hello(lambda count: said[:count])
    assert found == ClientHello(name, tuple(each.encode() for each in protocols))
    for end in range(len(said)):
        read_hello(lambda count, end=end: said[:end][:count])  # type: ignore[misc]


def test_hello_in_very_many_records_is_not_copied_very_often() -> None:
    asked: list[int] = []
    body = b"\x01\x00\x40\x00" + bytes(1 << 14)
    records = b"".join(b"\x16\x03\x01\x00\x01" + bytes([octet]) for octet in body)

    def peek(count: int) -> bytes:
        asked.append(count)
        return records[:count]

    read_hello(peek)
    assert sum(asked) < 10_000_000


def test_what_is_cut_off_has_no_name_or_the_beginning_of_one() -> None:
    whole = hello(b"\xffmail")
    assert name_in(hello(b"")) == b""
    for end in range(len(whole)):
        assert b"\xffmail".startswith(name_in(whole[:end]))


def test_no_more_is_looked_at_than_a_hello_may_have() -> None:
    asked: list[int] = []

    def endless(count: int) -> bytes:
        asked.append(count)
        record = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff".ljust(16384, b"\0")
        return (record * (count // len(record) + 1))[:count]

    assert read_hello(endless) == ClientHello()
    assert max(asked) < 65536 + 16384 + 10
    assert len(asked) < 12


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_octets_have_some_name_or_none(noise: bytes, at: int) -> None:
    whole = hello(b"\xffmail")
    assert len(name_in(whole[:at] + noise + whole[at:])) <= len(whole) + len(noise)
    name_in(noise)


@pytest.fixture(scope="module")
def named(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run a server with certificates for several names."""
    directory = tmp_path_factory.mktemp("named")
    authority = trustme.CA()
    tables = []
    for number, name in enumerate((DEFAULT, *NAMED)):
        path = directory / f"{number}.pem"
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
        head = f'[[tls.sni]]\nname = "{name}"' if number else "[tls]"
        tables.append(f'{head}\ncertificate = "{path}"\nkey = "{path}"\n')
    with launch(*tables, "[log]\nrefusals = 10000\n", listeners=LISTENERS) as server:
        yield server


def presented(server: Running, listener: str, *options: str | bytes) -> str:
    """Return the name in the certificate that openssl's client gets, or ""."""
    starttls = ("-starttls", "smtp") if listener == "smtp" else ()
    address = f"127.0.0.1:{server.port(listener)}"
    done = subprocess.run(
        ["timeout", "30", "openssl", "s_client", "-connect", address, *starttls, *options],
        input=b"QUIT\r\n",
        capture_output=True,
        check=False,
    )
    found = re.search(
        rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", done.stdout, re.DOTALL
    )
    if not found:
        return ""
    names = x509.load_pem_x509_certificate(found[0]).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return str(names.value.get_values_for_type(x509.DNSName)[0])


_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE.*?-----END CERTIFICATE-----", re.DOTALL)
A_LABEL: Final = "xn--strae-oqa.example"


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"mail.example.com", "mail.example.com"),
        (b"mail.example.com.", "mail.example.com"),
        (b"MAIL.Example.COM", "mail.example.com"),
        (b"MAIL.Example.COM.", "mail.example.com"),
        (A_LABEL.encode(), A_LABEL),
        (A_LABEL.upper().encode(), A_LABEL),
        ("straße.example".encode(), A_LABEL),
        ("STRAßE.example.".encode(), A_LABEL),
        (b"strasse.example", DEFAULT),
        ("straße.example".encode("latin-1"), DEFAULT),
        (b"a.wild.example.", "*.wild.example"),
        ("ä.wild.example".encode(), "*.wild.example"),
        (b"\xff.wild.example", "*.wild.example"),
        (b"a.b.wild.example", DEFAULT),
        (b"mail.example.com..", DEFAULT),
        (b"\xff\xfe\xfd", DEFAULT),
        (b"mail.example.com\xff", DEFAULT),
        (b"mail\x01.example.com", DEFAULT),
        (b" mail.example.com", DEFAULT),
        (b".", DEFAULT),
        (b"..", DEFAULT),
        (b".mail.example.com", DEFAULT),
        (b"*.wild.example", "*.wild.example"),
        (b"192.0.2.1", DEFAULT),
        ("🦄".encode() * 60, DEFAULT),
        (b"a" * 255, DEFAULT),
        (b"\xff" * 255, DEFAULT),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_any_name_gets_the_right_certificate_without_a_traceback(
    named: Running, name: bytes, expected: str, version: str, listener: str
) -> None:
    before = named.log.count(" session closed ")
    assert presented(named, listener, version, "-servername", name) == expected
    named.wait_for_log(" session closed ", count=before + 1)
    assert "Traceback" not in named.log
    assert "Exception ignored" not in named.log


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
def test_client_that_asks_for_no_name_gets_the_first_certificate(
    named: Running, listener: str
) -> None:
    assert presented(named, listener, "-noservername") == DEFAULT


def crafted(name: bytes) -> bytes:
    """Make a ClientHello of TLS 1.2 by hand: openssl's client sends no name of such a length."""

    def sized(data: bytes, width: int = 2) -> bytes:
        return len(data).to_bytes(width, "big") + data

    extension = b"\0\0" + sized(sized(b"\0" + sized(name)))
    body = b"\x03\x03" + bytes(32) + b"\0" + sized(b"\xc0\x2f") + b"\x01\0" + sized(extension)
    return b"\x16\x03\x01" + sized(b"\x01" + sized(body, 3))


@pytest.mark.parametrize("name", [b"a" * 256, b"\xff" * 300, b"\xff" * 8000, b"a\0b", b""], ids=len)
def test_name_that_openssl_refuses_ends_the_handshake_with_a_line_and_no_traceback(
    named: Running, name: bytes
) -> None:
    # RFC 6066 section 3: no name is longer than 255 octets, and none has a NUL
    assert name_in(crafted(name)) == name
    before = named.log.count(" TLS handshake failed ")
    with named.connect("submissions") as client:
        client.send(crafted(name))
        client.socket.shutdown(socket.SHUT_WR)
        while client.socket.recv(65536):
            pass
    named.wait_for_log(" TLS handshake failed ", count=before + 1)
    assert "Traceback" not in named.log
