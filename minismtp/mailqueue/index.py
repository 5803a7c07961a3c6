"""All that waits, in memory: where each recipient stands, and the agenda of jobs.

This is what the runner acts on. Every method costs as much as it changes, whatever the length of
the queue. Times of jobs are waits in seconds from now, by the monotonic clock: the wall clock may
jump, a job may not.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from queue import Empty, SimpleQueue
from typing import Final

from minismtp.mailqueue.database import OPEN, Outcome, Row, State
from minismtp.mailqueue.scheduler import Job, Scheduler
from minismtp.values.clock import GRACE, steady_time

_EARLIEST: Final = 1_577_836_800.0  # 2020, before there was this program
_MOST_IDLE: Final = 50  # connections that wait for another message


@dataclass(slots=True)
class QueuedMessage:
    """Where one recipient stands."""

    destination: str
    state: State = "queued"
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Census:
    """How many messages wait by state, how many jobs run, and when the oldest message arrived."""

    states: Mapping[str, int]
    active: int
    oldest: float | None


@dataclass(slots=True)
class _Message:
    arrived: float
    recipients: list[QueuedMessage]
    returned_at: float  # by the clock of the backlog, as is what follows
    known: float
    age: float  # when it became known

    def state(self) -> str:
        """Return the state that the metrics count it under."""
        queued = [each for each in self.recipients if each.state == "queued"]
        if queued:
            return "deferred" if any(each.attempts for each in queued) else "queued"
        return "held" if any(each.state == "held" for each in self.recipients) else ""


class QueueIndex:
    """The waiting messages. Safe in several threads.

    `expire` is the age in seconds at which they go back. A message ages by the monotonic clock from
    when it is known here; only what it is then is by the wall clock, as far as that is plausible.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
        *,
        wall: Callable[[], float] = steady_time,
        expire: float = inf,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._wall = wall
        self._expire = expire
        self._messages: OrderedDict[str, _Message] = OrderedDict()
        self._states = {"queued": 0, "deferred": 0, "held": 0, "": 0}
        self._stopped = False
        self._hands: dict[str, list[SimpleQueue[Job | None]]] = {}
        self._idle = 0  # threads that wait in `take_from`
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._messages

    def __len__(self) -> int:
        return len(self._messages)

    def add(
        self, name: str, arrived: float, recipients: list[QueuedMessage], waits: Mapping[str, float]
    ) -> None:
        """Take on a message, its recipients in the order of the envelope.

        `waits` has the seconds until the first attempt for destinations that are not tried now.
        """
        known, age = self._clock(), max(0.0, self._wall() - arrived)
        if arrived < _EARLIEST:  # by a machine that did not know the time yet
            age = 0.0
        # What is too old already is tried once more: the clock may be wrong just after a start.
        left = self._expire - age if age < self._expire else GRACE
        message = _Message(arrived, recipients, known + left, known, age)
        with self._lock:
            if name not in self._messages:
                self._messages[name] = message
                self._states[message.state()] += 1
                self._plan(name, message, waits)

    def take(self) -> Job | None:
        """Start a job that is due and for which there is a place; None = none.

        One for which a thread waits in `take_from` goes there.
        """
        with self._lock:
            while not self._stopped and (job := self._scheduler.take(self._clock())) is not None:
                hands = self._hands.get(job[1])
                if not hands:
                    return job
                hands.pop().put(job)
        return None

    def take_from(self, destination: str, patience: float = 0.0) -> Job | None:
        """Start a job for one destination, or wait for one for some seconds; None = none is due."""
        with self._lock:
            if self._stopped:
                return None
            job = self._scheduler.take_from(destination, self._clock())
            if job is not None or not patience or self._idle >= _MOST_IDLE:
                return job
            hand: SimpleQueue[Job | None] = SimpleQueue()
            self._hands.setdefault(destination, []).append(hand)
            self._idle += 1
        try:
            return hand.get(timeout=patience)
        except Empty:
            with self._lock:
                self._hands[destination] = [h for h in self._hands[destination] if h is not hand]
            return None if hand.empty() else hand.get()
        finally:
            with self._lock:
                self._idle -= 1
                if not self._hands.get(destination):
                    self._hands.pop(destination, None)

    def patience(self) -> float | None:
        """Return the seconds until `take` is worth a call; None = not before something changes."""
        with self._lock:
            when = self._scheduler.next_time()
        return None if when is None else max(0.0, when - self._clock())

    def standing(self, job: Job) -> list[tuple[int, int]]:
        """Return number and attempts of the recipients that a job is to try."""
        name, destination = job
        with self._lock:
            message = self._messages.get(name)
            if message is None:
                return []
            return [
                (number, each.attempts)
                for number, each in enumerate(message.recipients)
                if each.destination == destination and each.state == "queued"
            ]

    def age(self, name: str) -> float:
        """Return how old a message is in seconds; 0 when there is none."""
        with self._lock:
            message = self._messages.get(name)
            return message.age + self._clock() - message.known if message else 0.0

    def left(self, name: str) -> float:
        """Return the seconds until a message goes back, below 0 when it should have."""
        with self._lock:
            message = self._messages.get(name)
            return message.returned_at - self._clock() if message else inf

    def overdue(self, seconds: float) -> list[str]:
        """Return the messages that should have gone back so many seconds ago."""
        with self._lock:
            latest = self._clock() - seconds
            return [name for name, each in self._messages.items() if each.returned_at <= latest]

    def settle(self, name: str, outcomes: Iterable[Outcome]) -> bool:
        """Note outcomes; gives whether no recipient of the message waits any more.

        What an operator has decided during an attempt stands, unless that has settled it.
        """
        with self._lock:
            message = self._messages.get(name)
            if message is None:
                return True
            before = message.state()
            for outcome in outcomes:
                each = message.recipients[outcome.number]
                each.attempts += 1
                if each.state == "queued" or outcome.state != "queued":
                    each.state = outcome.state
            self._count(before, message)
            return not any(each.state in OPEN for each in message.recipients)

    def done(
        self, job: Job, *, reached: bool | None, wait: float | None
    ) -> tuple[float | None, bool]:
        """End a job; `wait` is after how many seconds to come again, None = not.

        Gives what `Scheduler.done` gives, and whether an operator wants the message back meanwhile.
        """
        name, destination = job
        with self._lock:
            now = self._clock()
            message = self._messages.get(name)
            recipients = message.recipients if message else []
            queued = any(r.destination == destination and r.state == "queued" for r in recipients)
            again = now + wait if wait is not None and queued else None
            changed = self._scheduler.done(job, now, reached=reached, again=again)
            return changed, any(each.state == "returning" for each in recipients)

    def forget(self, name: str) -> None:
        """Drop a message; jobs of it that run may end as they like."""
        with self._lock:
            message = self._messages.pop(name, None)
            if message is not None:
                self._states[message.state()] -= 1
                for destination in {each.destination for each in message.recipients}:
                    self._scheduler.drop((name, destination))

    def revise(self, name: str, rows: Sequence[Row], waits: Mapping[str, float]) -> bool:
        """Take over what an operator, or another runner, has decided about a message.

        Destinations that are tried now are given another chance. Gives whether somebody has to see
        to the message because its recipients were removed or are to be returned.
        """
        with self._lock:
            message = self._messages.get(name)
            if message is None:
                return False
            before = message.state()
            for row, each in zip(rows, message.recipients, strict=True):
                if each.state in OPEN:
                    each.state, each.attempts = row.state, row.attempts
            self._count(before, message)
            self._plan(name, message, waits)
            queued = {each.destination for each in message.recipients if each.state == "queued"}
            for destination in queued - waits.keys():
                self._scheduler.open(destination)
            states = {each.state for each in message.recipients}
            return "returning" in states or not states & OPEN

    def decided(self, name: str) -> list[int]:
        """Return the recipients that are to be returned and that no job tries just now."""
        with self._lock:
            message = self._messages.get(name)
            return [] if message is None else self._unattended(name, message, "returning")

    def withdraw(self, name: str) -> list[int]:
        """Return the queued recipients that no job tries just now, and let none try them again."""
        with self._lock:
            message = self._messages.get(name)
            if message is None:
                return []
            found = self._unattended(name, message, "queued")
            for number in found:
                self._scheduler.drop((name, message.recipients[number].destination))
            return found

    def stop(self) -> frozenset[Job]:
        """Start no more jobs; gives those that run."""
        with self._lock:
            self._stopped = True
            for hands in self._hands.values():
                while hands:
                    hands.pop().put(None)
            return self._scheduler.running

    def running(self) -> frozenset[Job]:
        """Return the jobs that run."""
        with self._lock:
            return self._scheduler.running

    def census(self) -> Census:
        """Count."""
        with self._lock:
            states = {name: count for name, count in self._states.items() if name}
            oldest = next(iter(self._messages.values())).arrived if self._messages else None
            return Census(states, self._scheduler.active, oldest)

    def _unattended(self, name: str, message: _Message, state: State) -> list[int]:
        return [
            number
            for number, each in enumerate(message.recipients)
            if each.state == state and not self._scheduler.runs((name, each.destination))
        ]

    def _plan(self, name: str, message: _Message, waits: Mapping[str, float]) -> None:
        now = self._clock()
        queued = {each.destination for each in message.recipients if each.state == "queued"}
        for destination in queued:
            self._scheduler.add((name, destination), now + waits.get(destination, 0.0))
        for destination in {each.destination for each in message.recipients} - queued:
            self._scheduler.drop((name, destination))

    def _count(self, before: str, message: _Message) -> None:
        self._states[before] -= 1
        self._states[message.state()] += 1
