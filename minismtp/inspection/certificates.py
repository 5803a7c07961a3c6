"""Certificates: for which names, from when to when, with which chain, and with the right key."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from minismtp.config import Config, TlsConfig
from minismtp.config.mistakes import ConfigError, remedy
from minismtp.inspection.acme import check_acme
from minismtp.inspection.problem import Problem, error, warning
from minismtp.services import tls
from minismtp.services.acme_schedule import is_self_signed
from minismtp.services.certificate_file import Certificate, certificates_of, open_regular

_DAY: Final = 86_400
_EXPIRES_SOON: Final = 14 * _DAY
_MOST_NAMES: Final = 4


class Pair(NamedTuple):
    """A certificate and its key, with the path of its table, and the name that it is for."""

    table: str
    certificate: Path
    key: Path
    name: str  # "" if no client of another host sees it
    settings: TlsConfig


def pairs(config: Config) -> Iterator[Pair]:
    """Yield the certificates of the server."""
    settings = config.tls
    shown = any(each.tls != "none" and not each.address.is_local for each in config.listeners)
    if settings.certificate is not None and settings.key is not None:
        name = config.hostname if shown and "." in config.hostname else ""
        yield Pair("tls", settings.certificate, settings.key, name, settings)
        for number, entry in enumerate(settings.sni):
            own = replace(settings, certificate=entry.certificate, key=entry.key, sni=[])
            yield Pair(f"tls.sni[{number}]", entry.certificate, entry.key, entry.name, own)


def files_by_name(config: Config) -> dict[str, Path]:
    """Return the certificate that a client gets for each name, without those for wildcards."""
    tls = config.tls
    if tls.certificate is None:
        return {}
    named = {entry.name.lower(): entry.certificate for entry in tls.sni}
    names = [config.hostname.lower(), *(name for name in named if not name.startswith("*"))]
    return {
        name: named.get(name) or named.get(f"*.{name.partition('.')[2]}") or tls.certificate
        for name in names
    }


def check_certificates(config: Config) -> Iterator[Problem]:
    """Yield what is wrong with the certificates, and what clients may not accept."""
    yield from check_acme(config)
    for pair in pairs(config):
        if _is_awaited(config, pair):
            continue
        try:
            tls.server_context(pair.settings)
        except ConfigError as problem:
            key = problem.key.replace("tls.", f"{pair.table}.", 1)
            yield error(config, key, problem.message + _remedy(pair))
            continue
        for text in _doubts(pair):
            yield warning(config, f"{pair.table}.certificate", f"{pair.certificate} {text}")


def described(pair: Pair) -> str:
    """Return for whom and until when a certificate is."""
    first = certificates_of(pair.certificate)[0]
    names = list(first.names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    shown = ", ".join(names[:_MOST_NAMES]) or "no name"
    days = int((first.end - time.time()) // _DAY)
    left = f"{days} days" if days >= 0 else "expired"
    return f"{shown}{more}, until {_day(first.end)} ({left})"


def _is_awaited(config: Config, pair: Pair) -> bool:
    """Return whether the server makes this certificate when it starts."""
    return pair.table == "tls" and config.tls.acme is not None and not pair.certificate.exists()


def _remedy(pair: Pair) -> str:
    for path in (pair.certificate, pair.key):
        try:
            open_regular(path).close()
        except OSError as problem:
            return remedy(problem)
    return ""


def _doubts(pair: Pair) -> Iterator[str]:
    try:
        chain = certificates_of(pair.certificate)
    except (ValueError, IndexError, ssl.SSLError) as problem:
        yield f"cannot be examined: {problem}"
        return
    first, now = chain[0], time.time()
    if pair.settings.acme is not None and pair.table == "tls" and is_self_signed(first):
        yield "is one that the server signed itself; the authority's has not arrived yet"
    if first.begin > now:
        yield f"is not valid before {_day(first.begin)}: is the clock right?"
    if first.end < now:
        yield f"expired on {_day(first.end)}; renew it"
    elif first.end < now + _EXPIRES_SOON:
        yield f"expires on {_day(first.end)}; renew it"
    if pair.name and not first.is_for(pair.name):
        names = ", ".join(first.names[:_MOST_NAMES]) or "no DNS name"
        where = "the hostname" if pair.table == "tls" else "its name here"
        yield f"is for {names}, not for {where} {pair.name}; get one for it"
    yield from _chain_doubts(chain)


def _chain_doubts(chain: list[Certificate]) -> Iterator[str]:
    """Yield what is wrong with the order of the file, or with the end of the chain."""
    for number, (lower, upper) in enumerate(pairwise(chain), 1):
        if lower.issuer != upper.subject:
            text = f"has a certificate {number + 1} that did not sign certificate {number}"
            yield f"{text}; expected the server's own first, then each one's issuer"
            return
    last = chain[-1]
    if len(chain) == 1 and last.issuer != last.subject and last.has_issuer_address:
        yield (
            "lacks its chain: append the certificates of its issuers (certbot: use fullchain.pem)"
        )


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
