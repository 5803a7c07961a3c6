"""Shared state in a SQLite file, for all processes of one machine.

Its journal is a write-ahead log: the death of a process loses nothing, a power cut what came after
the last checkpoint. A process has one connection, which its threads use in turn, since SQLite lets
one write at a time anyway; waiting for another process ends after some seconds. What is put as
durable is synced.

What has expired is removed by those who write, a few rows at a time. Above 256 MiB the owner with
the most octets (a plugin: what stands before the first colon of a key) loses what would expire
next, so that a flood of one plugin's keys evicts nothing of another's. A row that was written in
the future, by a clock that was ahead, counts as expired. A damaged file is set aside.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from minismtp.services.state_store import AHEAD, MICROSECONDS, Window
from minismtp.values.clock import steady_time
from minismtp.values.sqlite_file import DatabaseFile, is_damage

T = TypeVar("T")

_BUSY: Final = 5.0  # seconds that one waits for others
_TURN: Final = (0.0002, 0.002)  # seconds between two looks whether it is our turn
_SWEEP: Final = 256  # writes of a process between two removals
_SWEPT: Final = 2 * _SWEEP  # rows of one removal: more than were written since the last
_RARELY: Final = 10  # times as long as a look at who has most takes, until the next one
_LARGEST: Final = 256 * 1024 * 1024
_VERSION: Final = 2
_TABLE: Final = f"""
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, value NOT NULL, expires REAL NOT NULL, written REAL NOT NULL,
    owner BLOB AS (substr(key, 1, instr(key, x'3a'))) VIRTUAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiries ON entries (owner, expires);
