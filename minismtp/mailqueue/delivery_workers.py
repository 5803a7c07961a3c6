"""Takes jobs to their end: the message out of the spool, an attempt, what comes of it.

The order of the steps is what makes a crash harmless. Notifications are queued before the outcome
is noted, and a message leaves the spool when each of its recipients is settled and reported; so
after a crash something may happen twice, but nothing is left out. What settles only a part of a
message is written down at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from minismtp.delivery.attempt import Attempt, DeliveryContext
from minismtp.delivery.course import Done, Outgoing
from minismtp.mail.events import DeliveryAttempted
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.database import Outcome
from minismtp.mailqueue.delivery_log import Watch
from minismtp.mailqueue.manager import QueueManager, work
from minismtp.mailqueue.metrics import OutboundMetrics
from minismtp.mailqueue.notifications import Notifier, final
from minismtp.mailqueue.scheduler import Job, delay
from minismtp.values.clock import steady_time
from minismtp.values.threads import start_thread

_TURN = 10.0  # seconds after which a place goes to whoever waits longest
_MOST = 100  # messages in one turn
_LINGER = 1.0  # seconds that a connection waits for another message
_KEPT = 1.0  # seconds until a message is looked at again that has to wait for another's end


@dataclass(frozen=True, slots=True)
class _Result:
    """What a job has brought: see `QueueManager.done`."""

    reached: bool | None = None
    wait: float | None = None
    reply: str = ""


@dataclass(slots=True)
class _Turn:
    """What one thread does: `job`, and others for its destination."""

    attempt: Attempt
    job: Job | None


class DeliveryPool:
    """What all delivery threads share, and what starts them."""

    def __init__(
        self,
        delivery: DeliveryContext,
        manager: QueueManager,
        notifier: Notifier,
        metrics: OutboundMetrics,
        watch: Watch,
    ) -> None:
        self._delivery = delivery
        self._manager = manager
        self._index = manager.index
        self._notifier = notifier
        self._metrics = metrics
        self._watch = watch
        self.ended = 0  # jobs: while it grows, the queue moves
        self._log = manager.log
        outbound = delivery.config.outbound
        self._retry = [each.total_seconds() for each in outbound.retry]

    def start_jobs(self) -> None:
        """Start a thread for each job that is due and has a place."""
        while (job := self._index.take()) is not None:
            try:
                start_thread("delivery", self._turn(job))
            except (RuntimeError, MemoryError) as error:  # there are no more threads for us
                self._log.error("delivery not started", error=str(error))
                self._manager.done(job, wait=self._retry[0])
                return

    def _turn(self, job: Job) -> Callable[[], None]:
        return partial(self._work, _Turn(Attempt(self._delivery, job[1]), job))

    def _work(self, turn: _Turn) -> None:
        """Do jobs for one destination one after the other, over one connection while it holds.

        Where this has raised it is called again with the same turn, and does a job that has not
        ended once more: whose outcome is settled already is not sent again.
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
        result = _Result(wait=self._retry[0])
        key = work(*job)
        place = self._manager.in_progress.begin(key)
        if place is None:
            self._manager.done(job, wait=_KEPT)
            return
        try:
            with self._watch.on(job):
                result = self._deliver(attempt, job)
        except Exception as error:  # noqa: BLE001 - a job must never end without its message planned
            self._log.exception("delivery failed", error, id=job[0])
        finally:
            self.ended += 1
            self._manager.in_progress.end(place, key)
            self._manager.done(job, reached=result.reached, wait=result.wait, reply=result.reply)

    def _deliver(self, attempt: Attempt, job: Job) -> _Result:
        name, _ = job
        if not self._manager.ours(name):
            return _Result(wait=_KEPT)
        opened = self._manager.open(name)
        standing = self._index.standing(job)
        if opened is None or not standing:
            return _Result()
        entry, message = opened
        begun = time.monotonic()
        attempts = max(number for _, number in standing)
        targets = tuple(entry.targets[number] for number, _ in standing)
        done = attempt.deliver(Outgoing(entry, message, targets, attempts))
        now = steady_time()
        outcomes = self._outcomes(standing, done, now, self._index.left(name))
        try:
            self._notifier.report(entry, message, outcomes, [each.reports for each in done.answers])
        except OSError as error:
            # Nobody would hear of a failure; so it is none yet.
            self._log.error("notification not queued", id=name, error=str(error))
            again = now + self._retry[0]
            outcomes = [
                replace(each, state="queued", next=again) if each.state == "failed" else each
                for each in outcomes
            ]
        self._tell(entry, outcomes, done, time.monotonic() - begun, now)
        self._manager.settle(name, outcomes, now)
        waits = [max(0.0, each.next - now) for each in outcomes if each.state == "queued"]
        return _Result(done.reached, min(waits, default=None), done.answers[0].reply)

    def _outcomes(
        self, standing: list[tuple[int, int]], done: Done, now: float, left: float
    ) -> list[Outcome]:
        """Return what becomes of each recipient, by its answer and the seconds that are `left`."""
        outcomes = []
        for (number, attempts), answer in zip(standing, done.answers, strict=True):
            state, reply, when = answer.state, answer.reply, 0.0
            if state == "queued" and left <= 0:
                state, reply = "failed", final("550 5.4.7 delivery time expired", reply)
            elif state == "queued":
                when = now + min(delay(self._retry, attempts + 1), left)
            outcomes.append(Outcome(number, state, reply, answer.host, when))
        return outcomes

    def _tell(
        self, entry: QueueEntry, outcomes: list[Outcome], done: Done, seconds: float, now: float
    ) -> None:
        age = now - entry.arrived
        hooks = self._delivery.hooks
        for each in done.passed:
            self._metrics.next_host(each.recipients)
            self._watch.tell(
                "another host tried",
                entry.id,
                host=each.host,
                recipients=each.recipients,
                reply=each.reply,
            )
        for outcome, answer in zip(outcomes, done.answers, strict=True):
            address = entry.targets[outcome.number].address
            self._metrics.attempt(outcome.state, seconds, age, answer.tls)
            event = "deferred" if outcome.state == "queued" else outcome.state
            self._watch.tell(
                f"delivery {event}",
                entry.id,
                to=address,
                host=outcome.host,
                tls=answer.tls,
                delay=f"{age:.1f}",
                seconds=f"{seconds:.3f}",
                reply=outcome.reply,
            )
            if hooks.observed:
                hooks.observe(
                    DeliveryAttempted(entry.id, address, outcome.state, outcome.host, outcome.reply)
                )
