"""The configuration as checked, typed values.

A `Config` that exists is consistent in itself. The modules that use other files (certificates,
plugins) check them, and so does `minismtp check`.
"""

import os
import pwd
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import tomli
from msgspec import Meta

from minismtp.config.checks import check_domain, check_unique
from minismtp.config.limits_table import Limits as Limits
from minismtp.config.listener_table import Listener as Listener
from minismtp.config.outbound_tables import Outbound as Outbound
from minismtp.config.outbound_tables import OutboundRoute as OutboundRoute
from minismtp.config.tables import COMMON_KEYS as COMMON_KEYS
from minismtp.config.tables import DnsConfig as DnsConfig
from minismtp.config.tables import LogConfig as LogConfig
from minismtp.config.tables import MetricsConfig as MetricsConfig
from minismtp.config.tables import PluginConfig as PluginConfig
from minismtp.config.tables import SniCertificate as SniCertificate
from minismtp.config.tables import StateConfig as StateConfig
from minismtp.config.tables import TlsConfig as TlsConfig
from minismtp.config.toml_values import INTERNAL, ConfigError, build, did_you_mean
from minismtp.config.types import parse_domain
from minismtp.values.durable_files import without_marks

DEFAULT_FILE: Final = Path("/etc/minismtp/minismtp.toml")
_LONGEST_FILE: Final = 1 << 20  # octets; 10,000 lines take a quarter of that


def default_hostname() -> str:
    """Return this machine's name, or localhost if it is not a valid host name, as in containers."""
    try:
        name = parse_domain(socket.gethostname())
    except ValueError:
        return "localhost"
    return "localhost" if "_" in name else name  # RFC 1123 section 2.1


