"""One plugin over one message: `minismtp try`.

The state directory is a temporary one. The plugin has all its effects, so if it stores mail, the
message is stored. No other plugin runs, except those that its class `needs` before it. Mail that
the plugin does not route or store is accepted and dropped.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import tomli

from minismtp.cli.common import (
    EXIT_FAILURE,
    CommandError,
    add_config,
    argument_type,
    configuration,
    say,
)
from minismtp.cli.dry_run import DryRun, ExampleClient, Result
from minismtp.cli.text import json_lines
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import instances
from minismtp.mail.message import Message
from minismtp.mail.results import findings_of, results_of
from minismtp.runtime.log import Log, complain
from minismtp.runtime.thread_activity import Step
from minismtp.values.peer import plain_address

_LONGEST: Final = 200  # characters of a field that are shown


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "plugin",
        metavar="PLUGIN",
        help="its name in the configuration, else as `use` has it, or a file with `.py`;"
        " it has all its effects: a plugin that stores mail stores the message",
    )
    parser.add_argument("message", type=Path, metavar="FILE", help="the message, as in a Maildir")
    parser.add_argument(
        "--from", dest="sender", default="sender@client.example", metavar="ADDRESS", help="or ''"
    )
    parser.add_argument("--to", action="append", metavar="ADDRESS", help="may be given again")
    parser.add_argument(
        "--peer", default="192.0.2.1", type=argument_type(_peer), help="the client's address"
    )
    parser.add_argument("--helo", default="client.example", metavar="NAME")
    parser.add_argument("--login", metavar="USER", help="the user that is logged in; default: none")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="an option of the plugin, in TOML; a value that is not TOML is text;"
        " may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _peer(text: str) -> str:
    return text if text == "unix" else plain_address(text)


def run(arguments: argparse.Namespace) -> int:
    """Print what the plugin did; raise CommandError, ConfigError and OSError."""
    whole = configuration(arguments)
    config = _with_needs(_alone(whole, arguments.plugin, arguments.settings), whole)
    client = ExampleClient(
        sender=arguments.sender,
        recipients=tuple(arguments.to or ("user@example.org",)),
        peer=arguments.peer,
        helo=arguments.helo,
        login=arguments.login,
    )
    with tempfile.TemporaryDirectory() as directory, arguments.message.open("rb") as content:
        config = replace(config, state_directory=Path(directory))
        log = Log(level="error", unfolded=True)
        with closing(DryRun(config, instances(config), log)) as dry_run:
            for doubt in dry_run.doubts:
                complain(f"warning: {doubt}")
            result = dry_run.run(client, content)
            report = _report(config.plugins[-1].name, result, result.steps + dry_run.send(result))
    say(*(json_lines(report) if arguments.json else as_text(report)))
    return 0 if result.accepted else EXIT_FAILURE


def _alone(config: Config, named: str, settings: list[str]) -> Config:
    """Return the configuration with one plugin only.

    It is named by its file, its name in the configuration, or as in `use`. Unless it stands in the
    configuration, its options are those in `settings` alone.
    """
    known = next((table for table in config.plugins if table.name == named), None)
    options: dict[str, object] = dict(setting(text) for text in settings)
    if named.endswith(".py") or "/" in named:
        path = Path(named)
        if not path.is_file():
            raise ConfigError("no such file", file=named)
        config = replace(config, plugin_path=[path.absolute().parent])
        named = path.stem
    if known is not None:
        table = replace(known, options={**known.options, **options}, mode="enforce", listeners=[])
        return replace(config, plugins=[table])
    key = f"plugin {named}"
    table = build(PluginConfig, {"use": named, **options}, file="", key=key, base=Path.cwd())
    return replace(config, plugins=[replace(table, key=key)], file="", base=Path.cwd())


def _with_needs(config: Config, whole: Config) -> Config:
    """Return a configuration of one plugin with those before it that it needs.

    They are as in the `whole` configuration, or else have their default options.
    """
    [table] = config.plugins
    [(_, instance)] = instances(config)
    tables: list[PluginConfig] = []
    for name in getattr(type(instance), "needs", ()):
        known = next((each for each in whole.plugins if each.use == name), None)
        if known is None:
            known = build(
                PluginConfig, {"use": name}, file="", key=f"plugin {name}", base=Path.cwd()
            )
        known = replace(known, mode="enforce", listeners=[])
        try:
            needed = _with_needs(replace(config, plugins=[known]), whole).plugins
        except ConfigError as error:
            raise CommandError(f"{table.name} needs {name} before it, but: {error}") from error
        tables += [each for each in needed if each not in tables]
    return replace(config, plugins=[*tables, table])


def setting(text: str) -> tuple[str, object]:
    """Read KEY=VALUE; a value that is not TOML is text. Raise ConfigError."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"expected KEY=VALUE, not {text!r}", key="--set")
    try:
        return key.strip(), tomli.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value


