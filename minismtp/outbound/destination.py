"""Where mail for a domain goes: MX records and addresses (layer 6; RFC 5321 section 5, RFC 7505).

What the DNS answers decides a message's fate: "no such domain" is final, "no answer" is not.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

import dns.exception
import dns.message
import dns.nameserver
import dns.rdatatype
import dns.resolver

from minismtp.scalars import SocketAddress

_LIFETIME: Final = 20.0  # seconds for one question, all servers and repetitions included
_CACHED: Final = 10_000  # answers
_ANY: Final = {"0.0.0.0", "::", "localhost"}  # noqa: S104 - compared, not bound
_MOST_HOSTS: Final = 10  # of a domain; more are no help (RFC 5321 section 5.1: at least two)


class UnreachableError(Exception):
    """No way to a domain: an SMTP reply with the reason. `final` says that it stays so."""

    def __init__(self, reply: str, *, final: bool) -> None:
        super().__init__(reply)
        self.reply = reply
        self.final = final


@dataclass(frozen=True, slots=True)
class Host:
    """One address of one host that takes mail for a domain."""

    name: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.name}[{self.address}]:{self.port}"


class Resolver:
    """Asks the DNS, with a cache; threads may share one. `own` is where we listen."""

    def __init__(
        self,
        nameservers: Iterable[SocketAddress] = (),
        *,
        hostname: str = "",
        own: Sequence[SocketAddress] = (),
        port: int = 25,
    ) -> None:
        servers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in nameservers]
        self._resolver = dns.resolver.Resolver(configure=not servers)
        if servers:
            self._resolver.nameservers = servers
        self._resolver.cache = dns.resolver.LRUCache(_CACHED)
        self._resolver.lifetime = _LIFETIME
        self._hostname = hostname.lower()
        self._own = own
        self._port = port

    def hosts(self, domain: str) -> list[Host]:
        """Give where to deliver mail for a domain, the best first. Raises UnreachableError."""
        if domain.startswith("["):
            address = domain[1:-1].removeprefix("IPv6:").removeprefix("ipv6:")
            return self._not_ours([Host(domain, address, self._port)])
        hosts: list[Host] = []
        problem: UnreachableError | None = None
        for _, equals in groupby(self._exchanges(domain), key=itemgetter(0)):
            names = [name for _, name in equals]
            here: list[Host] = []
            for name in names if self._hostname not in names else []:
                try:
                    here += self._at(name, self._port)
                except UnreachableError as error:
                    if problem is None or problem.final:
                        problem = error  # one that may change counts for more
            if self._hostname in names or any(map(self._is_ours, here)):
                # RFC 5321 section 5.1: only hosts that are preferred to ourselves.
                problem = problem or _loop(domain)
                break
            hosts += here
        if hosts:
            return hosts
        raise problem or UnreachableError(f"550 5.4.4 no host takes mail for {domain}", final=True)

    def addresses(self, name: str, port: int) -> list[Host]:
        """Give all addresses of one host. Raises UnreachableError."""
        return self._not_ours(self._at(name, port))

    def _exchanges(self, domain: str) -> list[tuple[int, str]]:
        try:
            answer = self._resolver.resolve(f"{domain}.", "MX")
        except dns.resolver.NoAnswer:
            return [(0, domain)]  # the implicit MX
        except dns.resolver.NXDOMAIN:
            raise UnreachableError(
                f"550 5.1.2 domain {domain} does not exist", final=True
            ) from None
        except (dns.exception.DNSException, OSError) as error:
            raise _no_answer(domain, error) from None
        found = [(each.preference, each.exchange.to_text(omit_final_dot=True)) for each in answer]
        found = [(number, name.lower()) for number, name in found]
        if all(name in {"", "."} for _, name in found):
            raise UnreachableError(f"556 5.1.10 domain {domain} accepts no mail", final=True)
        random.shuffle(found)  # equal preferences share the load
        found.sort(key=lambda each: each[0])
        return [(number, name) for number, name in found if name not in {"", "."}][:_MOST_HOSTS]

    def _at(self, name: str, port: int) -> list[Host]:
        return [Host(name, address, port) for address in self._addresses(name)]

    def _addresses(self, name: str) -> Iterator[str]:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            return iter([name])
        found: list[str] = []
        failure: Exception | None = None
        for kind in ("AAAA", "A"):
            try:
                answer = self._resolver.resolve(f"{name}.", kind)
            except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
                continue
            except (dns.exception.DNSException, OSError) as error:
                failure = error
                continue
            addresses = [each.address for each in answer]
            random.shuffle(addresses)
            found += addresses
        if found:
            return iter(found)
        if failure is not None:
            raise _no_answer(name, failure)
        raise UnreachableError(f"550 5.4.4 host {name} has no address", final=True)

    def _not_ours(self, hosts: list[Host]) -> list[Host]:
        """Drop addresses on which we would talk to ourselves; raises UnreachableError."""
        others = [host for host in hosts if not self._is_ours(host)]
        if others:
            return others
        raise _loop(hosts[0].name)

    def _is_ours(self, host: Host) -> bool:
        """Whether we listen there; another server may have the same port of another address."""
        return any(
            own.port == host.port
            and (_is_local(host.address) if own.host in _ANY else own.host == host.address)
            for own in self._own
        )


def _loop(name: str) -> UnreachableError:
    return UnreachableError(f"550 5.4.6 mail for {name} loops back to this host", final=True)


def _no_answer(name: str, error: Exception) -> UnreachableError:
    kind = type(error).__name__
    return UnreachableError(f"451 4.4.3 the DNS does not answer for {name} ({kind})", final=False)


def _is_local(address: str) -> bool:
    """Whether this machine has an address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True
