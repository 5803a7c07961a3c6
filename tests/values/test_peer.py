"""Which addresses count as one peer."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minismtp.values.peer import in_networks, peer_key


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:DB8:0:0::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:c000:201", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("64:ff9b::192.0.2.1", "192.0.2.1", True),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2", False),
        ("fe80::1", "fe80::2", False),
        ("fe80::1%eth0", "fe80::1", True),
        ("::1", "0.0.0.1", False),
        ("::1", "255.255.255.255", False),
    ],
)
def test_addresses_of_one_peer_have_one_key(first: str, second: str, *, same: bool) -> None:
    assert (peer_key(first) == peer_key(second)) is same


@pytest.mark.parametrize("peer", ["", "unix", "mx.example.org", "192.0.2", "[::1]"])
def test_peer_without_an_address_has_no_key(peer: str) -> None:
    assert peer_key(peer) == b""


@given(st.ip_addresses())
@example(IPv6Address("::"))
@example(IPv6Address("::1"))
@example(IPv4Address("0.0.0.1"))
def test_every_key_has_its_size_and_is_never_all_zeros(peer: IPv4Address | IPv6Address) -> None:
    # A row of zeros is a free one in `session_limits`.
    assert len(peer_key(str(peer))) == 16
    assert any(peer_key(str(peer)))


@pytest.mark.parametrize(
    ("peer", "networks", "found"),
    [
        ("192.0.2.1", ["198.51.100.0/24", "192.0.2.0/24"], True),
        ("192.0.3.1", ["192.0.2.0/24"], False),
        ("2001:db8::1", ["192.0.2.0/24", "2001:db8::/32"], True),
        ("192.0.2.1", ["::/0"], False),
        ("192.0.2.1", [], False),
        ("unix", ["0.0.0.0/0", "::/0"], False),
    ],
)
def test_peer_is_in_a_network_with_its_address(
    peer: str, networks: list[str], *, found: bool
) -> None:
    assert in_networks(peer, [ip_network(network) for network in networks]) is found