def _report(plugin: str, result: Result, steps: list[Step]) -> dict[str, Any]:
    """Return what a plugin did to a message, as `--json` prints it."""
    message, envelope = result.message, result.envelope
    added, removed = _headers(result.before, message)
    return {
        "plugin": plugin,
        "accepted": result.accepted,
        "outcome": result.outcome,
        "reply": result.reply,
        "steps": [
            {"hook": hook, "about": name, "seconds": seconds, "verdict": verdict, "remark": remark}
            for hook, name, _, seconds, verdict, remark in steps
        ],
        "added": added,
        "removed": removed,
        "body_changed": _body_changed(result.before, message),
        "quarantined": message.quarantined if message else None,
        "discarded": message.discarded if message else None,
        "recipients": result.outcomes,
        "results": [str(each) for each in results_of(envelope)] if envelope else [],
        "findings": [*findings_of(result.session), *(findings_of(envelope) if envelope else ())],
    }


def _headers(before: Message | None, after: Message | None) -> tuple[list[str], list[str]]:
    """Return the fields that were added and those that were removed, unfolded."""
    if before is None or after is None:
        return [], []
    old, new = (Counter(each.headers.raw_all()) for each in (before, after))
    return [_field(raw) for raw in new - old], [_field(raw) for raw in old - new]


def _field(raw: bytes) -> str:
    return " ".join(raw.decode(errors="replace").split())


def _body_changed(before: Message | None, after: Message | None) -> bool:
    if before is None or after is None or before.content is after.content:
        return False
    return _body(before) != _body(after)


def _body(message: Message) -> bytes:
    with message.open() as content:
        content.seek(sum(map(len, message.headers.raw_all())))
        return content.read()


def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines for people."""
    calls = [step for step in report["steps"] if step["hook"] not in ("RCPT", "MAIL", "reply")]
    several = len({step["about"] for step in calls}) > 1
    width = max((len(f"{step['about']}.{step['hook']}") for step in calls), default=0)
    for step in report["steps"]:
        hook, about, remark = step["hook"], step["about"], step["remark"]
        if "MAIL" in (hook, about):  # what was refused there is the outcome below
            continue
        match hook:
            case "RCPT":
                yield f"RCPT {about}"
            case "reply":
                yield f"{about} => {step['verdict']} {remark}"
            case _:
                time = f"{step['seconds'] * 1000:.1f} ms"
                call = f"{f'{about}.{hook}':{width}}" if several else f"{hook:14}"
                yield f"    {call}{time:>10}  {step['verdict']}{f'  {remark}' if remark else ''}"
    yield from (f"+ {text[:_LONGEST]}" for text in report["added"])
    yield from (f"- {text[:_LONGEST]}" for text in report["removed"])
    if report["body_changed"]:
        yield "the body was changed"
    for word in ("quarantined", "discarded"):
        if report[word] is not None:
            yield f"{word}: {report[word]}"
    yield from (f"{outcome}: {recipient}" for recipient, outcome in report["recipients"].items())
    yield from (f"result: {text}" for text in report["results"])
    for finding in report["findings"]:
        points = f"{finding.points:+g}"
        yield f"finding: {finding.plugin} {finding.name} {points} {finding.text}".rstrip()
    yield f"{report['plugin']}: {report['outcome']}: {report['reply']}"
