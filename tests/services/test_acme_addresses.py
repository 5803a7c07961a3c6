"""Which names of a certificate are not in the DNS yet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import dns.rcode
import pytest
from nameserver import BROKEN, Records, running, serving, silent

from minismtp import Resolver
from minismtp.services.acme_addresses import names_without_address

NAMES: Final = ["four.example", "six.example", "alias.example", "text.example", "no.example"]
ZONE: Final = """\
four A 192.0.2.1
six AAAA 2001:db8::1
alias CNAME six
text TXT "no address"
"""
MX: Final = "mx.example.org"
#: What the resolver knows of the zone, except new names.
ZONE_OF_MX: Final = {
    ("example.org", "NS"): ["ns.example.org."],
    ("ns.example.org", "A"): ["127.0.0.1"],
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers take their time on a busy machine."""
    for name in ("_LONGEST", "_LONGEST_QUESTION", "_LONGEST_DIRECT_QUESTION"):
        monkeypatch.setattr(f"minismtp.services.acme_addresses.{name}", 60.0)


@pytest.fixture
def cached() -> Iterator[Records]:
    """Run a resolver that remembers that there is no such name."""
    with running(Records({**ZONE_OF_MX})) as records:
        yield records


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    """Run the name server of the zone."""
    with running(Records({**ZONE_OF_MX})) as records:
        monkeypatch.setattr("minismtp.services.acme_addresses._PORT", records.address.port)
        yield records


def missing(resolver: Records, name: str = MX) -> bool:
    return names_without_address([name], Resolver([resolver.address])) == [name]


def test_names_without_an_address_of_any_kind_are_found(
    tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    with serving(tmp_path, require_program, {"example": ZONE}) as address:
        found = names_without_address([*NAMES, f"mx.{BROKEN}"], Resolver([address]))
    assert found == ["text.example", "no.example"]


def test_resolver_that_does_not_answer_leaves_out_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minismtp.services.acme_addresses._LONGEST", 0.2)
    with silent() as address:
        assert not names_without_address(["a.example", "b.example"], Resolver([address]))


@pytest.mark.parametrize(("kind", "value"), [("A", "192.0.2.1"), ("AAAA", "2001:db8::1")])
def test_name_that_the_resolver_does_not_know_yet_is_found_in_its_zone(
    kind: str, value: str, cached: Records, zone: Records
) -> None:
    """RFC 2308 section 5: the resolver may keep its answer for hours."""
    assert missing(cached)
    assert zone.asked == [(MX, "A")]
    zone.known[MX, kind] = [value]
    assert not missing(cached)


def test_domain_that_the_resolver_does_not_know_yet_is_left_to_the_authority(
    cached: Records, zone: Records
) -> None:
    zone.referral, zone.flags = "ns.example.net.", 0
    assert not missing(cached)
    zone.referral = ""
    assert missing(cached)  # an answer without authority says nothing


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_name_server_that_does_not_know_its_zone_says_nothing(
    rcode: dns.rcode.Rcode, cached: Records, zone: Records
) -> None:
    zone.rcode = rcode
    assert missing(cached)


def test_name_servers_that_do_not_answer_are_asked_once(
    cached: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.services.acme_addresses._LONGEST_DIRECT_QUESTION", 0.1)
    names = [f"{number}.example.org" for number in range(5)]
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        monkeypatch.setattr("minismtp.services.acme_addresses._PORT", sock.getsockname()[1])
        assert names_without_address(names, Resolver([cached.address])) == names
        sock.setblocking(False)
        assert sock.recv(512)
        with pytest.raises(BlockingIOError):
            sock.recv(512)


def test_zone_without_a_name_server_is_as_the_resolver_says(zone: Records) -> None:
    with running(Records({})) as empty:
        assert missing(empty)
        assert missing(empty, "mx.example")
    assert not zone.asked
