"""The tables of the configuration and what each key means (layer 2).

These dataclasses are the reference: `minismtp schema` is made from their types, defaults and
descriptions. Each checks what it can see by itself; `config` checks one against the other.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from minismtp.scalars import ByteSize, Network, SocketAddress, parse_domain
from minismtp.settings import ConfigError, build

_MESSAGE_SIZE: Final = ByteSize.parse("25MiB")
_HEADERS_SIZE: Final = ByteSize.parse("1MiB")
_METRICS_ADDRESS: Final = SocketAddress("127.0.0.1", 9925)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")


def says(description: str) -> Meta:
    """Describe a key to editors and readers."""
    return Meta(description=description)


def counts(description: str, *, least: int = 1, most: int | None = None) -> Meta:
    """Describe a key that holds a number of things."""
    return Meta(description=description, ge=least, le=most)


Networks: TypeAlias = list[Network]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One address where clients are served."""

    name: Annotated[str, says("label in metrics and logs; FileDescriptorName of a systemd socket")]
    address: Annotated[SocketAddress, says('"host:port", "[::]:25" or "unix:/path"')]
    kind: Annotated[
        Literal["mx", "submission", "lmtp"],
        says("mx: mail from other servers; submission: users, who must log in; lmtp: RFC 2033"),
    ] = "mx"
    tls: Annotated[
        Literal["none", "starttls", "implicit"],
        says("starttls and implicit need [tls] certificate and key"),
    ] = "starttls"
    proxy_protocol: Annotated[
        Networks, says("networks trusted to send a PROXY v1 or v2 header")
    ] = field(default_factory=list)
    xclient: Annotated[Networks, says("networks trusted to use XCLIENT")] = field(
        default_factory=list
    )
    client_certificates: Annotated[
        bool, says("ask clients for a certificate signed by [tls] client_ca")
    ] = False
    strict_pipelining: Annotated[
        bool, says("refuse clients that do not wait for the reply to EHLO")
    ] = False
    match_sender: Annotated[
        bool, says("submission: the sender must belong to the login, else 553")
    ] = False
    greet_delay: Annotated[
        timedelta, says("wait before the banner; who talks earlier is refused; 0s = off")
    ] = timedelta(0)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.tls == "none" and self.kind == "submission" and not self.address.is_local:
            raise ConfigError(
                "a submission listener outside loopback must not take passwords in clear;"
                ' expected "starttls" or "implicit"',
                key="tls",
            )
        if self.client_certificates and self.tls == "none":
            raise ConfigError(
                "certificates come over TLS only, and tls is 'none'", key="client_certificates"
            )

    @property
    def host(self) -> str:
        """The host to bind; empty for a unix socket."""
        return self.address.host

    @property
    def port(self) -> int:
        """The port to bind; 0 lets the kernel choose."""
        return self.address.port

    @property
    def path(self) -> Path | None:
        """The path of a unix socket, else None."""
        return self.address.path


