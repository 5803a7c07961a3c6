"""Questions to the DNS, answered from a cache where that is possible.

Whether an answer is to be believed (RFC 4035) is for the resolver to say, by its AD flag; and that
flag is worth something only when the resolver, and the way to it, are trusted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.flags
import dns.nameserver
import dns.resolver

from minismtp.config.types import SocketAddress
from minismtp.values.address import to_ascii
from minismtp.values.cache import BoundedCache
from minismtp.values.peer import plain_address

_LIFETIME: Final = 10.0
_PAYLOAD: Final = 1232  # octets of UDP, whole in one packet on every way
_CACHED: Final = 16 * 1024 * 1024  # octets of answers, some 20,000 ordinary ones
_RECORD: Final = 400  # octets that a record takes beside what it says
_LONGEST: Final = 3600.0  # seconds in the cache, whatever the TTL
_LONGEST_NEGATIVE: Final = 300.0  # without a SOA record a negative answer has no TTL at all
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_TRUST_AD: Final = re.compile(r"^options\b.*\btrust-ad\b", re.MULTILINE)


class UnansweredError(Exception):
    """The DNS does not say whether there is such a record; the text says why not."""


@dataclass(frozen=True, slots=True)
class Found:
    """The records of one type under a name, none when it has no such records.

    `name` is where aliases have led, in lower case. `secure` says that DNSSEC has validated the
    answer, `exists` that there is such a name. `size` is that of the answer, in octets.
    """

    records: tuple[Any, ...]
    name: str
    secure: bool = False
    exists: bool = True
    size: int = 0


class Resolver:
    """Asks the DNS; threads may share one. Without `nameservers` it is that of this machine."""

    def __init__(self, nameservers: Iterable[SocketAddress] = ()) -> None:
        servers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in nameservers]
        self._resolver, self._trusted = _system_resolver() if not servers else _resolver(), True
        if servers:
            self._resolver.nameservers = servers
        else:
            self._trusted = _is_trusted(self._resolver)
        # What dnspython has for this costs a hundred times as much, for each question of a message.
        self._known: BoundedCache[tuple[str, str], Found] = BoundedCache(_CACHED)
        self._resolver.use_edns(0, 0, _PAYLOAD)
        # RFC 6840 section 5.7: who sets AD in a question wants it in the answer.
        self._resolver.set_flags(dns.flags.RD | dns.flags.AD)

    def lookup(self, name: str, kind: str, *, seconds: float = _LIFETIME) -> Found:
        """Return the records of type `kind` that an absolute name has. Raise UnansweredError.

        `seconds` bounds the whole question, all servers and repetitions included.
        """
        name = to_ascii(name)
        # A name that does not exist has no records of any type (RFC 8020).
        found = self._known.get((name, kind)) or self._known.get((name, ""))
        if found is not None:
            return found
        try:
            answer = self._resolver.resolve(
                f"{name}.", kind, raise_on_no_answer=False, lifetime=seconds
            )
        except dns.resolver.NXDOMAIN as error:
            [response] = error.responses().values()  # type: ignore[no-untyped-call]
            ttl = min(response.resolve_chaining().minimum_ttl, _LONGEST_NEGATIVE)
            found = Found((), name, exists=False, size=len(response.wire or b""))
            self._known.put((name, ""), found, ttl, 2 * len(name))
            return found
        except (dns.exception.DNSException, OSError) as error:
            raise UnansweredError(
                f"the DNS does not answer for {name} {kind} ({type(error).__name__})"
            ) from None
        found = Found(
            tuple(answer.rrset or ()),
            answer.canonical_name.to_text(omit_final_dot=True).lower(),
            secure=self._trusted and bool(answer.response.flags & dns.flags.AD),
            size=len(answer.response.wire or b""),
        )
        longest = _LONGEST if found.records else _LONGEST_NEGATIVE
        seconds = min(answer.chaining_result.minimum_ttl, longest)
        self._known.put((name, kind), found, seconds, _weight(found))
        return found


def _weight(found: Found) -> int:
    """Return about how many octets of memory an answer takes."""
    return found.size + _RECORD * len(found.records) + 2 * len(found.name)


def _resolver() -> dns.resolver.Resolver:
    return dns.resolver.Resolver(configure=False)


def _system_resolver() -> dns.resolver.Resolver:
    try:
        return dns.resolver.Resolver(str(_RESOLV_CONF))
    except dns.resolver.NoResolverConfiguration:
        resolver = _resolver()
        resolver.nameservers = ["127.0.0.1"]  # as resolv.conf(5) says
        return resolver


def _is_trusted(resolver: dns.resolver.Resolver) -> bool:
    """Whether AD counts: by resolv.conf's word for it, or since nobody is on the way."""
    try:
        if _TRUST_AD.search(_RESOLV_CONF.read_text()):
            return True
    except OSError:
        pass
    servers = (plain_address(str(each)) for each in resolver.nameservers)
    return all(ipaddress.ip_address(each).is_loopback for each in servers)
