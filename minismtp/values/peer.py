"""IP addresses in their one spelling, and what counts as one peer in limits (values).

That is an IPv4 address, or an IPv6 network of 64 bits: a site, and often a single machine, has a
whole /64, so a limit by address would be no limit.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

_NETWORK: Final = 8  # octets of an IPv6 address that name the network
_HOST: Final = b"\xff" * 8  # never 0, and no IPv4-mapped address
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")  # NAT64, RFC 6052 section 2.1


def plain_address(text: str) -> str:
    """Return an IP address in its one spelling, an IPv4-mapped one as IPv4. Raise ValueError.

    The same host comes by either, as sockets and other programs have it (RFC 4291 section 2.5.5.2).
    """
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


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
