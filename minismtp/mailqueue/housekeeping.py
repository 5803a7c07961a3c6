"""What is not delivering: returns that operators want, expiry, news of delays.

It has a thread of its own, so that the return of 50,000 messages keeps no new one waiting.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from minismtp.mailqueue.database import Outcome, Row
from minismtp.mailqueue.manager import QueueManager, work
from minismtp.mailqueue.notifications import Notifier, final
from minismtp.runtime.log import describe
from minismtp.values.clock import steady_time
from minismtp.values.threads import start_thread, surviving

SWEEP: Final = 60.0  # seconds between two looks for messages that have become too old, at most
_PAUSE: Final = 0.1  # seconds between two looks whether another suspect is done with


class Housekeeper:
    """Sees to messages one after the other; `warn_after` is an age in seconds."""

    def __init__(self, manager: QueueManager, notifier: Notifier, *, warn_after: float) -> None:
        self._manager = manager
        self._schedule = manager.schedule
        self._index = manager.index
        self._notifier = notifier
        self._log = manager.log
        self._warn_after = warn_after
        self._interval = min(SWEEP, max(warn_after / 10, 1.0)) if warn_after else SWEEP
        self._unfinished: list[str] = []
        self._stopping = False

    def start(self) -> None:
        """Start the thread."""
        start_thread("clerk", self._run)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True

    def _run(self) -> None:
        next_sweep = time.monotonic()
        while not self._stopping:
            try:
                name = self._manager.decided.get(timeout=max(0.0, next_sweep - time.monotonic()))
            except queue.Empty:
                next_sweep = time.monotonic() + self._interval
                self._sweep()
            else:
                with surviving("clerk") as attempt, self._noted(name):
                    self._see_to(name)
                if attempt.failed:
                    self._unfinished.append(name)

    def _see_to(self, name: str) -> None:
        """Return or remove a message as an operator has decided."""
        numbers = self._manager.index.decided(name)
        if self._return(name, numbers, "550 5.0.0 returned by the postmaster"):
            self._log.info("done as the postmaster wants", id=name, returned=len(numbers))
        else:
            self._unfinished.append(name)

    def _sweep(self) -> None:
        """Look for messages that are too old, or whose sender should hear of a delay."""
        now = steady_time()
        for name in self._unfinished:
            self._manager.decided.put(name)
        self._unfinished.clear()
        try:
            late = self._schedule.to_warn(now - self._warn_after) if self._warn_after else []
            # Those whose destination is tried end with their last attempt, before this.
            expired = self._index.overdue(SWEEP)
        except sqlite3.Error as error:
            self._log.error("schedule not read", error=describe(error))
            return
        for name in late:
            if self._index.age(name) < self._warn_after:  # the clock has jumped
                continue
            with surviving("clerk"), self._noted(name):
                self._warn(name)
        for name in expired:
            with surviving("clerk"), self._noted(name):
                self._expired(name)

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        key = work(name)
        place = self._manager.in_progress.begin(key)
        while place is None:
            time.sleep(_PAUSE)
            place = self._manager.in_progress.begin(key)
        try:
            yield
        finally:
            self._manager.in_progress.end(place, key)

    def _expired(self, name: str) -> None:
        numbers = self._manager.index.withdraw(name)
        if numbers:
            self._return(name, numbers, "550 5.4.7 delivery time expired")

    def _return(self, name: str, numbers: list[int], text: str) -> bool:
        """End the wait of recipients, reported as failed; False when that was not possible."""
        try:
            opened = self._manager.open(name)
            if opened is None:
                return True
            entry, message = opened
            rows = {row.number: row for row in self._rows(name)}
            outcomes = []
            for number in numbers:
                row = rows.get(number)
                reply = self._reason(row) if row else ""
                host = row.host if row else ""
                outcomes.append(Outcome(number, "failed", final(text, reply), host))
            self._notifier.report(entry, message, outcomes, [False] * len(outcomes))
        except (OSError, sqlite3.Error) as error:
            self._log.error("not returned yet, tried again", id=name, error=describe(error))
            return False
        self._manager.settle(name, outcomes, steady_time())
        return True

    def _warn(self, name: str) -> None:
        try:
            rows = [row for row in self._rows(name) if row.state == "queued"]
            opened = self._manager.open(name) if rows else None
            if opened is None:
                return
            told = [replace(row, reply=self._reason(row)) for row in rows]
            self._notifier.warn(*opened, told)
        except (OSError, sqlite3.Error) as error:
            self._log.error("delay not told yet, tried again", id=name, error=describe(error))
            return
        self._manager.writer.warned(name)

    def _rows(self, name: str) -> list[Row]:
        self._manager.writer.flush()
        return self._schedule.rows(name)

    def _reason(self, row: Row) -> str:
        """Return why a recipient waits: its last reply, or that of its destination."""
        return row.reply or self._schedule.closed_reply(row.destination)
