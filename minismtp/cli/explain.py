"""How a message or a session was decided: `minismtp explain`.

A session or a message is found by its identifier, or by an address as a command or the log had it,
because often the address is all that is known of something that was refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from minismtp.cli.common import CommandError, add_config, configuration, say
from minismtp.cli.text import json_lines, moment, plural, spaced, terminal_width, wrapped
from minismtp.runtime.control_socket import ask
from minismtp.runtime.decision_log import Record, extent, mentions, recall
from minismtp.runtime.thread_activity import Step
from minismtp.server.privileges import acting_as_owner

_IDENTIFIER: Final = re.compile(r"[0-9a-f]{12}(\.[A-Za-z0-9]+)*")
_REFUSALS: Final = ("sender ", "recipient ", "command ", "connection ", "login ")
_MOST: Final = 20  # sessions and messages that mention an address
_TITLES: Final = ("session closed", "delivery", "notification")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "id",
        metavar="ID",
        help="as in the reply, the log or a Received field; or an address, as a command had it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print the records of a message or a session; raise CommandError if there are none."""
    directory = configuration(arguments).state_directory
    with acting_as_owner(directory):
        ask(directory / "control", {"ask": "flush"})  # processes that do not answer are left out
        found = _IDENTIFIER.search(arguments.id)
        records = recall(directory, found[0]) if found else []
        # A refusal is left out if there are records that have it among their steps.
        records = [each for each in records if not _is_refusal(each)] or records
        records = records or about(directory, arguments.id)
        place = whereabouts(directory)
    if not records:
        raise CommandError(f"nothing is known of {arguments.id}; {place}")
    if arguments.json:
        say(*json_lines(records))
    else:
        say(*wrapped(spaced(map(lines_of, records)), terminal_width()), coloured=True)
    return 0


def whereabouts(state_directory: Path) -> str:
    """Return a sentence that says where records were looked for, and since when there are any."""
    number, first, place = extent(state_directory)
    if not number:
        return f"there are no records in {place}"
    since = f", the oldest of {moment(first)}" if first else ""
    return f"looked into {plural(number, 'file')} of records in {place}{since}"


def about(state_directory: Path, text: str) -> list[Record]:
    """Return the newest records that mention a text.

    A refusal is left out if the record of its session or message mentions the text too.
    """
    found = (
        list(mentions(state_directory, *_spellings(text), any_case=True)) if text.strip() else []
    )
    whole = {record.id for record in found if not _is_refusal(record)}
    kept = [each for each in found if not (_is_refusal(each) and each.id in whole)]
    return sorted(kept, key=lambda record: record.time)[-_MOST:]


def _spellings(text: str) -> set[str]:
    """Return a text as a record has it; the user may have copied it with the log's escapes."""
    plain = {text}
    with contextlib.suppress(ValueError):
        plain.add(str(json.loads(f'"{text}"')))
    return {text} | {json.dumps(each, ensure_ascii=False)[1:-1] for each in plain}


def _is_refusal(record: Record) -> bool:
    return record.event.startswith(_REFUSALS)


def lines_of(record: Record) -> Iterator[str]:
    """Yield the lines of one record for people."""
    kind = "" if record.event.startswith(_TITLES) or _is_refusal(record) else "message: "
    yield f"{record.id}  {kind}{record.event}  {moment(record.time)}"
    facts = [
        f"{name}={value}"
        for name, value in record.fields.items()
        if value != "" and name not in {"id", "reply"}
    ]
    yield f"    {'  '.join(facts)}"
    for step in record.steps:
        yield f"    {_line(step, record.begun)}"
    if "reply" in record.fields:
        yield f"    => {record.fields['reply']}"


def _line(step: Step, begun: float) -> str:
    what, who, at, seconds, verdict, remark = step
    when = f"{at - begun:+9.3f} s"
    if what in {"MAIL", "RCPT"}:
        return f"{when}  {what} {who}"
    if what == "reply":
        return f"{when}  {who} => {verdict} {remark}"
    tail = f"  {remark}" if remark else ""
    return f"{when}    {who}.{what}  {seconds * 1000:.1f} ms  {verdict}{tail}"