@dataclass(frozen=True, slots=True, kw_only=True)
class SniCertificate:
    """The certificate for clients that ask for one server name (RFC 6066 section 3)."""

    name: Annotated[str, says('server name; "*.example.org" stands for any one label')]
    certificate: Annotated[Path, says("PEM file, the whole chain")]
    key: Annotated[Path, says("PEM file")]

    def __post_init__(self) -> None:
        wildcard = "*." if self.name.startswith("*.") else ""
        with_labels = wildcard + check_domain(self.name.removeprefix("*."), key="name")
        object.__setattr__(self, "name", with_labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """Certificates; read again on HUP and when the files change."""

    certificate: Annotated[Path | None, says("PEM file, the whole chain")] = None
    key: Annotated[Path | None, says("PEM file")] = None
    minimum_version: Annotated[Literal["1.2", "1.3"], says("oldest version of TLS")] = "1.2"
    client_ca: Annotated[
        Path | None, says("PEM file of the authorities that sign clients' certificates")
    ] = None
    sni: Annotated[list[SniCertificate], says("certificates for other names")] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        for present, absent in (("certificate", "key"), ("key", "certificate")):
            if getattr(self, present) is not None and getattr(self, absent) is None:
                raise ConfigError(f"this key is required beside {present!r}", key=absent)
        check_unique("sni", [entry.name for entry in self.sni])


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a message, a session, a peer and the whole server may take."""

    message_size: Annotated[ByteSize, says("octets of one message")] = _MESSAGE_SIZE
    headers: Annotated[ByteSize, says("octets of a message's header section")] = _HEADERS_SIZE
    line_length: Annotated[
        int, counts("octets of a text line in DATA with its CRLF; 0 = any", least=0)
    ] = 1000
    recipients: Annotated[int, counts("recipients of one message")] = 100
    hops: Annotated[int, counts("Received fields before a message counts as looping")] = 100
    sessions: Annotated[int, counts("sessions at once, whole server")] = 2000
    sessions_per_ip: Annotated[int, counts("sessions at once, one address")] = 100
    reserved_sessions: Annotated[
        int, counts("of `sessions`, those that only submission listeners may use", least=0)
    ] = 0
    errors: Annotated[int, counts("bad commands before 421")] = 10
    failed_logins: Annotated[int, counts("failed logins of one session before 421")] = 3
    login_backoff: Annotated[
        timedelta, says("per address after a failed login, doubles up to 1 min; 0s = off")
    ] = timedelta(seconds=1)
    command_timeout: Annotated[timedelta, says("wait for one command")] = timedelta(minutes=5)
    data_timeout: Annotated[timedelta, says("absolute, for the whole content")] = timedelta(
        minutes=10
    )
    session_timeout: Annotated[timedelta, says("absolute, for the whole session")] = timedelta(
        hours=1
    )
    drain: Annotated[timedelta, says("time that TERM gives running sessions")] = timedelta(
        seconds=30
    )

    def __post_init__(self) -> None:
        for name in (
            *("message_size", "headers"),
            *("command_timeout", "data_timeout", "session_timeout"),
        ):
            if not getattr(self, name):
                raise ConfigError("expected more than 0: everything is bounded", key=name)
        if self.reserved_sessions >= self.sessions:
            raise ConfigError(
                f"expected less than sessions ({self.sessions})", key="reserved_sessions"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """The HTTP endpoint for Prometheus and for health checks."""

    address: Annotated[
        SocketAddress | None, says('serves /metrics, /healthz and /readyz; "" = nowhere')
    ] = _METRICS_ADDRESS

    def __post_init__(self) -> None:
        if self.address is not None and self.address.path is not None:
            raise ConfigError('expected "host:port", not a unix socket', key="address")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """The log, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], says("the least that is logged")
    ] = "info"
    format: Annotated[Literal["text", "json"], says("text: key=value")] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """One `[[plugins]]` table: what every plugin has, and the `options` that are its own."""

    use: Annotated[str, says("name of the plugin: `minismtp plugins` lists them")]
    name: Annotated[str, says("label in metrics and logs; default: `use`")] = ""
    on_error: Annotated[
        Literal["defer", "ignore"], says("when the plugin fails: 451 4.3.0, or go on without it")
    ] = "defer"
    mode: Annotated[
        Literal["enforce", "shadow"], says("shadow: verdicts are counted, never applied")
    ] = "enforce"
    timeout: Annotated[
        timedelta, says("for sockets opened through the server; overruns are logged and counted")
    ] = timedelta(seconds=30)
    listeners: Annotated[list[str], says("names of listeners; empty = all")] = field(
        default_factory=list
    )
    options: dict[str, object] = field(default_factory=dict)
    key: str = ""

    def __post_init__(self) -> None:
        _check_name(self.use, key="use")
        if not self.name:
            object.__setattr__(self, "name", self.use)
        _check_name(self.name)
        if not self.timeout:
            raise ConfigError("expected more than 0", key="timeout")

    @classmethod
    def parse(
        cls, table: Mapping[str, object], *, file: str, key: str, base: Path
    ) -> "PluginConfig":
        """Part a table into the keys of every plugin and the options of this one."""
        common = {name: value for name, value in table.items() if name in COMMON_KEYS}
        options = {name: value for name, value in table.items() if name not in COMMON_KEYS}
        return build(
            cls, common, file=file, key=key, base=base, given={"options": options, "key": key}
        )


#: The keys that every `[[plugins]]` table may have; no plugin can have an option of such a name.
COMMON_KEYS: Final = tuple(
    item.name for item in fields(PluginConfig) if item.name not in ("options", "key")
)


def _check_name(name: str, *, key: str = "name") -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"expected letters, digits, '.', '_' and '-', not {name!r}", key=key)


def check_unique(key: str, values: list[str], *, attribute: str = "name") -> None:
    """Raise ConfigError when two tables of the array `key` have the same value; empty ones may."""
    for number, value in enumerate(values):
        if value and value in values[:number]:
            raise ConfigError(
                f"{value!r} is taken by {key}[{values.index(value)}] already;"
                f" expected another {attribute}",
                key=f"{key}[{number}].{attribute}",
            )


def check_domain(text: str, *, key: str) -> str:
    """Give the domain that stands under `key` with A-labels; raises ConfigError."""
    try:
        return parse_domain(text)
    except ValueError as error:
        raise ConfigError(str(error), key=key) from None
