"""What an operator sees and does of the queue: `minismtp queue` (layer 7).

It works on the schedule that the runner uses, whether the server runs or not. The runner sees a
change within a second; without one it takes effect at the next start.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from itertools import groupby
from typing import Final

from minismtp.config import Config
from minismtp.outbound.schedule import Filter, Row, Schedule, State
from minismtp.scalars import parse_duration
from minismtp.spool import DamagedError, Spool

VERBS: Final = {
    "list": "one line for each recipient",
    "show": "all that is known of messages",
    "retry": "try now",
    "hold": "do not try until it is released",
    "release": "try what was held",
    "remove": "drop, and tell nobody",
    "bounce": "return to the sender",
}
_CHANGES: Final[dict[str, tuple[State, str, str]]] = {
    # verb: the state after it, the state that it is for (empty = any), what was done
    "retry": ("queued", "unheld", "tried now"),
    "hold": ("held", "unheld", "held"),
    "release": ("queued", "held", "released"),
    "remove": ("removed", "", "removed"),
    "bounce": ("returning", "", "returned"),
}

Found = list[tuple[str, float, int, Row]]


class UsageError(ValueError):
    """The command line asks for what makes no sense."""


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Do what was asked; gives the text to print. Raises UsageError and OSError."""
    verb: str = arguments.verb
    which, chosen = _filter(arguments)
    if verb == "show" and not arguments.ids:
        raise UsageError("queue show: expected the ID of a message; `queue list` shows them")
    if verb in _CHANGES and not (chosen or arguments.all):
        raise UsageError(f"queue {verb}: expected IDs, a filter such as --to-domain, or --all")
    directory = config.state_directory / "spool"
    path = directory / "queue.db"
    if not path.exists():
        return "[]" if arguments.json else "the queue is empty"
    try:
        schedule = Schedule(path)
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from None
    try:
        now = time.time()
        if verb in _CHANGES:
            return _change(schedule, Spool(directory), verb, which, now)
        found = schedule.select(which, now)
        if verb == "show":
            missing = {*arguments.ids} - {row.message for *_, row in found}
            if missing:
                raise UsageError(f"queue show: no message {', '.join(sorted(missing))} waits")
        return _show(found, Spool(directory), verb, now, as_json=arguments.json)
    finally:
        schedule.close()


def _filter(arguments: argparse.Namespace) -> tuple[Filter, bool]:
    older = None
    if arguments.older_than is not None:
        try:
            older = parse_duration(arguments.older_than).total_seconds()
        except ValueError as error:
            raise UsageError(f"--older-than: {error}") from None
    which = Filter(
        ids=tuple(arguments.ids),
        to_domain=arguments.to_domain,
        sender=arguments.sender,
        older_than=older,
        state=arguments.state,
        reason=arguments.reason,
    )
    return which, which != Filter()


def _change(schedule: Schedule, spool: Spool, verb: str, which: Filter, now: float) -> str:
    state, only, done = _CHANGES[verb]
    count = schedule.change(which, now, state, only=only)
    spool.knock()
    return f"{count} recipient{'' if count == 1 else 's'} {done}"


def _show(found: Found, spool: Spool, verb: str, now: float, *, as_json: bool) -> str:
    messages = []
    for name, rows in groupby(found, lambda each: each[3].message):
        content = _content(spool, name) if verb == "show" else {}
        messages.append(_message(list(rows), now) | content)
    if as_json:
        return json.dumps(messages, indent=1)
    if not messages:
        return "the queue is empty"
    return "\n".join(line for message in messages for line in _lines(message))


def _message(rows: Found, now: float) -> dict[str, object]:
    sender, arrived, size, first = rows[0]
    return {
        "id": first.message,
        "sender": sender,
        "arrived": _time(arrived),
        "age": round(now - arrived),
        "size": size,
        "recipients": [
            {
                "address": row.address,
                "state": "deferred" if row.state == "queued" and row.attempts else row.state,
                "attempts": row.attempts,
                "last_attempt": _time(row.tried),
                "next_attempt": _time(row.next) if row.state == "queued" else None,
                "destination": row.destination,
                "host": row.host,
                "reply": row.reply,
            }
            for *_, row in rows
        ],
    }


def _content(spool: Spool, name: str) -> dict[str, object]:
    try:
        entry, message = spool.open(name)
    except (OSError, DamagedError) as error:
        return {"problem": str(error)}
    return {
        "login": entry.login,
        "peer": entry.peer,
        "listener": entry.listener,
        "quarantined": entry.quarantined,
        "subject": message.headers.decoded("Subject"),
    }


def _lines(message: dict[str, object]) -> list[str]:
    lines = [
        f"{message['id']}  {message['arrived']}  {message['size']} octets  <{message['sender']}>"
    ]
    lines += [
        f"    {name}: {message[name]}"
        for name in ("subject", "login", "peer", "listener", "quarantined", "problem")
        if message.get(name)
    ]
    recipients = message["recipients"]
    assert isinstance(recipients, list)  # noqa: S101 - made by _message
    for each in recipients:
        line = f"    {each['address']}  {each['state']}"
        if each["attempts"]:
            line += f", {each['attempts']} attempts, the last at {each['last_attempt']}"
        if each["next_attempt"]:
            line += f", next at {each['next_attempt']}"
        lines.append(line)
        if each["reply"]:
            host = f"{each['host']}: " if each["host"] else ""
            lines.append(f"        {host}{each['reply']}")
    return lines


def _time(seconds: float) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
