"""The waiting messages: keeps the spool, the backlog and the schedule in step."""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.database import Outcome, QueueDatabase, Row
from minismtp.mailqueue.handover import Handover
from minismtp.mailqueue.in_progress import InProgress
from minismtp.mailqueue.index import QueuedMessage, QueueIndex
from minismtp.mailqueue.journal import DatabaseWriter
from minismtp.mailqueue.scheduler import Job
from minismtp.runtime.log import Log, describe
from minismtp.storage.spool import DamagedError, Spool
from minismtp.values.clock import steady_time

_FRESH: Final = 50  # messages that are held open


def work(name: str, destination: str = "") -> str:
    """Return the key of some work on a message for `InProgress`; "" stands for all of it."""
    return f"{name} {destination}"


@dataclass(frozen=True, slots=True)
class QueueManager:
    """The messages of the runner; its methods are safe in several threads.

    `longest` is the longest wait between attempts in seconds: nothing waits longer, whatever the
    clock has shown. `decided` has the messages that an operator wants removed or returned, for
    `Clerk`. `count_aside` is told why a message is set aside: "damaged" or "fatal".
    """

    spool: Spool
    schedule: QueueDatabase
    writer: DatabaseWriter
    index: QueueIndex
    handover: Handover
    log: Log
    longest: float
    in_progress: InProgress
    count_aside: Callable[[str], None]
    decided: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _changed: set[str] = field(default_factory=set)
    _fresh: dict[str, tuple[QueueEntry, Message]] = field(default_factory=dict)

    def hold_open(self, entry: QueueEntry, message: Message) -> None:
        """Keep a new message for the delivery that probably follows at once."""
        if len(self._fresh) < _FRESH:
            self._fresh[entry.id] = (entry, message)

    def open(self, name: str) -> tuple[QueueEntry, Message] | None:
        """Read a message; None when there is none, or none that can be sent. Raise OSError."""
        fresh = self._fresh.pop(name, None)
        if fresh is not None:
            return fresh
        try:
            return self.spool.open(name)
        except FileNotFoundError:
            self._forget(name)
        except DamagedError as error:
            self.set_aside(name, error)
        return None

    def remove(self, name: str) -> None:
        """Drop a message whose every recipient is settled."""
        self.spool.remove(name)
        self._forget(name)

    def set_aside(self, name: str, error: DamagedError) -> None:
        """Put a file that `Spool.add` has not written so where it blocks nothing."""
        try:
            self.spool.set_aside(name)
        except OSError as problem:
            self.log.error("damaged message stays", id=name, error=f"{error}; {problem}")
        else:
            self.log.error("damaged message set aside in spool/damaged", id=name, error=str(error))
        self.count_aside("damaged")
        self._forget(name)

    def settle(self, name: str, outcomes: Sequence[Outcome], tried: float) -> None:
        """Note outcomes, or drop the message when nobody waits any more.

        What settles a part of the recipients is on disk when this returns, for they would get the
        message again.
        """
        if self.index.settle(name, outcomes):
            self.remove(name)
            return
        self.writer.record(name, outcomes, tried)
        if any(each.state != "queued" for each in outcomes):
            self.writer.flush()

    def done(
        self, job: Job, *, reached: bool | None = None, wait: float | None = None, reply: str = ""
    ) -> None:
        """End a job: see `Attempt` for `reached` and `reply`, `QueueIndex.done` for `wait`."""
        name, destination = job
        closed, returning = self.index.done(job, reached=reached, wait=wait)
        if closed:
            self.writer.close(destination, steady_time() + closed, reply)
        elif closed == 0.0:
            self.writer.open(destination)
        if returning:
            self.decided.put(name)
        self.handover.done(job)

    def ours(self, name: str) -> bool:
        """Whether a message is ours to deliver; False while the runner before us is at it."""
        if not self.handover.foreign(name):
            return True
        if not self.handover.take_over(name):
            return False
        self.revise(name)
        return True

    def hear_of_changes(self) -> None:
        """Take over what operators have decided since the last call."""
        try:
            self._changed.update(self.schedule.changed())
            if self._changed:
                self.writer.flush()  # or the file would not know of the newest attempts
            for name in list(self._changed):
                self.revise(name)
                self._changed.discard(name)
        except sqlite3.Error as error:
            self.log.error("schedule not read, tried again", error=describe(error))

    def revise(self, name: str) -> None:
        """Take over what the schedule's file says of a message. Raise sqlite3.Error."""
        rows = self.schedule.rows(name)
        if not rows:
            self.index.forget(name)  # by the runner before us
        elif self.index.revise(name, rows, self.waits(rows, rows)):
            self.decided.put(name)

    def waits(
        self, rows: Sequence[Row], recipients: Iterable[Row | QueuedMessage]
    ) -> dict[str, float]:
        """Return the seconds until the next attempt of the destinations that are not tried now."""
        now = steady_time()
        waits: dict[str, float] = {}
        for row, each in zip(rows, recipients, strict=True):
            if row.state == "queued" and row.next > now:
                wait = min(row.next - now, self.longest)
                waits[each.destination] = min(wait, waits.get(each.destination, wait))
        return waits

    def stop(self) -> int:
        """Let no more jobs start, and keep those that run; gives how many they are."""
        jobs = self.index.stop()
        self.handover.keep(jobs)
        for job in jobs - self.index.running():  # ended meanwhile
            self.handover.done(job)
        return len(jobs)

    def _forget(self, name: str) -> None:
        self._fresh.pop(name, None)
        self.index.forget(name)
        self.writer.forget(name)
