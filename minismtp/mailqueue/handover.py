"""How one runner takes over from another without a pause.

A runner that was told to end finishes the deliveries that run, and new mail must not wait for that.
So it locks the files of those messages (flock(2), which ends with the process, however it dies),
lists them in the table `changes`, and gives up the lock of the spool. The next runner starts at
once. It leaves each message alone that it finds in that table until its file is unlocked and its
statuses were read again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable

from minismtp.mailqueue.database import DatabaseWriter
from minismtp.mailqueue.scheduler import Job
from minismtp.storage.spool import Spool


class Handover:
    """The messages kept from the next runner, and those that the last runner may still deliver."""

    def __init__(self, spool: Spool, writer: DatabaseWriter) -> None:
        self._spool = spool
        self._writer = writer
        self._foreign: set[str] = set()
        self._locked: dict[str, int] = {}
        self._jobs: dict[str, set[Job]] = {}
        self._lock = threading.Lock()

    def expect(self, names: Iterable[str]) -> None:
        """Note messages that the last runner may still deliver."""
        self._foreign.update(names)

    def is_foreign(self, name: str) -> bool:
        """Return whether the last runner may still deliver a message."""
        return name in self._foreign

    def take_over(self, name: str) -> bool:
        """Take a message over from the last runner; return False while that delivers it."""
        if self._spool.is_locked(name):
            return False
        self._foreign.discard(name)
        return True

    def keep(self, jobs: Iterable[Job]) -> None:
        """Keep the messages of running jobs from the next runner, until `finish`."""
        with self._lock:
            for job in jobs:
                self._jobs.setdefault(job[0], set()).add(job)
            for name in self._jobs:
                with contextlib.suppress(OSError):  # settled already
                    self._locked[name] = self._spool.lock_message(name)
            with self._writer as batch:
                batch.changed.update(self._jobs)
        self._writer.flush()

    def finish(self, job: Job) -> None:
        """Release a message once its last job ended."""
        name = job[0]
        with self._lock:
            jobs = self._jobs.get(name, set())
            jobs.discard(job)
            descriptor = None if jobs else self._locked.pop(name, None)
        if descriptor is not None:
            with self._writer as batch:
                batch.changed.add(name)
            self._writer.flush()
            os.close(descriptor)
            self._spool.trigger.notify()
