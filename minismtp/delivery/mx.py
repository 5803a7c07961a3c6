"""The hosts for a domain: MX records and addresses (RFC 5321 section 5, RFC 7505).

The answer of the DNS decides what happens to a message. "No such domain" is a permanent failure,
no answer is a temporary one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

from minismtp.config.types import EVERY_HOST, SocketAddress
from minismtp.services.resolver import Found, Resolver, UnansweredError
from minismtp.values.address import to_ascii
from minismtp.values.peer import plain_address

_chance: Final = random.SystemRandom()
_MOST_HOSTS: Final = 10  # of a domain (RFC 5321 section 5.1: at least two)
_HOST_NAME: Final = re.compile(r"(?!.*\.[0-9]+\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


#: where the system connects to for these addresses (RFC 1122 section 3.2.1.3)
_LOOPBACKS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - used to connect, not bound


class UnreachableError(Exception):
    """A host or domain cannot be reached. `reply` gives the reason, `final` says permanently."""

    def __init__(self, reply: str, *, final: bool = False) -> None:
        super().__init__(reply)
        self.reply = reply
        self.final = final


@dataclass(frozen=True, slots=True)
class Host:
    """One address of one host that takes mail for a domain.

    `authentic` says that the name cannot be forged, because DNSSEC validated the MX records or the
    configuration has the name. `signed` are the names of the host whose TLSA records count, the
    preferred one first; it is empty if the zone is not signed (RFC 7672 section 2.2.2).
    """

    name: str
    address: str
    port: int
    authentic: bool = False
    signed: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = "" if self.name == self.address else self.name
        return f"{name}[{self.address}]:{self.port}"


class HostFinder:
    """Finds the hosts for a domain, but never this server: its `hostname`, its sockets (`own`)."""

    def __init__(
        self, resolver: Resolver, *, hostname: str, own: Sequence[SocketAddress], port: int
    ) -> None:
        self._resolver = resolver
        self._hostname = to_ascii(hostname)
        self._own = {(host, each.port) for each in own for host in _named(each.host)}
        self._port = port

    def by_mx(self, domain: str) -> Iterator[Host]:
        """Yield the hosts for a domain (A-labels), the preferred ones first.

        The addresses are looked up as far as the caller iterates. Raise UnreachableError at the
        end if there was no host, or if another attempt may find more.
        """
        if domain.startswith("["):
            address = to_ascii(domain)[1:-1].removeprefix("ipv6:")
            yield from self._not_ours([Host(address, address, self._port, authentic=True)])
            return
        found = self._mx(domain)
        problem: UnreachableError | None = None
        some = False
        for _, equals in groupby(_exchanges(domain, found), key=itemgetter(0)):
            names = [name for _, name in equals]
            hosts: list[Host] = []
            for name in names if self._hostname not in names else []:
                try:
                    hosts += self._hosts(name, self._port, authentic=found.secure)
                except UnreachableError as error:
                    if problem is None or problem.final:
                        problem = error  # a temporary failure counts for more
            if self._hostname in names or any(map(self._is_ours, hosts)):
                # RFC 5321 section 5.1: only hosts that are preferred to this server.
                problem = problem or _loop(domain)
                break
            some = some or bool(hosts)
            yield from hosts
        if problem is not None and not (some and problem.final):
            raise problem

    def at(self, name: str, port: int) -> list[Host]:
        """Return all addresses of a host that the configuration or a plugin names.

        An UnreachableError is never final, because the operator can correct the name.
        """
        name = to_ascii(name)
        with contextlib.suppress(ValueError):
            name = plain_address(name)
            return self._not_ours([Host(name, name, port, authentic=True)])
        try:
            hosts = self._hosts(name, port, authentic=True)
        except UnreachableError as error:
            hosts = [Host(name, address, port, authentic=True) for address in _system(name)]
            if not hosts:
                reply = error.reply if not error.final else f"451 4.4.4 host {name} has no address"
                raise UnreachableError(reply) from None
        return self._not_ours(hosts)

    def _mx(self, domain: str) -> Found:
        try:
            found = self._resolver.lookup(domain, "MX")
        except UnansweredError as error:
            raise UnreachableError(f"451 4.4.3 {error}") from None
        if not found.exists:
            raise UnreachableError(f"550 5.1.2 domain {domain} does not exist", final=True)
        return found

    def _hosts(self, name: str, port: int, *, authentic: bool) -> list[Host]:
        """Return a host at each of its addresses. Raise UnreachableError if it has no address."""
        answers: list[Found] = []
        failure: UnansweredError | None = None
        for kind in ("AAAA", "A") if _HOST_NAME.fullmatch(name) else ():
            try:
                answers.append(self._resolver.lookup(name, kind))
            except UnansweredError as error:
                failure = error
        answers = [each for each in answers if each.records]
        if not answers:
            if failure is not None:
                raise UnreachableError(f"451 4.4.3 {failure}")
            raise UnreachableError(f"550 5.4.4 host {name} has no address", final=True)
        signed = self._signed(name, answers) if authentic else ()
        addresses = (
            plain_address(record.address)  # an AAAA record may have an IPv4-mapped address
            for found in answers
            for record in _chance.sample(found.records, len(found.records))
        )
        return [Host(name, each, port, authentic, signed) for each in dict.fromkeys(addresses)]

    def _signed(self, name: str, answers: Sequence[Found]) -> tuple[str, ...]:
        """Return the names of a host that are in signed zones; an alias may leave its zone."""
        if all(found.secure for found in answers):
            return tuple(dict.fromkeys([answers[0].name, name]))
        if answers[0].name != name:
            with contextlib.suppress(UnansweredError):
                if self._resolver.lookup(name, "CNAME").secure:
                    return (name,)
        return ()

    def _not_ours(self, hosts: list[Host]) -> list[Host]:
        """Return the hosts that are not this server. Raise UnreachableError if all of them are."""
        others = [host for host in hosts if not self._is_ours(host)]
        if others:
            return others
        raise _loop(hosts[0].name)

    def _is_ours(self, host: Host) -> bool:
        """Return whether this server listens at the address and port of a host."""
        address = _LOOPBACKS.get(host.address, host.address)
        anywhere = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - compared, not bound
        return (address, host.port) in self._own or (
            (anywhere, host.port) in self._own and _is_local(address)
        )


def _exchanges(domain: str, found: Found) -> list[tuple[int, str]]:
    """Return the hosts of MX records with their preferences, in the order to try them."""
    if not found.records:
        return [(0, domain)]  # the implicit MX
    named = [(mx.preference, mx.exchange.to_text(omit_final_dot=True)) for mx in found.records]
    exchanges = [(number, name.lower()) for number, name in named if name not in {"", "."}]
    if not exchanges:
        raise UnreachableError(f"556 5.1.10 domain {domain} accepts no mail", final=True)
    _chance.shuffle(exchanges)  # hosts of equal preference share the load
    exchanges.sort(key=itemgetter(0))
    return exchanges[:_MOST_HOSTS]


def _loop(name: str) -> UnreachableError:
    return UnreachableError(f"550 5.4.6 mail for {name} loops back to this host", final=True)


def _named(host: str) -> list[str]:
    """Return the addresses of a listener, whose host may be a name such as localhost, or "*"."""
    if host == EVERY_HOST:
        return [*_LOOPBACKS]
    with contextlib.suppress(ValueError):
        return [plain_address(host)]
    return _system(host) if host else []


def _system(name: str) -> list[str]:
    """Return the addresses that the system has for a name, from /etc/hosts for instance."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_local(address: str) -> bool:
    """Return whether this machine has an address, because only then can a socket bind to it.

    If the system allows sockets to bind to other addresses too, compare the address with the one
    that the system would send from.
    """
    found = ipaddress.ip_address(address)
    family = socket.AF_INET6 if found.version == 6 else socket.AF_INET  # noqa: PLR2004
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            if not _binds_anywhere(found.version):
                sock.bind((address, 0))
                return True
            sock.connect((address, 9))  # sends nothing
            return found.is_loopback or str(sock.getsockname()[0]) == address
        except OSError:
            return False


def _binds_anywhere(version: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/sys/net/ipv{version}/ip_nonlocal_bind").read_text().strip() == "1"
    return False
