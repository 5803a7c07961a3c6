"""The network that stands for a client: hosts in it are most likely somebody's own."""

from ipaddress import ip_network

from ._dns import IpAddress, IpNetwork

_PREFIXES = {4: 24, 6: 64}


def network_of(address: IpAddress) -> IpNetwork:
    """Return the /24 of an IPv4 address, or the /64 of an IPv6 address."""
    return ip_network((address, _PREFIXES[address.version]), strict=False)
