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
from typing import Final

from minismtp.mailqueue.database import Batch, QueueDatabase
from minismtp.runtime.log import Log, describe
from minismtp.values.threads import WriteBehind

_PAUSE: Final = 0.05  # seconds between two transactions


class DatabaseWriter(WriteBehind):
    """Writes what a block `with writer as batch:` adds to the batch. Any thread may have one."""

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
