"""What plugins in shadow mode would have done: `minismtp shadow`."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from minismtp.config import Config
from minismtp.runtime.control_socket import ask
from minismtp.runtime.decision_log import mentions
from minismtp.runtime.thread_activity import Step
from minismtp.values.printable import one_line

_MARK: Final = "shadow:"
_EXAMPLES: Final = 5  # of each plugin
# What changes nothing that a client or a mailbox would see.
_HARMLESS: Final = frozenset({"none", "answer", "failed"})
_WISH: Final = re.compile(r"would be (\w+)")  # as `guard` notes it


class Example(msgspec.Struct):
    """One call: `id` is for `minismtp explain`, `time` in epoch seconds."""

    time: float
    id: str
    hook: str
    kind: str
    remark: str


class Shadow(msgspec.Struct):
    """One plugin: `hooks` has the number of each kind by hook, `examples` what counts, the latest.

    A kind is a verdict, "failed", or what would become of the message: discarded, quarantined,
    changed, readdressed.
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


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Return the text to print."""
    # Those that run write what they still hold; what they have said is none of our business.
    ask(config.state_directory / "control", {"ask": "flush"})
    since = time.time() - arguments.since.total_seconds()
    found = {table.name: Shadow(table.name) for table in config.plugins if table.mode == "shadow"}
    for record in mentions(config.state_directory, _MARK):
        for step in record.steps if record.time >= since else ():
            if step[4].startswith(_MARK):
                found.setdefault(step[1], Shadow(step[1])).add(step, record.time, record.id)
    if arguments.json:
        return msgspec.json.format(msgspec.json.encode([*found.values()])).decode()
    if not found:
        return "no plugin is or was in shadow mode"
    return told(found.values(), since)


def told(found: Iterable[Shadow], since: float) -> str:
    """Return the text for people."""
    return "\n\n".join("\n".join(map(one_line, _lines(each, since))) for each in found)


def _kind(verdict: str, remark: str) -> str:
    if remark.startswith("failed:"):
        return "failed"
    wish = _WISH.match(remark)
    return wish[1] if verdict == "none" and wish else verdict


def _lines(shadow: Shadow, since: float) -> Iterator[str]:
    yield (
        f"{shadow.plugin}: {shadow.calls:,} calls since {_date(since)},"
        f" of which {shadow.effects:,} would have changed something"
    )
    for hook, kinds in shadow.hooks.items():
        told = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
        yield f"    {hook}: {told}"
    for each in reversed(shadow.examples):
        yield f"  {_date(each.time)}  {each.id}  {each.hook}  {each.kind}  {each.remark}"


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(moment))
