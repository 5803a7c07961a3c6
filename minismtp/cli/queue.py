"""What an operator sees and does of the queue: `minismtp queue`.

It works on the schedule that the runner uses, whether the server runs or not. The runner hears of a
change at once; without one it takes effect at the next start.
"""

from __future__ import annotations

import argparse
import gc
import sqlite3
import time
from pathlib import Path
from typing import Final

from minismtp.cli import listing
from minismtp.config import Config
from minismtp.config.types import parse_duration
from minismtp.mailqueue.database import QueueDatabase, State, Waiting
from minismtp.mailqueue.queries import Filter
from minismtp.server.privileges import acting_as_owner
from minismtp.storage.spool import DamagedError, Spool

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


class UsageError(ValueError):
    """The command line asks for what makes no sense."""


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Do what was asked; gives the text to print. Raise UsageError and OSError."""
    verb: str = arguments.verb
    which = _filter(arguments)
    if verb == "show" and not arguments.ids:
        raise UsageError("queue show: expected the ID of a message; `queue list` shows them")
    if verb in _CHANGES and which == Filter() and not arguments.all:
        raise UsageError(f"queue {verb}: expected IDs, a filter such as --to-domain, or --all")
    directory = config.state_directory / "spool"
    gc.disable()  # it would look at 50,000 rows again and again, and find nothing
    try:
        with acting_as_owner(directory):  # root leaves no file that the runner cannot open
            return _on(directory, verb, which, as_json=arguments.json)
    except sqlite3.Error as error:
        raise OSError(f"{directory / 'queue.db'}: {error}") from None


def _on(directory: Path, verb: str, which: Filter, *, as_json: bool) -> str:
    path = directory / "queue.db"
    now = time.time()
    if not path.exists():
        path.parent.stat()  # to tell a queue that is empty from one that we may not see
        _demand(which.ids, [])
        return listing.as_json([], {}, now) if as_json else listing.table([], now)
    schedule, spool = QueueDatabase(path), Spool(directory)
    try:
        found = schedule.select(which, now)
        _demand(which.ids, found)
        if verb in _CHANGES:
            return _change(schedule, spool, verb, which, now)
    finally:
        schedule.close()
    contents = {}
    if verb == "show":
        contents = {name: _content(spool, name) for name in {each.message for each in found}}
    if as_json:
        return listing.as_json(found, contents, now)
    return listing.details(found, contents, now) if contents else listing.table(found, now)


def _filter(arguments: argparse.Namespace) -> Filter:
    older = None
    if arguments.older_than is not None:
        try:
            older = parse_duration(arguments.older_than).total_seconds()
        except ValueError as error:
            raise UsageError(f"--older-than: {error}") from None
    return Filter(
        ids=tuple(arguments.ids),
        to_domain=arguments.to_domain,
        sender=arguments.sender,
        older_than=older,
        state=arguments.state,
        reason=arguments.reason,
    )


def _demand(names: tuple[str, ...], found: list[Waiting]) -> None:
    missing = {*names} - {each.message for each in found}
    if missing:
        raise OSError(f"no message {', '.join(sorted(missing))} waits, or none that fits")


def _change(schedule: QueueDatabase, spool: Spool, verb: str, which: Filter, now: float) -> str:
    state, only, done = _CHANGES[verb]
    count = schedule.change(which, now, state, only=only)
    spool.trigger.notify()
    text = f"{count} recipient{'' if count == 1 else 's'} {done}"
    if count and not spool.has_runner():
        text += "; the server does not run: it takes effect at its start"
    return text


def _content(spool: Spool, name: str) -> dict[str, str]:
    """Return what the file of a message says; empty values are not shown."""
    try:
        entry, message = spool.open(name)
    except (OSError, DamagedError) as error:
        return {"problem": str(error)}
    return {
        "subject": message.headers.decoded("Subject"),
        "login": entry.login or "",
        "peer": entry.peer,
        "listener": entry.listener,
        "quarantine": entry.quarantined or "",
    }
