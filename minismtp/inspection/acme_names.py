"""Which names a certificate of `[tls.acme]` lacks, because web listeners serve pages under them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.inspection.dns_records import WEB_LABELS, Plugins, dns_zone
from minismtp.inspection.problem import Problem, warning

_MOST_NAMES: Final = 6  # in one line


def check_acme_names(config: Config, plugins: Plugins) -> Iterator[Problem]:
    """Yield which names of our domains the certificate is not for, though pages are under them."""
    acme = config.tls.acme
    serving = [each.name for each in config.web_listeners if each.tls == "implicit"]
    if acme is None or not serving:
        return
    try:
        domains = dns_zone(config, plugins).receiving
    except ConfigError:  # `minismtp dns` tells
        return
    known = {*acme.names, *(entry.name.lower() for entry in config.tls.sni)}
    missing = [
        name
        for domain, has_users in domains.items()
        for name in (f"{label}.{domain}" for label in WEB_LABELS)
        if has_users and not known & {name, f"*.{domain}"}
    ]
    if missing:
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        what = f"expected also {', '.join(missing[:_MOST_NAMES])}{more}"
        text = f"{what}, under which the listener {serving[0]!r} serves pages for mail programs"
        yield warning(config, "tls.acme.names", text)
