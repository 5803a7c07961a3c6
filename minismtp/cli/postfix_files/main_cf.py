"""The parameters of main.cf: what is written there, the defaults, and their values."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple, Self

from minismtp.cli.postfix_files.expansion import expanded
from minismtp.cli.postfix_files.text import (
    PostfixError,
    Problem,
    logical_lines,
    name_and_value,
    read_text,
    unusable,
)

_FILE: Final = Path(__file__).with_name("defaults.cf")
#: The default of each parameter of Postfix that is the same on all hosts.
DEFAULTS: Final = dict(
    name_and_value(line.text) for line in logical_lines(_FILE.read_text("utf-8"))
)
_MOST: Final = 10_000  # parameters; Postfix has a tenth
_NAMES: Final = re.compile(r"\$\$|\$[({]?[ \t\r\n]*([A-Za-z0-9_]+)")
#: Ends of parameters that each transport has, such as example_destination_concurrency_limit.
_OF_TRANSPORTS: Final = re.compile(
    r"[\w-]+_(?:delivery_slot_(?:cost|discount|loan)|minimum_delivery_slots|recipient_limit"
    r"|(?:extra_)?recipient_limit|recipient_refill_(?:limit|delay)|initial_destination_concurrency"
    r"|destination_(?:concurrency|recipient)_limit|destination_rate_delay|transport_rate_delay"
    r"|destination_concurrency_(?:positive|negative)_feedback|time_limit"
    r"|destination_concurrency_failed_cohort_limit)"
)


#: Parameters whose default is another one on each host, or for each program.
_OF_THE_HOST: Final = frozenset(
    {
        *("myhostname", "mydomain", "mynetworks", "config_directory", "process_name"),
        *("process_id", "service_name", "mail_version", "mail_release_date", "milter_macro_v"),
    }
)
#: Parameters in which Postfix replaces no names, or only for each message.
_RAW: Final = frozenset(
    {
        *("command_expansion_filter", "default_rbl_reply", "execution_directory_expansion_filter"),
        *("forward_expansion_filter", "forward_path", "home_mailbox", "luser_relay"),
        *("mailbox_command", "postscreen_expansion_filter", "smtpd_expansion_filter"),
        *("postscreen_reject_footer", "smtpd_reject_footer"),
    }
)
#: Parameters of earlier and later versions.
_OLD_NAMES: Final = frozenset(
    {
        *("smtpd_discard_bare_newline", "smtpd_forbid_bare_newline", "tls_preempt_cipherlist"),
        *("smtpd_forbid_bare_newline_exclusions", "smtpd_forbid_unauth_pipelining"),
        *("smtpd_tls_cipherlist", "smtp_tls_cipherlist", "virtual_maps", "program_directory"),
        *("postscreen_dnsbl_whitelist_threshold", "postscreen_whitelist_interfaces"),
    }
)


class Setting(NamedTuple):
    """A parameter as it is written: its text before names are replaced, and its place."""

    value: str
    place: str


@dataclass(frozen=True, slots=True)
class MainCf:
    """The parameters of main.cf, or of one service with its own options."""

    settings: Mapping[str, Setting]
    problems: tuple[Problem, ...] = ()
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raise PostfixError if it is missing, or Postfix would refuse it."""
        return cls.of(read_text(path), path.name)

    @classmethod
    def of(cls, text: str, name: str) -> Self:
        """Read a text; later lines win. Raise PostfixError for a line that is no setting."""
        settings: dict[str, Setting] = {}
        problems = []
        for number, line in logical_lines(text):
            place = f"{name}:{number}"
            if problem := unusable(line):
                known = line.partition("=")[0].strip()
                default = f"; the default of {known} counts" if is_known(known) else ""
                problems.append(Problem(place, f"{problem}{default}"))
                continue
            try:
                key, value = name_and_value(line)
            except PostfixError as error:
                raise PostfixError(f"{place}: {error}, so Postfix does not start with it") from None
            settings[key] = Setting(value, place)
        if len(settings) > _MOST:
            raise PostfixError(f"{name} has more than {_MOST:,} parameters")
        return cls(settings, tuple(problems))

    def with_options(self, options: Mapping[str, Setting]) -> MainCf:
        """Return the parameters of a service that has options of its own."""
        return replace(self, settings={**self.settings, **options}) if options else self

    def raw(self, name: str) -> str | None:
        """Return the text of a parameter before names are replaced, or None if it is unknown."""
        return self.settings[name].value if name in self.settings else self._default(name)

    def _default(self, name: str) -> str | None:
        if name == "myhostname":
            return self.host if "." in self.host else f"{self.host}.{self._domain()}"
        if name == "config_directory":
            return "/etc/postfix"  # wherever the copy is: `PostfixDirectory.locate` finds it
        if name == "mydomain":
            return self._host_name().partition(".")[2] or "localdomain"
        return DEFAULTS.get(name if name in DEFAULTS else _as_smtp(name))

    def _host_name(self) -> str:
        """Return the name of the host, for a domain that is not set."""
        if "myhostname" not in self.settings:
            return self.host
        return self._without("mydomain", self.settings["myhostname"].value)

    def _domain(self) -> str:
        """Return the domain, for a host whose own name has none."""
        if "mydomain" not in self.settings:
            return "localdomain"
        return self._without("myhostname", self.settings["mydomain"].value)

    def _without(self, missing: str, text: str) -> str:
        return expanded(text, lambda name: None if name == missing else self.raw(name))

    def value(self, name: str) -> str:
        """Return the value of a parameter, "" if it is unknown. Raise PostfixError."""
        raw = self.raw(name) or ""
        try:
            return raw if name in _RAW else expanded(raw, self.raw)
        except PostfixError as error:
            raise PostfixError(f"{self.place(name)}: {name}: {error}") from None

    def is_set(self, name: str) -> bool:
        """Return whether a parameter is written down, also if that is its default."""
        return name in self.settings

    def is_default(self, name: str) -> bool:
        """Return whether a parameter has the value that Postfix would give it."""
        default = self._default(name)
        if default is None:
            return False
        usual = default if name in _RAW else expanded(default, self.raw)
        return _blanks(self.value(name)) == _blanks(usual)

    def place(self, name: str) -> str:
        """Return the file and line of a parameter."""
        return self.settings[name].place if name in self.settings else "the default"

    def mentioned(self) -> set[str]:
        """Return the names that stand in values of other parameters."""
        texts = (setting.value for setting in self.settings.values())
        return {match[1] for text in texts for match in _NAMES.finditer(text) if match[1]}


def is_known(name: str) -> bool:
    """Return whether a name is a parameter of Postfix, of one version or another."""
    return (
        name.replace("whitelist", "allowlist").replace("blacklist", "denylist") in DEFAULTS
        or name in {*_OF_THE_HOST, *_OLD_NAMES}
        or _as_smtp(name) in DEFAULTS
        or _OF_TRANSPORTS.fullmatch(name) is not None
    )


def _as_smtp(name: str) -> str:
    """Return the parameter of smtp(8) that is as one of lmtp(8)."""
    return f"smtp_{name.removeprefix('lmtp_')}" if name.startswith("lmtp_") else name


def _blanks(text: str) -> str:
    return " ".join(text.split())
