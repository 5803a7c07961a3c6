"""Listeners and other addresses that are valid, but seldom what a person means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from minismtp.config import Config, Listener
from minismtp.config.types import EVERY_HOST, SocketAddress
from minismtp.inspection.ports import Holder, holders, named
from minismtp.inspection.problem import Problem, error, warning

_SMTP: Final = 25
_SUBMISSIONS: Final = 465  # TLS from the first octet, RFC 8314 section 3.3
_SUBMISSION: Final = 587
_HTTP: Final = 80
_HTTPS: Final = 443
_SYSTEMD: Final = 1  # the process that passes its sockets on


def check_listeners(config: Config) -> Iterator[Problem]:
    """Yield what is unusual about the listeners and the addresses of the server."""
    yield from _hostname(config)
    for listener in config.listeners:
        if unusual := _unusual(listener):
            key, text = unusual
            yield warning(config, f"{listener.key}.{key}", text)
    yield from _overlaps(config)
    address = config.metrics.address
    if address is not None and not address.is_local:
        exposed = (
            f"{address} is not loopback, and the endpoint has neither TLS nor passwords: every host"
            ' that reaches it sees addresses and figures; expected "127.0.0.1:9925", or a firewall'
        )
        yield warning(config, "metrics.address", exposed)


def _hostname(config: Config) -> Iterator[Problem]:
    public = any(not listener.address.is_local for listener in config.listeners)
    if public and "." not in config.hostname:
        message = (
            f"{config.hostname!r} is not fully qualified; other servers may mistrust it: expected"
            " a name that the DNS knows, such as mx.example.org"
        )
        yield warning(config, "hostname", message)


def _unusual(listener: Listener) -> tuple[str, str] | None:
    """Return a key and what is unusual about its value for this port."""
    port, behind = listener.address.port, bool(listener.proxy_protocol)
    if not listener.takes_mail:
        return _unusual_web(listener)
    if port == _SUBMISSIONS and listener.tls != "implicit" and not behind:
        text = 'mail programs begin TLS at once on port 465; expected tls = "implicit"'
        return "tls", f"{text}, or port 587 for {listener.tls}"
    if port in {_SMTP, _SUBMISSION} and listener.tls == "implicit":
        text = f"clients begin in clear text on port {port}"
        return "tls", f'{text}; expected tls = "starttls", or port 465 for implicit TLS'
    if port in {_SUBMISSIONS, _SUBMISSION} and listener.kind == "mx":
        text = f"port {port} is for mail of users, who log in"
        return "kind", f'{text}; expected kind = "submission"'
    if port == _SMTP and listener.kind == "submission" and not listener.address.is_local:
        text = "other servers send mail to port 25, and cannot log in"
        return "kind", f'{text}; expected kind = "mx", or port 587 for users'
    return None


def _unusual_web(listener: Listener) -> tuple[str, str] | None:
    port = listener.address.port
    if port == _HTTPS and listener.tls == "none":
        return "tls", 'browsers begin TLS at once on port 443; expected tls = "implicit"'
    if port == _HTTP and listener.tls == "implicit":
        text = "browsers and certificate authorities begin in clear text on port 80"
        return "tls", f'{text}; expected tls = "none", or port 443'
    return None


def _places(config: Config) -> Iterator[tuple[str, SocketAddress]]:
    """Yield each address of TCP that the server listens on, with its key."""
    for listener in config.listeners:
        if listener.address.path is None and listener.address.port:
            yield f"{listener.key}.address", listener.address
    if config.metrics.address is not None and config.metrics.address.port:
        yield "metrics.address", config.metrics.address


def _overlaps(config: Config) -> Iterator[Problem]:
    """Yield the addresses that another one of the server, for all interfaces, includes."""
    places = list(_places(config))
    for number, (key, address) in enumerate(places):
        for other, before in places[:number]:
            hosts = {address.host, before.host}
            wide = hosts & {"0.0.0.0", "::", EVERY_HOST}  # noqa: S104 - compared only
            family = EVERY_HOST in hosts or (":" in address.host) == (":" in before.host)
            clash = "metrics" in key if address == before else bool(wide) and family
            if clash and address.port == before.port:
                taken = f"{address} is taken by {other} ({before}) already"
                yield error(config, key, f"{taken}; expected another port or address")


def check_ports(config: Config, server: int) -> Iterator[Problem]:
    """Yield the addresses on which another process listens.

    `server` is the process that runs this configuration already, or 0.
    """
    for key, address in _places(config):
        found = holders(address)
        if found is not None and not _is_ours(found, server):
            text = f"{address} is in use by {named(found)}, so the server could not start"
            yield warning(config, key, f"{text}: stop it, or choose another port")


def _is_ours(found: list[Holder], server: int) -> bool:
    """Return whether the sockets are those of the server itself, or of systemd for it."""
    pids = {each.pid for each in found}
    return bool(pids & {server, _SYSTEMD}) if pids else bool(server)
