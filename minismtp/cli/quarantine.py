"""What an operator sees and does of mail that was set aside: `minismtp quarantine`.

It works on the files of the plugin `quarantine`, whether the server runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from minismtp.cli import listing
from minismtp.cli.queue import UsageError
from minismtp.config import Config
from minismtp.config.toml_values import ConfigError
from minismtp.config.types import parse_duration
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.server.privileges import acting_as_owner
from minismtp.storage.quarantine import Kept, QuarantineStore
from minismtp.storage.spool import DamagedError, Spool
from minismtp.values.address import Address, to_ascii
from minismtp.values.printable import one_line

VERBS: Final = {
    "list": "one line for each message",
    "show": "all that is known of messages, and their headers",
    "release": "deliver to their mailboxes after all",
    "delete": "drop, and tell nobody",
}
_DONE: Final = {"release": "released", "delete": "deleted"}
_HEAD: Final = ("ID", "AGE", "SIZE", "FROM", "TO")
_MOST_SHOWN: Final = 3  # recipients in a line


@dataclass(frozen=True, slots=True)
class Found:
    """A message with what its file says; `problem` when that cannot be read."""

    store: QuarantineStore
    kept: Kept
    entry: QueueEntry | None
    message: Message | None
    problem: str = ""


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Do what was asked; gives the text to print. Raise UsageError, ConfigError and OSError."""
    verb: str = arguments.verb
    chosen = arguments.ids or arguments.to_domain or arguments.sender is not None
    chosen = chosen or arguments.older_than or arguments.reason
    if verb == "show" and not arguments.ids:
        raise UsageError("quarantine show: expected an ID; `quarantine list` shows them")
    if verb in _DONE and not (chosen or arguments.all):
        raise UsageError(f"quarantine {verb}: expected IDs, a filter such as --from, or --all")
    now = time.time()
    directories = _directories(config)
    # As root, act as whose the quarantine is: the runner has to read what is released.
    with acting_as_owner(next(filter(Path.exists, directories), directories[0])):
        return _run(config, verb, directories, arguments, now)


def _run(
    config: Config,
    verb: str,
    directories: Sequence[Path],
    arguments: argparse.Namespace,
    now: float,
) -> str:
    found = sorted(_select(directories, arguments, now), key=lambda each: each.kept.arrived)
    missing = {*arguments.ids} - {each.kept.id for each in found}
    if missing:
        raise OSError(f"no message {', '.join(sorted(missing))} is in quarantine, or none fits")
    if verb in _DONE:
        return _change(config, verb, found)
    if arguments.json:
        return _as_json(found, now, headers=verb == "show")
    return (
        "\n\n".join(_shown(each, now) for each in found) if verb == "show" else _table(found, now)
    )


def _directories(config: Config) -> list[Path]:
    tables = [table for table in config.plugins if table.use == "quarantine"]
    if not tables:
        raise ConfigError('no [[plugins]] table uses "quarantine"', file=config.file)
    default = config.state_directory / "quarantine"
    paths = [table.options.get("path") for table in tables]
    return [config.base / path if isinstance(path, str) and path else default for path in paths]


def _select(
    directories: Sequence[Path], arguments: argparse.Namespace, now: float
) -> Iterator[Found]:
    try:
        older = parse_duration(arguments.older_than) if arguments.older_than else None
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from None
    latest = now if older is None else now - older.total_seconds()
    for directory in dict.fromkeys(directories):
        store = QuarantineStore(directory)
        for kept in store.find():
            if (arguments.ids and kept.id not in arguments.ids) or kept.arrived > latest:
                continue
            try:
                found = Found(store, kept, *store.open(kept))
            except FileNotFoundError:
                continue  # released or deleted meanwhile
            except DamagedError as error:
                found = Found(store, kept, None, None, str(error))
            if _fits(found, arguments):
                yield found


