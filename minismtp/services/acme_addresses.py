"""Which names have no address in the DNS yet, so that no authority can check them.

A resolver repeats for up to three hours that there is no such name (RFC 2308 section 5), and
somebody who sets up a host looks before the records are there. So the name servers of the zone are
asked too, unless they cannot be reached.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from minismtp.services.resolver import Found, Resolver, UnansweredError

_KINDS: Final = ("A", "AAAA")
_LONGEST: Final = 30.0  # seconds for all names
_LONGEST_QUESTION: Final = 5.0  # seconds
_LONGEST_DIRECT_QUESTION: Final = 2.0  # seconds
_MOST_SERVERS: Final = 3  # of a zone
_PORT: Final = 53


def names_without_address(names: Iterable[str], resolver: Resolver) -> list[str]:
    """Return the names that have no address. A name for which the DNS does not answer may have one.

    Blocks for half a minute at most.
    """
    search = _Search(resolver)
    return [name for name in names if search.finds_nothing(name)]


class _Search:
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._end = time.monotonic() + _LONGEST
        self._silent: set[str] = set()  # name servers that do not answer

    def finds_nothing(self, name: str) -> bool:
        """Return whether a name has no address."""
        try:
            for kind in _KINDS:
                found = self._lookup(name, kind)
                if found.records:
                    return False
                if not found.exists:
                    break
        except UnansweredError:
            return False
        return not self._is_new(name)

    def _is_new(self, name: str) -> bool:
        """Return whether the name servers of the zone have the name already."""
        for server in self._servers(name):
            known = None if server in self._silent else self._knows(server, name)
            if known is not None:
                return known
            self._silent.add(server)
        return False

    def _knows(self, server: str, name: str) -> bool | None:
        """Return whether a name server has addresses of a name, None if it does not say."""
        for kind in _KINDS:
            question = dns.message.make_query(name, kind, flags=0)
            seconds = min(_LONGEST_DIRECT_QUESTION, self._end - time.monotonic())
            try:
                answer = dns.query.udp(question, server, max(seconds, 0.0), _PORT)
            except (dns.exception.DNSException, OSError):
                return None
            if answer.answer:
                return True
            if not answer.flags & dns.flags.AA:
                # A zone that the resolver does not know yet is delegated to others.
                return True if _is_referral(answer) else None
            if answer.rcode() == dns.rcode.NXDOMAIN:
                return False
            if answer.rcode() != dns.rcode.NOERROR:
                return None
        return False

    def _servers(self, name: str) -> Iterator[str]:
        """Yield the addresses of some name servers of the zone that a name belongs to."""
        try:
            zone = name
            while zone and not (hosts := self._lookup(zone, "NS").records):
                zone = zone.partition(".")[2]
            for host in hosts[:_MOST_SERVERS]:
                target = host.target.to_text(omit_final_dot=True)
                found = self._lookup(target, "A").records or self._lookup(target, "AAAA").records
                yield from (each.address for each in found[:1])
        except UnansweredError:
            return

    def _lookup(self, name: str, kind: str) -> Found:
        left = self._end - time.monotonic()
        if left <= 0:
            raise UnansweredError(f"no time was left to ask the DNS for {name} {kind}")
        return self._resolver.lookup(name, kind, seconds=min(left, _LONGEST_QUESTION))


def _is_referral(answer: dns.message.Message) -> bool:
    return any(each.rdtype == dns.rdatatype.NS for each in answer.authority)
