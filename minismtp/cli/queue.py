"""The mail that waits for delivery: `minismtp queue`.

The command works on the queue's database, whether the server runs or not. A running server acts on
a change at once; otherwise the change takes effect when the server starts.
"""

from __future__ import annotations

import argparse
import gc
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final

from minismtp.cli import selection
from minismtp.cli.common import configuration, say
from minismtp.cli.text import (
    date,
    detail,
    fitted,
    json_list,
    plural,
    spaced,
    terminal_width,
    wrapped,
)
from minismtp.mailqueue.database import QueueDatabase, Waiting
from minismtp.mailqueue.queries import Filter
from minismtp.mailqueue.recipient import State, message_state
from minismtp.server.privileges import acting_as_owner
from minismtp.storage.state_format import state_directory
from minismtp.values.units import octets, span

_VERBS: Final = {
    "list": "one line for each recipient",
    "show": "all that is known of messages",
    "retry": "try now",
    "hold": "do not try until it is released",
    "release": "try what was held",
    "remove": "drop without a notification",
    "bounce": "return to the sender",
}
_CHANGES: Final[dict[str, tuple[State, bool | None, str]]] = {
    # verb: the state after it, whether it applies to held ones (None = to all), what was done
    "retry": ("queued", False, "tried now"),
    "hold": ("held", False, "held"),
    "release": ("queued", True, "released"),
    "remove": ("failed", None, "removed"),
    "bounce": ("bounced", None, "returned"),
}
_HEAD: Final = ("ID", "AGE", "SIZE", "FROM", "TO", "STATE", "NEXT", "REASON")
_STATES: Final = ("queued", "deferred", "held")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    selection.add_options(parser, _VERBS, "the last reply")
    parser.add_argument(
        "--state",
        choices=_STATES,
        default="",
        help="queued: not tried yet; deferred: tried and put off; held: by the operator",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show or change recipients in the queue; raise CommandError, ConfigError and OSError."""
    wanted = selection.selected(arguments, "queue", _CHANGES)
    directory = state_directory(configuration(arguments)) / "spool"
    gc.disable()  # it would search 50,000 rows again and again, and find nothing to free
    try:
        with acting_as_owner(directory):  # so that root leaves no file that the server cannot open
            lines = _output(directory, wanted, arguments.verb, as_json=arguments.json)
            say(*lines, coloured=not arguments.json)
    except sqlite3.Error as error:
        raise OSError(f"{directory / 'queue.db'}: {error}") from None
    return 0


def _output(directory: Path, wanted: Filter, verb: str, *, as_json: bool) -> list[str]:
    path = directory / "queue.db"
    now = time.time()
    contents: dict[str, dict[str, str]] = {}
    if not path.exists():
        path.parent.stat()  # a spool that this user may not see is an error, not an empty queue
        found: list[Waiting] = []
        selection.require_all(wanted, (), "the queue")
    else:
        with closing(QueueDatabase(path)) as database:
            found = database.select(wanted, now)
            selection.require_all(wanted, (each.message for each in found), "the queue")
            if verb in _CHANGES:
                return [_change(database, directory, verb, wanted, now)]
        if verb == "show":
            contents = _contents(directory, {each.message for each in found})
    if as_json:
        return listed_as_json(found, contents, now)
    width = terminal_width()
    if contents:
        return wrapped(details(found, contents, now), width)
    return listed(found, now, chosen=wanted != Filter(), width=width)


def _change(database: QueueDatabase, directory: Path, verb: str, wanted: Filter, now: float) -> str:
    from minismtp.storage.spool import Spool  # noqa: PLC0415 - reads mail, which `list` does not

    spool = Spool(directory)
    state, held, done = _CHANGES[verb]
    count = database.change(wanted, now, state, held=held)
    spool.trigger.notify()
    text = f"{plural(count, 'recipient')} {done}"
    if count and not spool.has_runner():
        text += "; the server does not run: it takes effect at its start"
    return text


def _contents(directory: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what the files of messages say; values that are not known are empty."""
    from minismtp.storage.spool import DamagedError, Spool  # noqa: PLC0415 - as above

    spool, contents = Spool(directory), {}
    for name in names:
        try:
            entry, message = spool.open(name)
        except (OSError, DamagedError) as error:
            contents[name] = {"problem": str(error)}
            continue
        contents[name] = {
            "subject": message.headers.decoded("Subject"),
            "login": entry.login or "",
            "peer": entry.peer,
            "listener": entry.listener,
            "quarantine": entry.quarantined or "",
        }
    return contents


def listed(
    found: Sequence[Waiting], now: float, *, chosen: bool = False, width: int | None = None
) -> list[str]:
    """Return a table with a line for each recipient, and a summary below it.

    `chosen` says that a filter left out other recipients. `width` is that of the terminal.
    """
    if not found:
        return ["nothing in the queue fits" if chosen else "the queue is empty"]
    rows = (
        (
            each.message,
            span(now - each.arrived),
            octets(each.size),
            f"<{each.sender}>",
            each.address,
            each.state,
            _next(each, now),
            _reason(each),
        )
        for each in found
    )
    lines = fitted(_HEAD, rows, width, {"FROM", "TO"})
    return [*chain.from_iterable(lines), "", summary(found)]


def summary(found: Iterable[Waiting]) -> str:
    """Return how many messages are in each state, counted as the metrics count them."""
    messages: dict[str, set[State]] = {}
    recipients = 0
    for each in found:
        messages.setdefault(each.message, set()).add(each.state)
        recipients += 1
    states = Counter(map(message_state, messages.values()))
    parts = ", ".join(f"{states[name]} {name}" for name in _STATES if states[name])
    return f"{plural(len(messages), 'message')}: {parts}; {plural(recipients, 'recipient')}"


def details(found: Sequence[Waiting], contents: dict[str, dict[str, str]], now: float) -> list[str]:
    """Return all that is known of messages; `contents` has what their files say."""
    messages = groupby(found, lambda each: each.message)
    return spaced(_message(list(rows), contents.get(name, {}), now) for name, rows in messages)


def listed_as_json(
    found: Iterable[Waiting], contents: dict[str, dict[str, str]], now: float
) -> list[str]:
    """Return a JSON list of messages, each with its recipients and on a line of its own."""
    return json_list(
        _object(list(rows), now) | contents.get(name, {})
        for name, rows in groupby(found, lambda each: each.message)
    )


def _reason(each: Waiting) -> str:
    """Return why a recipient waits: its last reply, or why its destination cannot be reached."""
    if each.reply:
        return f"{each.host}: {each.reply}" if each.host else each.reply
    return each.closed_reply


def _next(each: Waiting, now: float) -> str:
    if each.state == "held":
        return "-"
    when = max(each.next, each.closed_until)
    return "now" if when <= now else f"in {span(when - now)}"


def _message(rows: list[Waiting], content: dict[str, str], now: float) -> Iterator[str]:
    first = rows[0]
    yield first.message
    yield detail("from", f"<{first.sender}>")
    yield detail("arrived", f"{date(first.arrived)}, {span(now - first.arrived)} ago")
    yield detail("size", octets(first.size))
    yield from (detail(name, value) for name, value in content.items() if value)
    for each in rows:
        yield f"  to <{each.address}>: {each.state}"
        yield from (detail(name, text, "    ") for name, text in _attempts(each, now))


def _attempts(each: Waiting, now: float) -> Iterator[tuple[str, str]]:
    """Yield how the attempts went, when the next one is, and what that depends on."""
    if each.attempts:
        yield (
            "attempts",
            f"{each.attempts}, the last {span(now - each.tried)} ago, {date(each.tried)}",
        )
        yield "reply", _reason(each)
    else:
        yield "attempts", "none"
    if each.state == "held":
        yield "next", "not before `minismtp queue release`"
        return
    next_ = _next(each, now)
    when = max(each.next, each.closed_until)
    yield "next", next_ if when <= now else f"{next_}, {date(when)}"
    if each.closed_until:
        yield "waits for", f"{each.destination}, which could not be reached: {each.closed_reply}"
    elif each.attempts:
        yield "waits for", "the time that `retry` in the configuration gives it"
    else:
        yield "waits for", f"a delivery to {each.destination} to become free"


def _object(rows: list[Waiting], now: float) -> dict[str, Any]:
    first = rows[0]
    return {
        "id": first.message,
        "sender": first.sender,
        "arrived": date(first.arrived),
        "age": round(now - first.arrived),
        "size": first.size,
        "recipients": [
            {
                "address": each.address,
                "state": each.state,
                "attempts": each.attempts,
                "last_attempt": date(each.tried) if each.tried else None,
                "next_attempt": date(max(each.next, each.closed_until))
                if each.state != "held"
                else None,
                "destination": each.destination,
                "host": each.host,
                "reply": each.reply or each.closed_reply,
            }
            for each in rows
        ],
    }
