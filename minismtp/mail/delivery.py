"""Outgoing mail as plugins see it: a delivery and its next hop."""

from __future__ import annotations

from dataclasses import dataclass, field

from minismtp.mail.envelope import Envelope
from minismtp.values.address import Address
from minismtp.values.ciphers import TlsLevel


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt to send a message to all its recipients in one domain.

    `attempts` is the number of earlier attempts. `original_sender` is the reverse-path that
    `Relay.sender` replaced, None if it did not.
    """

    envelope: Envelope
    recipients: tuple[Address, ...]
    domain: str
    attempts: int = 0
    original_sender: Address | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """A next hop: `host` is a domain name, all of whose addresses are tried, or an IP address.

    `implicit` means TLS from the first octet (RFC 8314). `username` and `password` are for AUTH.
    """

    host: str
    port: int = 25
    tls: TlsLevel = "opportunistic"
    implicit: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
