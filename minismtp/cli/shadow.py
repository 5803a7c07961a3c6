"""What plugins in shadow mode would have done: `minismtp shadow`."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from minismtp.cli.common import add_config, argument_type, configuration, say
from minismtp.cli.text import json_lines, moment, spaced
from minismtp.config import Config
from minismtp.config.types import parse_duration
from minismtp.runtime.control_socket import ask
from minismtp.runtime.decision_log import mentions
from minismtp.runtime.thread_activity import Step
from minismtp.server.privileges import acting_as_owner

_MARK: Final = "shadow:"
_EXAMPLES: Final = 5  # of each plugin
# These change nothing that a client or a mailbox would see.
_HARMLESS: Final = frozenset({"none", "answer", "failed"})
_WISH: Final = re.compile(r"would be (\w+)")  # as `hooks.guard` writes it


class Example(msgspec.Struct):
    """One call: `id` is for `minismtp explain`, `time` in epoch seconds."""

    time: float
    id: str
    hook: str
    kind: str
    remark: str


class Shadow(msgspec.Struct):
    """One plugin: the number of calls of each kind by hook, and the latest `examples`.

    A kind is a verdict, "failed", or what would have happened to the message: discarded,
    quarantined, changed, readdressed. `effects` counts the calls that would have changed something.
    """

    plugin: str
    calls: int = 0
    effects: int = 0
    hooks: dict[str, Counter[str]] = msgspec.field(default_factory=dict)
    examples: list[Example] = msgspec.field(default_factory=list)

    def add(self, step: Step, moment: float, identifier: str) -> None:
        """Count a call."""
        hook, _, _, _, verdict, remark = step
        kind = _kind(verdict.removeprefix(_MARK), remark)
        self.calls += 1
        self.hooks.setdefault(hook, Counter())[kind] += 1
        self.effects += kind not in _HARMLESS
        if kind not in ("none", "answer"):
            self.examples.append(Example(moment, identifier, hook, kind, remark))
            del self.examples[:-_EXAMPLES]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "--since",
        type=argument_type(parse_duration),
        default="1d",
        metavar="DURATION",
        help='how long ago to begin, such as "2h"; default: 1d',
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print what each plugin in shadow mode would have done; raise ConfigError and OSError."""
    config = configuration(arguments)
    since = time.time() - arguments.since.total_seconds()
    with acting_as_owner(config.state_directory):
        found = _found(config, since)
    if arguments.json:
        say(*json_lines(found))
    else:
        lines = spaced(lines_of(each, since) for each in found)
        say(*(lines or ["no plugin is or was in shadow mode"]))
    return 0


def _found(config: Config, since: float) -> list[Shadow]:
    ask(config.state_directory / "control", {"ask": "flush"})  # so that all records are on disk
    found = {table.name: Shadow(table.name) for table in config.plugins if table.mode == "shadow"}
    for record in mentions(config.state_directory, _MARK):
        for step in record.steps if record.time >= since else ():
            if step[4].startswith(_MARK):
                found.setdefault(step[1], Shadow(step[1])).add(step, record.time, record.id)
    return [*found.values()]


def _kind(verdict: str, remark: str) -> str:
    if remark.startswith("failed:"):
        return "failed"
    wish = _WISH.match(remark)
    return wish[1] if verdict == "none" and wish else verdict


def lines_of(shadow: Shadow, since: float) -> Iterator[str]:
    """Yield the lines of one plugin for people."""
    yield (
        f"{shadow.plugin}: {shadow.calls:,} calls since {moment(since)},"
        f" of which {shadow.effects:,} would have changed something"
    )
    for hook, kinds in shadow.hooks.items():
        counts = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
        yield f"    {hook}: {counts}"
    for each in reversed(shadow.examples):
        yield f"  {moment(each.time)}  {each.id}  {each.hook}  {each.kind}  {each.remark}"
