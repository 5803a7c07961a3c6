"""The configuration as checked, typed values.

A `Config` that exists is consistent in itself. The modules that use other files (certificates,
plugins) check them, and so does `minismtp check`.
"""

import operator
import os
import pwd
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from minismtp.config.acme_table import NEEDED_LISTENERS, check_reachable, usable_challenges
from minismtp.config.acme_table import AcmeConfig as AcmeConfig
from minismtp.config.checks import check_domain, duplicates
from minismtp.config.hints import with_hint
from minismtp.config.limits_table import Limits as Limits
from minismtp.config.listener_table import Listener as Listener
from minismtp.config.mistakes import ConfigError, combined, did_you_mean
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
from minismtp.config.tables import UpdatesConfig as UpdatesConfig
from minismtp.config.toml_document import parse_document
from minismtp.config.toml_places import Source
from minismtp.config.toml_values import INTERNAL, build, values_that_are_right
from minismtp.config.types import parse_domain
from minismtp.config.web_tables import AutoconfigConfig as AutoconfigConfig
from minismtp.config.web_tables import MtaStsConfig as MtaStsConfig
from minismtp.values.durable_files import without_marks

DEFAULT_FILE: Final = Path("/etc/minismtp/minismtp.toml")
VERSION: Final = 1  #: of the keys; it grows when a release would misread an earlier file
LONGEST_FILE: Final = 1 << 20  # octets; 10,000 lines take a quarter of that


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
    `source` knows the line of each key. `mistakes` is empty, except in what `examine` returns.
    """

    config_version: Annotated[
        Literal[1],
        "version of the keys in this file. A release refuses files of later versions, and reads"
        " all earlier ones",
    ] = VERSION
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
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    outbound: Outbound = field(default_factory=Outbound)
    mta_sts: MtaStsConfig = field(default_factory=MtaStsConfig)
    autoconfig: AutoconfigConfig = field(default_factory=AutoconfigConfig)
    plugins: Annotated[list[PluginConfig], "in the order in which they run"] = field(
        default_factory=list
    )
    file: str = field(default="", metadata=INTERNAL)
    base: Path = field(default_factory=Path.cwd, metadata=INTERNAL)
    source: Source = field(default_factory=Source, metadata=INTERNAL, repr=False, compare=False)
    mistakes: tuple[ConfigError, ...] = field(default=(), metadata=INTERNAL, compare=False)
    lenient: bool = field(default=False, metadata=INTERNAL, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "hostname", check_domain(self.hostname, key="hostname"))
            found = []
        except ConfigError as error:
            found = [error]
        found += [*self._acme_mistakes(), *self._user_mistakes()]
        found += [*self._listener_mistakes(), *self._plugin_mistakes()]
        if found and not self.lenient:
            raise combined(found)
        object.__setattr__(self, "mistakes", self.mistakes or tuple(found))

    @property
    def mail_listeners(self) -> list[Listener]:
        """The listeners whose clients speak SMTP or LMTP, which plugins know."""
        return [listener for listener in self.listeners if listener.takes_mail]

    @property
    def web_listeners(self) -> list[Listener]:
        """The listeners of kind web, which one process serves."""
        return [listener for listener in self.listeners if not listener.takes_mail]

    @classmethod
    def load(cls, path: Path | None = None) -> "Config":
        """Read the file `path`, else $MINISMTP_CONFIG, else DEFAULT_FILE. Raise ConfigError.

        If no file is named and DEFAULT_FILE does not exist, return the embedded default.
        """
        found = cls.file_to_read(path)
        return cls.parse(text_of(found), found) if found else cls.embedded()

    @staticmethod
    def file_to_read(path: Path | None = None) -> Path | None:
        """Return the file that `load` reads, or None for the embedded default."""
        if path is None and (named := os.environ.get("MINISMTP_CONFIG")):
            path = Path(named)
        try:
            DEFAULT_FILE.lstat()
        except FileNotFoundError:
            return path
        except OSError:
            pass  # reading it tells why
        return path or DEFAULT_FILE

    @classmethod
    def parse(cls, text: str, path: Path) -> "Config":
        """Read the text of the file `path`. Raise ConfigError for all mistakes in it."""
        config = cls.examine(text, path)
        if config.mistakes:
            raise combined(config.mistakes)
        return config

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a file in spite of mistakes in it, as `examine` does. Raise ConfigError."""
        return cls.examine(text_of(path), path)

    @classmethod
    def examine(cls, text: str, path: Path) -> "Config":
        """Read the text of the file `path` in spite of its `mistakes`, and leave those keys out.

        Raise ConfigError if the text is not TOML, or for a later release.
        """
        table = parse_document(text, str(path))
        source = Source(text, table)
        base = path.absolute().parent
        version = table.get("config_version")
        if isinstance(version, int) and version > VERSION:  # then any key may be unknown
            problem = (
                f"the file is for a later release, because this one knows versions up to {VERSION};"
                " install that release, or a file that was made for this one"
            )
            mistake = ConfigError(problem, key="config_version", file=str(path))
            raise source.locate(mistake)
        try:
            return replace(cls.build(table, file=str(path), base=base), source=source)
        except ConfigError:
            values, found = values_that_are_right(cls, table, base=base)
        place: dict[str, Any] = {"file": str(path), "base": base, "source": source}
        config = cls(**values, **place, lenient=True)
        shaken = any(each.key.startswith(("listeners", "tls")) for each in found)
        found += [each for each in config.mistakes if not (shaken and "listeners" in each.key)]
        object.__setattr__(config, "mistakes", ())
        located = [config.locate(each) for each in found]
        located.sort(key=operator.attrgetter("line"))
        object.__setattr__(config, "mistakes", tuple(located))
        return config

    def locate(self, error: ConfigError) -> ConfigError:
        """Return an error with the file, and with the lines of its keys in it."""
        located = self.source.locate(error.within("", self.file))
        return combined(with_hint(each, Config) for each in located.mistakes)

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

    @property
    def acme_directory(self) -> Path:
        """The directory of the certificate that `[tls.acme]` gets, and of its account."""
        return self.state_directory / "acme"

    @property
    def acme_challenges(self) -> list[str]:
        """How the authority of `[tls.acme]` can check the names, in the order of the attempts."""
        acme = self.tls.acme
        return [] if acme is None else usable_challenges(acme, self.web_listeners)

    def _acme_mistakes(self) -> Iterator[ConfigError]:
        """Yield mistakes, and have `[tls]` use the certificate of `[tls.acme]`."""
        acme, own = self.tls.acme, self.acme_directory / "certificate.pem"
        if acme is None:
            return
        named = self.tls.certificate or own  # in a copy it is still that of the original
        if named.parts[-2:] != own.parts[-2:]:
            problem = "expected either certificate and key, or [tls.acme], which gets them itself"
            yield ConfigError(problem, key="tls.certificate")
            return
        object.__setattr__(self.tls, "certificate", named)
        object.__setattr__(self.tls, "key", named)
        if not acme.names:
            object.__setattr__(acme, "names", [self.hostname.lower().removesuffix(".")])
        try:
            check_reachable(acme.names[0], "hostname")
        except ConfigError as error:
            yield error
        if not self.acme_challenges:
            key = "tls.acme.challenge" if acme.challenge else "tls.acme"
            yield ConfigError(NEEDED_LISTENERS[acme.challenge], key=key)

    def _user_mistakes(self) -> Iterator[ConfigError]:
        try:
            if self.user:
                pwd.getpwnam(self.user)
        except KeyError:
            name = self.user
            object.__setattr__(self, "user", "")
            near = did_you_mean(name, [each.pw_name for each in pwd.getpwall()])
            problem = f"no user is called {name!r}{near or '; make one, or correct the name'}"
            yield ConfigError(problem, key="user")

    def _listener_mistakes(self) -> Iterator[ConfigError]:
        if not self.mail_listeners:
            text = "expected at least one [[listeners]] table"
            more = " for mail besides those for the web" if self.listeners else ""
            yield ConfigError(f"{text}{more}", key="listeners")
        yield from duplicates("listeners", [listener.name for listener in self.listeners])
        places = [listener.address for listener in self.listeners]
        chosen = [str(place) if place.port or place.path else "" for place in places]
        yield from duplicates("listeners", chosen, attribute="address")
        for number, listener in enumerate(self.listeners):
            if not listener.key:
                object.__setattr__(listener, "key", f"listeners[{number}]")
            if listener.tls != "none" and self.tls.certificate is None:
                yield ConfigError(
                    f'"{listener.tls}" needs certificate and key in [tls], or [tls.acme];'
                    ' without them expected tls = "none"',
                    key=f"{listener.key}.tls",
                )
            if listener.client_certificates and self.tls.client_ca is None:
                key = f"{listener.key}.client_certificates"
                yield ConfigError("needs client_ca in [tls]", key=key)

    def _plugin_mistakes(self) -> Iterator[ConfigError]:
        yield from duplicates("plugins", [plugin.name for plugin in self.plugins])
        known = [listener.name for listener in self.mail_listeners]
        for number, plugin in enumerate(self.plugins):
            if not plugin.key:
                object.__setattr__(plugin, "key", f"plugins[{number}]")
            for index, name in enumerate(plugin.listeners):
                if name not in known:
                    yield ConfigError(
                        f"no listener is called {name!r}{did_you_mean(name, known)}",
                        key=f"{plugin.key}.listeners[{index}]",
                    )


def text_of(path: Path) -> str:
    """Return the text of a configuration file. Raise ConfigError."""
    try:
        return without_marks(_read(path)).decode("utf-8")
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise ConfigError(problem, file=str(path)) from error
    except ValueError as error:
        raise ConfigError(f"is not UTF-8: {error}", file=str(path)) from error


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
        data = file.read(LONGEST_FILE + 1)
    if len(data) > LONGEST_FILE:
        raise OSError(f"is longer than {LONGEST_FILE} octets")
    return data
