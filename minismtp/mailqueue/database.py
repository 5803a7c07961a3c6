"""What has become of each recipient in the spool, and when it is tried next.

One SQLite file that the runner and `minismtp queue` share. The runner reads it at its start and
writes down what happens; an operator's command changes it, and notes in `changes` which messages
the runner has to look at again. It can be rebuilt from the spool: then only the past attempts are
forgotten. Commits survive the death of a process at once, a power cut after the next checkpoint:
what is lost by it is tried again.
"""

# ruff: noqa: S608 - the conditions are made here, values are always parameters

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from minismtp.mailqueue.queries import WAITING, Filter

#: "returning" and "removed" are what an operator has decided; the runner does it.
State: TypeAlias = Literal["queued", "held", "returning", "removed", "delivered", "failed"]
#: The states of a recipient whose fate is not settled.
OPEN: Final = frozenset({"queued", "held", "returning"})

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
CREATE TABLE IF NOT EXISTS closed (
    destination TEXT PRIMARY KEY, until REAL NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (message TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS arrivals ON messages (arrived);
CREATE INDEX IF NOT EXISTS unwarned ON messages (arrived) WHERE warned = 0;
"""
_BUSY: Final = 10.0  # seconds that one process waits for the other's transaction


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
class Arrival:
    """A message that came into the spool: (address, destination) of each recipient, in order."""

    name: str
    sender: str
    arrived: float
    size: int
    targets: tuple[tuple[str, str], ...]
    held: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt brought for one recipient: its new state, the reply, the next time."""

    number: int
    state: State
    reply: str
    host: str = ""
    next: float = 0.0


@dataclass(slots=True)
class Batch:
    """What one transaction writes down."""

    arrivals: dict[str, Arrival] = field(default_factory=dict)
    outcomes: list[tuple[str, Outcome, float]] = field(default_factory=list)
    moved: list[tuple[str, str, int]] = field(default_factory=list)  # destination, message, number
    warned: set[str] = field(default_factory=set)
    closed: dict[str, tuple[float, str] | None] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any((self.arrivals, self.outcomes, self.moved, self.warned, self.closed)) or any(
            (self.changed, self.gone)
        )

    def then(self, later: Batch) -> Batch:
        """Return both as one."""
        return Batch(
            self.arrivals | later.arrivals,
            self.outcomes + later.outcomes,
            self.moved + later.moved,
            self.warned | later.warned,
            self.closed | later.closed,
            self.changed | later.changed,
            self.gone | later.gone,
        )


class Waiting(NamedTuple):
    """A waiting recipient as an operator sees it; a tuple, for there may be 50,000 to show.

    `closed_until` and `closed_reply` are of its destination while that is not tried because it
    could not be reached, else 0 and empty. Times and `tried` as in `Row`.
    """

    message: str
    sender: str
    arrived: float
    size: int
    address: str
    destination: str
    state: State
    attempts: int
    next: float
    tried: float
    reply: str
    host: str
    closed_until: float
    closed_reply: str


class QueueDatabase:
    """The tables. Threads of a process may share one; it locks."""

    def __init__(self, path: Path, *, check: bool = False) -> None:
        """Open the file, or make it. Raise sqlite3.DatabaseError when it is damaged.

        With `check` the whole file is looked at; else damage may show up later.
        """
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=_BUSY, isolation_level=None, check_same_thread=False
        )
        self._version = -1
        try:
            self._prepare(check=check)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, check: bool) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.executescript(_TABLES)
        if check:
            (found,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def write(self, batch: Batch) -> None:
        """Write a batch down. Raise sqlite3.Error with nothing changed."""
        latest: dict[tuple[str, int], tuple[Outcome, float, int]] = {}
        for name, outcome, tried in batch.outcomes:
            if name not in batch.gone:
                *_, attempts = latest.get((name, outcome.number), (0,))
                latest[name, outcome.number] = outcome, tried, attempts + 1
        with self._transaction() as database:
            arrivals = batch.arrivals.values()
            self._all(
                "INSERT OR IGNORE INTO messages (id, sender, arrived, size) SELECT * FROM"
                + _rows("id", "sender", "arrived", "size"),
                [(each.name, each.sender, each.arrived, each.size) for each in arrivals],
            )
            self._all(
                "INSERT OR IGNORE INTO recipients"
                " (message, number, address, destination, state, next) SELECT * FROM"
                + _rows("message", "number", "address", "destination", "state", "next"),
                [
                    (a.name, number, *target, "held" if a.held else "queued", a.arrived)
                    for a in arrivals
                    for number, target in enumerate(a.targets)
                ],
            )
            # What an operator has decided during an attempt stands, unless that has settled it.
            self._all(
                "UPDATE recipients SET state = CASE WHEN recipients.state <> 'queued'"
                " AND found.state = 'queued' THEN recipients.state ELSE found.state END,"
                " reply = found.reply, host = found.host, next = found.next,"
                " tried = found.tried, attempts = attempts + found.more FROM"
                + _rows("message", "number", "state", "reply", "host", "next", "tried", "more")
                + "AS found WHERE"
                " recipients.message = found.message AND recipients.number = found.number",
                [
                    (name, number, o.state, o.reply, o.host, o.next, tried, attempts)
                    for (name, number), (o, tried, attempts) in latest.items()
                ],
            )
            self._all(
                "UPDATE recipients SET destination = found.destination FROM"
                + _rows("destination", "message", "number")
                + "AS found WHERE"
                " recipients.message = found.message AND recipients.number = found.number",
                batch.moved,
            )
            named = "(SELECT value FROM json_each(?))"
            self._all(f"UPDATE messages SET warned = 1 WHERE id IN {named}", batch.warned)
            self._all(f"INSERT OR IGNORE INTO changes SELECT * FROM {named}", batch.changed)
            self._all(f"DELETE FROM messages WHERE id IN {named}", batch.gone)
            for name, closed in batch.closed.items():
                if closed is None:
                    database.execute("DELETE FROM closed WHERE destination = ?", (name,))
                else:
                    database.execute("REPLACE INTO closed VALUES (?, ?, ?)", (name, *closed))

    def rows(self, name: str) -> list[Row]:
        """Return all recipients of a message in the envelope's order; empty if it is unknown."""
        with self._lock:
            found = self._database.execute(
                "SELECT * FROM recipients WHERE message = ? ORDER BY number", (name,)
            ).fetchall()
        return [Row(*values) for values in found]

    def everything(self) -> Iterator[tuple[float, list[Row]]]:
        """Yield the arrival and the recipients of each message, the oldest first."""
        with self._lock:
            cursor = self._database.execute(
                "SELECT arrived, recipients.* FROM messages JOIN recipients ON message = id"
                " ORDER BY arrived, message, number"
            )
            arrived, rows = 0.0, list[Row]()
            for when, *values in cursor:
                row = Row(*values)
                if rows and row.message != rows[0].message:
                    yield arrived, rows
                    rows = []
                arrived = when
                rows.append(row)
            if rows:
                yield arrived, rows

    def reopen(self) -> None:
        """Forget which destinations could not be reached: a new start, a new look."""
        with self._transaction() as database:
            database.execute("DELETE FROM closed")

    def closed_reply(self, destination: str) -> str:
        """Return why a destination is not tried, empty if it is."""
        with self._lock:
            found = self._database.execute(
                "SELECT reply FROM closed WHERE destination = ?", (destination,)
            ).fetchone()
        return str(found[0]) if found else ""

    def to_warn(self, before: float) -> list[str]:
        """Return the messages that came before a time and whose sender knows of no delay yet."""
        return self._ids("SELECT id FROM messages WHERE arrived <= ? AND warned = 0", before)

    def changed(self) -> list[str]:
        """Return the messages that an operator has changed since the last call."""
        with self._lock:
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return []
            self._version = version
        with self._transaction() as database:
            names = [name for (name,) in database.execute("SELECT message FROM changes")]
            database.execute("DELETE FROM changes")
        return names

    # What an operator does.

    def select(self, which: Filter, now: float) -> list[Waiting]:
        """Return the waiting recipients, message by message, the oldest first."""
        condition, values = which.where(now)
        with self._lock:
            found = self._database.execute(
                "SELECT message, sender, arrived, size, address, recipients.destination, state,"
                " attempts, next, tried, recipients.reply, host, COALESCE(until, 0),"
                f" COALESCE(closed.reply, '') FROM {WAITING} WHERE {condition}"
                " ORDER BY arrived, message, number",
                values,
            ).fetchall()  # a cursor that stays open would let the file grow
        return list(map(Waiting._make, found))

    def change(self, which: Filter, now: float, state: State, *, only: str = "") -> int:
        """Put the recipients into a state; "queued" is tried at once. Gives how many.

        `only` leaves others alone than those that are "held", or that are not ("unheld").
        """
        condition, values = which.where(now)
        condition += {"held": " AND state = 'held'", "unheld": " AND state = 'queued'"}.get(
            only, ""
        )
        with self._transaction() as database:
            database.execute(
                "CREATE TEMP TABLE chosen AS"
                f" SELECT message, number FROM {WAITING} WHERE {condition}",
                values,
            )
            count = database.execute(
                "UPDATE recipients SET state = ?, next = ? FROM chosen"
                " WHERE recipients.message = chosen.message"
                " AND recipients.number = chosen.number",
                (state, now),
            ).rowcount
            database.execute("INSERT OR IGNORE INTO changes SELECT DISTINCT message FROM chosen")
            database.execute("DROP TABLE chosen")
        return count

    def _ids(self, query: str, value: float) -> list[str]:
        with self._lock:
            return [name for (name,) in self._database.execute(query, (value,))]

    def _all(self, statement: str, rows: Collection[object]) -> None:
        """Do for all rows at once what a statement says; they are its only parameter, as JSON.

        `executemany` gives the interpreter away for each row and waits to have it back: 50,000 rows
        took longer than the messages that were delivered meanwhile.
        """
        if rows:
            self._database.execute(statement, (msgspec.json.encode(rows).decode(),))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _rows(*names: str) -> str:
    """Return the parameter of a statement, a JSON array of arrays, as a table of these columns."""
    columns = (f"json_extract(value, '$[{index}]') AS {name}" for index, name in enumerate(names))
    return f" (SELECT {', '.join(columns)} FROM json_each(?)) "
