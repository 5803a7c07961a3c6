"""The pages for the domains of a configuration, by host name and path (docs/web.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final
from urllib.parse import parse_qs

from minismtp.config import Config
from minismtp.server.autodiscover_request import requested_address
from minismtp.server.mail_settings import (
    Settings,
    autodiscover,
    autodiscover_error,
    client_config,
    mobileconfig,
)
from minismtp.server.web_pages import Page, Request, Route, Site
from minismtp.services.acme_challenges import Challenges
from minismtp.values.address import Address

#: The paths of Autodiscover, as programs write them.
AUTODISCOVER: Final = (
    "/autodiscover/autodiscover.xml",
    "/Autodiscover/Autodiscover.xml",
    "/AutoDiscover/AutoDiscover.xml",
)
_CONFIG: Final = "/mail/config-v1.1.xml"
_WELL_KNOWN_CONFIG: Final = f"/.well-known/autoconfig{_CONFIG}"
_POLICY: Final = "/.well-known/mta-sts.txt"
_PROFILE: Final = "/mobileconfig"
_LONGEST: Final = 320  # characters of an address
_MOST_FIELDS: Final = 20  # of a query


def site_of(config: Config, challenges: Challenges, domains: Mapping[str, bool]) -> Site:
    """Return the pages for domains whose mail comes here, each with whether it has users here."""
    return Site(challenges, dict(_routes(config, domains)), frozenset(AUTODISCOVER))


def _routes(config: Config, domains: Mapping[str, bool]) -> Iterator[tuple[tuple[str, str], Route]]:
    policy = Page("text/plain; charset=utf-8", config.mta_sts.policy(config.hostname).encode())
    for domain in domains:
        yield (f"mta-sts.{domain}", _POLICY), partial(_same, policy)
    settings = Settings.of(config)
    users = frozenset(domain for domain, has_users in domains.items() if has_users)
    if not (users and settings.smtp):
        return
    discovery: Route = partial(_autodiscover, settings, users)
    profile: Route = partial(_mobileconfig, settings, users)
    for host in (config.hostname, *users, *(f"autodiscover.{domain}" for domain in users)):
        for path in AUTODISCOVER:
            yield (host, path), discovery
    for host in (config.hostname, *users, *(f"autoconfig.{domain}" for domain in users)):
        yield (host, _PROFILE), profile
    for domain in users:
        page: Route = partial(_same, Page("text/xml", client_config(settings, domain)))
        yield (f"autoconfig.{domain}", _CONFIG), page
        for host in (domain, f"autoconfig.{domain}"):
            yield (host, _WELL_KNOWN_CONFIG), page


def _same(page: Page, _: Request) -> Page:
    return page


def _autodiscover(settings: Settings, domains: frozenset[str], request: Request) -> Page:
    text = requested_address(request.body) if request.body else _queried(request)
    address = _own(text, domains)
    found = autodiscover_error() if address is None else autodiscover(settings, address)
    return Page("text/xml; charset=utf-8", found)


def _mobileconfig(settings: Settings, domains: frozenset[str], request: Request) -> Page | None:
    address = _own(_queried(request), domains)
    if address is None:
        return None
    kind, name = "application/x-apple-aspen-config", f"{address.ascii_domain}.mobileconfig"
    return Page(kind, mobileconfig(settings, address), filename=name)


def _queried(request: Request) -> str:
    """Return the address in a query. A plus sign stands for itself, as programs send it."""
    try:
        fields = parse_qs(request.query, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        return ""
    return fields.get("emailaddress", [""])[0].replace(" ", "+")


def _own(text: str, domains: frozenset[str]) -> Address | None:
    """Return an address in one of the domains; whether it exists is not looked up."""
    if len(text) > _LONGEST or not text.isprintable():
        return None
    try:
        address = Address.parse(text)
    except ValueError:
        return None
    return address if address.ascii_domain in domains else None
