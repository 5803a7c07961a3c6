"""How a message or a session was decided: `minismtp explain`.

It is found by its identifier, or by an address as a command or the log had it: what is refused has
often nothing else that anybody knows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from minismtp.config import Config
from minismtp.runtime.control_socket import ask
from minismtp.runtime.decision_log import Record, mentions, recall
from minismtp.runtime.thread_activity import Step
from minismtp.values.printable import one_line

_IDENTIFIER: Final = re.compile(r"[0-9a-f]{12}(\.[A-Za-z0-9]+)*")
_REFUSALS: Final = ("sender ", "recipient ", "command ", "connection ", "login ")
_MOST: Final = 20  # sessions and messages that mention an address
_TITLES: Final = ("session closed", "delivery", "notification")


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Return the text to print, empty when nothing is known."""
    # Those that run write what they still hold; what they have said is none of our business.
    ask(config.state_directory / "control", {"ask": "flush"})
    found = _IDENTIFIER.search(arguments.id)
    records = recall(config.state_directory, found[0]) if found else []
    records = _without_repetition(records) or about(config.state_directory, arguments.id)
    if arguments.json:
        return msgspec.json.format(msgspec.json.encode(records)).decode() if records else ""
    return told(records)


def _without_repetition(records: list[Record]) -> list[Record]:
    """Return the records but for refusals that stand among the steps of another one."""
    return [record for record in records if not _is_refusal(record)] or records


def about(state_directory: Path, text: str) -> list[Record]:
    """Return the newest records that mention a text, a session or a message rather than a part."""
    found = (
        list(mentions(state_directory, *_spellings(text), any_case=True)) if text.strip() else []
    )
    whole = {record.id for record in found if not _is_refusal(record)}
    kept = [each for each in found if not (_is_refusal(each) and each.id in whole)]
    return sorted(kept, key=lambda record: record.time)[-_MOST:]


def _spellings(text: str) -> set[str]:
    """Return a text as a record has it, which may have been copied with the escapes of the log."""
    plain = {text}
    with contextlib.suppress(ValueError):
        plain.add(str(json.loads(f'"{text}"')))
    return {text} | {json.dumps(each, ensure_ascii=False)[1:-1] for each in plain}


def _is_refusal(record: Record) -> bool:
    return record.event.startswith(_REFUSALS)


def told(records: Iterable[Record]) -> str:
    """Return the text for people."""
    return "\n\n".join("\n".join(map(one_line, _lines(record))) for record in records)


def _lines(record: Record) -> Iterator[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(record.time))
    kind = "" if record.event.startswith(_TITLES) or _is_refusal(record) else "message: "
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
    if what in {"MAIL", "RCPT"}:
        return f"{when}  {what} {who}"
    if what == "reply":
        return f"{when}  {who} => {verdict} {remark}"
    tail = f"  {remark}" if remark else ""
    return f"{when}    {who}.{what}  {seconds * 1000:.1f} ms  {verdict}{tail}"
