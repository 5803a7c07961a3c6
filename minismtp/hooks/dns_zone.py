"""What `on_dns` is given: where a plugin names its domains and the records that they need.

`minismtp dns` prints these records and looks for them in the DNS. Each plugin knows the domains
that it receives or signs for, so that no list of all plugins has to be kept.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, TypeAlias, get_args

from minismtp.values.address import to_ascii

Kind: TypeAlias = Literal["A", "AAAA", "MX", "TXT", "CNAME", "SRV", "TLSA", "PTR"]
#: How much depends on a record. One that is `signed` is of use only in a zone with DNSSEC.
Need: TypeAlias = Literal["required", "recommended", "signed"]

_MOST: Final = 100_000  # records, so that a plugin's mistake does not fill the memory
_LONGEST_NAME: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_TARGET: Final = r"(?:[A-Za-z0-9_-]{1,63}\.)+"  # absolute, else the origin would follow it
#: The data in a zone file, RFC 1035 section 3.3, 2782 and 6698
_FORMS: Final = {
    "MX": re.compile(rf"[0-9]{{1,5}} (?:{_TARGET}|\.)"),
    "CNAME": re.compile(_TARGET),
    "SRV": re.compile(rf"(?:[0-9]{{1,5}} ){{3}}(?:{_TARGET}|\.)"),
    "TLSA": re.compile(r"(?:[0-9]{1,3} ){3}[0-9A-Fa-f]+"),
    "PTR": re.compile(_TARGET),
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST_TEXT: Final = 4000  # octets; a key of 16,384 bits has 2,800


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """A record that the DNS should have. Raise ValueError for what no zone can contain."""

    name: str
    """The absolute name, in lower case, with A-labels, without a dot at the end."""
    kind: Kind
    """The type, such as `TXT`."""
    value: str
    """What follows the type in a zone file, with absolute names; of a TXT record the whole text,
    without quotes. The value of an A record may be empty if the address is not known.
    """
    purpose: str = ""
    """What it is for, in a few words."""
    need: Need = "required"
    """`required`; `recommended` if mail works without it; `signed` if it is of use only in a zone
    with DNSSEC.
    """

    def __post_init__(self) -> None:
        name = to_ascii(self.name)
        object.__setattr__(self, "name", name)
        if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, name.split("."))):
            raise ValueError(f"{self.name!r} cannot be a name in the DNS")
        if self.kind not in get_args(Kind):
            raise ValueError(f"{name}: the type {self.kind!r} is not {', '.join(get_args(Kind))}")
        if self.kind == "TXT":
            if _CONTROL.search(self.value) or len(self.value.encode()) > _LONGEST_TEXT:
                raise ValueError(f"{name}: the text has control characters, or is too long")
        elif not _is_value(self.kind, self.value):
            raise ValueError(f"{name}: {self.value!r} cannot be the value of an {self.kind} record")
        if _CONTROL.search(self.purpose):
            raise ValueError(f"{name}: the purpose {self.purpose!r} has control characters")


def _is_value(kind: str, value: str) -> bool:
    if kind not in {"A", "AAAA"}:
        return bool(_FORMS[kind].fullmatch(value))
    if "%" in value:  # a zone, as in fe80::1%eth0
        return False
    with contextlib.suppress(ValueError):
        return not value or bool(IPv4Address(value) if kind == "A" else IPv6Address(value))
    return False


@dataclass(slots=True)
class DnsZone:
    """Collects the domains of the plugins, and further records that they need."""

    hostname: str
    """The server's host name, for values such as that of an MX record."""
    receiving: dict[str, bool] = field(default_factory=dict)
    """The domains whose mail comes here, and whether they have users here."""
    sending: dict[str, None] = field(default_factory=dict)
    """The domains in whose name mail is sent from here, in the order of the configuration."""
    records: dict[DnsRecord, None] = field(default_factory=dict)
    """The further records so far, in the order of the configuration."""

    def receive(self, domain: str, *, users: bool = True) -> None:
        """Ask for what brings mail for a domain here, and its users' mail programs, too."""
        domain = to_ascii(domain)
        self.receiving[domain] = self.receiving.get(domain, False) or users

    def send(self, domain: str) -> None:
        """Ask for what lets others accept mail that is sent from here in a domain's name."""
        self.sending[to_ascii(domain)] = None

    def add(self, record: DnsRecord) -> None:
        """Ask for one record more."""
        if len(self.records) >= _MOST:
            raise ValueError(f"expected at most {_MOST} records")
        self.records[record] = None
