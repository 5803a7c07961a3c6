"""IP addresses in a single spelling, and the key by which limits recognize a peer.

A peer is an IPv4 address or an IPv6 network of 64 bits. A site, and often a single machine, has a
whole /64, so limits by IPv6 address would have no effect.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

_NETWORK: Final = 8  # octets of an IPv6 address that name the network
_HOST: Final = b"\xff" * 8  # never 0, and not an IPv4-mapped address
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_TRANSLATED: Final = inet_pton(AF_INET6, "64:ff9b::")[:12]  # NAT64, RFC 6052 section 2.1


def plain_address(text: str) -> str:
    """Return an IP address in a single spelling, an IPv4-mapped one as IPv4. Raise ValueError.

    Sockets and other programs show the same host in either form (RFC 4291 section 2.5.5.2).
    """
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def is_loopback(peer: str) -> bool:
    """Return whether a peer is on this machine: a loopback address, or "unix"."""
    try:
        return peer == "unix" or ip_address(plain_address(peer)).is_loopback
    except ValueError:
        return False


def in_networks(peer: str, networks: Collection[IPv4Network | IPv6Network]) -> bool:
    """Return whether one of the networks contains a peer; a unix socket is in no network."""
    if not networks or peer == "unix":
        return False
    address = ip_address(peer)
    return any(address in network for network in networks)


def peer_key(peer: str) -> bytes:
    """Return 16 octets that are equal for all addresses of a peer, or b"" without an IP address.

    An IPv6 address that contains an IPv4 address counts as that one (RFC 4291 section 2.5.5.2).
    Each link-local address is a peer of its own, because a whole LAN shares their network.
    """
    try:
        if ":" not in peer:
            return _MAPPED + inet_pton(AF_INET, peer)
        packed = inet_pton(AF_INET6, peer.partition("%")[0])
    except (OSError, ValueError):
        return b""
    if packed.startswith((_MAPPED, _TRANSLATED)):
        return _MAPPED + packed[-4:]
    is_link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80  # noqa: PLR2004 - fe80::/10
    return packed if is_link_local else packed[:_NETWORK] + _HOST
