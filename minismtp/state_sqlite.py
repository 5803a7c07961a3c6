"""Shared state in a SQLite file, for all processes of one machine (layer 2).

Its journal is a write-ahead log: the death of a process loses nothing, a power cut what came after
the last checkpoint. A process has one connection, which its threads use in turn, since SQLite lets
one write at a time anyway; waiting for another process ends after some seconds. What has expired is
removed by those who write, a few rows at a time; above 256 MiB also what would expire next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from minismtp.state_store import MICROSECONDS, Window

_BUSY: Final = 5.0  # seconds that one waits for others
_TURN: Final = (0.0002, 0.002)  # seconds between two looks whether it is our turn
_SWEEP: Final = 256  # writes of a process between two removals
_SWEPT: Final = 2 * _SWEEP  # rows of one removal: more than were written since the last
_LARGEST: Final = 256 * 1024 * 1024
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, value NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID
"""
_INDEX: Final = "CREATE INDEX IF NOT EXISTS expiries ON entries (expires)"
_GET: Final = "SELECT value FROM entries WHERE key = ? AND expires > ?"
_PUT: Final = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)"
_KEPT: Final = """
INSERT INTO entries VALUES (:key, :value, :expires) ON CONFLICT (key) DO UPDATE SET
    expires = iif(entries.expires <= :now, excluded.expires, entries.expires),
    value = iif(entries.expires <= :now, excluded.value, entries.value"""
_SETDEFAULT: Final = _KEPT + ") RETURNING value"
_ADD: Final = _KEPT + " + excluded.value) RETURNING value"
_REMOVE: Final = """
DELETE FROM entries WHERE key IN
    (SELECT key FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)
"""


class SqliteStore:
    """A file, opened with the first call; `path` None keeps all in the memory of this process."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Callable[[], float] = time.time,
        largest: int = _LARGEST,
    ) -> None:
        self.name = str(path or "memory")
        self._path = path
        self._clock = clock
        self._largest = largest
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closing: Callable[[], object] = lambda: None
        self._writes = 0

    def get(self, key: bytes) -> str | None:
        """Give the value, None when there is none."""
        with self._use() as connection:
            row = _run(connection, _GET, (key, self._clock())).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: bytes, value: str, seconds: float) -> None:
        """Keep a value, whatever was there."""
        with self._use() as connection:
            _run(connection, _PUT, (key, value, self._clock() + seconds))
            self._wrote(connection)

    def setdefault(self, key: bytes, value: str, seconds: float) -> str:
        """Give the value; when there is none, keep this one.

        Reading first costs who has none 15 us, and spares who has one the turns of writers.
        """
        found = self.get(key)
        return str(self._returned(_SETDEFAULT, key, value, seconds)) if found is None else found

    def add(self, key: bytes, amount: int, seconds: float) -> int:
        """Add to the number and give the sum; `seconds` counts from the first addition."""
        return int(self._returned(_ADD, key, amount, seconds))

    def take(self, claims: Sequence[tuple[bytes, Window, int]]) -> list[float]:
        """Take an amount from each window, or nothing at all; gives the seconds to wait."""
        waits, rows = [], []
        with self._use() as connection, _transaction(connection):
            time_now = self._clock()
            now = round(time_now * MICROSECONDS)
            for key, window, amount in claims:
                row = connection.execute(_GET, (key, time_now)).fetchone()
                taken = window.current(_read(row[0]), now) if row else {}
                waits.append(window.wait(taken, now, amount))
                part = now // window.length
                taken[part] = taken.get(part, 0) + amount
                rows.append((key, _written(taken), time_now + window.seconds))
            if not any(waits):
                connection.executemany(_PUT, rows)
                self._wrote(connection)
        return waits

    def delete(self, key: bytes) -> None:
        """Forget a key."""
        with self._use() as connection:
            _run(connection, "DELETE FROM entries WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        with self._lock:
            self._closing()
            self._connection = None

    def _returned(self, statement: str, key: bytes, value: object, seconds: float) -> Any:  # noqa: ANN401 - what a row holds
        now = self._clock()
        values = {"key": key, "value": value, "expires": now + seconds, "now": now}
        with self._use() as connection:
            [(found,)] = _run(connection, statement, values).fetchall()
            self._wrote(connection)
        return found

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to this thread alone."""
        if not self._lock.acquire(timeout=_BUSY):
            raise TimeoutError("other threads wait for it already")
        try:
            if self._connection is None:
                self._connection = self._opened()
                self._closing = weakref.finalize(self, self._connection.close)
            yield self._connection
        finally:
            self._lock.release()

    def _opened(self) -> sqlite3.Connection:
        if self._path is None:
            return _prepared(":memory:")
        # Only one makes the file and its tables: SQLite does not wait while WAL is turned on. Who
        # may send and receive here is nobody else's business.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            return _prepared(str(self._path))
        finally:
            os.close(directory)

    def _wrote(self, connection: sqlite3.Connection) -> None:
        """Count a write; now and then remove what nobody needs any more."""
        self._writes += 1
        if self._writes % _SWEEP:
            return
        [pages, size, unused] = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "page_size", "freelist_count")
        ]
        full = (pages - unused) * size > self._largest
        _run(connection, _REMOVE, (float("inf") if full else self._clock(), _SWEPT))


def _prepared(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_TABLE)
        connection.execute(_INDEX)
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _run(connection: sqlite3.Connection, statement: str, values: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401 - of any kind
    """Execute a statement when other processes let us; raises OperationalError after a time.

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
