"""The tables `[outbound]` and `[[outbound.routes]]` of the configuration."""

from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Annotated, Final, Self

from msgspec import Meta

from minismtp.config.checks import (
    MIN_DATA_RATE,
    Count,
    check_ciphers,
    check_domain_pattern,
    check_host,
    check_positive,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import ByteSize, SocketAddress
from minismtp.values.ciphers import TlsLevel

_FREE_SPACE: Final = ByteSize.parse("100MiB")
_TLS_SAYS: Final = (
    "none; opportunistic: if the host offers it; required: else the mail waits; verified: required,"
    " with a valid certificate"
)
_IMPLICIT_SAYS: Final = "TLS from the first octet; always on for port 465 (RFC 8314)"
_SUBMISSIONS: Final = 465


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundRoute:
    """Another way for mail to some domains. The first route that matches is used."""

    domain: Annotated[str, '"example.net", "*.example.net" (without example.net itself) or "*"']
    host: Annotated[
        SocketAddress | None, 'host for this mail, such as "smtp.example.net:587"; "" = by MX'
    ] = None
    tls: Annotated[TlsLevel, _TLS_SAYS] = "opportunistic"
    implicit: Annotated[bool, _IMPLICIT_SAYS] = False
    username: Annotated[str, "login at the host; needs `tls` required or verified"] = ""
    password_file: Annotated[Path | None, "file with the password in its first line"] = None

    def __post_init__(self) -> None:
        if self.domain != "*":
            object.__setattr__(self, "domain", check_domain_pattern(self.domain, key="domain"))
        if self.host is not None and self.host.port == _SUBMISSIONS:
            object.__setattr__(self, "implicit", True)
        self._check_host()
        self._check_login()

    def _check_host(self) -> None:
        if self.host is None:
            for name in ("username", "implicit"):
                if getattr(self, name):
                    raise ConfigError("needs a named host, by `host` or `smarthost`", key=name)
        elif self.host.path is not None:
            raise ConfigError('expected "host:port", not a unix socket', key="host")
        else:
            check_host(self.host, key="host")
        if self.implicit and self.tls == "none":
            raise ConfigError('implicit TLS needs another level than "none"', key="tls")

    def _check_login(self) -> None:
        if self.username and self.tls not in {"required", "verified"}:
            raise ConfigError(
                'a password needs TLS: expected "verified" (or "required", which does not check'
                " the certificate)",
                key="tls",
            )
        if (self.password_file is None) == bool(self.username):
            missing = "password_file" if self.username else "username"
            raise ConfigError("username and password_file go together", key=missing)

    def fits(self, domain: str) -> bool:
        """Return whether the route is for a domain (A-labels, lower case)."""
        if self.domain.startswith("*."):
            return domain.endswith(self.domain[1:])
        return self.domain in {"*", domain}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """Mail to other servers."""

    smarthost: Annotated[
        SocketAddress | None,
        'host for all mail without a route, such as "smtp.example.net:587"; "" = by MX',
    ] = None
    tls: Annotated[TlsLevel, _TLS_SAYS] = "opportunistic"
    implicit: Annotated[bool, f"at the smarthost, {_IMPLICIT_SAYS}"] = False
    username: Annotated[str, "login at the smarthost; needs `tls` required or verified"] = ""
    password_file: Annotated[Path | None, "file with the password in its first line"] = None
    mta_sts: Annotated[bool, "follow the MTA-STS policies of domains (RFC 8461)"] = True
    dane: Annotated[bool, "follow TLSA records that a trusted resolver validated (RFC 7672)"] = True
    ciphers: Annotated[
        str,
        "cipher suites of TLS 1.2, in OpenSSL's format. Empty: those that Postfix offers by"
        " default and RFC 9325 does not forbid",
    ] = ""
    server_ca: Annotated[
        Path | None, "PEM file of trusted authorities; not set = those of the system"
    ] = None
    routes: Annotated[list[OutboundRoute], "other ways for mail to some domains"] = field(
        default_factory=list
    )
    retry: Annotated[tuple[timedelta, ...], "waits between attempts; the last one is repeated"] = (
        tuple(timedelta(minutes=m) for m in (1, 5, 15, 30, 60, 120, 240))
    )
    expire: Annotated[timedelta, "age at which a message is returned"] = timedelta(days=5)
    warn_after: Annotated[
        timedelta, "age at which the sender is told that a message still waits; 0s = never"
    ] = timedelta(hours=4)
    # RFC 5321 section 4.5.3.2 has them for a single wait; here each is for a phase as a whole.
    connect_timeout: Annotated[timedelta, "for a connection to one address"] = timedelta(seconds=30)
    command_timeout: Annotated[
        timedelta, "for the greeting with EHLO, the TLS handshake, AUTH, and each envelope"
    ] = timedelta(minutes=5)
    data_timeout: Annotated[
        timedelta,
        "how long the transfer of a content may stall. Each octet that the host takes gives"
        " back its share of a second at `min_data_rate`",
    ] = timedelta(minutes=30)
    min_data_rate: Annotated[
        ByteSize, "octets of content per second that keep `data_timeout` from running down"
    ] = MIN_DATA_RATE
    content_timeout: Annotated[
        timedelta, "for sending one whole content, however steadily the host takes it"
    ] = timedelta(hours=2)
    end_timeout: Annotated[
        timedelta, "for the reply after the content; too short a wait causes duplicates"
    ] = timedelta(minutes=10)
    threads: Annotated[int, Meta(ge=1, le=1000), "deliveries at once"] = 50
    concurrency: Annotated[Count, "deliveries at once to one destination"] = 10
    port: Annotated[int, Meta(ge=1, le=65535), "port of the hosts in MX records"] = 25
    mta_sts_port: Annotated[
        int, Meta(ge=1, le=65535), "port of the web servers with MTA-STS policies"
    ] = 443
    free_space: Annotated[
        ByteSize, "space to leave free on the file system of the spool; below it 452"
    ] = _FREE_SPACE

    def __post_init__(self) -> None:
        check_ciphers(self.ciphers)
        if not self.retry or not all(self.retry):
            raise ConfigError("expected at least one duration, each more than 0", key="retry")
        check_positive(
            self,
            *("expire", "connect_timeout", "command_timeout", "data_timeout", "content_timeout"),
            *("end_timeout", "min_data_rate"),
        )
        try:
            self._last_route()
        except ConfigError as error:
            key = "smarthost" if error.key == "host" else error.key
            raise ConfigError(error.message, key=key) from None

    def route(self, domain: str) -> OutboundRoute:
        """Return the way for a domain; the last resort is the smarthost or MX."""
        for route in self.routes:
            if route.fits(domain):
                return route
        return self._last_route()

    def _last_route(self) -> OutboundRoute:
        return OutboundRoute(
            domain="*",
            host=self.smarthost,
            tls=self.tls,
            implicit=self.implicit,
            username=self.username,
            password_file=self.password_file,
        )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each phase of a connection to a host as a whole, sending included.

    `data` is for progress: each octet of content that the host takes extends it by 1 / `rate`, but
    never beyond `content` seconds in all.
    """

    connect: float
    command: float
    data: float
    end: float
    content: float = inf
    rate: float = inf
    quit: float = 10.0

    @classmethod
    def of(cls, outbound: Outbound) -> Self:
        """Return the timeouts of the configuration."""
        return cls(
            outbound.connect_timeout.total_seconds(),
            outbound.command_timeout.total_seconds(),
            outbound.data_timeout.total_seconds(),
            outbound.end_timeout.total_seconds(),
            outbound.content_timeout.total_seconds(),
            outbound.min_data_rate,
        )
