"""Questions to the DNS, answered from a cache where that is possible.

The resolver says by the AD flag whether an answer is authentic (RFC 4035). The flag counts only if
the resolver and the path to it are trusted.
"""

from __future__ import annotations

import io
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minismtp.config.types import SocketAddress
from minismtp.values.address import to_ascii
from minismtp.values.cache import BoundedCache
from minismtp.values.peer import plain_address

if TYPE_CHECKING:
    import dns.resolver

_LIFETIME: Final = 10.0
_PAYLOAD: Final = 1232  # octets of UDP, fit into one packet on every path
_CACHED: Final = 16 * 1024 * 1024  # octets of answers, about 20,000 ordinary ones
_RECORD: Final = 400  # octets of memory for a record besides its data
_LONGEST: Final = 3600.0  # seconds in the cache, whatever the TTL
_LONGEST_NEGATIVE: Final = 300.0  # a negative answer without a SOA record has no TTL
_KINDS: Final = ("A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "TLSA", "TXT")
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_TRUST_AD: Final = re.compile(r"^options\b.*\btrust-ad\b", re.MULTILINE)


def import_library() -> None:
    """Import dnspython now, before the processes are forked that will ask questions."""
    import dns.exception  # noqa: PLC0415 - as in `Resolver`
    import dns.flags  # noqa: PLC0415
    import dns.nameserver  # noqa: PLC0415
    import dns.rdata  # noqa: PLC0415
    import dns.rdataclass  # noqa: PLC0415
    import dns.rdatatype  # noqa: PLC0415
    import dns.resolver  # noqa: PLC0415

    for kind in _KINDS:  # dnspython imports each when it meets one
        number = dns.rdatatype.from_text(kind)
        dns.rdata.get_rdata_class(dns.rdataclass.IN, number)  # type: ignore[no-untyped-call]


class UnansweredError(Exception):
    """The DNS does not answer whether there is such a record; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """The records of one type at a name; empty if it has no such records.

    `name` is the one that aliases lead to, in lower case. `secure` says that DNSSEC validated the
    answer, `exists` that there is such a name. `size` is the answer's, in octets.
    """

    records: tuple[Any, ...]
    name: str
    secure: bool = False
    exists: bool = True
    size: int = 0


class Resolver:
    """Asks the DNS; threads may share one. The default `nameservers` are those of this machine."""

    def __init__(self, nameservers: Iterable[SocketAddress] = ()) -> None:
        self._nameservers = tuple(nameservers)
        # dnspython's own cache takes a hundred times as long for each question.
        self._known: BoundedCache[tuple[str, str], Found] = BoundedCache(_CACHED)

    @cached_property
    def _resolver(self) -> dns.resolver.Resolver:
        """Made at the first question: dnspython takes 3 MB, and many servers ask no question."""
        import dns.flags  # noqa: PLC0415
        import dns.nameserver  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

        resolver = dns.resolver.Resolver(configure=False)
        try:
            if self._nameservers:
                resolver.nameservers = [
                    dns.nameserver.Do53Nameserver(each.host, each.port)
                    for each in self._nameservers
                ]
            else:
                resolver.read_resolv_conf(io.StringIO(_readable(_resolv_conf())))
        except dns.resolver.NoResolverConfiguration:
            resolver.nameservers = ["127.0.0.1"]  # as resolv.conf(5) says
        resolver.use_edns(0, 0, _PAYLOAD)
        # RFC 6840 section 5.7: AD in a question asks for it in the answer.
        resolver.set_flags(dns.flags.RD | dns.flags.AD)
        return resolver

    @cached_property
    def _trusted(self) -> bool:
        return bool(self._nameservers) or _is_trusted(self._resolver)

    def lookup(self, name: str, kind: str, *, seconds: float = _LIFETIME) -> Found:
        """Return the records of type `kind` that an absolute name has. Raise UnansweredError.

        `seconds` bounds the whole question with all servers and retries.
        """
        name = to_ascii(name)
        # A name that does not exist has no records of any type (RFC 8020).
        found = self._known.get((name, kind)) or self._known.get((name, ""))
        if found is not None:
            return found
        import dns.exception  # noqa: PLC0415 - as in `_resolver`
        import dns.flags  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

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
    """Return the approximate size of an answer in memory, in octets."""
    return found.size + _RECORD * len(found.records) + 2 * len(found.name)


def _resolv_conf() -> str:
    """Return the text of resolv.conf, "" if it cannot be read."""
    try:
        return _RESOLV_CONF.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _readable(text: str) -> str:
    """Return the text without lines that libc skips, and of which dnspython raises ValueError."""
    return "".join(line for line in text.splitlines(keepends=True) if not _is_wrong(line))


def _is_wrong(line: str) -> bool:
    """Return whether a line names as a server what is no address."""
    words = line.split()
    if words[:1] != ["nameserver"]:
        return False
    try:
        ipaddress.ip_address(words[1])
    except (IndexError, ValueError):
        return True
    return False


def _is_trusted(resolver: dns.resolver.Resolver) -> bool:
    """Return whether AD counts: resolv.conf says so, or all servers are on this machine."""
    if _TRUST_AD.search(_resolv_conf()):
        return True
    servers = (plain_address(str(each)) for each in resolver.nameservers)
    return all(ipaddress.ip_address(each).is_loopback for each in servers)
