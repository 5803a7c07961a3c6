import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.config.types import SCALARS, ByteSize, Network, Rate, SocketAddress, parse_domain
from minismtp.values.address import Address

BASE = Path("/etc/minismtp")


def read(kind: object, value: object) -> object:
    return SCALARS[kind].read(value, BASE)


@pytest.mark.parametrize(
    ("kind", "written", "expected"),
    [
        (ByteSize, 26214400, 26214400),
        (ByteSize, 0, 0),
        (ByteSize, "512", 512),
        (ByteSize, "3B", 3),
        (ByteSize, "10kB", 10_000),
        (ByteSize, "10KB", 10_000),
        (ByteSize, "2 MB", 2_000_000),
        (ByteSize, "1GB", 1_000_000_000),
        (ByteSize, "1KiB", 1024),
        (ByteSize, "25MiB", 25 * 1024**2),
        (ByteSize, "2GiB", 2 * 1024**3),
        (timedelta, "0s", timedelta(0)),
        (timedelta, "5m", timedelta(minutes=5)),
        (timedelta, "1h30m", timedelta(minutes=90)),
        (timedelta, "2d", timedelta(days=2)),
        (timedelta, "1500ms", timedelta(seconds=1.5)),
        (Rate, "100/1h", Rate(100, timedelta(hours=1))),
        (Rate, "2GiB/1d12h", Rate(2 * 1024**3, timedelta(hours=36))),
        (Network, "192.0.2.0/24", IPv4Network("192.0.2.0/24")),
        (Network, "192.0.2.1", IPv4Network("192.0.2.1/32")),
        (Network, "2001:db8::/32", IPv6Network("2001:db8::/32")),
        (IPv4Network, "10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        (IPv6Network, "::1", IPv6Network("::1/128")),
        (Path, "tls/key.pem", Path("/etc/minismtp/tls/key.pem")),
        (Path, "/var/mail/{local}", Path("/var/mail/{local}")),
        (re.Pattern[str], "^a+$", re.compile("^a+$")),
        (Address, "User@Example.ORG", Address("User", "example.org")),
        (SocketAddress, "0.0.0.0:25", SocketAddress("0.0.0.0", 25)),  # noqa: S104 - a value
        (SocketAddress, "*:25", SocketAddress("*", 25)),
        (SocketAddress, "[::]:25", SocketAddress("::", 25)),
        (SocketAddress, "[2001:DB8:0::1]:25", SocketAddress("2001:db8::1", 25)),
        (SocketAddress, "LocalHost:0", SocketAddress("localhost", 0)),
        (SocketAddress, "unix:/run/x.sock", SocketAddress(path=Path("/run/x.sock"))),
        (SocketAddress, "unix:x.sock", SocketAddress(path=BASE / "x.sock")),
    ],
    ids=str,
)
def test_value_is_read_as_its_type(kind: object, written: object, expected: object) -> None:
    assert read(kind, written) == expected


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        *[
            (ByteSize, value)
            for value in (-1, True, 1.5, "", "MiB", "1 TB", "1mb", "-1kB", "1" * 30)
        ],
        *[
            (timedelta, value)
            for value in (5, "", "5", "m", "5 m", "-5m", "5x", "1.5h", "999999999d")
        ],
        *[
            (Rate, value)
            for value in (5, "", "5", "/1h", "5/", "5/h", "0/1h", "5/0s", "-5/1h", "5/1h/1h")
        ],
        *[(Network, value) for value in (5, "", "x", "10.0.0.0/33", "10.0.0.1/8", "::1/300")],
        *[(IPv4Network, "::/0"), (IPv6Network, "10.0.0.0/8")],
        *[(Path, value) for value in ("", "a\0b", 5, "a\nb")],
        *[(re.Pattern[str], value) for value in ("(", 5)],
        *[(Address, value) for value in ("user", "@example.org", 5)],
        *[
            (SocketAddress, value)
            for value in (
                *("", "25", ":25", "*.x.example:25", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x"),
                *("127.0.0.1:65536", "::1:25", "[127.0.0.1]:25", "[::1]", "[]:25", "1.2.3:25"),
                *("[::1", "a b:25", "unix:", "127.0.0.1:25\n", 25),
            )
        ],
    ],
    ids=repr,
)
def test_what_is_no_value_of_the_type_is_refused(kind: object, written: object) -> None:
    with pytest.raises(ValueError, match=r"expected|bits set|too long|not an address"):
        read(kind, written)


@given(st.timedeltas(timedelta(0), timedelta(days=10_000)))
def test_duration_is_written_as_it_can_be_read(value: timedelta) -> None:
    value -= timedelta(microseconds=value.microseconds % 1000)
    scalar = SCALARS[timedelta]
    assert scalar.read(scalar.write(value), BASE) == value


@given(st.integers(0, 10**18 - 1))
def test_size_is_written_as_it_can_be_read(value: int) -> None:
    scalar = SCALARS[ByteSize]
    assert scalar.read(scalar.write(ByteSize(value)), BASE) == value


@given(st.integers(1, 10**18 - 1), st.integers(1, 10**12))
def test_rate_is_written_as_it_can_be_read(amount: int, milliseconds: int) -> None:
    value = Rate(amount, timedelta(milliseconds=milliseconds))
    assert read(Rate, str(value)) == value


@given(st.ip_addresses(), st.integers(0, 65535))
def test_socket_address_is_written_as_it_can_be_read(host: object, port: int) -> None:
    value = SocketAddress(str(host), port)
    assert SocketAddress.parse(str(value)) == value


def test_size_formats_as_a_plain_number_for_the_wire() -> None:
    # RFC 1870 section 3: SIZE announces octets
    assert f"SIZE {ByteSize.parse('1KiB')}" == "SIZE 1024"


def test_network_with_host_bits_names_the_network_that_was_meant() -> None:
    with pytest.raises(ValueError, match=re.escape("did you mean '10.0.0.0/8'?")):
        read(Network, "10.0.0.5/8")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:25", True),
        ("127.8.8.8:25", True),
        ("[::1]:25", True),
        ("localhost:25", True),
        ("unix:/run/x", True),
        ("0.0.0.0:25", False),
        ("[::]:25", False),
        ("192.0.2.1:25", False),
        ("mx.example.org:25", False),
    ],
)
def test_address_is_local_when_no_other_machine_reaches_it(address: str, local: bool) -> None:
    assert SocketAddress.parse(address).is_local is local


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MX.Example.org", "mx.example.org"),
        ("localhost", "localhost"),
        ("3com.example", "3com.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("straße.example.", "xn--strae-oqa.example"),
        ("my_host.example", "my_host.example"),
    ],
)
def test_domain_is_given_in_lower_case_with_a_labels(text: str, expected: str) -> None:
    assert parse_domain(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "a..", ".a", "-a.b", "a-.b", "a b", "a/b", "10.0.0.1", "[::1]"),
        *("a" * 64, ".".join(["a" * 60] * 5), "a\n", "x@y"),
    ],
)
def test_text_that_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a domain"):
        parse_domain(text)


def test_to_networks_of_one_address_agree_with_the_standard_library() -> None:
    assert read(Network, "192.0.2.7") == ip_network("192.0.2.7")
