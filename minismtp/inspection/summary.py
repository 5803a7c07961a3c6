"""What a server with this configuration would do, in a few lines."""

from __future__ import annotations

import ssl
from collections.abc import Container, Iterable, Iterator
from typing import Final

from minismtp.config import Config
from minismtp.hooks.plugin_check import Facts
from minismtp.inspection.certificates import described, pairs
from minismtp.values.address import to_ascii
from minismtp.values.user_names import folded_name

_MOST_NAMED: Final = 8


def summary(config: Config, facts: Facts) -> Iterator[str]:
    """Yield the lines."""
    for listener in config.listeners:
        tls = {"none": "no TLS", "starttls": "STARTTLS", "implicit": "TLS at once"}[listener.tls]
        who = {"mx": "mail of other servers", "submission": "mail of users", "lmtp": "LMTP"}
        who["web"] = "HTTP"
        yield f"listener {listener.name}: {listener.address}, {who[listener.kind]}, {tls}"
    yield f"domains: {_listed(facts.domains) or 'none of its own'}"
    yield from _users(facts)
    for pair in pairs(config):
        try:
            yield f"certificate: {described(pair)}"
        except (OSError, ValueError, IndexError, ssl.SSLError):
            continue
    yield f"plugins: {', '.join(each.name for each in config.plugins) or 'none'}"
    smarthost = config.outbound.smarthost
    way = f"through {smarthost}" if smarthost else "to the hosts of each domain (MX)"
    yield f"mail to others: {way}"
    address = config.metrics.address
    yield f"metrics: {f'http://{address}/metrics' if address else 'not served'}"


def _users(facts: Facts) -> Iterator[str]:
    ours = {to_ascii(domain) for domain in facts.domains}
    logins = {folded_name(name) for name in facts.logins}
    logins |= {_without_domain(name, ours) for name in logins}
    users = {folded_name(name) for name in facts.users}
    secure = [name for name in facts.users if folded_name(name) in logins]
    without = [name for name in facts.users if folded_name(name) not in logins]
    homeless = [
        name
        for name in facts.logins
        if users.isdisjoint((whole := folded_name(name), _without_domain(whole, ours)))
    ]
    every = " (every local part has a mailbox)" if facts.any_user else ""
    if facts.services:
        yield f"users: {_listed(facts.users) or 'any'}{every}; passwords: {_listed(facts.services)}"
        return
    yield f"users with a password: {_listed(secure) or 'none'}{every}"
    if without:
        yield f"users without a password: {_listed(without)}"
    if homeless and not facts.any_user:
        yield f"passwords without a mailbox: {_listed(homeless)}"


def _without_domain(name: str, ours: Container[str]) -> str:
    """Return the local part of an address at one of our domains, and any other name as it is."""
    local, at, domain = name.rpartition("@")
    return local if at and domain in ours else name


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
