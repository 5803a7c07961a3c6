"""Questions to the DNS for plugins that check a peer, with limits, and the answers."""

import functools
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Generic, TypeAlias, TypeVar

from minismtp import BoundedCache, Envelope, Found, Resolver, StashKey, UnansweredError

T = TypeVar("T")
IpAddress: TypeAlias = IPv4Address | IPv6Address
IpNetwork: TypeAlias = IPv4Network | IPv6Network

_NETWORKS = 1024  # addresses whose network and name are remembered
_PREFIXES = {4: 24, 6: 64}  # the length of a network's prefix, by the version of IP
_NAME = re.compile(r"(?=.{1,253}\Z)[^.\\]{1,63}(?:\.[^.\\]{1,63})*", re.DOTALL)
_OF_NO_DOMAIN = frozenset(" \"'()/;<>,@:%{}$?[]")
_LONGEST = 30.0  # seconds for all questions about one message
_PARSED = 2 * 1024 * 1024  # octets of parsed records of one kind
_LOCAL = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    *("::1/128", "fc00::/7", "fe80::/10"),
)


def local_networks() -> list[IpNetwork]:
    """Return the networks that no stranger has: loopback, private and link-local addresses."""
    return [ip_network(text) for text in _LOCAL]


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


@functools.lru_cache(_NETWORKS)
def network_of(address: IpAddress) -> str:
    """Return the /24 or /64 of an address, whose hosts most likely have one owner, as text."""
    return str(ip_network((address, _PREFIXES[address.version]), strict=False))


@functools.lru_cache(_NETWORKS)
def reversed_labels(address: IpAddress) -> str:
    """Return `1.2.0.192` for 192.0.2.1, and 32 nibbles for an IPv6 address (RFC 5782 section 2)."""
    return address.reverse_pointer.rsplit(".", 2)[0]


def can_be_asked(name: str) -> bool:
    """Return whether a name from a stranger can be looked up in the DNS as it is."""
    return name.isascii() and _NAME.fullmatch(name) is not None


def is_domain(name: str) -> bool:
    """Return whether a name could be a domain, and not an address literal or a computer's name."""
    return can_be_asked(name) and _OF_NO_DOMAIN.isdisjoint(name)


class TooManyQuestionsError(UnansweredError):
    """Records of strangers would need more questions than the budget allows."""


@dataclass(slots=True)
class DnsBudget:
    """The remaining questions, octets of answers, and time for one message.

    Answers from the cache count too, so refusals do not depend on earlier questions.
    """

    questions: int = 50
    octets: int = 128 * 1024  # each thousand take about 2 ms of reading
    due: float = field(default_factory=lambda: time.monotonic() + _LONGEST)


#: The budget for all questions at MAIL about names and records of strangers.
_BUDGET: StashKey[DnsBudget] = StashKey()


def budget_of(envelope: Envelope) -> DnsBudget:
    """Return the budget that all plugins share for one MAIL."""
    return envelope.stash.setdefault(_BUDGET, DnsBudget())


class Questions:
    """Asks the DNS within `patience` and a budget, by default a new one; for one thread."""

    def __init__(
        self, resolver: Resolver, patience: timedelta, budget: DnsBudget | None = None
    ) -> None:
        self._resolver = resolver
        self._budget = budget or DnsBudget()
        self._due = min(time.monotonic() + patience.total_seconds(), self._budget.due)

    def lookup(self, name: str, kind: str, share: float = 1.0) -> Found:
        """Return the answer of `Resolver.lookup`. Raise UnansweredError.

        The wait is at most this `share` of the remaining time.
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

        MX returns the hosts in the order of preference, TXT each record as one text with a
        character for each octet. An invalid name has no records. `share` is as in `lookup`.
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


class ParsedRecords(Generic[T]):
    """Records of strangers in parsed form, which are kept as long as there is room.

    `parse` depends on the text of a record alone, so no parsed record is ever out of date. `size`
    returns about the octets that it takes for a text. What `parse` raises is not kept.
    """

    def __init__(self, parse: Callable[[str], T], size: Callable[[str], int]) -> None:
        self._parse = parse
        self._size = size
        self._known: BoundedCache[str, T] = BoundedCache(_PARSED)

    def get(self, text: str) -> T:
        """Return the parsed record of a text."""
        found = self._known.get(text)
        if found is None:
            found = self._parse(text)
            self._known.put(text, found, math.inf, self._size(text))
        return found
