"""What is on its way into the schedule, written down by one thread.

The runner acts on its memory; the schedule's file is for operators and for the next start. So a
transaction takes all that came up in a twentieth of a second, a message that came and went in
that time is never written at all, and nobody waits for the file unless a crash would make somebody
get a message twice. What cannot be written, because the disk is full for instance, is tried again
and does not disturb deliveries.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable
from typing import Final

from minismtp.mailqueue.database import Arrival, Batch, Outcome, QueueDatabase
from minismtp.runtime.log import Log, describe
from minismtp.values.threads import WriteBehind

_PAUSE: Final = 0.05  # seconds between two transactions


class DatabaseWriter(WriteBehind):
    """Collects changes of the schedule. Any thread may call; nothing here raises."""

    def __init__(self, schedule: QueueDatabase, log: Log) -> None:
        super().__init__("ledger", self._write_batch, _PAUSE)
        self._schedule = schedule
        self._log = log
        self._batch = Batch()
        self._lock = threading.Lock()  # guards the batch
        self._failed = False

    def arrive(self, arrival: Arrival) -> None:
        """Note a new message."""
        with self._lock:
            self._batch.arrivals[arrival.name] = arrival
        self.pending.set()

    def record(self, name: str, outcomes: Iterable[Outcome], tried: float) -> None:
        """Note what an attempt at `tried`, in epoch seconds, has brought."""
        with self._lock:
            self._batch.outcomes += [(name, outcome, tried) for outcome in outcomes]
        self.pending.set()

    def forget(self, name: str) -> None:
        """Note that a message is gone."""
        with self._lock:
            if self._batch.arrivals.pop(name, None) is None:
                self._batch.gone.add(name)
        self.pending.set()

    def warned(self, name: str) -> None:
        """Note that the sender of a message knows of the delay."""
        with self._lock:
            self._batch.warned.add(name)
        self.pending.set()

    def move(self, destination: str, name: str, number: int) -> None:
        """Note that a recipient goes to another destination than before."""
        with self._lock:
            self._batch.moved.append((destination, name, number))
        self.pending.set()

    def close(self, destination: str, until: float, reply: str) -> None:
        """Note that a destination could not be reached and why; `until` in epoch seconds."""
        with self._lock:
            self._batch.closed[destination] = (until, reply)
        self.pending.set()

    def open(self, destination: str) -> None:
        """Note that a destination is tried again."""
        with self._lock:
            self._batch.closed[destination] = None
        self.pending.set()

    def hand_over(self, names: Iterable[str]) -> None:
        """Note that another runner has to look at messages again."""
        with self._lock:
            self._batch.changed.update(names)
        self.pending.set()

    def _write_batch(self) -> bool:
        """Write what was noted before. Return False if that failed, and keep it."""
        with self._lock:
            batch, self._batch = self._batch, Batch()
        if not batch:
            return True
        try:
            self._schedule.write(batch)
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
    """Have this thread run on all cores of the server, whichever one its process keeps to.

    SQLite works without the interpreter lock. The threads that deliver left it 4 % of their core,
    and what 50,000 messages brought was not in the file until they were all delivered.
    """
    with contextlib.suppress(OSError):  # forbidden, or the supervisor is no more
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
