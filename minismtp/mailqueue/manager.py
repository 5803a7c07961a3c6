"""The waiting messages: keeps the spool, the index and the database in step."""

from __future__ import annotations

import queue
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.database import DatabaseWriter, QueueDatabase
from minismtp.mailqueue.handover import Handover
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.mailqueue.scheduler import Job
from minismtp.runtime.log import Log, describe
from minismtp.storage.spool import DamagedError, Spool
from minismtp.values.clock import steady_time

_MOST_OPEN: Final = 50  # new messages that are held open
_MOST_SMALL: Final = 2000  # the same, as long as they are small: at most 16 MiB
_SMALL: Final = 8192  # octets, which are in memory then
_KEPT: Final = 10.0  # seconds after which one makes room for a newer one


class JobResult(Struct, frozen=True):
    """What a job brought: the new statuses of the recipients that it tried.

    `reached` says whether the destination works, or None if that was not found out; `reply` is what
    the destination answered. The job comes again after `wait` seconds, or by default at the next
    attempt of its recipients.
    """

    statuses: Sequence[RecipientStatus] = ()
    reached: bool | None = None
    reply: str = ""
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class QueueManager:
    """The messages of the runner. Threads may share it.

    `count_set_aside` is called with the reason when a message is set aside, "damaged" or "fatal".
    `decided` has the messages of which an operator wants recipients removed or returned; the
    housekeeper takes them from there.
    """

    _spool: Spool
    _database: QueueDatabase
    _writer: DatabaseWriter
    _index: QueueIndex
    _handover: Handover
    _log: Log
    count_set_aside: Callable[[str], None]
    decided: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _changed: set[str] = field(default_factory=set)
    _closed: dict[str, str] = field(default_factory=dict)  # why destinations are not tried
    _open: dict[str, tuple[QueueEntry, Message]] = field(default_factory=dict)
    _kept: deque[tuple[float, str]] = field(default_factory=deque)  # since when these are open

    def keep_open(self, entry: QueueEntry, message: Message) -> None:
        """Keep a new message open for the delivery that probably follows at once.

        Only the runner's main thread calls this.
        """
        now, kept = time.monotonic(), self._kept
        while kept and (kept[0][1] not in self._open or now - kept[0][0] > _KEPT):
            self._open.pop(kept.popleft()[1], None)
        if len(self._open) < (_MOST_SMALL if message.size <= _SMALL else _MOST_OPEN):
            self._open[entry.id] = (entry, message)
            kept.append((now, entry.id))

    def open(self, name: str) -> tuple[QueueEntry, Message] | None:
        """Read a message; return None if it is gone or damaged. Raise OSError."""
        opened = self._open.pop(name, None)
        if opened is not None:
            return opened
        try:
            return self._spool.open(name)
        except FileNotFoundError:
            self._forget(name)
        except DamagedError as error:
            self.set_aside(name, error)
        return None

    def remove(self, name: str) -> None:
        """Drop a message whose recipients are all settled. Raise OSError."""
        self._spool.remove(name)
        self._forget(name)

    def set_aside(self, name: str, error: DamagedError) -> None:
        """Move a file that `Spool.add` did not write so into spool/damaged."""
        try:
            self._spool.set_aside(name)
        except OSError as problem:
            self._log.error("damaged message stays", id=name, error=f"{error}; {problem}")
        else:
            self._log.error("damaged message set aside in spool/damaged", id=name, error=str(error))
        self.count_set_aside("damaged")
        self._forget(name)

    def finish(self, job: Job, result: JobResult) -> None:
        """Record the result of a job, then end the job. Raise OSError if a file stays."""
        name, destination = job
        try:
            if result.statuses:
                self.settle(name, result.statuses)
        finally:
            closed, bounced = self._index.finish(job, reached=result.reached, wait=result.wait)
            if closed:
                self._closed[destination] = result.reply
                with self._writer as batch:
                    batch.closed[destination] = (steady_time() + closed, result.reply)
            elif closed == 0.0:
                self._closed.pop(destination, None)
                with self._writer as batch:
                    batch.closed[destination] = None
            if bounced:
                self.decided.put(name)
            self._handover.finish(job)

    def settle(self, name: str, statuses: Sequence[RecipientStatus]) -> None:
        """Record statuses after an attempt, or drop the message if no recipient waits any more.

        What settles a part of the recipients is on disk when this returns, because they would get
        the message again after a crash.
        """
        if self._index.settle(name, statuses):
            self.remove(name)
            return
        with self._writer as batch:
            batch.record(statuses)
        if any(each.state != "deferred" for each in statuses):
            self._writer.flush()

    def reason(self, status: RecipientStatus) -> str:
        """Return why a recipient waits: its last reply, or that of its destination."""
        return status.reply or self._closed.get(status.destination, "")

    def may_deliver(self, name: str) -> bool:
        """Return whether a message may be delivered; it may not while the last runner does."""
        if not self._handover.is_foreign(name):
            return True
        if not self._handover.take_over(name):
            return False
        self._revise(name)
        return True

    def apply_changes(self) -> None:
        """Take over what operators decided since the last call."""
        try:
            self._changed.update(self._database.changed())
            if self._changed:
                self._writer.flush()  # or the file would not have the newest attempts
            for name in list(self._changed):
                self._revise(name)
                self._changed.discard(name)
        except sqlite3.Error as error:
            self._log.error("schedule not read, tried again", error=describe(error))

    def stop(self) -> None:
        """Let no more jobs start, and keep the messages of those that run from the next runner."""
        jobs = self._index.stop()
        self._handover.keep(jobs)
        for job in jobs - self._index.running():  # these ended meanwhile
            self._handover.finish(job)

    def _revise(self, name: str) -> None:
        """Take over what the database says of a message. Raise sqlite3.Error."""
        statuses = self._database.statuses(name)
        if not statuses:
            self._index.forget(name)  # the last runner settled it
        elif self._index.revise(name, statuses):
            self.decided.put(name)

    def _forget(self, name: str) -> None:
        self._open.pop(name, None)
        self._index.forget(name)
        with self._writer as batch:
            batch.forget(name)
