"""The tables of the configuration that are about mail to other servers."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

from minismtp.config.tables import check_ciphers, check_domain, counts, says
from minismtp.config.toml_values import ConfigError
from minismtp.config.types import ByteSize, SocketAddress
from minismtp.mail.delivery import TlsLevel

_FREE_SPACE: Final = ByteSize.parse("100MiB")
_MIN_DATA_RATE: Final = ByteSize(500)  # as Postfix's smtp_min_data_rate
_TLS_SAYS: Final = (
    "none; opportunistic: where offered; required: or wait; verified: with a valid certificate"
)
_IMPLICIT_SAYS: Final = "TLS from the first octet; always so on port 465 (RFC 8314)"
_SUBMISSIONS: Final = 465


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundRoute:
    """Another way for the mail to some domains; the first one that fits counts."""

    domain: Annotated[str, says('"example.net", "*.example.net" (not example.net itself) or "*"')]
    host: Annotated[
        SocketAddress | None, says('"smtp.example.net:587" takes this mail; "" = by MX')
    ] = None
    tls: Annotated[TlsLevel, says(_TLS_SAYS)] = "opportunistic"
    implicit: Annotated[bool, says(_IMPLICIT_SAYS)] = False
    username: Annotated[str, says("log in at the host; tls must be required or verified")] = ""
    password_file: Annotated[Path | None, says("file whose first line is the password")] = None

    def __post_init__(self) -> None:
        if self.domain != "*":
            wildcard = "*." if self.domain.startswith("*.") else ""
            domain = check_domain(self.domain.removeprefix("*."), key="domain")
            object.__setattr__(self, "domain", wildcard + domain)
        if self.host is not None and self.host.port == _SUBMISSIONS:
            object.__setattr__(self, "implicit", True)
        self._check_host()
        self._check_login()

    def _check_host(self) -> None:
        if self.host is None:
            for name in ("username", "implicit"):
                if getattr(self, name):
                    raise ConfigError("is for a host that is named, not for those of MX", key=name)
        elif self.host.path is not None:
            raise ConfigError('expected "host:port", not a unix socket', key="host")
        if self.implicit and self.tls == "none":
            raise ConfigError('implicit TLS is TLS; expected another level than "none"', key="tls")

    def _check_login(self) -> None:
        if self.username and self.tls not in {"required", "verified"}:
            raise ConfigError(
                'a password goes to whom we know: expected "verified" (or "required",'
                " without a look at the certificate)",
                key="tls",
            )
        if (self.password_file is None) == bool(self.username):
            missing = "password_file" if self.username else "username"
            raise ConfigError("username and password_file go together", key=missing)

    def fits(self, domain: str) -> bool:
        """Whether the route is for a domain (A-labels, lower case)."""
        if self.domain.startswith("*."):
            return domain.endswith(self.domain[1:])
        return self.domain in {"*", domain}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """Mail to other servers."""

    smarthost: Annotated[
        SocketAddress | None,
        says('"smtp.example.net:587" takes all mail that no route is for; "" = by MX'),
    ] = None
    tls: Annotated[TlsLevel, says(_TLS_SAYS)] = "opportunistic"
    implicit: Annotated[bool, says(f"at the smarthost, {_IMPLICIT_SAYS}")] = False
    username: Annotated[str, says("log in at the smarthost; tls must be required or verified")] = ""
    password_file: Annotated[Path | None, says("file whose first line is the password")] = None
    mta_sts: Annotated[bool, says("keep to the policies that domains publish (RFC 8461)")] = True
    dane: Annotated[
        bool, says("keep to TLSA records, where a trusted resolver has validated them (RFC 7672)")
    ] = True
    ciphers: Annotated[
        str,
        says(
            "suites of TLS 1.2, as OpenSSL names them. Empty: what Postfix offers by default and"
            " RFC 9325 does not forbid"
        ),
    ] = ""
    server_ca: Annotated[
        Path | None, says("PEM file of the authorities that sign certificates; none = the system's")
    ] = None
    routes: Annotated[list[OutboundRoute], says("other ways for some domains")] = field(
        default_factory=list
    )
    retry: Annotated[
        tuple[timedelta, ...], says("waits between attempts; the last one repeats")
    ] = tuple(timedelta(minutes=m) for m in (1, 5, 15, 30, 60, 120, 240))
    expire: Annotated[timedelta, says("age at which a message is returned")] = timedelta(days=5)
    warn_after: Annotated[
        timedelta, says("age at which a waiting message's sender hears of it; 0s = never")
    ] = timedelta(hours=4)
    # RFC 5321 section 4.5.3.2 has them for a single wait; here each is for a phase as a whole.
    connect_timeout: Annotated[timedelta, says("for one address to take a connection")] = timedelta(
        seconds=30
    )
    command_timeout: Annotated[
        timedelta, says("for the greeting with EHLO, the TLS handshake, AUTH, and each envelope")
    ] = timedelta(minutes=5)
    data_timeout: Annotated[
        timedelta,
        says(
            "how long the content of a message may stand still. Each octet that the host takes buys"
            " its share of a second at `min_data_rate` back"
        ),
    ] = timedelta(minutes=30)
    min_data_rate: Annotated[
        ByteSize, says("octets of content in a second that keep `data_timeout` from running down")
    ] = _MIN_DATA_RATE
    content_timeout: Annotated[
        timedelta, says("for sending one content, however steadily the host takes it: absolute")
    ] = timedelta(hours=2)
    end_timeout: Annotated[
        timedelta, says("for the reply after the content; too short a wait makes duplicates")
    ] = timedelta(minutes=10)
    threads: Annotated[int, counts("deliveries at once", most=1000)] = 50
    concurrency: Annotated[int, counts("deliveries at once to one destination")] = 10
    port: Annotated[int, counts("port of the hosts that MX records name", most=65535)] = 25
    mta_sts_port: Annotated[
        int, counts("port of the web servers that have the policies", most=65535)
    ] = 443
    free_space: Annotated[
        ByteSize, says("what stays free on the file system of the spool; below it 452")
    ] = _FREE_SPACE

    def __post_init__(self) -> None:
        check_ciphers(self.ciphers)
        if not self.retry or not all(self.retry):
            raise ConfigError("expected at least one duration, each more than 0", key="retry")
        timeouts = ("connect_timeout", "command_timeout", "data_timeout", "content_timeout")
        for name in ("expire", *timeouts, "end_timeout", "min_data_rate"):
            if not getattr(self, name):
                raise ConfigError("expected more than 0", key=name)
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
