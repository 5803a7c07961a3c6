"""The smaller tables of the configuration and the meaning of each key.

The dataclasses here and in the other modules of tables are the reference: `minismtp schema` and the
manual are made from their types, defaults and descriptions. Each one checks its own values;
`Config` checks one table against another.
"""

import urllib.parse
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from minismtp.config.acme_table import AcmeConfig
from minismtp.config.checks import (
    Count,
    check_domain,
    check_domain_pattern,
    check_host,
    check_name,
    check_positive,
    check_unique,
    is_https_url,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import OTHER_KEYS, OWN_KEY, option_types
from minismtp.config.types import ByteSize, SocketAddress, parse_host_address

_DECISION_LOG_SIZE: Final = ByteSize.parse("64MiB")
_METRICS_ADDRESS: Final = SocketAddress("127.0.0.1", 9925)


@dataclass(frozen=True, slots=True, kw_only=True)
class SniCertificate:
    """Another certificate, for clients that ask for this server name (RFC 6066 section 3)."""

    name: Annotated[str, '"mx.example.net"; in "*.example.net" the star matches one label']
    certificate: Annotated[Path, "as in `[tls]`"]
    key: Annotated[Path, "as in `[tls]`"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_domain_pattern(self.name, key="name"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """The certificate of the server, and the versions of TLS.

    The files are checked at each handshake, at most once a second, for any change: content, mode,
    owner, or target of a symbolic link. If the new files cannot be loaded, the old ones stay in
    use. The failure is logged and counted, and the files are tried again each second.
    """

    certificate: Annotated[
        Path | None, "PEM file with the whole chain, the server's own certificate first"
    ] = None
    key: Annotated[Path | None, "PEM file without a passphrase"] = None
    minimum_version: Annotated[Literal["1.2", "1.3"], "the oldest version of TLS to accept"] = "1.2"
    client_ca: Annotated[
        Path | None, "PEM file of the authorities that sign clients' certificates"
    ] = None
    sni: Annotated[list[SniCertificate], "certificates for other server names"] = field(
        default_factory=list
    )
    acme: AcmeConfig | None = None

    def __post_init__(self) -> None:
        for present, absent in (("certificate", "key"), ("key", "certificate")):
            if getattr(self, present) is not None and getattr(self, absent) is None:
                raise ConfigError(f"this key is required beside {present!r}", key=absent)
        check_unique("sni", [entry.name for entry in self.sni])


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    """The resolvers that are asked about hosts to send to, and by plugins."""

    nameservers: Annotated[
        list[SocketAddress], "addresses of resolvers; empty = those of /etc/resolv.conf"
    ] = field(default_factory=list)
    addresses: Annotated[
        list[str],
        "public addresses of this host, for `minismtp dns`; needed behind NAT. Empty = those of"
        " the listeners, else those from which packets leave",
    ] = field(default_factory=list)

    check: Annotated[
        timedelta,
        "time between two looks at the records that the configuration needs in the DNS, as"
        " `minismtp dns --check` has. What went wrong is logged, and counted in the metrics."
        " 0s = never. Servers that only this machine can reach never look",
    ] = timedelta(hours=6)

    def __post_init__(self) -> None:
        for number, text in enumerate(self.addresses):
            try:
                parse_host_address(text)
            except ValueError as error:
                raise ConfigError(str(error), key=f"addresses[{number}]") from None
        for number, address in enumerate(self.nameservers):
            check_host(address, key=f"nameservers[{number}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesConfig:
    """Whether the server looks for newer releases of minismtp. It tells, and installs nothing.

    A newer release is logged, counted in the metrics, and shown on the status page and by
    `minismtp`. The index learns the address of this host and that it asks about minismtp.
    """

    check: Annotated[
        timedelta,
        'time between two questions, such as "1d". 0s = never, because only you can tell whether'
        " the index may know of this host",
    ] = timedelta(0)
    index: Annotated[
        str,
        "`https` URL of the package index, as `index-url` of pip; it must answer in JSON (PEP 691)",
    ] = "https://pypi.org/simple/"

    def __post_init__(self) -> None:
        if not is_https_url(self.index):
            problem = f"expected a URL that begins with https://, not {self.index!r}"
            raise ConfigError(problem, key="index")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """What plugins share between all workers, such as greylists and limits.

    It is in one file, or with a `url` in Redis or Valkey, where all hosts with the same URL share
    it (extra `redis`). The file grows to 256 MiB. Then the plugin that stores most loses what
    expires next. A damaged file is renamed to `state.db.damaged-TIME`, and a new one is begun.
    """

    url: Annotated[
        str,
        '"redis://:password@host:6379/0", "rediss://..." for TLS (`?ssl_ca_certs=FILE`), or'
        ' "unix:///run/redis.sock"; empty = the file `state.db` in the state directory',
    ] = ""
    prefix: Annotated[str, "prefix of all keys in Redis"] = "minismtp:"

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
        "address that serves `/metrics`, `/healthz` (200 while the server lives) and `/readyz`"
        ' (200 while it accepts mail, else 503) over plain HTTP; "" = no endpoint',
    ] = _METRICS_ADDRESS
    hosts: Annotated[
        list[str],
        "host names that browsers may use for the status page, such as the name of a reverse"
        " proxy. Loopback names, the address itself and `hostname` are always allowed; any"
        " other name gets 421",
    ] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [check_domain(name, key="hosts") for name in self.hosts]
        object.__setattr__(self, "hosts", names)
        if self.address is not None and self.address.path is not None:
            raise ConfigError('expected "host:port", not a unix socket', key="address")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """The log on standard error: one line for each event."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], "lowest level that is logged"
    ] = "info"
    format: Annotated[Literal["text", "json"], "text is `key=value`"] = "text"
    refusals: Annotated[
        Count,
        "lines per minute, client and process about refusals and about sessions without a"
        " message. After that, one line says how many more there were",
    ] = 100
    chronicle: Annotated[
        ByteSize,
        "octets of disk for the decisions that `minismtp explain` shows, a quarter of it for"
        " refusals; 0 = keep nothing",
    ] = _DECISION_LOG_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """One plugin. Plugins run in the order of the file.

    A table has these keys, and those of the plugin's own options.
    """

    use: Annotated[
        str,
        "the plugin: the name of a file in `plugin_path` without `.py`, or of an entry point."
        " `minismtp plugins` lists them",
    ]
    name: Annotated[
        str,
        "label in metrics and logs; empty = the value of `use`. Needed if a plugin is used twice",
    ] = ""
    on_error: Annotated[
        Literal["defer", "ignore"],
        "if the plugin fails, defer with 451 4.3.0, or continue as if it had no opinion",
    ] = "defer"
    mode: Annotated[
        Literal["enforce", "shadow"],
        "shadow: the plugin works on copies. Its verdicts are counted and never applied",
    ] = "enforce"
    timeout: Annotated[
        timedelta,
        "a call that takes longer is logged and counted. It is not ended, because a thread"
        " cannot be killed",
    ] = timedelta(seconds=30)
    listeners: Annotated[list[str], "names of the listeners where the plugin runs; empty = all"] = (
        field(default_factory=list)
    )
    options: dict[str, object] = field(default_factory=dict, metadata=OTHER_KEYS)
    key: str = field(default="", metadata=OWN_KEY)  # such as "plugins[2]", for messages

    def __post_init__(self) -> None:
        check_name(self.use, key="use")
        if not self.name:
            object.__setattr__(self, "name", self.use)
        check_name(self.name)
        check_positive(self, "timeout")


#: The keys that every `[[plugins]]` table may have. No plugin can have an option of such a name.
COMMON_KEYS: Final = tuple(option_types(PluginConfig))
