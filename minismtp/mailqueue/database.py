"""What became of each recipient in the spool, and when its next attempt is: queue.db.

The runner and `minismtp queue` share one SQLite file. The runner reads it when it starts, and
writes what happens. An operator's command changes it, and lists in the table `changes` which
messages the runner has to read again. If the file is lost, it is rebuilt from the spool without the
past attempts. A commit survives the death of a process at once, and a power cut after the next
checkpoint; the attempts of which a power cut destroys the record are made again.

The file has older words for some states, so that the versions before and after this one can read
it: "queued" for deferred recipients too, "returning" for bounced ones. `queries.STATE` translates.
"""

# ruff: noqa: S608 - the conditions are made here, values are always parameters

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from sys import intern
from typing import Final, NamedTuple

from minismtp.mailqueue.queries import STATE, WAITING, Filter
from minismtp.mailqueue.reasons import WaitingGroup
from minismtp.mailqueue.recipient import RecipientStatus, State
from minismtp.runtime.log import Log, describe
from minismtp.values.threads import WriteBehind

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
"""
_STORED: Final[dict[State, str]] = {"deferred": "queued", "bounced": "returning"}
_BUSY: Final = 10.0  # seconds that one process waits for the other's transaction
_PAUSE: Final = 0.05  # seconds between two transactions of a writer
_ROWS: Final = 500  # that one statement writes
_STATEMENTS: Final = 20  # that SQLite keeps compiled; those of many rows take much memory

_ADD_MESSAGES: Final = "INSERT OR IGNORE INTO messages (id, sender, arrived, size) VALUES {rows}"
# An operator's decision during an attempt stands, unless the attempt settled the recipient. A
# status of fewer attempts is older than the one that is there.
_SET_STATUSES: Final = (
    "INSERT INTO recipients SELECT * FROM (VALUES {rows})"
    " WHERE column1 IN (SELECT id FROM messages)"
    " ON CONFLICT DO UPDATE SET state = CASE WHEN recipients.state <> 'queued'"
    " AND excluded.state = 'queued' THEN recipients.state ELSE excluded.state END,"
    " destination = excluded.destination, attempts = excluded.attempts, next = excluded.next,"
    " tried = excluded.tried, reply = excluded.reply, host = excluded.host"
    " WHERE excluded.attempts >= recipients.attempts"
)
_SET_WARNED: Final = "UPDATE messages SET warned = 1 WHERE id IN (VALUES {rows})"
_ADD_CHANGES: Final = "INSERT OR IGNORE INTO changes VALUES {rows}"
_REMOVE_MESSAGES: Final = "DELETE FROM messages WHERE id IN (VALUES {rows})"
_CLOSE: Final = "REPLACE INTO closed VALUES {rows}"
_OPEN: Final = "DELETE FROM closed WHERE destination IN (VALUES {rows})"
_STATUS: Final = (
    f"message, number, address, recipients.destination, {STATE}, attempts, next, tried,"
    " recipients.reply, host"
)


class Arrival(NamedTuple):
    """A message that came into the spool at `arrived`, in epoch seconds; `size` is in octets."""

    id: str
    sender: str
    arrived: float
    size: int


@dataclass(slots=True)
class Batch:
    """What one transaction writes; `statuses` by message and number of the recipient."""

    arrivals: dict[str, Arrival] = field(default_factory=dict)
    statuses: dict[str, dict[int, RecipientStatus]] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    closed: dict[str, tuple[float, str] | None] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    def record(self, statuses: Iterable[RecipientStatus]) -> None:
        """Add statuses; the last one of each recipient counts."""
        for each in statuses:
            self.statuses.setdefault(each.message, {})[each.number] = each

    def update(self, later: Batch) -> None:
        """Add a later batch, which counts."""
        for statuses in later.statuses.values():
            self.record(statuses.values())
        for name in ("arrivals", "warned", "closed", "changed", "gone"):
            getattr(self, name).update(getattr(later, name))

    def forget(self, message: str) -> None:
        """Add that a message is gone."""
        self.statuses.pop(message, None)
        if self.arrivals.pop(message, None) is None:
            self.gone.add(message)


class Waiting(NamedTuple):
    """A waiting recipient as an operator sees it; a tuple, because there may be 50,000 to show.

    `closed_until` and `closed_reply` say until when and why its destination is not tried, if it
    could not be reached; else they are 0 and empty. The rest is as in `RecipientStatus`.
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
    """The tables. Threads of a process may share one, because it locks."""

    def __init__(self, path: Path, *, check: bool = False) -> None:
        """Open the file, or make it. Raise sqlite3.DatabaseError if it is damaged.

        With `check` the whole file is read. Without it, damage may be found later.
        """
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path,
            timeout=_BUSY,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_STATEMENTS,
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
        """Write a batch. Raise sqlite3.Error, in which case nothing has changed."""
        statuses = (each for found in batch.statuses.values() for each in found.values())
        closed = batch.closed.items()
        with self._transaction():
            self._execute(_ADD_MESSAGES, batch.arrivals.values())
            self._execute(_SET_STATUSES, map(_stored, statuses))
            self._execute(_SET_WARNED, zip(batch.warned))
            self._execute(_ADD_CHANGES, zip(batch.changed))
            self._execute(_REMOVE_MESSAGES, zip(batch.gone))
            self._execute(_CLOSE, ((name, *until) for name, until in closed if until))
            self._execute(_OPEN, ((name,) for name, until in closed if not until))

    def statuses(self, message: str) -> list[RecipientStatus]:
        """Return the recipients of a message, or an empty list if it is unknown."""
        with self._lock:
            found = self._database.execute(
                f"SELECT {_STATUS} FROM recipients WHERE message = ? ORDER BY number", (message,)
            ).fetchall()
        return [*map(RecipientStatus._make, found)]

    def messages(self) -> Iterator[tuple[float, bool, list[RecipientStatus]]]:
        """Yield the arrival of each message, whether its sender was warned, and its recipients."""
        with self._lock:
            cursor = self._database.execute(
                f"SELECT arrived, warned, {_STATUS} FROM messages JOIN recipients"
                " ON message = id ORDER BY arrived, message, number"
            )
            for (_, arrived, warned), rows in groupby(cursor, lambda row: (row[2], row[0], row[1])):
                # The replies of one host are often the same, and all are kept in memory.
                statuses = [RecipientStatus(*row[2:-2], *map(intern, row[-2:])) for row in rows]
                yield arrived, bool(warned), statuses

    def open_destinations(self) -> None:
        """Forget which destinations could not be reached, because a new start tries them all."""
        with self._transaction() as database:
            database.execute("DELETE FROM closed")

    def changed(self) -> list[str]:
        """Return the messages that an operator changed since the last call."""
        with self._lock:
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return []
            self._version = version
        with self._transaction() as database:
            names = [name for (name,) in database.execute("SELECT message FROM changes")]
            database.execute("DELETE FROM changes")
        return names

    # For operators

    def select(self, which: Filter, now: float, most: int = -1) -> list[Waiting]:
        """Return the waiting recipients, message by message, the oldest first.

        There are no more than `most`, if it is not negative.
        """
        condition, values = which.where(now)
        columns = ", ".join(Waiting._fields)
        with self._lock:
            found = self._database.execute(
                f"SELECT {columns} FROM {WAITING} WHERE {condition}"
                " ORDER BY arrived, message, number LIMIT ?",
                [*values, most],
            ).fetchall()  # a cursor that stays open would let the file grow
        return [*map(Waiting._make, found)]

    def waiting_groups(self, most: int) -> list[WaitingGroup]:
        """Return the oldest `most` waiting recipients, in groups with the same reply."""
        with self._lock:
            found = self._database.execute(
                "SELECT state = 'held', COALESCE(NULLIF(reply, ''), closed_reply) AS why,"
                f" destination, COUNT(*), MIN(arrived) FROM (SELECT * FROM {WAITING}"
                " ORDER BY arrived LIMIT ?) GROUP BY 1, 2, 3",
                (most,),
            ).fetchall()
        return [WaitingGroup(bool(held), *rest) for held, *rest in found]

    def change(self, which: Filter, now: float, state: State, *, held: bool | None = None) -> int:
        """Put recipients into a state, and return their number; "queued" ones are tried at once.

        With `held`, change just those that are held, or just those that are not.
        """
        condition, values = which.where(now)
        if held is not None:
            condition = f"{condition} AND state {'=' if held else '<>'} 'held'"
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
                (_STORED.get(state, state), now),
            ).rowcount
            database.execute("INSERT OR IGNORE INTO changes SELECT DISTINCT message FROM chosen")
            database.execute("DROP TABLE chosen")
        return count

    def _execute(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute a statement for many rows at once.

        `executemany` releases the interpreter lock for each row and waits for it again. With 50,000
        rows that took longer than delivering the messages did. Rows as one JSON text took twice the
        time of these parameters.
        """
        rows = [*rows]
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            row = f"({', '.join('?' * len(part[0]))})"
            values = [*chain.from_iterable(part)]
            self._database.execute(statement.format(rows=", ".join([row] * len(part))), values)

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


def _stored(status: RecipientStatus) -> Sequence[object]:
    """Return a status in the words of the file."""
    state = _STORED.get(status.state)
    return (*status[:4], state, *status[5:]) if state else status


class DatabaseWriter(WriteBehind):
    """Writes what a block `with writer as batch:` adds to the batch. Any thread may have one.

    The runner acts on what it has in memory; the file is for operators and for the next start. So
    one transaction takes everything from a twentieth of a second, and a message that came and went
    in that time is never written at all. A delivery waits for the file only if a crash would
    otherwise make a recipient get a message twice. What cannot be written, for instance because the
    disk is full, is tried again, and deliveries go on.
    """

    def __init__(self, database: QueueDatabase, log: Log) -> None:
        super().__init__("ledger", self._write_batches, _PAUSE)
        self._database = database
        self._log = log
        self._batch = Batch()
        self._lock = threading.Lock()  # guards the batch
        self._unwritten = Batch()  # because it failed

    def __enter__(self) -> Batch:
        self._lock.acquire()
        return self._batch

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self.idle:
            self.announce()

    def _write_batches(self) -> bool:
        """Write all that was recorded. Return False if that failed, and keep it."""
        with self._lock:
            batch, self._batch = self._batch, Batch()
        failed = bool(self._unwritten)
        if failed:
            self._unwritten.update(batch)
        else:
            self._unwritten = batch
        try:
            if self._unwritten:
                self._database.write(self._unwritten)
        except sqlite3.Error as error:
            if not failed:
                self._log.error("schedule not written, tried again", error=describe(error))
            return False
        self._unwritten = Batch()
        if failed:
            self._log.info("schedule written again")
        return True


def use_all_cores() -> None:
    """Let this thread run on all cores of the server, though its process keeps to one.

    SQLite works without the interpreter lock. On the core of the threads that deliver, which left
    it 4 % of the time, it had written nothing of 50,000 messages until all were delivered.
    """
    with contextlib.suppress(OSError):  # it may be forbidden, or the supervisor may have died
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
