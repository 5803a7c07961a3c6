"""Shared state in a SQLite file, for all processes of one machine.

Its journal is a write-ahead log, so the death of a process loses nothing, and a power cut loses the
writes after the last checkpoint. Durable values are synced. A process has one connection, which its
threads use in turn, because SQLite allows one writer at a time anyway. A wait for another process
ends after 5 seconds.

Writers remove expired rows, a few at a time. Above 256 MiB the rows that would expire next go, of
the owner with the most octets. The owner is the part of a key before its first colon, which is a
plugin, so a flood of one plugin's keys evicts no other's. A row from the future, written by a clock
that was ahead, counts as expired. A damaged file is set aside.
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

from minismtp.services.state_window import AHEAD, MICROSECONDS, Window
from minismtp.values.clock import steady_time
from minismtp.values.sqlite_file import DatabaseFile, is_damage

T = TypeVar("T")

_chance: Final = random.SystemRandom()
_BUSY: Final = 5.0  # seconds that a call waits for other threads and processes
_TURN: Final = (0.0002, 0.002)  # seconds between two attempts while another process writes
_SWEEP: Final = 256  # writes of a process between two removals of expired rows
_SWEPT: Final = 2 * _SWEEP  # rows of one removal, more than this process wrote since the last
_RARELY: Final = 10  # times the duration of a search for the largest owner, before the next search
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
_OCTETS: Final = """
SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""
_HEAVIEST: Final = """
SELECT owner FROM entries GROUP BY owner ORDER BY sum(length(key) + length(value)) DESC LIMIT 1
"""


class SqliteStore:
    """A file that the first call opens; with `path` None the memory of this process."""

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
        self._owner = b""  # the one with the most octets
        self._weigh_at = 0.0  # in monotonic seconds

    def get(self, key: bytes) -> str | None:
        """Return the value, None if there is no such key."""

        def act(connection: sqlite3.Connection) -> str | None:
            now = self._clock()
            row = _run(connection, _GET, (key, now, now + AHEAD)).fetchone()
            return None if row is None else str(row[0])

        return self._do(act)

    def put(self, key: bytes, value: str, seconds: float, *, durable: bool = False) -> None:
        """Keep a value in place of an earlier one; sync it if it is `durable`."""

        def act(connection: sqlite3.Connection) -> None:
            now = self._clock()
            with _synced(connection) if durable else contextlib.nullcontext():
                _run(connection, _PUT, (key, value, now + seconds, now))
            self._wrote(connection)

        self._do(act)

    def setdefault(self, key: bytes, value: str, seconds: float) -> str:
        """Return the stored value, or keep this one and return it.

        Reading first costs 15 us for a new key, and spares a known one the wait for other writers.
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
        """Run `act` with the connection in no other thread; set a damaged file aside once."""
        if not self._lock.acquire(timeout=_BUSY):
            raise TimeoutError("too many other threads wait for the database")
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
        """Count a write, and remove expired rows once in many writes."""
        self._writes += 1
        if self._writes % _SWEEP:
            return
        if self._file is not None and self._file.is_another():
            self._disconnect()  # the directory was moved, or another process set the file aside
            return
        now = self._clock()
        for owner in list(_owners(connection)):
            _run(connection, _REMOVE, (owner, now, _SWEPT))
        if _octets(connection) > self._largest:
            _run(connection, _REMOVE, (self._heaviest(connection, now), float("inf"), _SWEPT))

    def _heaviest(self, connection: sqlite3.Connection, now: float) -> bytes:
        """Return the owner with the most octets.

        Finding it reads the whole file, so the answer is kept for ten times as long as that took.
        """
        begun = time.monotonic()
        if begun >= self._weigh_at:
            _run(connection, "DELETE FROM entries WHERE written > ?", (now + AHEAD,))
            row = _run(connection, _HEAVIEST).fetchone()
            self._owner = row[0] if row else b""
            self._weigh_at = time.monotonic() + _RARELY * (time.monotonic() - begun)
        return self._owner


def _owners(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield the owners of entries; each step reads the index once."""
    row = _run(connection, "SELECT min(owner) FROM entries").fetchone()
    while row is not None and row[0] is not None:
        yield row[0]
        row = _run(connection, _NEXT_OWNER, (row[0],)).fetchone()


def _octets(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_OCTETS).fetchone()[0])


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
    """Execute a statement once no other process writes. Raise OperationalError after 5 seconds.

    SQLite's own wait sleeps for up to 100 ms, and other processes write for a fraction of one.
    """
    due = time.monotonic() + _BUSY
    while True:
        try:
            return connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > due:
                raise
        time.sleep(_chance.uniform(*_TURN))  # so that no process is always too late


@contextlib.contextmanager
def _synced(connection: sqlite3.Connection) -> Iterator[None]:
    """Sync the writes of the block with their commit, and so all earlier ones in the log."""
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