PRAGMA user_version = {_VERSION};
"""
_GET: Final = "SELECT value FROM entries WHERE key = ? AND expires > ? AND written <= ?"
_PUT: Final = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)"
_GONE: Final = "(entries.expires <= :now OR entries.written > :ahead)"
_KEPT: Final = f"""
INSERT INTO entries VALUES (:key, :value, :expires, :now) ON CONFLICT (key) DO UPDATE SET
    expires = iif({_GONE}, excluded.expires, entries.expires),
    written = iif({_GONE}, excluded.written, entries.written),
    value = iif({_GONE}, excluded.value, entries.value"""  # noqa: S608 - both are constants
_SETDEFAULT: Final = _KEPT + ") RETURNING value"
_ADD: Final = _KEPT + " + excluded.value) RETURNING value"
_NEXT_OWNER: Final = "SELECT owner FROM entries WHERE owner > ? ORDER BY owner LIMIT 1"
_REMOVE: Final = """
DELETE FROM entries WHERE key IN
    (SELECT key FROM entries WHERE owner = ? AND expires <= ? ORDER BY expires LIMIT ?)
"""
_HEAVIEST: Final = """
SELECT owner FROM entries GROUP BY owner ORDER BY sum(length(key) + length(value)) DESC LIMIT 1
"""


class SqliteStore:
    """A file, opened with the first call; `path` None keeps all in the memory of this process."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Callable[[], float] = steady_time,
        largest: int = _LARGEST,
    ) -> None:
        self.name = str(path or "memory")
        self._file = DatabaseFile(path, _prepared) if path else None
        self._clock = clock
        self._largest = largest
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closing: Callable[[], object] = lambda: None
        self._writes = 0
        self._owner = b""  # who has most
        self._weigh_at = 0.0  # in monotonic seconds

    def get(self, key: bytes) -> str | None:
        """Return the value, None when there is none."""

        def act(connection: sqlite3.Connection) -> str | None:
            now = self._clock()
            row = _run(connection, _GET, (key, now, now + AHEAD)).fetchone()
            return None if row is None else str(row[0])

        return self._do(act)

    def put(self, key: bytes, value: str, seconds: float, *, durable: bool = False) -> None:
        """Keep a value, whatever was there; one that is `durable` is synced."""

        def act(connection: sqlite3.Connection) -> None:
            now = self._clock()
            with _synced(connection) if durable else contextlib.nullcontext():
                _run(connection, _PUT, (key, value, now + seconds, now))
            self._wrote(connection)

        self._do(act)

    def setdefault(self, key: bytes, value: str, seconds: float) -> str:
        """Return the value; when there is none, keep this one.

        Reading first costs 15 us where there is no value, and saves the turns of writers where
        there is one.
        """
        found = self.get(key)
        return str(self._returned(_SETDEFAULT, key, value, seconds)) if found is None else found

    def add(self, key: bytes, amount: int, seconds: float) -> int:
        """Add to the number and return the sum; `seconds` counts from the first addition."""
        return int(self._returned(_ADD, key, amount, seconds))

    def take(self, claims: Sequence[tuple[bytes, Window, int]]) -> list[float]:
        """Take an amount from each window, or nothing at all; return the seconds to wait."""

        def act(connection: sqlite3.Connection) -> list[float]:
            waits, rows = [], []
            with _transaction(connection):
                now = self._clock()
                micros = round(now * MICROSECONDS)
                for key, window, amount in claims:
                    row = connection.execute(_GET, (key, now, now + AHEAD)).fetchone()
                    taken = window.current(_read(row[0]), micros) if row else {}
                    waits.append(window.wait(taken, micros, amount))
                    part = micros // window.length
                    taken[part] = taken.get(part, 0) + amount
                    rows.append((key, _written(taken), now + window.seconds, now))
                if not any(waits):
                    connection.executemany(_PUT, rows)
            self._wrote(connection)
            return waits

        return self._do(act)

    def delete(self, key: bytes) -> None:
        """Forget a key."""
        self._do(lambda connection: _run(connection, "DELETE FROM entries WHERE key = ?", (key,)))

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        with self._lock:
            self._disconnect()

    def _returned(self, statement: str, key: bytes, value: object, seconds: float) -> Any:  # noqa: ANN401 - what a row holds
        def act(connection: sqlite3.Connection) -> object:
            now = self._clock()
            values = {"key": key, "value": value, "expires": now + seconds}
            values |= {"now": now, "ahead": now + AHEAD}
            [(found,)] = _run(connection, statement, values).fetchall()
            self._wrote(connection)
            return found

        return self._do(act)

    def _do(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Act with the connection, which is this thread's alone; set a damaged file aside once."""
        if not self._lock.acquire(timeout=_BUSY):
            raise TimeoutError("other threads wait for it already")
        try:
            try:
                return act(self._connected())
            except sqlite3.Error as error:
                if self._file is None or not is_damage(error):
                    raise
                self._disconnect()
                self._file.set_aside(error)
                return act(self._connected())
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            made = self._file.open() if self._file else _prepared(":memory:")
            self._connection = made
            self._closing = weakref.finalize(self, made.close)
        return self._connection

    def _disconnect(self) -> None:
        self._closing()
        self._connection = None

    def _wrote(self, connection: sqlite3.Connection) -> None:
        """Count a write; now and then remove what nobody needs any more."""
        self._writes += 1
        if self._writes % _SWEEP:
            return
        if self._file is not None and self._file.is_another():
            self._disconnect()  # somebody moved the directory, or another process set it aside
            return
        now = self._clock()
        for owner in list(_owners(connection)):
            _run(connection, _REMOVE, (owner, now, _SWEPT))
        if _octets(connection) > self._largest:
            _run(connection, _REMOVE, (self._heaviest(connection, now), float("inf"), _SWEPT))

    def _heaviest(self, connection: sqlite3.Connection, now: float) -> bytes:
        """Return the owner with the most octets, which takes a look at the whole file.

        So it is found out again when ten times as long has passed as that took.
        """
        begun = time.monotonic()
        if begun >= self._weigh_at:
            _run(connection, "DELETE FROM entries WHERE written > ?", (now + AHEAD,))
            row = _run(connection, _HEAVIEST).fetchone()
            self._owner = row[0] if row else b""
            self._weigh_at = time.monotonic() + _RARELY * (time.monotonic() - begun)
        return self._owner


def _owners(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield who has entries; each step is one look into the index."""
    row = _run(connection, "SELECT min(owner) FROM entries").fetchone()
    while row is not None and row[0] is not None:
        yield row[0]
        row = _run(connection, _NEXT_OWNER, (row[0],)).fetchone()


def _octets(connection: sqlite3.Connection) -> int:
    [pages, size, unused] = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "page_size", "freelist_count")
    ]
    return int((pages - unused) * size)


def _prepared(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            connection.execute("DROP TABLE IF EXISTS entries")  # of an earlier version
        connection.executescript(_TABLE)
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _run(connection: sqlite3.Connection, statement: str, values: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401 - of any kind
    """Execute a statement when other processes let us. Raise OperationalError after a time.

    SQLite itself would sleep for up to 100 ms where others take turns of a fraction of one.
    """
    due = time.monotonic() + _BUSY
    while True:
        try:
            return connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > due:
                raise
        time.sleep(random.uniform(*_TURN))  # noqa: S311 - so that nobody is always too late


@contextlib.contextmanager
def _synced(connection: sqlite3.Connection) -> Iterator[None]:
    """Have what the block writes, and so all before it in the log, synced with its commit."""
    connection.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = NORMAL")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    _run(connection, "BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _read(text: str) -> dict[int, int]:
    parts = [part.partition(":") for part in text.split()]
    return {int(number): int(amount) for number, _, amount in parts}


def _written(taken: dict[int, int]) -> str:
    return " ".join([f"{number}:{amount}" for number, amount in taken.items()])
