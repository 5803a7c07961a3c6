"""The plugins of a configuration: whether they load, start and fit together."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.guard import StartError
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.plugin_check import Facts, located
from minismtp.hooks.plugin_check import check_plugins as reports
from minismtp.hooks.specs import ServerInfo
from minismtp.inspection.problem import Problem, warning
from minismtp.runtime.thread_activity import here

_QUARANTINE: Final = "quarantine"
#: Plugins that keep quarantined mail out of the inbox.
_KEEPS_APART: Final = frozenset({_QUARANTINE, "maildir"})


def start_plugins(config: Config, plugins: PluginSet, server: ServerInfo) -> Iterator[Problem]:
    """Start each plugin, and yield those that cannot start, and what they warn of."""
    for table, instance in plugins.instances:
        with _warnings() as logged:
            try:
                plugins.alone(instance).on_start(server)
            except StartError as error:
                mistake = ConfigError(f"on_start: {error.reason}", key=table.key)
                yield Problem("error", config.locate(mistake))
        for record, plugin in logged:
            name = plugin or table.name
            yield Problem("warning", located(config, name, record.getMessage()))


def check_plugins(config: Config, role: str, plugins: PluginSet, facts: Facts) -> Iterator[Problem]:
    """Yield what is wrong with the plugins together, and what each reports about itself."""
    yield from _roles(config, plugins)
    yield from _quarantine(config, plugins)
    for table, doubt in plugins.doubts():
        yield warning(config, table.key, doubt)
    for report in reports(config, role, plugins.instances, facts):
        yield Problem(report.severity, report.mistake)


@contextmanager
def deprecations() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of what a later release will no longer have, within the block."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DeprecationWarning)
        yield found


def check_deprecations(
    config: Config, plugins: PluginSet, found: list[warnings.WarningMessage]
) -> Iterator[Problem]:
    """Yield what the files of plugins use that a later release will no longer have."""
    files = {
        getattr(sys.modules.get(type(instance).__module__), "__file__", None): table
        for table, instance in plugins.instances
    }
    places = {(each.filename, each.lineno, str(each.message)) for each in found}
    for file, line, message in sorted(places):
        if table := files.get(file):
            yield Problem("warning", located(config, table.name, f"{file}, line {line}: {message}"))


def _roles(config: Config, plugins: PluginSet) -> Iterator[Problem]:
    """Warn if no plugin stores mail, routes recipients or checks passwords."""
    if not plugins.hooks().delivers:
        text = "no plugin stores mail (hook deliver); expected such as maildir or lmtp"
        yield warning(config, "plugins", text)
    for listener in config.mail_listeners:
        hooks = plugins.hooks(listener.name)
        if not hooks.routes:
            message = (
                "no plugin routes recipients here (hook route), so all are refused; expected such"
                " as mailboxes"
            )
            yield warning(config, listener.key, message)
        can_log_in = hooks.mechanisms or listener.client_certificates
        if listener.kind == "submission" and not can_log_in:
            message = (
                "no plugin checks passwords here (hook authenticate), so no user can log in;"
                " expected such as password_file"
            )
            yield warning(config, listener.key, message)


def _quarantine(config: Config, plugins: PluginSet) -> Iterator[Problem]:
    """Warn of filters whose options quarantine mail that is then stored like any other."""
    enforced = [each for each in plugins.instances if each[0].mode == "enforce"]
    stores = {table.use: table.name for table, plugin in enforced if hasattr(plugin, "deliver")}
    if not stores or not _KEEPS_APART.isdisjoint(stores):
        return
    names = ", ".join(stores.values())
    text = (
        f"it quarantines mail, but {names} stores such mail like any other; expected a table with"
        f' use = "quarantine" above {next(iter(stores.values()))}'
    )
    for table, _ in enforced:
        if _says_quarantine(table.options):
            yield warning(config, table.key, text)


def _says_quarantine(value: object) -> bool:
    """Return whether options, or tables in them, name the quarantine."""
    if isinstance(value, Mapping):
        return bool(value.get(_QUARANTINE)) or any(map(_says_quarantine, value.values()))
    if isinstance(value, list):
        return any(map(_says_quarantine, value))
    return value == _QUARANTINE


@contextmanager
def _warnings() -> Iterator[list[tuple[logging.LogRecord, str]]]:
    """Collect the warnings that are logged within the block, each with the plugin that runs."""
    logged: list[tuple[logging.LogRecord, str]] = []

    def note(record: logging.LogRecord) -> None:
        running = here.activity.running
        logged.append((record, running[1] if running else ""))

    handler = logging.Handler(logging.WARNING)
    handler.emit = note  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield logged
    finally:
        logging.getLogger().removeHandler(handler)
