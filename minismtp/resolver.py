"""Questions to the DNS, answered from a cache where that is possible (layer 2).

Whether an answer is to be believed (RFC 4035) is for the resolver to say, by its AD flag; and that
flag is worth something only when the resolver, and the way to it, are trusted.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.flags
import dns.nameserver
import dns.resolver

from minismtp.address import to_ascii
from minismtp.scalars import SocketAddress

_LIFETIME: Final = 10.0
_PAYLOAD: Final = 1232  # octets of UDP, whole in one packet on every way
_CACHED: Final = 10_000  # answers
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
    answer, `exists` that there is such a name.
    """

    records: tuple[Any, ...]
    name: str
    secure: bool = False
    exists: bool = True


class Resolver:
    """Asks the DNS; threads may share one. Without `nameservers` it is that of this machine."""

    def __init__(self, nameservers: Iterable[SocketAddress] = ()) -> None:
        servers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in nameservers]
        self._resolver, self._trusted = _system_resolver() if not servers else _resolver(), True
        if servers:
            self._resolver.nameservers = servers
        else:
            self._trusted = _is_trusted(self._resolver)
        self._known = _Known(_CACHED)
        self._resolver.use_edns(0, 0, _PAYLOAD)
        # RFC 6840 section 5.7: who sets AD in a question wants it in the answer.
        self._resolver.set_flags(dns.flags.RD | dns.flags.AD)

    def lookup(self, name: str, kind: str, *, seconds: float = _LIFETIME) -> Found:
        """Give the records of type `kind` that an absolute name has; raises UnansweredError.

        `seconds` bounds the whole question, all servers and repetitions included.
        """
        name = to_ascii(name)
        # A name that does not exist has no records of any type (RFC 8020).
        found = self._known.get(name, kind) or self._known.get(name, "")
        if found is not None:
            return found
        try:
            answer = self._resolver.resolve(
                f"{name}.", kind, raise_on_no_answer=False, lifetime=seconds
            )
        except dns.resolver.NXDOMAIN as error:
            [response] = error.responses().values()  # type: ignore[no-untyped-call]
            ttl = min(response.resolve_chaining().minimum_ttl, _LONGEST_NEGATIVE)
            return self._known.put(name, "", Found((), name, exists=False), ttl)
        except (dns.exception.DNSException, OSError) as error:
            raise UnansweredError(
                f"the DNS does not answer for {name} {kind} ({type(error).__name__})"
            ) from None
        found = Found(
            tuple(answer.rrset or ()),
            answer.canonical_name.to_text(omit_final_dot=True).lower(),
            secure=self._trusted and bool(answer.response.flags & dns.flags.AD),
        )
        longest = _LONGEST if found.records else _LONGEST_NEGATIVE
        return self._known.put(name, kind, found, min(answer.chaining_result.minimum_ttl, longest))


class _Known:
    """Keeps answers for as long as they are told to be true; threads share it.

    What dnspython has for this costs a hundred times as much, for each of a message's questions.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], tuple[float, Found]] = {}

    def get(self, name: str, kind: str) -> Found | None:
        """Give an answer whose time is not over."""
        until, found = self._answers.get((name, kind), (0.0, None))
        return found if time.monotonic() < until else None

    def put(self, name: str, kind: str, found: Found, seconds: float) -> Found:
        """Keep an answer, in the place of the oldest when there are too many; and give it."""
        with self._lock:
            self._answers.pop((name, kind), None)
            while len(self._answers) >= self._size:
                del self._answers[next(iter(self._answers))]
            self._answers[name, kind] = (time.monotonic() + seconds, found)
        return found


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
    return all(ipaddress.ip_address(str(each)).is_loopback for each in resolver.nameservers)
