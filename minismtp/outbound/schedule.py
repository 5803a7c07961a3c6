"""What has become of each recipient in the spool, and when it is tried next (layer 6).

One SQLite file that the runner and `minismtp queue` share. It can be made anew from the spool: then
only the number of attempts is forgotten. Commits survive the death of a process at once, a power
cut after the next checkpoint: what is lost by it is tried again.
"""

# ruff: noqa: S608 - the conditions are made here, values are always parameters

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

#: "returning" and "removed" are what an operator has decided; the runner does it.
State: TypeAlias = Literal["queued", "held", "returning", "removed", "delivered", "failed"]

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY, sender TEXT NOT NULL, arrived REAL NOT NULL, size INTEGER NOT NULL,
    warned INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recipients (
    message TEXT NOT NULL REFERENCES messages ON DELETE CASCADE, number INTEGER NOT NULL,
    address TEXT NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'queued',
    attempts INTEGER NOT NULL DEFAULT 0, next REAL NOT NULL, tried REAL NOT NULL DEFAULT 0,
    reply TEXT NOT NULL DEFAULT '', host TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS arrivals ON messages (arrived);
"""
_BUSY: Final = 10.0  # seconds that one process waits for the other's transaction
_WAITING: Final = "state IN ('queued', 'held')"


@dataclass(frozen=True, slots=True)
class Row:
    """One recipient of one message; times in epoch seconds, `tried` 0 before the first attempt."""

    message: str
    number: int
    address: str
    destination: str
    state: State
    attempts: int
    next: float
    tried: float
    reply: str
    host: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt brought for one recipient: its new state, the reply, the next time."""

    number: int
    state: State
    reply: str
    host: str = ""
    next: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which recipients: all that fit every condition that is given.

    `to_domain` and `sender` compare without case, the latter with an address or "@domain";
    `older_than` is in seconds; `reason` is a part of the last reply.
    """

    ids: tuple[str, ...] = ()
    to_domain: str = ""
    sender: str | None = None
    older_than: float | None = None
    state: str = ""
    reason: str = ""

    def where(self, now: float) -> tuple[str, list[object]]:
        """Give the condition and its values."""
        parts, values = [_WAITING], list[object]()
        if self.ids:
            parts.append(f"message IN ({','.join('?' * len(self.ids))})")
            values.extend(self.ids)
        if self.to_domain:
            parts.append("address LIKE ? ESCAPE '\\'")
            values.append("%@" + _literally(self.to_domain))
        if self.sender is not None:
            parts.append("sender LIKE ? ESCAPE '\\'")
            literal = _literally(self.sender)
            values.append(f"%{literal}" if self.sender.startswith("@") else literal)
        if self.older_than is not None:
            parts.append("arrived <= ?")
            values.append(now - self.older_than)
        if self.state == "deferred":
            parts.append("state = 'queued' AND attempts > 0")
        elif self.state == "queued":
            parts.append("state = 'queued' AND attempts = 0")
        elif self.state:
            parts.append("state = ?")
            values.append(self.state)
        if self.reason:
            parts.append("reply LIKE ? ESCAPE '\\'")
            values.append(f"%{_literally(self.reason)}%")
        return " AND ".join(parts), values


class Schedule:
    """The table of recipients. Threads of a process may share one; it locks."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. Raises sqlite3.DatabaseError when it is damaged."""
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=_BUSY, isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.executescript(_TABLES)
        self._version = self._data_version()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(
        self,
        name: str,
        sender: str,
        arrived: float,
        size: int,
        targets: Iterable[tuple[str, str]],
        *,
        held: bool = False,
    ) -> bool:
        """Note a message with (address, destination) of each recipient; False if it was known."""
        with self._transaction():
            added = self._database.execute(
                "INSERT OR IGNORE INTO messages (id, sender, arrived, size) VALUES (?, ?, ?, ?)",
                (name, sender, arrived, size),
            ).rowcount
            if added:
                self._database.executemany(
                    "INSERT INTO recipients (message, number, address, destination, state, next)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (name, number, *target, "held" if held else "queued", arrived)
                        for number, target in enumerate(targets)
                    ],
                )
        return bool(added)

    def rows(self, name: str) -> list[Row]:
        """Give all recipients of a message in the order of the envelope; none if it is unknown."""
        return self._rows("message = ?", (name,))

    def record(self, name: str, outcomes: Iterable[Outcome], now: float) -> None:
        """Note what an attempt brought."""
        with self._transaction():
            self._database.executemany(
                "UPDATE recipients SET state = CASE WHEN state = 'held' AND ? = 'queued'"
                " THEN 'held' ELSE ? END,"
                " reply = ?, host = ?, next = ?, tried = ?, attempts = attempts + 1"
                " WHERE message = ? AND number = ?",
                [
                    (o.state, o.state, o.reply, o.host, o.next, now, name, o.number)
                    for o in outcomes
                ],
            )

    def forget(self, name: str) -> None:
        """Drop a message."""
        with self._transaction():
            self._database.execute("DELETE FROM messages WHERE id = ?", (name,))

    def waiting(self) -> Iterator[tuple[str, str, float]]:
        """Give message, destination and time of every job that is queued; holds no lock."""
        with self._lock:
            found = self._database.execute(
                "SELECT message, destination, MIN(next) FROM recipients WHERE state = 'queued'"
                " GROUP BY message, destination"
            ).fetchall()
        return iter(found)

    def settled(self) -> list[str]:
        """Give the messages none of whose recipients waits any more."""
        with self._lock:
            found = self._database.execute(
                "SELECT id FROM messages WHERE NOT EXISTS (SELECT 1 FROM recipients"
                " WHERE message = id AND state IN ('queued', 'held', 'returning'))"
            ).fetchall()
        return [name for (name,) in found]

    def returning(self) -> list[Row]:
        """Give the recipients whose copy the operator wants returned."""
        return self._rows("state = 'returning'", ())

    def names(self) -> set[str]:
        """Give the names of all messages."""
        with self._lock:
            return {name for (name,) in self._database.execute("SELECT id FROM messages")}

    def to_warn(self, before: float) -> list[str]:
        """Give the messages that came before a time, still wait and have no warning yet."""
        with self._lock:
            found = self._database.execute(
                "SELECT id FROM messages WHERE arrived <= ? AND warned = 0", (before,)
            ).fetchall()
        return [name for (name,) in found]

    def warned(self, name: str) -> None:
        """Note that the sender of a message knows of the delay."""
        with self._transaction():
            self._database.execute("UPDATE messages SET warned = 1 WHERE id = ?", (name,))

    def counts(self) -> tuple[dict[str, int], float | None]:
        """Give how many recipients' messages are in each state, and when the oldest arrived."""
        with self._lock:
            found = self._database.execute(
                "SELECT CASE WHEN state = 'queued' AND attempts > 0 THEN 'deferred' ELSE state END,"
                f" COUNT(DISTINCT message) FROM recipients WHERE {_WAITING} GROUP BY 1"
            ).fetchall()
            (oldest,) = self._database.execute("SELECT MIN(arrived) FROM messages").fetchone()
        return {"queued": 0, "deferred": 0, "held": 0, **dict(found)}, oldest

    def changed(self) -> bool:
        """Whether another process has changed something since the last call."""
        with self._lock:
            version = self._data_version()
        changed, self._version = version != self._version, version
        return changed

    # What an operator does.

    def select(self, which: Filter, now: float) -> list[tuple[str, float, int, Row]]:
        """Give sender, arrival and size of the message and the row of each waiting recipient."""
        condition, values = which.where(now)
        with self._lock:
            found = self._database.execute(
                "SELECT sender, arrived, size, recipients.* FROM recipients"
                f" JOIN messages ON id = message WHERE {condition}"
                " ORDER BY arrived, message, number",
                values,
            ).fetchall()
        return [(sender, arrived, size, _row(rest)) for sender, arrived, size, *rest in found]

    def change(self, which: Filter, now: float, state: State, *, only: str = "") -> int:
        """Put the recipients into a state; "queued" is tried at once. Gives how many.

        `only` leaves others alone than those that are "held", or that are not ("unheld").
        """
        condition, values = which.where(now)
        condition += {"held": " AND state = 'held'", "unheld": " AND state = 'queued'"}.get(
            only, ""
        )
        with self._transaction():
            return self._database.execute(
                "UPDATE recipients SET state = ?, next = ?"
                " WHERE (message, number) IN (SELECT message, number FROM recipients"
                f" JOIN messages ON id = message WHERE {condition})",
                (state, now, *values),
            ).rowcount

    def _rows(self, condition: str, values: tuple[object, ...]) -> list[Row]:
        with self._lock:
            found = self._database.execute(
                f"SELECT * FROM recipients WHERE {condition} ORDER BY message, number",
                values,
            ).fetchall()
        return [_row(each) for each in found]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _data_version(self) -> int:
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        return int(version)


def _row(values: Iterable[Any]) -> Row:
    return Row(*values)


def _literally(text: str) -> str:
    for special in ("\\", "%", "_"):
        text = text.replace(special, f"\\{special}")
    return text
