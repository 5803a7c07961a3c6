"""What the plugins that judge a peer by the DNS have in common: whom they ask about, and how."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from minismtp import Envelope, Found, Resolver, Session, StashKey, UnansweredError

IpAddress: TypeAlias = IPv4Address | IPv6Address
IpNetwork: TypeAlias = IPv4Network | IPv6Network

_PREFIXES = {4: 24, 6: 64}  # the length of a network's prefix, by the version of IP
_LONGEST_NAME = 253  # characters
_OF_NO_DOMAIN = frozenset(" \"'()/;<>,@:%{}$?[]")
_LONGEST_LABEL = 63
_LONGEST = 30.0  # seconds in which one message's questions have their answers
_LOCAL = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    *("::1/128", "fc00::/7", "fe80::/10"),
)


def local_networks() -> list[IpNetwork]:
    """Return the networks of nobody but ourselves: loopback, private and link-local addresses."""
    return [ip_network(text) for text in _LOCAL]


def address_to_check(session: Session, exempt: Iterable[IpNetwork]) -> IpAddress | None:
    """Return a stranger's address; None for who has logged in, and for a peer in these networks."""
    if session.login is not None or session.peer == "unix":
        return None
    address = unmapped(ip_address(session.peer))
    return None if any(address in network for network in exempt) else address


def unmapped(address: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv6 socket shows as ::ffff:192.0.2.1."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def unmapped_network(network: IpNetwork) -> IpNetwork:
    """Return the IPv4 network that an IPv6 one such as ::ffff:192.0.2.0/120 is."""
    first, length = unmapped(network.network_address), network.prefixlen - 96
    if network.version == first.version or length < 0:
        return network
    return ip_network((first, length))


def network_of(address: IpAddress) -> IpNetwork:
    """Return the /24 or /64 of an address, whose hosts most likely have one owner."""
    return ip_network((address, _PREFIXES[address.version]), strict=False)


def reversed_labels(address: IpAddress) -> str:
    """Return `1.2.0.192` for 192.0.2.1, and 32 nibbles for an IPv6 address (RFC 5782 section 2)."""
    return address.reverse_pointer.rsplit(".", 2)[0]


def can_be_asked(name: str) -> bool:
    """Whether a name can stand in the DNS as it is, whatever a stranger has made it of."""
    if not name.isascii() or "\\" in name or len(name) > _LONGEST_NAME:
        return False
    return all(0 < len(label) <= _LONGEST_LABEL for label in name.split("."))


def is_domain(name: str) -> bool:
    """Whether a name could be a domain's: no address literal, nor what computers say in HELO."""
    return can_be_asked(name) and _OF_NO_DOMAIN.isdisjoint(name)


class TooManyQuestionsError(UnansweredError):
    """What strangers have published would cost more questions than they are worth."""


@dataclass(slots=True)
class DnsBudget:
    """What may still be asked about one message: questions, octets of answers, and until when.

    Answers from the cache count like others: what is refused does not depend on who asked before.
    """

    questions: int = 50
    octets: int = 128 * 1024  # each thousand take about 2 ms of reading
    due: float = field(default_factory=lambda: time.monotonic() + _LONGEST)


#: Of all that plugins ask at MAIL because of what strangers say or publish.
_BUDGET: StashKey[DnsBudget] = StashKey()


def budget_of(envelope: Envelope) -> DnsBudget:
    """Return the budget that all plugins share when they ask about one MAIL."""
    return envelope.stash.setdefault(_BUDGET, DnsBudget())


class Questions:
    """Asks the DNS within `patience` and a budget, its own where none is given; for one thread."""

    def __init__(
        self, resolver: Resolver, patience: timedelta, budget: DnsBudget | None = None
    ) -> None:
        self._resolver = resolver
        self._budget = budget or DnsBudget()
        self._due = min(time.monotonic() + patience.total_seconds(), self._budget.due)

    def lookup(self, name: str, kind: str, share: float = 1.0) -> Found:
        """Return what `Resolver.lookup` finds; raise UnansweredError.

        No more is waited for than this `share` of the time that is left.
        """
        left = self._due - time.monotonic()
        if left <= 0:
            raise UnansweredError(f"no time is left to ask the DNS for {name} {kind}")
        if self._budget.questions <= 0 or self._budget.octets <= 0:
            raise TooManyQuestionsError(f"{name} {kind} is more than will be asked for one message")
        self._budget.questions -= 1
        found = self._resolver.lookup(name, kind, seconds=left * share)
        self._budget.octets -= found.size
        return found

    def ask(self, name: str, kind: str, share: float = 1.0) -> Sequence[str]:
        """Return the records of type A, AAAA, MX, PTR or TXT as text. Raise UnansweredError.

        MX gives the hosts in the order of preference, TXT each record in one piece, an octet for a
        character. A name that cannot be in the DNS has no records. `share` is as in `lookup`.
        """
        name = name.removesuffix(".")
        if not can_be_asked(name):
            return ()
        found = self.lookup(name.replace("\\", "\\\\"), kind, share)
        match kind:
            case "TXT":
                return [b"".join(record.strings).decode("latin-1") for record in found.records]
            case "MX":
                ordered = sorted(found.records, key=lambda record: record.preference)
                return [record.exchange.to_text(omit_final_dot=True) for record in ordered]
            case "PTR":
                return [record.target.to_text(omit_final_dot=True) for record in found.records]
            case _:
                return [record.address for record in found.records]

    def addresses(self, name: str, kind: type[IpAddress]) -> list[IpAddress]:
        """Return the addresses of one kind that a name has. Raise UnansweredError."""
        return [kind(text) for text in self.ask(name, "A" if kind is IPv4Address else "AAAA")]
