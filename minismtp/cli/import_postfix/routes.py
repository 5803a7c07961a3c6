"""Other ways for some domains: transport_maps and smtp_tls_policy_maps."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from minismtp.cli.import_postfix.domains import why_unlisted
from minismtp.cli.import_postfix.draft import Table
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import host_and_port, with_port
from minismtp.cli.postfix_files.lookup_table import Pair
from minismtp.cli.postfix_files.text import PostfixError, words
from minismtp.config.types import parse_domain

_SMTP: Final = 25
_TRANSPORTS: Final = "transport_maps"
_POLICIES: Final = "smtp_tls_policy_maps"
_LEVELS: Final = {
    "none": "none",
    "may": "opportunistic",
    "dane": "opportunistic",
    "encrypt": "required",
    "dane-only": "verified",
    "verify": "verified",
    "secure": "verified",
    "fingerprint": "verified",
}


def tls_level(text: str) -> str:
    """Return our level of TLS for one of Postfix. Raise PostfixError."""
    if text not in _LEVELS:
        raise PostfixError(f"{text!r} is no level of TLS")
    return _LEVELS[text]


def carry_routes(migration: Migration) -> None:
    """Make the routes. An exact domain stands before a pattern, as Postfix looks them up."""
    routes: dict[str, Table] = {}
    for table in migration.tables(_TRANSPORTS):
        for pair in table.pairs:
            _carry_transport(migration, routes, pair)
        if not table.is_listed:
            migration.by_hand(_TRANSPORTS, f"{why_unlisted(table)}; write [[outbound.routes]]")
    hosts: dict[str, list[Table]] = defaultdict(list)
    for route in routes.values():
        hosts[str(route.keys.get("host"))].append(route)
    for table in migration.tables(_POLICIES):
        for pair in table.pairs:
            _carry_policy(migration, routes, hosts, pair)
        if not table.is_listed:
            migration.by_hand(_POLICIES, f"{why_unlisted(table)}; write [[outbound.routes]]")
    level = migration.draft.outbound.keys.get("tls")
    for route in routes.values():
        if level and "tls" not in route.keys:
            route.set("tls", level, "as in [outbound]")
    # Longer patterns are for fewer domains; "*" is for all.
    order = sorted(routes, key=lambda domain: (domain.startswith("*"), -len(domain)))
    migration.draft.routes += [routes[domain] for domain in order]


def _carry_transport(migration: Migration, routes: dict[str, Table], pair: Pair) -> None:
    transport, _, rest = pair.value.partition(":")
    try:
        if not _sends(migration, transport):
            raise PostfixError(_without(transport))  # noqa: TRY301 - as the others below
        hosts = words(rest)
        host, port, by_mx = host_and_port(hosts[0], _SMTP) if hosts else ("", 0, False)
        route = _route(routes, pair)
        if hosts:
            route.set("host", with_port(host, port))
            if others := ", ".join(hosts[1:]):
                text = f"{pair.key}: a route has one host, here {hosts[0]}; not carried over: "
                migration.by_hand(_TRANSPORTS, f"{text}{others}", pair.place)
            if by_mx:
                text = f"{pair.key}: Postfix asks for the MX of {host}, minismtp for its address"
                migration.by_hand(_TRANSPORTS, text, pair.place)
    except PostfixError as error:
        migration.by_hand(_TRANSPORTS, f"{pair.key} {pair.value}: {error}", pair.place)
        return
    migration.carried(_TRANSPORTS, f"outbound.routes[] {route.keys['domain']}", pair.place)


def _sends(migration: Migration, transport: str) -> bool:
    """Return whether a transport is one that sends by SMTP."""
    services = migration.directory.services
    service = next((s for s in services if s.name == transport and s.type == "unix"), None)
    command = service.command if service else transport
    if service is not None and service.options and service.command == "smtp":
        for name, setting in service.options.items():
            text = f"the transport {transport} has {setting.value!r}; see the keys of a route"
            if name != "syslog_name":
                migration.by_hand(f"{transport}: {name}", text, setting.place)
    return not transport or command in {"smtp", "relay"}


def _without(transport: str) -> str:
    if transport in {"error", "retry", "discard"}:
        return "no route refuses or drops mail; the plugin rules does"
    if transport in {"local", "virtual", "lmtp"}:
        return "mail for our own domains is stored by one plugin"
    return f"the transport {transport} is no way by SMTP; see the plugins pipe and forward"


def _route(routes: dict[str, Table], pair: Pair) -> Table:
    """Return the route for a key of a table. Raise PostfixError if a route cannot have it."""
    key = pair.key.rstrip(".")
    if "@" in key:
        raise PostfixError("a route is for a domain, not for an address")
    if key.startswith("["):
        raise PostfixError("a route is for a domain, not for a host")
    subdomains = key.startswith(".")
    try:
        domain = "*" if key == "*" else parse_domain(key.removeprefix("."))
    except ValueError as error:
        raise PostfixError(str(error)) from None
    domain = f"*.{domain}" if subdomains else domain
    if domain not in routes:
        table = Table("[[outbound.routes]]")
        table.set("domain", domain, pair.place)
        routes[domain] = table
    return routes[domain]


def _carry_policy(
    migration: Migration,
    routes: dict[str, Table],
    hosts: dict[str, list[Table]],
    pair: Pair,
) -> None:
    level, *others = pair.value.split()
    smarthost = str(migration.draft.outbound.keys.get("smarthost", ""))
    try:
        if pair.key.startswith("["):
            host, port, _ = host_and_port(pair.key, _SMTP)
            tables = list(hosts.get(with_port(host, port), []))
            if with_port(host, port) == smarthost:
                tables.append(migration.draft.outbound)
            if not tables:
                raise PostfixError("no route leads to this host")  # noqa: TRY301 - as below
        elif smarthost and pair.key not in routes:
            raise PostfixError("mail goes through relayhost, so it is not used")  # noqa: TRY301
        else:
            tables = [_route(routes, pair)]
        for table in tables:
            table.set("tls", tls_level(level), f"{_POLICIES}, {pair.place}")
    except PostfixError as error:
        migration.by_hand(_POLICIES, f"{pair.key} {pair.value}: {error}", pair.place)
        return
    migration.carried(_POLICIES, "tls of outbound.routes[]", pair.place)
    if others:
        text = f"{pair.key}: {' '.join(others)} has no counterpart; the level alone is carried over"
        migration.by_hand(_POLICIES, text, pair.place)
