"""The configuration and everything that it names: `minismtp check`.

The check leaves nothing behind. It starts plugins with a temporary state directory, so that a check
run by root makes no files that the server's own user cannot open later. Run by root, it acts as the
server's user, where that is known, because the permissions of root say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from minismtp.cli.common import EXIT_CONFIG, add_config, say
from minismtp.cli.text import json_lines
from minismtp.config import DEFAULT_FILE, Config, StateConfig
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.plugin_check import Facts
from minismtp.hooks.specs import ServerInfo
from minismtp.inspection.acme_names import check_acme_names
from minismtp.inspection.certificates import check_certificates
from minismtp.inspection.exposure import user_name
from minismtp.inspection.files import check_files, check_plugin_files
from minismtp.inspection.listeners import check_listeners, check_ports
from minismtp.inspection.plugins import (
    check_deprecations,
    check_plugins,
    deprecations,
    start_plugins,
)
from minismtp.inspection.problem import Problem, error, warning
from minismtp.inspection.questions import HurriedResolver, check_names
from minismtp.inspection.relay import check_relay
from minismtp.inspection.summary import summary
from minismtp.runtime.log import Log, complain
from minismtp.runtime.metrics import Metrics
from minismtp.server.directories import server_process
from minismtp.server.privileges import acting_as, acting_as_owner
from minismtp.services.remote import RemoteError
from minismtp.services.shared_state import FILE, State
from minismtp.storage.state_format import state_directory
from minismtp.values.sqlite_file import damage

_Collect: TypeAlias = Callable[[Problem], object]
_DEMO: Final = (
    f"{DEFAULT_FILE} does not exist, so `minismtp serve` would run the built-in demo on port 2525;"
    " write that file, or name another one with --config"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("--strict", action="store_true", help="let warnings count as errors")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print each problem, and what would run. Return 78 if there is an error.

    With --strict, a warning counts as an error.
    """
    found: list[Problem] = []
    collect = found.append if arguments.json else None
    file = arguments.config
    try:
        file = Config.file_to_read(file)
        config = Config.read(file) if file else Config.embedded()
    except ConfigError as mistakes:  # the file cannot be read
        problems = (Problem("error", mistake) for mistake in mistakes.mistakes)
        status = _refused(_told(problems, collect), collect)
    else:
        status = judged(config, strict=arguments.strict, collect=collect)
    if arguments.json:
        say(*json_lines(_as_json(str(file or ""), status, found)))
    return status


def judged(config: Config, *, strict: bool = False, collect: _Collect | None = None) -> int:
    """Print the problems of a configuration, and what would run. Return the exit status.

    With `collect` print nothing, and call it with each problem.
    """
    facts = Facts()
    count = _told(check_ports(config, server_process(config.state_directory)), collect)
    with _acting_as_servers_user(config) as user:
        count += _told(check(config, facts), collect)
        if count["error"] or (strict and count["warning"]):
            return _refused(count, collect)
        if collect:
            return 0
        say(f"checked: {config.file or 'the built-in demo'}", *summary(config, facts))
    if user:
        say(f"permissions: {user}")
    warnings = f", with {_in_words(count)}" if count["warning"] else ""
    what = "configuration ok" if config.file else "no configuration: only the demo would run"
    say(f"{what}{warnings}")
    return 0


def _told(problems: Iterable[Problem], collect: _Collect | None) -> Counter[str]:
    """Print or collect each problem when it is found, and count them."""
    count: Counter[str] = Counter()
    for problem in problems:
        if collect:
            collect(problem)
        else:
            complain(str(problem), problem.severity)
        count[problem.severity] += 1
    return count


def _as_json(file: str, status: int, found: Iterable[Problem]) -> dict[str, object]:
    """Return the result as an object. A line of 0 is not known; `table` is the name of a table."""
    return {
        "file": file,
        "accepted": status == 0,
        "problems": [
            {
                "severity": severity,
                "file": mistake.file,
                "line": mistake.line,
                "key": mistake.key,
                "table": mistake.name,
                "text": mistake.message,
            }
            for severity, mistake in found
        ],
    }


def _refused(count: Counter[str], collect: _Collect | None) -> int:
    if not collect:
        complain(f"configuration refused: {_in_words(count)}")
    return EXIT_CONFIG


