"""Stored mail through a changed set of plugins: `minismtp replay`.

Nothing is delivered, queued or told to observers, because the plugins lose the hooks for that.
Their state directories are temporary ones. They see the present time, not that of the mail.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import tomli

from minismtp.cli.common import add_config, configuration, say
from minismtp.cli.dry_run import DryRun
from minismtp.cli.progress import Progress
from minismtp.cli.stored_mail import envelope_of, maildir
from minismtp.cli.text import json_line
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.loader import instances
from minismtp.runtime.log import Log
from minismtp.values.durable_files import read_file

_ACCEPTED: Final = "accepted"  # what --against takes instead of a file
_LEFT_OUT: Final = ("route", "deliver", "observe", "on_send", "destination")


class Difference(msgspec.Struct, tag_field="type", tag="difference"):
    """One message: `was` and `now` are outcomes, `by` the plugin and hook that refused first."""

    message: str
    was: str
    now: str
    by: str
    reply: str


class Change(msgspec.Struct):
    """The number of `messages` that would fare differently in this way, see `Difference`."""

    was: str
    now: str
    by: str
    messages: int


class Summary(msgspec.Struct, tag_field="type", tag="summary"):
    """All messages that were read, those that were gone by then, and the changes, most first."""

    messages: int = 0
    different: int = 0
    unreadable: int = 0
    changes: list[Change] = []


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "maildir", type=Path, metavar="MAILDIR", help="read only; nothing is delivered"
    )
    parser.add_argument(
        "--plugins",
        type=Path,
        required=True,
        metavar="FILE",
        help="a configuration with the changed plugins, or its [[plugins]] tables alone",
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="FILE",
        help="another such file to compare with, or `accepted` for what became of the mail when it"
        " came; default: the present configuration",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each difference"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each difference, then a summary; raise CommandError, ConfigError and OSError."""
    for line in differences(configuration(arguments), arguments):
        say(line)
    return 0


def differences(config: Config, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines to print; raise CommandError, ConfigError and OSError."""
    summary = Summary()
    changes: Counter[tuple[str, str, str]] = Counter()
    files = maildir(arguments.maildir)
    with ExitStack() as stack:
        progress = Progress("messages", len(files), shown=not arguments.json)
        stack.enter_context(progress)
        now = _dry_run(changed(config, arguments.plugins), stack)
        was = None
        if arguments.against != _ACCEPTED:
            named = arguments.against
            was = _dry_run(changed(config, Path(named)) if named else config, stack)
        for number, path in enumerate(files, 1):
            try:
                found = _compare(path, config.hostname, now, was)
            except FileNotFoundError:
                summary.unreadable += 1  # a reader has moved or removed it
            else:
                summary.messages += 1
                if found is not None:
                    summary.different += 1
                    changes[found.was, found.now, found.by] += 1
                    progress.clear()
                    yield json_line(found) if arguments.json else line_of(found)
            progress.show(number)
    summary.changes = [Change(*change, count) for change, count in changes.most_common()]
    yield from [json_line(summary)] if arguments.json else _summary_as_text(summary)


def changed(present: Config, path: Path) -> Config:
    """Return the configuration with the plugins of a file; raise ConfigError.

    The file is a whole configuration, or has only [[plugins]] tables and `plugin_path`. Then all
    other options are those of the present configuration.
    """
    try:
        table = tomli.loads(read_file(path).decode())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(error), file=str(path)) from error
    if "listeners" in table:
        return Config.load(path)
    for key in table.keys() - {"plugins", "plugin_path"}:
        raise ConfigError(
            "expected [[plugins]] and plugin_path alone, or a whole configuration with listeners",
            file=str(path),
            key=key,
        )
    listeners = [
        {"name": each.name, "kind": each.kind, "address": "127.0.0.1:0", "tls": "none"}
        for each in present.listeners
    ]
    base = path.absolute().parent
    found = Config.build({**table, "listeners": listeners}, file=str(path), base=base)
    return replace(
        present,
        plugins=found.plugins,
        plugin_path=found.plugin_path or present.plugin_path,
        file=found.file,
        base=found.base,
    )


def _dry_run(config: Config, stack: ExitStack) -> DryRun:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = replace(config, state_directory=directory)
    dry_run = DryRun(config, _judging(config), Log(level="error"))
    stack.callback(dry_run.close)
    return dry_run


def _judging(config: Config) -> Iterator[tuple[PluginConfig, object]]:
    """Yield the plugins without the hooks that have effects elsewhere."""
    for table, instance in instances(config):
        for hook in _LEFT_OUT:
            if hasattr(instance, hook):
                setattr(instance, hook, None)  # which hides the method from the manager
        yield table, instance


def _compare(path: Path, hostname: str, now: DryRun, was: DryRun | None) -> Difference | None:
    with path.open("rb") as content:
        client = envelope_of(content, hostname)
        begin = content.tell()
        after = now.run(client, content)
        if was is None:
            outcome, by = _ACCEPTED, after.refused_by
        else:
            content.seek(begin)
            before = was.run(client, content)
            outcome, by = before.outcome, after.refused_by or before.refused_by
    if outcome == after.outcome:
        return None
    return Difference(str(path), outcome, after.outcome, by, after.reply)


def line_of(found: Difference) -> str:
    """Return the line for people."""
    by = f"  {found.by}" if found.by else ""
    return f"{found.message}  {found.was} -> {found.now}{by}  {found.reply}"


def _summary_as_text(summary: Summary) -> Iterator[str]:
    gone = f", {summary.unreadable:,} gone meanwhile" if summary.unreadable else ""
    yield f"{summary.messages:,} messages, {summary.different:,} would fare differently{gone}"
    for each in summary.changes:
        by = f" by {each.by}" if each.by else ""
        yield f"    {each.messages:,} {each.was} -> {each.now}{by}"
