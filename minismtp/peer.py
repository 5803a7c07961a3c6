"""What counts as one peer in limits (values): an IPv4 address, or an IPv6 network of 64 bits.

A site, and often a single machine, has a whole /64, so a limit by address would be no limit.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final

_NETWORK: Final = 8  # octets of an IPv6 address that name the network
_HOST: Final = b"\xff" * 8  # never 0, and no IPv4-mapped address
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")  # NAT64, RFC 6052 section 2.1


def peer_key(peer: str) -> bytes:
    """Return 16 octets that are equal for all addresses of one peer, none without an IP address.

    Addresses that carry one of IPv4 count as that (RFC 4291 section 2.5.5.2), and link-local ones
    by themselves: a whole LAN shares their network.
    """
    try:
        address = ip_address(peer)
    except ValueError:
        return b""
    if isinstance(address, IPv4Address):
        return _MAPPED + address.packed
    packed = address.packed
    if address.ipv4_mapped or address in _TRANSLATED:
        return _MAPPED + packed[-4:]
    return packed if address.is_link_local else packed[:_NETWORK] + _HOST
