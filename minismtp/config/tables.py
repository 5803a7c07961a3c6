"""The tables of the configuration and what each key means.

These dataclasses are the reference: `minismtp schema` is made from their types, defaults and
descriptions. Each checks what it can see by itself; `config` checks one against the other.
"""

import re
import ssl
import urllib.parse
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from minismtp.config.toml_values import INTERNAL, OTHER_KEYS, ConfigError, option_types
from minismtp.config.types import ByteSize, Network, SocketAddress, parse_domain
from minismtp.mail.cleanup import DROP_HEADERS
from minismtp.values.ciphers import GENEROUS, set_ciphers

_MESSAGE_SIZE: Final = ByteSize.parse("25MiB")
_MIN_DATA_RATE: Final = ByteSize(500)  # as Postfix's smtpd_min_data_rate
_HEADERS_SIZE: Final = ByteSize.parse("1MiB")
_SHORTEST_HANG: Final = timedelta(seconds=5)
_CHRONICLE_SIZE: Final = ByteSize.parse("64MiB")
_METRICS_ADDRESS: Final = SocketAddress("127.0.0.1", 9925)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_FIELD_NAME: Final = re.compile(r"[!-9;-~]{1,100}")


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

    name: Annotated[
        str,
        says(
            "label in metrics and logs, what `listeners` of a plugin refers to, and the"
            " `FileDescriptorName` of a systemd socket to take over"
        ),
    ]
    address: Annotated[
        SocketAddress, says("may be a unix socket; an IPv6 address serves IPv6 only")
    ]
    kind: Annotated[
        Literal["mx", "submission", "lmtp"],
        says(
            "mx: mail from other servers; submission: mail from users, who must log in first (530),"
            " and gets the Date, Message-ID and From that it lacks; lmtp: RFC 2033"
        ),
    ] = "mx"
    tls: Annotated[
        Literal["none", "starttls", "implicit"],
        says(
            "starttls and implicit need `[tls]`; a submission listener may have none on loopback"
            " and unix sockets only. AUTH is offered inside TLS; with none, on loopback and unix"
            " sockets"
        ),
    ] = "starttls"
    proxy_protocol: Annotated[
        Networks,
        says(
            "balancers that must send a PROXY header, version 1 or 2. On a unix socket everybody"
            " must, when any network is named"
        ),
    ] = field(default_factory=list)
    proxy_auth: Annotated[
        bool,
        says(
            'offer AUTH on a listener with tls "none" to all clients of the balancers, not only to'
            " those of which a header of version 2 says that they speak TLS (HAProxy:"
            " `send-proxy-v2-ssl`); for balancers that take nothing in clear"
        ),
    ] = False
    xclient: Annotated[Networks, says("front ends that may say by XCLIENT who they speak for")] = (
        field(default_factory=list)
    )
    ciphers: Annotated[
        str,
        says(
            "suites of TLS 1.2, as OpenSSL names them. Empty: on mx what Postfix takes by default"
            " and RFC 9325 does not forbid, because a server that finds no suite sends in clear or"
            " not at all; elsewhere those with forward secrecy that Python chooses"
        ),
    ] = ""
    client_certificates: Annotated[
        bool,
        says(
            "ask for a certificate signed by `client_ca`; its owner may log in by AUTH EXTERNAL."
            " Any other certificate counts as none, and the log says why"
        ),
    ] = False
    strict_pipelining: Annotated[
        bool, says("refuse clients that do not wait for the reply to EHLO")
    ] = False
    match_sender: Annotated[
        bool,
        says(
            "the sender must be the login, or an address whose mail comes to the login's own"
            " mailbox; else 553. Whole addresses count: a login without a domain is a user of the"
            " first domain of `mailboxes`"
        ),
    ] = False
    match_from: Annotated[
        bool,
        says(
            "what the message has in From, and in Sender, must belong to the login in the same way;"
            " else 550 behind the content"
        ),
    ] = False
    drop_headers: Annotated[
        list[str],
        says(
            "fields that are taken out of messages of clients who have logged in or are in a"
            " trusted network: blind copies stay blind. Return-Path is taken out of all mail"
        ),
    ] = field(default_factory=lambda: [*DROP_HEADERS])
    add_sender: Annotated[
        bool,
        says("add a Sender field with the login to messages that have none and another From"),
    ] = False
    greet_delay: Annotated[
        timedelta, says("wait before the banner; who talks meanwhile is refused")
    ] = timedelta(0)

    def __post_init__(self) -> None:
        _check_name(self.name)
        self._check_drop_headers()
        check_ciphers(self.ciphers)
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
    def suites(self) -> str:
        """The suites of TLS 1.2 to speak; "" for Python's own."""
        return self.ciphers or (GENEROUS if self.kind == "mx" else "")

    def _check_drop_headers(self) -> None:
        for number, name in enumerate(self.drop_headers):
            if not _FIELD_NAME.fullmatch(name):
                raise ConfigError(
                    f"expected the name of a header field, not {name!r}",
                    key=f"drop_headers[{number}]",
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
    """A further certificate, for clients that ask for another server name (RFC 6066 section 3)."""

    name: Annotated[str, says('"mx.example.net"; "*.example.net" stands for any one label')]
    certificate: Annotated[Path, says("as in `[tls]`")]
    key: Annotated[Path, says("as in `[tls]`")]

    def __post_init__(self) -> None:
        wildcard = "*." if self.name.startswith("*.") else ""
        with_labels = wildcard + check_domain(self.name.removeprefix("*."), key="name")
        object.__setattr__(self, "name", with_labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """The certificate of the server, and what TLS is spoken.

    The files are looked at again within a second of a handshake, whatever changed: content, mode,
    owner, or where a link leads. New ones that do not load leave the old ones in use, are logged
    and counted, and tried again each second.
    """

    certificate: Annotated[Path | None, says("PEM, the whole chain, the server's own first")] = None
    key: Annotated[Path | None, says("PEM, without a pass phrase")] = None
    minimum_version: Annotated[Literal["1.2", "1.3"], says("the oldest version of TLS")] = "1.2"
    client_ca: Annotated[
        Path | None, says("PEM: the authorities that sign clients' certificates")
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
    """What a message, a session, a peer and the whole server may take.

    All times are absolute deadlines, and a client that sends an octet now and then gains nothing;
    only content that comes at `min_data_rate` or faster moves the one of `data_timeout`.
    Limits of sessions and `login_backoff` hold over all workers together. To ban an address
    altogether, feed the `auth failure` lines of the log to fail2ban: `etc/fail2ban` has the filter
    and a jail.
    """

    message_size: Annotated[
        ByteSize,
        says(
            "of one message; 552 5.3.4 at MAIL when the client says more, else at the end of the"
            " content"
        ),
    ] = _MESSAGE_SIZE
    headers: Annotated[
        ByteSize,
        says(
            "of a message's header section, 1MiB at most, which is what plugins read; 552 5.3.4"
            " beyond, and for more than 10,000 fields"
        ),
    ] = _HEADERS_SIZE
    line_length: Annotated[
        int,
        counts(
            "octets of a text line with its CRLF, but in the body of BODY=BINARYMIME; 500 5.6.0"
            " beyond. 0 = any: many real senders do not keep to the 1000 of RFC 5321",
            least=0,
        ),
    ] = 0
    recipients: Annotated[int, counts("of one message; 452 4.5.3 for those beyond")] = 100
    hops: Annotated[
        int, counts("Received fields from which on a message is going round in circles: 554 5.4.6")
    ] = 100
    sessions: Annotated[int, counts("at once in the whole server; 421 beyond")] = 2000
    sessions_per_ip: Annotated[
        int, counts("at once from one address, or IPv6 network of 64 bits; 421 beyond")
    ] = 100
    reserved_sessions: Annotated[
        int,
        counts(
            "of `sessions`, those that mx listeners cannot use up: with some, a flood on port 25"
            " leaves room for users",
            least=0,
        ),
    ] = 0
    errors: Annotated[
        int,
        counts(
            "bad commands of one session since its last message before 421. A recipient or sender"
            " that is refused counts for a fifth, one that is deferred for a hundredth"
        ),
    ] = 10
    junk_commands: Annotated[
        int,
        counts(
            "commands of one session since its last message that lead to none, such as NOOP, RSET,"
            " VRFY, EHLO and MAIL; each one beyond is an error"
        ),
    ] = 100
    error_delay: Annotated[
        timedelta,
        says(
            "how much longer each error of a client is answered than the one before, from half of"
            ' `errors` on; of all its sessions, ten times as much at most; "0s" = off'
        ),
    ] = timedelta(seconds=1)
    failed_logins: Annotated[int, counts("of one session before 421")] = 3
    login_backoff: Annotated[
        timedelta,
        says(
            "wait of an address after a failed login; doubles with each one up to a minute. An"
            " attempt counts as failed until it has succeeded, and hears 454 when its turn is more"
            ' than 10 s away; "0s" = off'
        ),
    ] = timedelta(seconds=1)
    handshake_timeout: Annotated[
        timedelta,
        says(
            "for a TLS handshake, and for the PROXY header of a balancer: machines need no more,"
            " and who is silent keeps a place from others"
        ),
    ] = timedelta(seconds=20)
    command_timeout: Annotated[
        timedelta, says("for one command to arrive, and for its reply to be taken")
    ] = timedelta(minutes=5)
    data_timeout: Annotated[
        timedelta,
        says(
            "how long a content may stand still. Each octet that arrives buys its share of a second"
            " at `min_data_rate` back, so a slow line is served and an octet now and then is not"
        ),
    ] = timedelta(minutes=10)
    min_data_rate: Annotated[
        ByteSize, says("octets of content in a second that keep `data_timeout` from running down")
    ] = _MIN_DATA_RATE
    content_timeout: Annotated[
        timedelta,
        says("for a whole content, however steadily it comes: absolute"),
    ] = timedelta(hours=2)
    session_timeout: Annotated[
        timedelta,
        says("for the whole session; a content that has begun before may still come in"),
    ] = timedelta(hours=1)
    drain: Annotated[
        timedelta,
        says(
            "how long sessions go on after a reload, and what they then, or after TERM, have to"
            " end in"
        ),
    ] = timedelta(seconds=30)
    hang_timeout: Annotated[
        timedelta,
        says(
            "a process that shows no sign of life for so long is killed and replaced, and its"
            ' sessions are cut; sessions that wait do not count; "0s" = never, else 5 seconds at'
            " least"
        ),
    ] = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if timedelta() < self.hang_timeout < _SHORTEST_HANG:
            raise ConfigError('expected "0s", or "5s" or more', key="hang_timeout")
        for name in (
            *("message_size", "headers"),
            *("handshake_timeout", "command_timeout", "data_timeout", "min_data_rate"),
            *("content_timeout", "session_timeout"),
        ):
            if not getattr(self, name):
                raise ConfigError("expected more than 0: everything is bounded", key=name)
        if self.headers > _HEADERS_SIZE:
            raise ConfigError("expected 1MiB at most: plugins read no more", key="headers")
        if self.reserved_sessions >= self.sessions:
            raise ConfigError(
                f"expected less than sessions ({self.sessions})", key="reserved_sessions"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    """Who is asked, for mail to other servers and by plugins."""

    nameservers: Annotated[
        list[SocketAddress], says("resolvers; empty = those of /etc/resolv.conf")
    ] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """What plugins know in common, such as greylists and limits: in one file for all workers.

    With a `url` it is in Redis or Valkey, for all hosts that have the same one (extra `redis`).
    The file grows up to 256 MiB; then the plugin that has most in it loses what expires next. A
    damaged file is renamed to `state.db.damaged-TIME`, and a new one begins.
    """

    url: Annotated[
        str,
        says(
            '"redis://:password@host:6379/0", "rediss://..." for TLS (`?ssl_ca_certs=FILE`), or'
            ' "unix:///run/redis.sock"; empty = the file `state.db` in the state directory'
        ),
    ] = ""
    prefix: Annotated[str, says("what keys in Redis begin with")] = "minismtp:"

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        if self.url and not (parts.scheme in {"redis", "rediss", "unix"} and place):
            raise ConfigError(
                'expected a URL such as "redis://192.0.2.1:6379/0" or "unix:///run/redis.sock"',
                key="url",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """The HTTP endpoint for Prometheus and for health checks."""

    address: Annotated[
        SocketAddress | None,
        says(
            "where `/metrics`, `/healthz` (200 while the server lives) and `/readyz` (200 while it"
            ' takes mail, else 503) are served, by plain HTTP; "" = nowhere'
        ),
    ] = _METRICS_ADDRESS
    hosts: Annotated[
        list[str],
        says(
            "names under which browsers may ask for the status page, beside loopback's, the address"
            " itself and `hostname`: that of a reverse proxy, for instance; 421 for others"
        ),
    ] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [check_domain(name, key="hosts") for name in self.hosts]
        object.__setattr__(self, "hosts", names)
        if self.address is not None and self.address.path is not None:
            raise ConfigError('expected "host:port", not a unix socket', key="address")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """The log goes to standard error, a line for each event."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], says("the least that is logged")
    ] = "info"
    format: Annotated[Literal["text", "json"], says("text is `key=value`")] = "text"
    refusals: Annotated[
        int,
        counts(
            "lines in a minute, for each client and process, about what was refused and sessions"
            " without a message; one line then says how many more there were"
        ),
    ] = 100
    chronicle: Annotated[
        ByteSize,
        says(
            "octets of disk for what `minismtp explain` knows, a quarter of it for what was"
            " refused; 0 = it knows nothing"
        ),
    ] = _CHRONICLE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """A plugin that runs; they run in the order of the file.

    A table has these keys, and as many more as the plugin has options.
    """

    use: Annotated[
        str,
        says(
            "which plugin: a file in `plugin_path` without `.py`, or the name of an entry point;"
            " `minismtp plugins` lists them"
        ),
    ]
    name: Annotated[
        str,
        says(
            "label in metrics and logs, the value of `use` when empty; needed when one plugin is"
            " used twice"
        ),
    ] = ""
    on_error: Annotated[
        Literal["defer", "ignore"],
        says("when the plugin fails, answer 451 4.3.0, or go on as if it had no opinion"),
    ] = "defer"
    mode: Annotated[
        Literal["enforce", "shadow"],
        says("shadow: runs on copies, its verdicts are counted and never applied"),
    ] = "enforce"
    timeout: Annotated[
        timedelta,
        says(
            "a call that takes longer is logged and counted; it is not ended, as a thread cannot be"
            " killed"
        ),
    ] = timedelta(seconds=30)
    listeners: Annotated[list[str], says("names of the listeners where it runs; empty = all")] = (
        field(default_factory=list)
    )
    options: dict[str, object] = field(default_factory=dict, metadata=OTHER_KEYS)
    key: str = field(default="", metadata=INTERNAL)  # such as "plugins[2]", for messages

    def __post_init__(self) -> None:
        _check_name(self.use, key="use")
        if not self.name:
            object.__setattr__(self, "name", self.use)
        _check_name(self.name)
        if not self.timeout:
            raise ConfigError("expected more than 0", key="timeout")


#: The keys that every `[[plugins]]` table may have; no plugin can have an option of such a name.
COMMON_KEYS: Final = tuple(option_types(PluginConfig))


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


def check_ciphers(text: str) -> None:
    """Raise ConfigError where OpenSSL knows none of these suites."""
    try:
        set_ciphers(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), text)
    except ValueError as error:
        raise ConfigError(str(error), key="ciphers") from None


def check_domain(text: str, *, key: str) -> str:
    """Return the domain that stands under `key` with A-labels. Raise ConfigError."""
    try:
        return parse_domain(text)
    except ValueError as error:
        raise ConfigError(str(error), key=key) from None
