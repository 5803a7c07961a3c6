"""What `on_check` is given: the place of a plugin among the others, and where it reports.

`minismtp check` calls it, and so does the first worker when the server starts or is reloaded. Each
plugin knows what it needs of the others, so that no list of all plugins has to be kept.
"""

from __future__ import annotations

import inspect
import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from minismtp.config.mistakes import ConfigError
from minismtp.runtime.log import describe
from minismtp.values.durable_files import WatchedFiles

if TYPE_CHECKING:
    from minismtp.config import Config, PluginConfig


@dataclass(slots=True)
class Facts:
    """What the plugins tell about the mail that they handle, for the summary of `check`."""

    domains: dict[str, None] = field(default_factory=dict)  # in order
    users: dict[str, None] = field(default_factory=dict)  # with a mailbox
    any_user: bool = False  # whether every local part has a mailbox
    logins: dict[str, None] = field(default_factory=dict)  # with a password
    services: list[str] = field(default_factory=list)  # that check passwords of unknown users


class Report(NamedTuple):
    """A `severity`, and the mistake."""

    severity: Literal["error", "warning"]
    mistake: ConfigError


class PluginCheck:
    """The check of one plugin in a process whose `role` is check or worker.

    Only the command `check` has time for questions to other servers. The text of a problem names
    the option in front (`path: ... is not a directory`), says what is wrong, and what to do. An
    error is certain to keep mail from working, so the server does not start; a warning is logged.
    """

    config: Config
    """The whole configuration."""
    role: str
    """`check` for the command, which has time to ask other servers; `worker` at the start."""
    facts: Facts
    """What the plugins above told about domains and users, which this one may add to."""
    reports: list[Report]
    """What this plugin reported so far."""

    def __init__(
        self,
        config: Config,
        role: str,
        table: PluginConfig,
        instances: Sequence[tuple[PluginConfig, object]],
        facts: Facts,
    ) -> None:
        self.config = config
        self.role = role
        self.facts = facts
        self._table = table
        place = [each for each, _ in instances].index(table)
        self._earlier = [each for each in instances[:place] if _counts(each[0], table)]
        self._later = [each for each in instances[place + 1 :] if _counts(each[0], table)]
        self.reports = []

    def error(self, text: str) -> None:
        """Report what keeps mail from working."""
        self.reports.append(Report("error", located(self.config, self._table.name, text)))

    def warn(self, text: str) -> None:
        """Report what may be intended, but more often is not."""
        self.reports.append(Report("warning", located(self.config, self._table.name, text)))

    def above(self, *uses: str) -> list[str]:
        """Return the names of those of these plugins (by `use`) that run before this one."""
        return [table.name for table, _ in self._earlier if table.use in uses]

    def below(self, *uses: str) -> list[str]:
        """Return the names of those of these plugins (by `use`) that run after this one."""
        return [table.name for table, _ in self._later if table.use in uses]

    def above_with(self, hook: str) -> list[str]:
        """Return the names of the plugins with this hook that run before this one."""
        return [table.name for table, plugin in self._earlier if hasattr(type(plugin), hook)]

    def below_with(self, hook: str) -> list[str]:
        """Return the names of the plugins with this hook that run after this one."""
        return [table.name for table, plugin in self._later if hasattr(type(plugin), hook)]

    def cannot_write(self, directory: Path) -> str:
        """Return why this user cannot make files in a directory, or "" if it can.

        If there is no such directory, it would be made in the nearest one that exists.
        """
        existing = directory.absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            return f"{existing} is a file; expected a directory"
        if os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
            return ""
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # as in a container
            user = str(os.geteuid())
        return (
            f"{existing} cannot be written by the user {user}: chown it to that user (below"
            " systemd, ReadWritePaths= of the unit has to name it too)"
        )

    def comes_after(self, *uses: str, lest: str) -> None:
        """Warn if one of these plugins runs later. `lest` says what goes wrong then."""
        if late := self.below(*uses):
            self.warn(f"{lest}: put its table below {', '.join(late)}")


def _counts(other: PluginConfig, table: PluginConfig) -> bool:
    """Return whether the order of two plugins matters, because both run on some listener."""
    together = not other.listeners or not table.listeners
    together = together or not {*other.listeners}.isdisjoint(table.listeners)
    return together and other.mode in {table.mode, "enforce"}


def located(config: Config, name: str, text: str) -> ConfigError:
    """Return the mistake that a plugin logs, whose text may begin with one of its options."""
    table = next((each for each in config.plugins if each.name == name), None)
    if table is None:
        return config.locate(ConfigError(text, key="plugins"))
    option, colon, rest = text.partition(": ")
    known = colon and option.partition("[")[0].partition(".")[0] in {*table.options, "timeout"}
    key = f"{table.key}.{option}" if known else table.key
    return config.locate(ConfigError(rest if known else text, key=key))


def check_plugins(
    config: Config, role: str, instances: Sequence[tuple[PluginConfig, object]], facts: Facts
) -> Iterator[Report]:
    """Yield what the plugins report about themselves, and add what they know to the facts."""
    for table, instance in instances:
        check = PluginCheck(config, role, table, instances, facts)
        _check_timeout(check, table, instance)
        _check_files(check, instance)
        method = getattr(type(instance), "on_check", None)
        logins = len(facts.logins)
        if method is not None:
            _call(method, instance, check)
        if hasattr(type(instance), "authenticate") and len(facts.logins) == logins:
            facts.services.append(table.name)
        yield from check.reports


def _call(method: Any, instance: object, check: PluginCheck) -> None:  # noqa: ANN401 - any callable
    """Call the method itself, because a session's guard would turn its exception into a reply."""
    arguments = (check,) if "check" in inspect.signature(method).parameters else ()
    try:
        method(instance, *arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's bug must not end the server
        check.warn(f"on_check failed: {describe(error)}")


def _check_files(check: PluginCheck, instance: object) -> None:
    """Report files that cannot be used now, such as an empty list of users."""
    for value in vars(instance).values():
        if isinstance(value, WatchedFiles) and value.problem:
            check.warn(value.problem)


def _check_timeout(check: PluginCheck, table: PluginConfig, instance: object) -> None:
    """Warn of a `timeout` that was meant to be the plugin's own option `patience`."""
    patience = getattr(instance, "patience", None)
    if isinstance(patience, timedelta) and table.timeout < patience:
        check.warn(
            "timeout: only logs a slow call and ends none; this plugin gives up after `patience`"
            f" ({patience.total_seconds():g} s): expected patience here, or a longer timeout"
        )