def _fits(found: Found, arguments: argparse.Namespace) -> bool:
    entry, sender = found.entry, arguments.sender
    if entry is None:
        return not (arguments.to_domain or sender is not None or arguments.reason)
    domains = {to_ascii(target.address.rpartition("@")[2]) for target in entry.targets}
    if arguments.to_domain and to_ascii(arguments.to_domain) not in domains:
        return False
    if sender and sender[0] == "@":
        at_domain = _comparable(entry.sender).endswith(_comparable(sender))
    else:
        at_domain = sender is None or _comparable(entry.sender) == _comparable(sender)
    return at_domain and arguments.reason.lower() in (entry.quarantined or "").lower()


def _comparable(address: str) -> str:
    with contextlib.suppress(ValueError):
        address = str(Address.parse(address))  # as it is written there, with its quotes
    local, at, domain = address.lower().rpartition("@")
    return f"{local}{at}{to_ascii(domain)}"


def _change(config: Config, verb: str, found: Sequence[Found]) -> str:
    spool = Spool(config.state_directory / "spool")
    count = 0
    problems = []
    for each in found:
        try:
            if verb == "delete":
                each.store.remove(each.kept)
            else:
                each.store.release(each.kept, spool)
        except FileNotFoundError:
            continue  # somebody else was quicker
        except DamagedError as error:
            problems.append(f"{each.kept.id}: {error}")
        else:
            count += 1
    if problems:
        raise OSError(f"{count} {_DONE[verb]}, but not {'; '.join(problems)}")
    text = f"{listing.plural(count, 'message')} {_DONE[verb]}"
    if verb == "release" and count and not spool.has_runner():
        text += "; the server does not run: they are delivered at its start"
    return text


def _table(found: Sequence[Found], now: float) -> str:
    if not found:
        return "the quarantine is empty"
    rows = [
        (
            each.kept.id,
            listing.span(now - each.kept.arrived),
            listing.octets(each.kept.size),
            f"<{each.entry.sender}>" if each.entry else "?",
            _recipients(each.entry),
        )
        for each in found
    ]
    lines = listing.grid(_HEAD, rows, [_reason(each) for each in found])
    return "\n".join([*lines, "", listing.plural(len(found), "message")])


def _recipients(entry: QueueEntry | None) -> str:
    addresses = [target.address for target in entry.targets] if entry else []
    more = len(addresses) - _MOST_SHOWN
    return ",".join(addresses[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _reason(found: Found) -> str:
    state = "being released; " if found.kept.is_being_released else ""
    return state + (found.problem or (found.entry.quarantined if found.entry else "") or "")


def _shown(found: Found, now: float) -> str:
    values = _values(found, now)
    lines = [
        f"  {name:<10} {one_line(', '.join(value) if isinstance(value, list) else str(value))}"
        for name, value in values.items()
        if name != "id" and value != ""
    ]
    header = "\n".join(_header(found))
    return "\n".join([one_line(found.kept.id), *lines]) + (f"\n\n{header}" if header else "")


def _header(found: Found) -> list[str]:
    if found.message is None:
        return []
    text = b"".join(found.message.headers.raw_all()).decode("utf-8", "replace")
    lines = text.removesuffix("\n").split("\n")
    return ["  " + one_line(line.removesuffix("\r").replace("\t", " ")) for line in lines]


def _values(found: Found, now: float) -> dict[str, Any]:
    kept, entry = found.kept, found.entry
    values: dict[str, Any] = {
        "id": one_line(kept.id),
        "arrived": listing.date(kept.arrived),
        "age": round(now - kept.arrived),
        "size": kept.size,
        "reason": _reason(found),
        "file": one_line(str(kept.path)),  # its name may be no UTF-8
    }
    if entry is not None and found.message is not None:
        values |= {
            "sender": entry.sender,
            "recipients": [target.address for target in entry.targets],
            "subject": found.message.headers.decoded("Subject"),
            "peer": entry.peer,
            "login": entry.login or "",
        }
    return values


def _as_json(found: Sequence[Found], now: float, *, headers: bool) -> str:
    messages = []
    for each in found:
        more = {"header": [line[2:] for line in _header(each)]} if headers else {}
        messages.append(msgspec.json.encode(_values(each, now) | more).decode())
    return f"[{(',' + chr(10) + ' ').join(messages)}]"
