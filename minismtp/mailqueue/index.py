"""All that waits, in memory: how each recipient stands, and the jobs of the scheduler.

This is what the runner acts on. Every method but `overdue`, `unwarned` and `counts` costs as much
as it changes, however long the queue is. The times of jobs are waits by the monotonic clock,
because the wall clock may jump and a job must not.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import Final

from minismtp.mailqueue.recipient import (
    OPEN,
    QUEUE_STATES,
    TRIED,
    RecipientStatus,
    State,
    message_state,
)
from minismtp.mailqueue.scheduler import Job, Scheduler
from minismtp.values.clock import GRACE, steady_time

_EARLIEST: Final = 1_577_836_800.0  # 2020, before this program existed
_MOST_IDLE: Final = 50  # connections that wait for another message
_state: Final[Callable[[RecipientStatus], State]] = attrgetter("state")
_destination: Final[Callable[[RecipientStatus], str]] = attrgetter("destination")


@dataclass(slots=True)
class _Message:
    arrived: float
    recipients: list[RecipientStatus]
    warned: bool
    expires: float  # by the clock of the index, as is what follows
    known: float
    age: float  # when it became known
    counted: State | frozenset[str] | None = None  # how the index counts it now

    def to_count(self) -> State | frozenset[str] | None:
        """Return the state under which it is counted.

        For a queued message return the destinations of its queued recipients, because the state
        depends on whether one of these could not be reached.
        """
        states = {*map(_state, self.recipients)}
        state = message_state(states)
        if state != "queued":
            return state
        if len(states) > 1:
            return frozenset([each.destination for each in self.recipients if each.state == state])
        return frozenset(map(_destination, self.recipients))


class QueueIndex:
    """The waiting messages. Threads may share it.

    `expire` is the age in seconds at which a message is returned. A message ages by the monotonic
    clock from when it is known here; its age at that moment is by the wall clock, as far as that is
    plausible. `longest` is the longest wait between attempts in seconds, which holds whatever the
    wall clock says.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
        *,
        wall: Callable[[], float] = steady_time,
        expire: float = inf,
        longest: float = inf,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._wall = wall
        self._expire = expire
        self._longest = longest
        self._messages: OrderedDict[str, _Message] = OrderedDict()
        self._counted: defaultdict[State | frozenset[str] | None, int] = defaultdict(int)
        self._stopped = False
        self._idle_threads: dict[str, list[SimpleQueue[Job | None]]] = {}
        self._idle = 0  # threads that wait in `take_from`
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._messages

    def __len__(self) -> int:
        return len(self._messages)

    def add(
        self, name: str, arrived: float, recipients: list[RecipientStatus], *, warned: bool = False
    ) -> None:
        """Add a message that arrived at a time in epoch seconds, its recipients in their order."""
        known, age = self._clock(), max(0.0, self._wall() - arrived)
        if arrived < _EARLIEST:  # by a machine whose clock was not set yet
            age = 0.0
        left = self._expire - age
        if left <= 0:  # tried once more without a warning, as the clock may be wrong after a start
            left, warned = GRACE, True
        message = _Message(arrived, recipients, warned, known + left, known, age)
        with self._lock:
            if name not in self._messages:
                self._messages[name] = message
                self._count(message)
                self._plan(name, message)

    def take(self) -> Job | None:
        """Start a job that is due and has a place; return None if there is no such job.

        A job for whose destination a thread waits in `take_from` goes to that thread.
        """
        with self._lock:
            while not self._stopped and (job := self._scheduler.take(self._clock())) is not None:
                threads = self._idle_threads.get(job[1])
                if not threads:
                    return job
                threads.pop().put(job)
        return None

    def take_from(self, destination: str, patience: float = 0.0) -> Job | None:
        """Start a job for one destination; return None if none is due within `patience` seconds."""
        with self._lock:
            if self._stopped:
                return None
            job = self._scheduler.take_from(destination, self._clock())
            if job is not None or not patience or self._idle >= _MOST_IDLE:
                return job
            offers: SimpleQueue[Job | None] = SimpleQueue()
            self._idle_threads.setdefault(destination, []).append(offers)
            self._idle += 1
        try:
            return offers.get(timeout=patience)
        except Empty:
            with self._lock:
                if offers in self._idle_threads.get(destination, ()):
                    self._idle_threads[destination].remove(offers)
                    return None
            return offers.get()  # `take` gave this thread a job, just after its patience ended
        finally:
            with self._lock:
                self._idle -= 1
                if not self._idle_threads.get(destination):
                    self._idle_threads.pop(destination, None)

    def seconds_to_next(self) -> float | None:
        """Return the seconds until `take` may find a job, or None if that takes a change."""
        with self._lock:
            when = self._scheduler.next_time()
        return None if when is None else max(0.0, when - self._clock())

    def is_due(self) -> bool:
        """Return whether a job is due, even if every place is taken."""
        with self._lock:
            return self._scheduler.is_due(self._clock())

    def queued(self, name: str, destination: str | None = None) -> list[RecipientStatus]:
        """Return the queued recipients of a message, or those of them at one destination."""
        with self._lock:
            message = self._messages.get(name)
            return [
                each
                for each in (message.recipients if message else ())
                if each.state in TRIED and destination in (None, each.destination)
            ]

    def left(self, name: str) -> float:
        """Return the seconds until a message expires, below 0 if it should have expired."""
        with self._lock:
            message = self._messages.get(name)
            return message.expires - self._clock() if message else inf

    def overdue(self, seconds: float) -> list[str]:
        """Return the messages that should have expired `seconds` ago."""
        with self._lock:
            latest = self._clock() - seconds
            return [name for name, each in self._messages.items() if each.expires <= latest]

    def unwarned(self, age: float) -> list[str]:
        """Return the messages older than `age` seconds whose sender was not warned of the delay."""
        with self._lock:
            latest = self._clock() - age
            return [
                name
                for name, each in self._messages.items()
                if not each.warned and each.known - each.age <= latest
            ]

    def warned(self, name: str) -> None:
        """Note that the sender of a message was warned."""
        with self._lock:
            if name in self._messages:
                self._messages[name].warned = True

    def settle(self, name: str, statuses: Iterable[RecipientStatus]) -> bool:
        """Take over the statuses after an attempt; return whether the whole message is settled.

        An operator's decision during the attempt stands, unless the attempt settled the recipient.
        """
        with self._lock:
            message = self._messages.get(name)
            if message is None:
                return True
            for status in statuses:
                state = message.recipients[status.number].state
                if state not in TRIED and status.state in TRIED:
                    status = status._replace(state=state)  # noqa: PLW2901
                message.recipients[status.number] = status
            if OPEN.isdisjoint(map(_state, message.recipients)):
                return True  # it is counted until `forget`
            self._recount(message)
            return False

    def finish(
        self, job: Job, *, reached: bool | None, wait: float | None
    ) -> tuple[float | None, bool]:
        """End a job; `wait` is in seconds, None = until the next attempt of its recipients.

        Return what `Scheduler.finish` returns, and whether an operator wants the message returned.
        """
        name, destination = job
        with self._lock:
            message, now = self._messages.get(name), self._clock()
            if message is None:
                return self._scheduler.finish(job, now, reached=reached, again=None), False
            again = self._waits(message.recipients).get(destination)
            if again is not None:
                again = now + (again if wait is None else wait)
            changed = self._scheduler.finish(job, now, reached=reached, again=again)
            return changed, any(each.state == "bounced" for each in message.recipients)

    def forget(self, name: str) -> None:
        """Drop a message; its jobs that run may end."""
        with self._lock:
            message = self._messages.pop(name, None)
            if message is not None:
                self._drop_count(message)
                for destination in {*map(_destination, message.recipients)}:
                    self._scheduler.drop((name, destination))

    def revise(self, name: str, statuses: Sequence[RecipientStatus]) -> bool:
        """Take over what an operator, or another runner, decided about a message.

        Destinations that are tried now are given another chance. Return whether recipients were
        removed or are to be returned, so that the message has to be looked after.
        """
        with self._lock:
            message = self._messages.get(name)
            if message is None:
                return False
            message.recipients = [
                new._replace(destination=old.destination) if old.state in OPEN else old
                for new, old in zip(statuses, message.recipients, strict=True)
            ]
            self._recount(message)
            for destination, wait in self._plan(name, message).items():
                if not wait:
                    self._scheduler.open(destination)
            states = {each.state for each in message.recipients}
            return "bounced" in states or not states & OPEN

    def bounced(self, name: str) -> list[RecipientStatus]:
        """Return the recipients that an operator wants returned and that no running job tries."""
        with self._lock:
            return self._untried(name, {"bounced"})

    def withdraw(self, name: str) -> list[RecipientStatus]:
        """Return the queued recipients that no running job tries, and drop the jobs for them."""
        with self._lock:
            found = self._untried(name, TRIED)
            for each in found:
                self._scheduler.drop((name, each.destination))
            return found

    def stop(self) -> frozenset[Job]:
        """Start no more jobs; return those that run."""
        with self._lock:
            self._stopped = True
            for threads in self._idle_threads.values():
                while threads:
                    threads.pop().put(None)
            return self._scheduler.running

    def running(self) -> frozenset[Job]:
        """Return the jobs that run."""
        with self._lock:
            return self._scheduler.running

    def counts(self) -> tuple[dict[str, int], float]:
        """Return how many messages wait by state, "active" for running jobs, and the oldest's age.

        That age is in seconds by the wall clock. This costs as much as there are destinations.
        """
        with self._lock:
            states, unreachable = dict.fromkeys(QUEUE_STATES, 0), self._scheduler.unreachable
            for counted, number in self._counted.items():
                if isinstance(counted, frozenset):
                    states["queued" if unreachable.isdisjoint(counted) else "deferred"] += number
                elif counted is not None:
                    states[counted] += number
            states["active"] = len(self._scheduler.running)
            oldest = next((each.arrived for each in self._messages.values()), inf)
            return states, max(0.0, self._wall() - oldest)

    def _untried(self, name: str, states: AbstractSet[State]) -> list[RecipientStatus]:
        message, running = self._messages.get(name), self._scheduler.running
        return [
            each
            for each in (message.recipients if message else ())
            if each.state in states and (name, each.destination) not in running
        ]

    def _waits(self, recipients: Iterable[RecipientStatus]) -> dict[str, float]:
        """Return the seconds until the next attempt at each destination of queued recipients."""
        waits: dict[str, float] = {}
        for each in recipients:
            if each.state in TRIED:
                wait = each.next - self._wall() if each.attempts else 0.0
                wait = min(max(wait, 0.0), self._longest)
                waits[each.destination] = min(wait, waits.get(each.destination, wait))
        return waits

    def _plan(self, name: str, message: _Message) -> dict[str, float]:
        now, waits = self._clock(), self._waits(message.recipients)
        for destination in {*map(_destination, message.recipients)}:
            if destination in waits:
                self._scheduler.add((name, destination), now + waits[destination])
            else:
                self._scheduler.drop((name, destination))
        return waits

    def _recount(self, message: _Message) -> None:
        self._drop_count(message)
        self._count(message)

    def _count(self, message: _Message) -> None:
        message.counted = counted = message.to_count()
        self._counted[counted] += 1

    def _drop_count(self, message: _Message) -> None:
        counted = message.counted
        self._counted[counted] -= 1
        if not self._counted[counted]:  # or each destination ever would stay
            del self._counted[counted]
