"""Runs jobs: reads the message, makes one attempt, and records the result.

The order of the steps makes a crash harmless. Notifications are queued before the result is
recorded, and a message leaves the spool when all its recipients are settled and reported. So after
a crash a step may happen twice, but none is left out. What settles only a part of a message is
written at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from minismtp.delivery.attempt import Attempt, DeliveryContext
from minismtp.delivery.progress import AttemptResult, DeliveryRequest
from minismtp.delivery.result import RecipientResult
from minismtp.mail.events import DeliveryAttempted
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.delivery_log import DeliveryLog
from minismtp.mailqueue.in_progress import InProgress, work_key
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.manager import JobResult, QueueManager
from minismtp.mailqueue.metrics import OutboundMetrics
from minismtp.mailqueue.notifications import Notifier, with_last_reply
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.mailqueue.scheduler import Job, delay
from minismtp.runtime.log import Log
from minismtp.values.clock import steady_time
from minismtp.values.threads import start_thread

_TURN = 10.0  # seconds after which a thread ends, so that the job that waits longest is next
_MOST = 100  # messages in one turn
_LINGER = 1.0  # seconds that a connection waits for another message
_BUSY = 1.0  # seconds until the next look at a message that another job or runner is at


@dataclass(slots=True)
class _Turn:
    """What one thread does: `job`, then others for the same destination."""

    attempt: Attempt
    job: Job | None


@dataclass(slots=True)
class DeliveryPool:
    """Starts delivery threads. `ended` counts the jobs that ended; `retry` is in seconds."""

    _delivery: DeliveryContext
    _manager: QueueManager
    _index: QueueIndex
    _in_progress: InProgress
    _notifier: Notifier
    _metrics: OutboundMetrics
    _deliveries: DeliveryLog
    _log: Log
    _retry: Sequence[float]
    ended: int = 0

    def start_jobs(self) -> None:
        """Start a thread for each job that is due and has a place."""
        while (job := self._index.take()) is not None:
            try:
                turn = _Turn(Attempt(self._delivery, job[1]), job)
                start_thread("delivery", partial(self._work, turn))
            except (RuntimeError, MemoryError) as error:  # the system has no more threads
                self._log.error("delivery not started", error=str(error))
                self._manager.finish(job, JobResult(wait=self._retry[0]))
                return

    def _work(self, turn: _Turn) -> None:
        """Do jobs for one destination one after the other, over one connection while it lasts.

        If this raises, it is called again with the same turn, and does a job that did not end once
        more. Recipients that are settled already are not sent the message again.
        """
        if turn.job not in self._index.running():
            turn.job = None
        attempt, end, left = turn.attempt, time.monotonic() + _TURN, _MOST
        try:
            while (job := turn.job) is not None:
                self._do(attempt, job)
                left -= 1
                more = left > 0 and time.monotonic() < end
                turn.job = self._index.take_from(job[1]) if more else None
                self.start_jobs()  # more may run at this destination now
                if more and turn.job is None and attempt.connected:
                    turn.job = self._index.take_from(job[1], _LINGER)
        finally:
            attempt.close()
            self.start_jobs()

    def _do(self, attempt: Attempt, job: Job) -> None:
        result = JobResult(wait=self._retry[0])
        key = work_key(*job)
        place = self._in_progress.begin(key)
        if place is None:
            self._manager.finish(job, JobResult(wait=_BUSY))
            return
        try:
            try:
                with self._deliveries.begin(job):
                    result = self._deliver(attempt, job)
            finally:  # also if the block could not begin, or the job would be under way for ever
                self._deliveries.end(job)
                self._manager.finish(job, result)
        except Exception as error:  # noqa: BLE001 - the job ended, and its message is planned
            self._log.exception("delivery failed", error, id=job[0])
        finally:
            self.ended += 1
            self._in_progress.end(place, key)

    def _deliver(self, attempt: Attempt, job: Job) -> JobResult:
        if not self._manager.may_deliver(job[0]):
            return JobResult(wait=_BUSY)
        queued = self._index.queued(*job)
        opened = self._manager.open(job[0]) if queued else None
        if opened is None:
            return JobResult()
        entry, message = opened
        begun = time.monotonic()
        targets = [entry.targets[each.number] for each in queued]
        attempts = max([each.attempts for each in queued])
        done = attempt.deliver(DeliveryRequest(entry, message, targets, attempts))
        now = steady_time()
        statuses = self._statuses(queued, done.results, now, self._index.left(entry.id))
        try:
            self._notifier.report(entry, message, statuses, [each.reports for each in done.results])
        except OSError as error:
            # The sender would not learn of a failure, so the recipients stay queued.
            self._log.error("notification not queued", id=entry.id, error=str(error))
            again = now + self._retry[0]
            statuses = [
                each._replace(state="deferred", next=again) if each.state == "failed" else each
                for each in statuses
            ]
        self._report(entry, statuses, done, time.monotonic() - begun, now)
        return JobResult(statuses, done.reached, done.results[0].reply)

    def _statuses(
        self,
        queued: list[RecipientStatus],
        results: list[RecipientResult],
        now: float,
        left: float,
    ) -> list[RecipientStatus]:
        """Return the new statuses of recipients whose message expires in `left` seconds."""
        statuses = []
        for status, result in zip(queued, results, strict=True):
            state, reply, again = result.state, sys.intern(result.reply), 0.0
            if state == "deferred" and left <= 0:
                state, reply = "failed", with_last_reply("550 5.4.7 delivery time expired", reply)
            elif state == "deferred":
                again = now + min(delay(self._retry, status.attempts + 1), left)
            statuses.append(status.attempted(state, reply, result.host, at=now, again=again))
        return statuses

    def _report(
        self,
        entry: QueueEntry,
        statuses: list[RecipientStatus],
        done: AttemptResult,
        seconds: float,
        now: float,
    ) -> None:
        """Tell the log, the metrics and the plugins of an attempt."""
        age = now - entry.arrived
        hooks = self._delivery.hooks
        for each in done.passed:
            self._metrics.next_host(each.recipients)
            self._deliveries.record(
                "another host tried",
                entry.id,
                host=each.host,
                recipients=each.recipients,
                reply=each.reply,
            )
        for status, result in zip(statuses, done.results, strict=True):
            address = entry.targets[status.number].address
            self._metrics.attempt(status.state, seconds, age, result.tls)
            self._deliveries.record(
                f"delivery {status.state}",
                entry.id,
                to=address,
                host=status.host,
                tls=result.tls,
                delay=f"{age:.1f}",
                seconds=f"{seconds:.3f}",
                reply=status.reply,
            )
            if hooks.observed:
                state = "queued" if status.state == "deferred" else status.state
                hooks.observe(
                    DeliveryAttempted(entry.id, address, state, status.host, status.reply)
                )
