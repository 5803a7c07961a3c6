"""What the queue does beside delivering: returns by operators, expiry, warnings of delays.

It has a thread of its own, so that the return of 50,000 messages does not delay new ones.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from minismtp.mailqueue.database import DatabaseWriter
from minismtp.mailqueue.in_progress import InProgress, work_key
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.manager import QueueManager
from minismtp.mailqueue.notifications import Notifier, with_last_reply
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.runtime.log import Log, describe
from minismtp.values.clock import steady_time
from minismtp.values.threads import start_thread, surviving

SWEEP: Final = 60.0  # the most seconds between two looks for messages that are too old
_PAUSE: Final = 0.1  # seconds between two looks whether the job of another suspect ended


@dataclass(slots=True)
class Housekeeper:
    """Works on one message after the other; `warn_after` is an age in seconds, 0 = never."""

    _manager: QueueManager
    _index: QueueIndex
    _writer: DatabaseWriter
    _in_progress: InProgress
    _notifier: Notifier
    _log: Log
    _warn_after: float
    _unfinished: list[str] = field(default_factory=list)
    _stopping: bool = False

    def start(self) -> None:
        """Start the thread."""
        start_thread("clerk", self._run)

    def stop(self) -> None:
        """Begin no further message."""
        self._stopping = True

    def _run(self) -> None:
        next_sweep = time.monotonic()
        interval = min(SWEEP, max(self._warn_after / 10, 1.0)) if self._warn_after else SWEEP
        while not self._stopping:
            try:
                name = self._manager.decided.get(timeout=max(0.0, next_sweep - time.monotonic()))
            except queue.Empty:
                next_sweep = time.monotonic() + interval
                self._sweep()
            else:
                with surviving("clerk") as attempt, self._in_progress_of(name):
                    self._carry_out(name)
                if attempt.failed:
                    self._unfinished.append(name)

    def _carry_out(self, name: str) -> None:
        """Return or remove the recipients of a message, as an operator decided."""
        bounced = self._index.bounced(name)
        if self._return(name, bounced, "550 5.0.0 returned by the postmaster"):
            self._log.info("done as the postmaster wants", id=name, returned=len(bounced))
        else:
            self._unfinished.append(name)

    def _sweep(self) -> None:
        """Look for messages that are too old, or whose sender should be warned of a delay."""
        for name in self._unfinished:
            self._manager.decided.put(name)
        self._unfinished.clear()
        for name in self._index.unwarned(self._warn_after) if self._warn_after else ():
            with surviving("clerk"), self._in_progress_of(name):
                self._warn(name)
        # Where a destination is tried, messages end with their last attempt, before this.
        for name in self._index.overdue(SWEEP):
            with surviving("clerk"), self._in_progress_of(name):
                expired = self._index.withdraw(name)
                if expired:
                    self._return(name, expired, "550 5.4.7 delivery time expired")

    @contextlib.contextmanager
    def _in_progress_of(self, name: str) -> Iterator[None]:
        key = work_key(name)
        while (place := self._in_progress.begin(key)) is None:
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            self._in_progress.end(place, key)

    def _return(self, name: str, statuses: list[RecipientStatus], text: str) -> bool:
        """Report recipients as failed, and settle them; return False if that was not possible."""
        try:
            opened = self._manager.open(name)
            if opened is None:
                return True
            failed = [
                each.attempted(
                    "failed",
                    with_last_reply(text, self._manager.reason(each)),
                    each.host,
                    at=steady_time(),
                )
                for each in statuses
            ]
            self._notifier.report(*opened, failed, [False] * len(failed))
        except OSError as error:
            self._log.error("not returned yet, tried again", id=name, error=describe(error))
            return False
        self._manager.settle(name, failed)
        return True

    def _warn(self, name: str) -> None:
        queued = self._index.queued(name)
        try:
            opened = self._manager.open(name) if queued else None
            if opened is None:
                return
            told = [each._replace(reply=self._manager.reason(each)) for each in queued]
            self._notifier.warn(*opened, told)
        except OSError as error:
            self._log.error("delay not told yet, tried again", id=name, error=describe(error))
            return
        self._index.warned(name)
        with self._writer as batch:
            batch.warned.add(name)
