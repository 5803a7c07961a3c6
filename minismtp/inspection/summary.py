"""What a server with this configuration would do, in a few lines."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from typing import Final

from minismtp.config import Config
from minismtp.hooks.plugin_check import Facts
from minismtp.inspection.certificates import described, pairs
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
    logins = {folded_name(name) for name in facts.logins}
    domains = [domain.lower() for domain in facts.domains]
    spellings = {
        name: {folded_name(each) for each in (name, *(f"{name}@{at}" for at in domains))}
        for name in facts.users
    }
    secure = [name for name, forms in spellings.items() if forms & logins]
    without = [name for name in facts.users if name not in secure]
    known = {form for forms in spellings.values() for form in forms}
    homeless = [name for name in facts.logins if folded_name(name) not in known]
    every = " (every local part has a mailbox)" if facts.any_user else ""
    if facts.services:
        yield f"users: {_listed(facts.users) or 'any'}{every}; passwords: {_listed(facts.services)}"
        return
    yield f"users with a password: {_listed(secure) or 'none'}{every}"
    if without:
        yield f"users without a password: {_listed(without)}"
    if homeless and not facts.any_user:
        yield f"passwords without a mailbox: {_listed(homeless)}"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
