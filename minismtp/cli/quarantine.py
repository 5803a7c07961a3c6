"""The mail that filters set aside: `minismtp quarantine`.

The command works on the files of the plugin `quarantine`, whether the server runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from minismtp.cli import selection
from minismtp.cli.common import CommandError, configuration, say
from minismtp.cli.progress import Progress
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
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.queries import Filter
from minismtp.server.privileges import acting_as_owner
from minismtp.storage.quarantine import Kept, QuarantineStore
from minismtp.storage.spool import DamagedError, Spool
from minismtp.storage.state_format import state_directory
from minismtp.values.printable import one_line
from minismtp.values.units import octets, span

_VERBS: Final = {
    "list": "one line for each message",
    "show": "all that is known of messages, and their headers",
    "release": "deliver to their mailboxes after all",
    "delete": "drop without a notification",
}
_DONE: Final = {"release": "released", "delete": "deleted"}
_HEAD: Final = ("ID", "AGE", "SIZE", "FROM", "TO", "REASON")
_MOST_SHOWN: Final = 3  # recipients in a line


@dataclass(frozen=True, slots=True)
class Found:
    """A message and what its file says; if the file cannot be read, `problem` says why.

    The message itself is not kept, because its file would stay open, and there may be thousands.
    """

    store: QuarantineStore
    kept: Kept
    entry: QueueEntry | None = None
    subject: str = ""
    header: Sequence[str] = ()
    problem: str = ""

    @property
    def reason(self) -> str:
        """Why the message is in quarantine, and whether it is leaving it."""
        state = "being released; " if self.kept.is_being_released else ""
        return state + (self.problem or (self.entry.quarantined if self.entry else "") or "")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    selection.add_options(parser, _VERBS, "the reason")


def run(arguments: argparse.Namespace) -> int:
    """Show or change messages in quarantine; raise CommandError, ConfigError and OSError."""
    wanted = selection.selected(arguments, "quarantine", _DONE)
    verb, now = arguments.verb, time.time()
    config = configuration(arguments)
    state_directory(config)  # a later release may keep messages in another form
    directories = _directories(config)
    # Root acts as the owner of the quarantine, so that the server can read what is released.
    with acting_as_owner(next(filter(Path.exists, directories), directories[0])):
        found = _found(directories, wanted, now, arguments)
        selection.require_all(wanted, (each.kept.id for each in found), "quarantine")
        if verb in _DONE:
            say(_change(config, verb, found))
        elif arguments.json:
            say(*listed_as_json(found, now, headers=verb == "show"))
        else:
            width = terminal_width()
            shown = details(found, now) if verb == "show" else listed(found, now, width)
            say(*wrapped(shown, width), coloured=True)
    return 0


def _directories(config: Config) -> list[Path]:
    tables = [table for table in config.plugins if table.use == "quarantine"]
    if not tables:
        raise ConfigError('no [[plugins]] table uses "quarantine"', file=config.file)
    default = config.state_directory / "quarantine"
    paths = [table.options.get("path") for table in tables]
    return [config.base / path if isinstance(path, str) and path else default for path in paths]


def _found(
    directories: Sequence[Path], wanted: Filter, now: float, arguments: argparse.Namespace
) -> list[Found]:
    """Return the messages that are meant, the oldest first."""
    stores = map(QuarantineStore, dict.fromkeys(directories))
    kept = [(store, each) for store in stores for each in store.find()]
    found = []
    latest = now if wanted.older_than is None else now - wanted.older_than
    with Progress("reading", len(kept), shown=not arguments.json) as progress:
        for store, each in kept:
            progress.add()
            if (wanted.ids and each.id not in wanted.ids) or each.arrived > latest:
                continue
            with contextlib.suppress(FileNotFoundError):  # released or deleted meanwhile
                message = read(store, each, headers=arguments.verb == "show")
                found += [message] if selection.fits(wanted, message.entry) else []
    return sorted(found, key=lambda each: each.kept.arrived)


def read(store: QuarantineStore, kept: Kept, *, headers: bool) -> Found:
    """Return what the file of a message says. Raise FileNotFoundError."""
    try:
        entry, message = store.open(kept)
    except DamagedError as error:
        return Found(store, kept, problem=str(error))
    header = _header(message) if headers else ()
    return Found(store, kept, entry, message.headers.decoded("Subject"), header)


def _change(config: Config, verb: str, found: Sequence[Found]) -> str:
    spool = Spool(config.state_directory / "spool")
    count = 0
    problems = []
    with Progress(_DONE[verb], len(found)) as progress:
        for each in found:
            progress.add()
            try:
                if verb == "delete":
                    each.store.remove(each.kept)
                else:
                    each.store.release(each.kept, spool)
            except FileNotFoundError:
                continue  # another process was quicker
            except DamagedError as error:
                problems.append(f"{each.kept.id}: {error}")
            else:
                count += 1
    if problems:
        raise CommandError(f"{count} {_DONE[verb]}, but not {'; '.join(problems)}")
    text = f"{plural(count, 'message')} {_DONE[verb]}"
    if verb == "release" and count and not spool.has_runner():
        text += "; the server does not run: they are delivered at its start"
    return text


def listed(found: Sequence[Found], now: float, width: int | None = None) -> list[str]:
    """Return a table with a line for each message, and their number below it.

    `width` is that of the terminal.
    """
    if not found:
        return ["the quarantine is empty"]
    rows = (
        (
            each.kept.id,
            span(now - each.kept.arrived),
            octets(each.kept.size),
            f"<{each.entry.sender}>" if each.entry else "?",
            _recipients(each.entry),
            each.reason,
        )
        for each in found
    )
    lines = fitted(_HEAD, rows, width, {"FROM", "TO"})
    return [*chain.from_iterable(lines), "", plural(len(found), "message")]


def _recipients(entry: QueueEntry | None) -> str:
    addresses = [target.address for target in entry.targets] if entry else []
    more = len(addresses) - _MOST_SHOWN
    return ",".join(addresses[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def details(found: Sequence[Found], now: float) -> list[str]:
    """Return all that is known of messages, and their headers."""
    return spaced(_details(each, now) for each in found)


def _details(found: Found, now: float) -> Iterator[str]:
    yield found.kept.id
    for name, value in _values(found, now).items():
        if name != "id" and value != "":
            yield detail(name, ", ".join(value) if isinstance(value, list) else str(value))
    if found.header:
        yield from ("", *(f"  {line}" for line in found.header))


def listed_as_json(found: Sequence[Found], now: float, *, headers: bool) -> list[str]:
    """Return a JSON list with each message on a line of its own."""
    return json_list(
        _values(each, now) | ({"header": [*each.header]} if headers else {}) for each in found
    )


def _header(message: Message) -> list[str]:
    text = b"".join(message.headers.raw_all()).decode("utf-8", "replace")
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r").replace("\t", " ") for line in lines]


def _values(found: Found, now: float) -> dict[str, Any]:
    kept, entry = found.kept, found.entry
    values: dict[str, Any] = {
        "id": one_line(kept.id),  # the file's name, and so this, need not be UTF-8
        "arrived": date(kept.arrived),
        "age": round(now - kept.arrived),
        "size": kept.size,
        "reason": found.reason,
        "file": one_line(str(kept.path)),
    }
    if entry is not None:
        values |= {
            "sender": entry.sender,
            "recipients": [target.address for target in entry.targets],
            "subject": found.subject,
            "peer": entry.peer,
            "login": entry.login or "",
        }
    return values
