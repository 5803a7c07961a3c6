"""How a message or a session was decided: `minismtp explain` (layer 6)."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from minismtp.activity import Step
from minismtp.chronicle import Record, recall
from minismtp.config import Config
from minismtp.control import ask
from minismtp.printable import one_line

_IDENTIFIER: Final = re.compile(r"[0-9a-f]{12}(\.[A-Za-z0-9]+)*")
_TITLES: Final = ("session closed", "delivery", "notification")


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Give the text to print, nothing when nothing is known."""
    found = _IDENTIFIER.search(arguments.id)
    if found is None:
        return ""
    # Those that run write what they still hold; what they have said is none of our business.
    ask(config.state_directory / "control", {"ask": "flush"})
    records = recall(config.state_directory, found[0])
    if arguments.json:
        return msgspec.json.format(msgspec.json.encode(records)).decode() if records else ""
    return told(records)


def told(records: Iterable[Record]) -> str:
    """Return the text for people."""
    return "\n\n".join("\n".join(map(one_line, _lines(record))) for record in records)


def _lines(record: Record) -> Iterator[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(record.time))
    kind = "" if record.event.startswith(_TITLES) else "message: "
    yield f"{record.id}  {kind}{record.event}  {at}"
    facts = {name: value for name, value in record.fields.items() if _tells(name, value)}
    yield "    " + "  ".join(f"{name}={value}" for name, value in facts.items())
    for step in record.steps:
        yield "    " + _line(step, record.begun)
    if "reply" in record.fields:
        yield f"    => {record.fields['reply']}"


def _tells(name: str, value: str | int) -> bool:
    return value != "" and name not in {"id", "reply"}


def _line(step: Step, begun: float) -> str:
    what, who, at, seconds, verdict, remark = step
    when = f"{at - begun:+9.3f} s"
    if what == "RCPT":
        return f"{when}  RCPT {who}"
    if what == "reply":
        return f"{when}  {who} => {verdict} {remark}"
    tail = f"  {remark}" if remark else ""
    return f"{when}    {who}.{what}  {seconds * 1000:.1f} ms  {verdict}{tail}"