def _in_words(count: Counter[str]) -> str:
    kinds = [kind for kind in ("error", "warning") if count[kind]]
    return ", ".join(f"{count[kind]} {kind}{'s' * (count[kind] > 1)}" for kind in kinds)


@contextlib.contextmanager
def _acting_as_servers_user(config: Config) -> Iterator[str]:
    """Let root act as the server's user within the block. Yield how permissions are tried."""
    if os.geteuid() != 0:
        yield ""
        return
    uid = gid = 0
    with contextlib.suppress(OSError, KeyError):
        if config.user:
            uid, gid = pwd.getpwnam(config.user)[2:4]
        else:  # the user that systemd starts the server as has made it
            status = config.state_directory.stat()
            uid, gid = status.st_uid, status.st_gid
    if uid == 0:
        yield "not tried, because root may do everything; run this as the server's user"
        return
    with acting_as(uid, gid, with_all_groups=True):
        yield f"tried as {user_name(uid)}, the server's user"


def check(config: Config, facts: Facts | None = None) -> Iterator[Problem]:
    """Yield the problems of a configuration, and of everything that it names.

    If there are errors, such as `mistakes` of the configuration, no plugin is started.
    """
    sound = True
    for problem in _found_without_plugins(config):
        sound = sound and problem.severity == "warning"
        yield problem
    metrics = Metrics(listener.name for listener in config.mail_listeners)
    with Path(os.devnull).open("wb") as nowhere:
        log = Log(descriptor=nowhere.fileno())
        with deprecations() as deprecated:
            try:
                plugins = PluginSet.load(config, metrics, log)
            except ConfigError as mistakes:
                yield from (Problem("error", mistake) for mistake in mistakes.mistakes)
                return
            yield from check_plugin_files(config, plugins.instances)
            yield from check_acme_names(config, plugins.instances)
            if sound:
                yield from _started(config, plugins, metrics, log, facts or Facts())
        yield from check_deprecations(config, plugins, deprecated)


def _found_without_plugins(config: Config) -> Iterator[Problem]:
    yield from (Problem("error", mistake) for mistake in config.mistakes)
    if not config.file:
        yield Problem("warning", ConfigError(_DEMO))
    yield from check_listeners(config)
    yield from check_certificates(config)
    yield from check_files(config)
    yield from _databases(config)
    yield from _state(config)


def _databases(config: Config) -> Iterator[Problem]:
    """Check the databases that the server rebuilds when they are damaged, and their format."""
    try:
        state_directory(config)
    except ConfigError as later:
        yield Problem("error", later)
    for path in (config.state_directory / FILE, config.state_directory / "spool" / "queue.db"):
        try:
            with acting_as_owner(path.parent):
                problem = damage(path)
        except (OSError, sqlite3.Error) as unreadable:
            yield warning(config, "state_directory", f"{path} cannot be read: {unreadable}")
            continue
        if problem:
            text = f"{path} is damaged, the server will set it aside and make a new one: {problem}"
            yield warning(config, "state_directory", text)


def _state(config: Config) -> Iterator[Problem]:
    if not config.state.url:
        return  # `_databases` looks at the file
    try:
        State.of(config.state, config.state_directory).get("check")
    except ConfigError as mistake:
        yield error(config, mistake.key, mistake.message)
    except RemoteError as away:
        yield warning(config, "state.url", f"{away}; plugins that need it follow their on_error")


def _started(
    config: Config, plugins: PluginSet, metrics: Metrics, log: Log, facts: Facts
) -> Iterator[Problem]:
    """Start the plugins, and yield what shows only then."""
    resolver = HurriedResolver(config.dns.nameservers, lambda line: complain(line, "info"))
    with tempfile.TemporaryDirectory() as directory:
        # Plugins may write here, and into no state that servers share.
        here = replace(config, state_directory=Path(directory), state=StateConfig())
        server = replace(ServerInfo.of(here, "check"), resolver=resolver)
        try:
            sound = True
            yield from check_names(config, plugins.instances, resolver)
            for problem in start_plugins(config, plugins, server):
                sound = sound and problem.severity == "warning"
                yield problem
            yield from check_plugins(config, "check", plugins, facts)
            for listener in config.mail_listeners if sound else ():
                yield from check_relay(config, listener, plugins, metrics, log)
        finally:
            plugins.hooks().on_stop()
