"""One plugin over one message: `minismtp try`.

The state directory is a temporary one, and the plugin does all that it does: one that stores mail
stores it. What others would do is left out; what it does not route or store is taken and dropped.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import tomli

from minismtp.cli.dry_run import DryRun, ExampleClient, Result
from minismtp.config import Config, PluginConfig
from minismtp.config.toml_values import ConfigError, build
from minismtp.hooks.loader import instances
from minismtp.mail.authentication_results import results_of
from minismtp.mail.message import Message
from minismtp.mail.results import Finding, findings_of
from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import Step
from minismtp.values.printable import one_line

_LONGEST: Final = 200  # characters of a field that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class TryReport:
    """What a plugin did to a message, as `--json` prints it; `steps` are the calls of its hooks."""

    plugin: str
    accepted: bool
    outcome: str
    reply: str
    steps: list[dict[str, str | float]]
    added: list[str]
    removed: list[str]
    body_changed: bool
    quarantined: str | None
    discarded: str | None
    results: list[str]
    findings: list[Finding]


def run(config: Config, arguments: argparse.Namespace) -> tuple[str, bool]:
    """Return the text to print, and whether the message was accepted.

    Raise ConfigError, guard.Failure and OSError.
    """
    config = _alone(config, arguments.plugin, arguments.settings)
    client = ExampleClient(
        sender=arguments.sender,
        recipients=tuple(arguments.to or ("user@example.org",)),
        peer=arguments.peer,
        helo=arguments.helo,
        login=arguments.login,
    )
    with tempfile.TemporaryDirectory() as directory, arguments.message.open("rb") as content:
        config = replace(config, state_directory=Path(directory))
        dry_run = DryRun(config, instances(config), Log(level="error"))
        try:
            result = dry_run.run(client, content)
            sent = dry_run.send(result)
            report = _report(config.plugins[0].name, result, result.steps + sent)
        finally:
            dry_run.close()
    if arguments.json:
        return msgspec.json.format(msgspec.json.encode(report)).decode(), report.accepted
    return told(report), report.accepted


def told(report: TryReport) -> str:
    """Return the text for people."""
    return "\n".join(map(one_line, _lines(report)))


def _alone(config: Config, named: str, settings: list[str]) -> Config:
    """Return the configuration with this plugin only: a file, a configured name, or a name for use.

    Without the configured one of this name its options are those in `settings` alone.
    """
    known = next((table for table in config.plugins if table.name == named), None)
    options: dict[str, object] = dict(_setting(text) for text in settings)
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


def _setting(text: str) -> tuple[str, object]:
    """Read KEY=VALUE, where the value is TOML; what is none is text."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"expected KEY=VALUE, not {text!r}", key="--set")
    try:
        return key.strip(), tomli.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value


def _report(plugin: str, result: Result, steps: list[Step]) -> TryReport:
    message, envelope = result.message, result.envelope
    added, removed = _headers(result.before, message)
    findings = [*findings_of(result.session), *(findings_of(envelope) if envelope else ())]
    return TryReport(
        plugin=plugin,
        accepted=result.accepted,
        outcome=result.outcome,
        reply=result.reply,
        steps=[
            {"hook": hook, "about": name, "seconds": seconds, "verdict": verdict, "remark": remark}
            for hook, name, _, seconds, verdict, remark in steps
        ],
        added=added,
        removed=removed,
        body_changed=_body_changed(result.before, message),
        quarantined=message.quarantined if message else None,
        discarded=message.discarded if message else None,
        results=[str(each) for each in results_of(envelope)] if envelope else [],
        findings=findings,
    )


def _headers(before: Message | None, after: Message | None) -> tuple[list[str], list[str]]:
    """Return the fields that came and those that went, unfolded."""
    if before is None or after is None:
        return [], []
    old, new = (Counter(each.headers.raw_all()) for each in (before, after))
    return [_field(raw) for raw in new - old], [_field(raw) for raw in old - new]


def _field(raw: bytes) -> str:
    return " ".join(raw.decode(errors="replace").split())


def _body_changed(before: Message | None, after: Message | None) -> bool:
    if before is None or after is None or before.content is after.content:
        return False
    old, new = _body(before), _body(after)
    return any(one != other for one, other in zip(old, new, strict=False)) or any(
        next(rest, b"") for rest in (old, new)
    )


def _body(message: Message) -> Iterator[bytes]:
    """Yield the lines that follow the header."""
    with message.open() as content:
        content.seek(sum(map(len, message.headers.raw_all())))
        yield from iter(lambda: content.readline(65536), b"")


def _lines(report: TryReport) -> Iterator[str]:
    for step in report.steps:
        hook, about, remark = step["hook"], step["about"], step["remark"]
        match hook:
            case "RCPT":
                yield f"RCPT {about}"
            case "reply":
                yield f"{about} => {step['verdict']} {remark}"
            case _:
                time = f"{float(step['seconds']) * 1000:.1f} ms"
                yield f"    {hook:14}{time:>10}  {step['verdict']}{f'  {remark}' if remark else ''}"
    yield from (f"+ {text[:_LONGEST]}" for text in report.added)
    yield from (f"- {text[:_LONGEST]}" for text in report.removed)
    if report.body_changed:
        yield "the body was changed"
    for word, reason in (("quarantined", report.quarantined), ("discarded", report.discarded)):
        if reason is not None:
            yield f"{word}: {reason}"
    yield from (f"result: {text}" for text in report.results)
    for finding in report.findings:
        told = (finding.plugin, finding.name, f"{finding.points:+g}", finding.text)
        yield f"finding: {' '.join(told).rstrip()}"
    yield f"{report.plugin}: {report.outcome}: {report.reply}"
