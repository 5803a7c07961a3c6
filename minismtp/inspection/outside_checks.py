"""What sending depends on besides records: outgoing port 25, and no entry in block lists."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final, TypeAlias

from minismtp.inspection.dns_check import Asked, Outcome
from minismtp.inspection.questions import HurriedResolver
from minismtp.runtime.log import describe
from minismtp.services.resolver import Resolver, UnansweredError
from minismtp.values.printable import one_line

Address: TypeAlias = IPv4Address | IPv6Address

#: A domain whose hosts take mail from all servers, to see whether port 25 goes out.
WELL_KNOWN: Final = "gmail.com"
#: Lists that many servers use; the last one has domains, the others addresses.
BLOCK_LISTS: Final = (
    "zen.spamhaus.org",
    "bl.spamcop.net",
    "b.barracudacentral.org",
    "psbl.surriel.com",
    "dbl.spamhaus.org",
)
_OF_DOMAINS: Final = frozenset({"dbl.spamhaus.org"})
_CODES: Final = IPv4Network("127.0.0.0/8")
_ERRORS: Final = IPv4Network("127.255.255.0/24")
_PORT: Final = 25
_CONNECT: Final = 5.0  # seconds
_BANNER: Final = 512  # octets
_GREETING: Final = "a connection, and the greeting 220"
_KIND: Final = "block list"
_LATE: Final = "no time was left"


def port_25(resolver: HurriedResolver, host: str = "", port: int = _PORT) -> Asked:
    """Return the question whether a host greets, by default one of WELL_KNOWN."""
    late = Outcome(host or WELL_KNOWN, f"port {port}", _GREETING, "unanswered", note=_LATE)
    return Asked(partial(_connect, resolver, host, port), late)


def _connect(resolver: HurriedResolver, host: str, port: int) -> Outcome:
    kind, target = f"port {port}", host
    try:
        target = target or _host_of(resolver, WELL_KNOWN)
        seconds = max(min(_CONNECT, resolver.left), 0.1)
        with closing(socket.create_connection((target, port), timeout=seconds)) as connection:
            greeting = one_line(connection.recv(_BANNER).decode("ascii", "replace").strip())
            with suppress(OSError):  # it may be gone
                connection.sendall(b"QUIT\r\n")
    except UnansweredError as error:
        return Outcome(target or WELL_KNOWN, kind, _GREETING, "unanswered", note=str(error))
    except OSError as error:
        note = "no connection, so no mail leaves: many providers open the port when asked"
        return Outcome(target, kind, _GREETING, "wrong", (describe(error),), note)
    if greeting.startswith("220"):
        return Outcome(target, kind, _GREETING, "right", (greeting,))
    note = "another program answers, such as a proxy, or the host refuses this address"
    return Outcome(target, kind, _GREETING, "wrong", (greeting or "nothing",), note)


def _host_of(resolver: Resolver, domain: str) -> str:
    records = sorted(resolver.lookup(domain, "MX").records, key=lambda each: each.preference)
    if not records:
        raise UnansweredError(f"the DNS has no host for {domain}; name one with --port25")
    return str(records[0].exchange.to_text(omit_final_dot=True))


def listings(
    resolver: Resolver, lists: Iterable[str], addresses: Sequence[Address], names: Iterable[str]
) -> Iterator[Asked]:
    """Yield the questions whether a list has an address or a name."""
    subjects = [(each.reverse_pointer.rsplit(".", 2)[0], str(each)) for each in addresses]
    domains = [(name, name) for name in names]
    for zone in lists:
        about = [] if zone in _OF_DOMAINS else [*subjects]
        if zone in _OF_DOMAINS or zone not in BLOCK_LISTS:
            about += domains
        for key, subject in about:
            late = Outcome(subject, _KIND, f"not in {zone}", "unanswered", note=_LATE)
            yield Asked(partial(_listing, resolver, zone, key, subject), late)


def _listing(resolver: Resolver, zone: str, key: str, subject: str) -> Outcome:
    """Ask a list about an address or a domain (RFC 5782)."""
    wanted = f"not in {zone}"
    try:
        records = resolver.lookup(f"{key}.{zone}", "A").records
    except UnansweredError as error:
        return Outcome(subject, _KIND, wanted, "unanswered", note=str(error))
    answers = tuple(str(each.address) for each in records)
    codes = [IPv4Address(each) for each in answers]
    if any(each in _ERRORS or each not in _CODES for each in codes):
        note = f"{zone} answers with an error; lists refuse the resolvers of large networks"
        return Outcome(subject, _KIND, wanted, "unanswered", answers, note)
    if not answers:
        return Outcome(subject, _KIND, wanted, "right")
    return Outcome(subject, _KIND, wanted, "wrong", answers, f"see the pages of {zone}")
