"""What the runner records in queue.db, written by one thread.

The runner acts on what it has in memory; the file is for operators and for the next start. So one
transaction takes everything from a twentieth of a second, and a message that came and went in that
time is never written at all. A delivery waits for the file only if a crash would otherwise make a
recipient get a message twice. What cannot be written, for instance because the disk is full, is
tried again, and deliveries go on.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable
from typing import Final

from minismtp.mailqueue.database import Arrival, Batch, QueueDatabase
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.runtime.log import Log, describe
from minismtp.values.threads import WriteBehind

_PAUSE: Final = 0.05  # seconds between two transactions


class DatabaseWriter(WriteBehind):
    """Collects changes of the database. Any thread may call it, and nothing here raises."""

    def __init__(self, database: QueueDatabase, log: Log) -> None:
        super().__init__("ledger", self._write_batch, _PAUSE)
        self._database = database
        self._log = log
        self._batch = Batch()
        self._lock = threading.Lock()  # guards the batch
        self._failed = False

    def add(self, arrival: Arrival, statuses: Iterable[RecipientStatus]) -> None:
        """Record a new message."""
        with self._lock:
            self._batch.arrivals[arrival.id] = arrival
            self._batch.record(statuses)
        self.announce()

    def record(self, statuses: Iterable[RecipientStatus]) -> None:
        """Record how recipients stand now."""
        with self._lock:
            self._batch.record(statuses)
        self.announce()

    def forget(self, message: str) -> None:
        """Record that a message is gone."""
        with self._lock:
            self._batch.statuses.pop(message, None)
            if self._batch.arrivals.pop(message, None) is None:
                self._batch.gone.add(message)
        self.announce()

    def warned(self, message: str) -> None:
        """Record that the sender of a message was warned of the delay."""
        with self._lock:
            self._batch.warned.add(message)
        self.announce()

    def close(self, destination: str, closed: tuple[float, str] | None) -> None:
        """Record until when and why a destination is not tried, or None if it is tried again."""
        with self._lock:
            self._batch.closed[destination] = closed
        self.announce()

    def hand_over(self, messages: Iterable[str]) -> None:
        """Record that the next runner has to read these messages again."""
        with self._lock:
            self._batch.changed.update(messages)
        self.announce()

    def _write_batch(self) -> bool:
        """Write all that was recorded. Return False if that failed, and keep it."""
        with self._lock:
            batch, self._batch = self._batch, Batch()
        if not batch:
            return True
        try:
            self._database.write(batch)
        except BaseException as error:
            with self._lock:
                self._batch = batch.then(self._batch)
            if not isinstance(error, sqlite3.Error):
                raise
            if not self._failed:
                self._log.error("schedule not written, tried again", error=describe(error))
            self._failed = True
            return False
        if self._failed:
            self._log.info("schedule written again")
        self._failed = False
        return True


def use_all_cores() -> None:
    """Let this thread run on all cores of the server, though its process keeps to one.

    SQLite works without the interpreter lock. On the core of the threads that deliver, which left
    it 4 % of the time, it had written nothing of 50,000 messages until all were delivered.
    """
    with contextlib.suppress(OSError):  # it may be forbidden, or the supervisor may have died
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