def default_state_directory() -> Path:
    """Return the directory that systemd made, else one below the current directory."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else Path.cwd() / "minismtp-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file. The keys that are no tables stand above its first table.

    `file` is the path of the file, empty for the embedded default. Relative paths start at `base`.
    """

    hostname: Annotated[str, "name of this server in greetings, trace fields and Message-IDs"] = (
        field(default_factory=default_hostname)
    )
    state_directory: Annotated[
        Path, "directory of the queue, of large messages while they arrive, and of the metrics"
    ] = field(default_factory=default_state_directory)
    plugin_path: Annotated[
        list[Path],
        "directories of local plugins, one file each. They take precedence over installed"
        " plugins of the same name",
    ] = field(default_factory=list)
    # After a reload, two generations of workers share the SLOTS of `runtime.session_limits`.
    workers: Annotated[
        int,
        Meta(ge=0, le=64),
        "processes that serve clients; 0 = one per core, at least two",
    ] = 0
    cpu_affinity: Annotated[
        bool,
        "bind each worker, and the process that delivers, to one core, spread evenly. The"
        " programs and threads that a plugin starts stay on that core too",
    ] = True
    user: Annotated[
        str, "user to become after the sockets are open, if started as root; empty = stay root"
    ] = ""
    bare_newline: Annotated[
        Literal["reject", "fix"],
        "reject: refuse a message with a bare CR or LF with 550 5.6.0. fix: turn each into"
        " CRLF. With BODY=BINARYMIME only the header counts, and the message is always refused",
    ] = "reject"
    listeners: Annotated[list[Listener], "at least one"] = field(default_factory=list)
    tls: TlsConfig = field(default_factory=TlsConfig)
    limits: Limits = field(default_factory=Limits)
    dns: DnsConfig = field(default_factory=DnsConfig)
    state: StateConfig = field(default_factory=StateConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    outbound: Outbound = field(default_factory=Outbound)
    plugins: Annotated[list[PluginConfig], "in the order in which they run"] = field(
        default_factory=list
    )
    file: str = field(default="", metadata=INTERNAL)
    base: Path = field(default_factory=Path.cwd, metadata=INTERNAL)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hostname", check_domain(self.hostname, key="hostname"))
        self._check_user()
        self._check_listeners()
        self._check_plugins()

    @classmethod
    def load(cls, path: Path | None = None) -> "Config":
        """Read the file `path`, else $MINISMTP_CONFIG, else DEFAULT_FILE. Raise ConfigError.

        If no file is named and DEFAULT_FILE does not exist, return the embedded default.
        """
        if path is None and (named := os.environ.get("MINISMTP_CONFIG")):
            path = Path(named)
        try:
            text = without_marks(_read(path or DEFAULT_FILE)).decode("utf-8")
        except OSError as error:
            if path is None and isinstance(error, FileNotFoundError):
                return cls.embedded()
            file = str(path or DEFAULT_FILE)
            raise ConfigError(f"cannot be read: {error.strerror or error}", file=file) from error
        except ValueError as error:
            raise ConfigError(f"is not UTF-8: {error}", file=str(path or DEFAULT_FILE)) from error
        return cls.parse(text, path or DEFAULT_FILE)

    @classmethod
    def parse(cls, text: str, path: Path) -> "Config":
        """Read the text of the file `path`. Raise ConfigError."""
        try:
            table = tomli.loads(text)
            return cls.build(table, file=str(path), base=path.absolute().parent)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error), file=str(path)) from error
        except RecursionError:
            raise ConfigError("is nested too deeply", file=str(path)) from None

    @classmethod
    def embedded(cls) -> "Config":
        """Return a harmless default: local mail only, on a loopback port, with few processes."""
        hostname, state = default_hostname(), default_state_directory()
        template = str(state).replace("{", "{{").replace("}", "}}")
        domains = list(dict.fromkeys(["localhost", hostname]))
        table: dict[str, object] = {
            "workers": 2,
            "listeners": [{"name": "smtp", "address": "127.0.0.1:2525", "tls": "none"}],
            "plugins": [
                {"use": "mailboxes", "domains": domains},
                {"use": "maildir", "path": f"{template}/mail/{{local}}"},
            ],
        }
        return cls.build(table, file="", base=Path.cwd())

    @classmethod
    def build(cls, table: Mapping[str, object], *, file: str, base: Path) -> "Config":
        """Make the configuration from a TOML document. Raise ConfigError."""
        config = build(cls, table, file=file, key="", base=base)
        return replace(config, file=file, base=base)

    def _check_user(self) -> None:
        try:
            if self.user:
                pwd.getpwnam(self.user)
        except KeyError:
            raise ConfigError(f"no user is called {self.user!r}", key="user") from None

    def _check_listeners(self) -> None:
        if not self.listeners:
            raise ConfigError("expected at least one [[listeners]] table", key="listeners")
        check_unique("listeners", [listener.name for listener in self.listeners])
        places = [listener.address for listener in self.listeners]
        chosen = [str(place) if place.port or place.path else "" for place in places]
        check_unique("listeners", chosen, attribute="address")
        for number, listener in enumerate(self.listeners):
            key = f"listeners[{number}]"
            if listener.tls != "none" and self.tls.certificate is None:
                raise ConfigError(
                    f'"{listener.tls}" needs certificate and key in [tls];'
                    ' without them expected tls = "none"',
                    key=f"{key}.tls",
                )
            if listener.client_certificates and self.tls.client_ca is None:
                raise ConfigError("needs client_ca in [tls]", key=f"{key}.client_certificates")

    def _check_plugins(self) -> None:
        check_unique("plugins", [plugin.name for plugin in self.plugins])
        known = [listener.name for listener in self.listeners]
        for number, plugin in enumerate(self.plugins):
            if not plugin.key:
                object.__setattr__(plugin, "key", f"plugins[{number}]")
            for index, name in enumerate(plugin.listeners):
                if name not in known:
                    raise ConfigError(
                        f"no listener is called {name!r}{did_you_mean(name, known)}",
                        key=f"plugins[{number}].listeners[{index}]",
                    )


def _read(path: Path) -> bytes:
    """Return the content of a configuration file; raise OSError.

    The running server reads it on HUP. So only a regular file of bounded size is read; anything
    else at this path, such as a FIFO, could block.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("is not a regular file")
        data = file.read(_LONGEST_FILE + 1)
    if len(data) > _LONGEST_FILE:
        raise OSError(f"is longer than {_LONGEST_FILE} octets")
    return data
