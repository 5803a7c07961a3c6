"""How one runner takes over from another without a pause.

A runner that was told to end finishes what it delivers just then; new mail must not wait for that.
So it locks the files of those messages (flock(2), which ends with the process, however it dies),
names them in the schedule's `changes`, and gives up the lock of the spool. The next runner starts
at once, and leaves a message alone that it finds there until its file is free and its rows have
been read again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable

from minismtp.mailqueue.journal import DatabaseWriter
from minismtp.mailqueue.scheduler import Job
from minismtp.storage.spool import Spool


class Handover:
    """What is kept for the next runner, and what is left to the one before."""

    def __init__(self, spool: Spool, writer: DatabaseWriter) -> None:
        self._spool = spool
        self._writer = writer
        self._foreign: set[str] = set()
        self._kept: dict[str, int] = {}
        self._jobs: dict[str, set[Job]] = {}
        self._lock = threading.Lock()

    def expect(self, names: Iterable[str]) -> None:
        """Have a look at these messages before they are delivered: another runner may be at it."""
        self._foreign.update(names)

    def foreign(self, name: str) -> bool:
        """Whether a message was another runner's, who has not been seen to let go of it."""
        return name in self._foreign

    def take_over(self, name: str) -> bool:
        """Become the one who delivers a message; False while another runner does."""
        if self._spool.is_locked(name):
            return False
        self._foreign.discard(name)
        return True

    def keep(self, jobs: Iterable[Job]) -> None:
        """Keep the messages of jobs that run from the next runner, until they are `done`."""
        with self._lock:
            for job in jobs:
                self._jobs.setdefault(job[0], set()).add(job)
            for name in self._jobs:
                with contextlib.suppress(OSError):  # gone already
                    self._kept[name] = self._spool.lock_message(name)
            self._writer.hand_over(self._jobs)
        self._writer.flush()

    def done(self, job: Job) -> None:
        """Let go of a message once its last job has ended."""
        name = job[0]
        with self._lock:
            jobs = self._jobs.get(name, set())
            jobs.discard(job)
            descriptor = None if jobs else self._kept.pop(name, None)
        if descriptor is not None:
            self._writer.hand_over([name])
            self._writer.flush()
            os.close(descriptor)
            self._spool.trigger.notify()
