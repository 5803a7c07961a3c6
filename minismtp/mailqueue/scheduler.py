"""Which job is next, so that no dead or slow destination keeps the others waiting.

A job is one message for one destination. Each destination has a queue of its own, a number of jobs
that may run at once, and, after it could not be reached, a time before which nothing is tried: one
job finds out for all. That number starts at one and grows with each success, so a host that takes
its time, or none that answers, holds few places. And a quarter of the places is left to
destinations whose last job came through, however many of the others there are.

All times are seconds of one clock; the runner's is monotonic, so that nothing waits for hours
because somebody has set the clock back.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

Job: TypeAlias = tuple[str, str]  #: message and destination

JITTER = 0.1  #: the part of a wait that is left to chance
_KNOWN = 10_000  # destinations that are remembered while nothing waits for them


def delay(retry: Sequence[float], attempts: int) -> float:
    """Return the seconds until the next attempt after so many; the last wait repeats.

    Jitter of a tenth keeps messages of one moment from coming again at one moment.
    """
    wait = retry[min(max(attempts, 1), len(retry)) - 1]
    return wait * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret


@dataclass(slots=True)
class _Destination:
    jobs: list[tuple[float, str]] = field(default_factory=list)
    running: int = 0
    limit: int = 1
    failures: int = 0
    closed_until: float = 0.0
    proven: bool = False  # whether the last job that found out came through
    look_at: float = inf  # the head that counts; what the heaps have beside it is stale

    @property
    def idle(self) -> bool:
        return not (self.jobs or self.running or self.failures)


class Scheduler:
    """The jobs of the runner by time and destination. Not for several threads at once.

    `places` is how many jobs may run in all, `concurrency` how many for one destination.
    """

    def __init__(self, retry: Sequence[float], concurrency: int, places: int) -> None:
        self._retry = retry
        self._concurrency = concurrency
        self._places = places
        self._unproven_places = max(1, places * 3 // 4)
        self._destinations: dict[str, _Destination] = {}
        # When a destination is worth a look, by whether it is proven.
        self._heads: dict[bool, list[tuple[float, str]]] = {False: [], True: []}
        self._known: dict[Job, float] = {}  # waiting jobs; what the heaps have beside them is stale
        self._running: set[Job] = set()
        self._unproven_running = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def running(self) -> frozenset[Job]:
        """The jobs that run."""
        return frozenset(self._running)

    @property
    def active(self) -> int:
        """How many jobs run."""
        return len(self._running)

    def runs(self, job: Job) -> bool:
        """Whether a job runs."""
        return job in self._running

    def add(self, job: Job, when: float) -> None:
        """Plan a job, or plan it again; one that is running is left to `done`."""
        if job in self._running or self._known.get(job) == when:
            return
        message, name = job
        self._known[job] = when
        destination = self._destinations.get(name)
        if destination is None:
            destination = self._destinations[name] = _Destination()
        heapq.heappush(destination.jobs, (when, message))
        if destination.jobs[0][1] == message and destination.running < destination.limit:
            self._look(name, destination, when)

    def drop(self, job: Job) -> bool:
        """Forget a job that waits; False when there is none."""
        return self._known.pop(job, None) is not None

    def take(self, now: float) -> Job | None:
        """Start a job that is due and for which there is a place; None = none."""
        while (heads := self._due(now)) is not None:
            when, name = heapq.heappop(heads)
            destination = self._destinations.get(name)
            if destination is None or when != destination.look_at:
                continue
            destination.look_at = inf
            job = self.take_from(name, now)
            if job is not None:
                return job
        return None

    def take_from(self, name: str, now: float) -> Job | None:
        """Start a job for one destination, as who has a connection there wants."""
        destination = self._destinations.get(name)
        if destination is None or destination.running >= destination.limit:
            return None
        self._tidy(name, destination)
        if not destination.jobs:
            return None
        when, message = destination.jobs[0]
        if max(when, destination.closed_until) > now:
            self._plan(name, destination)
            return None
        heapq.heappop(destination.jobs)
        job = (message, name)
        del self._known[job]
        self._running.add(job)
        destination.running += 1
        self._unproven_running += not destination.proven
        self._plan(name, destination)
        return job

    def done(
        self, job: Job, now: float, *, reached: bool | None, again: float | None
    ) -> float | None:
        """End a job: whether the destination was reached (None = unknown), and when it is next.

        Gives for how many seconds the destination is closed from now on, 0 when it has just become
        open, None when neither changed.
        """
        self._running.discard(job)
        destination = self._destinations[job[1]]
        destination.running -= 1
        self._unproven_running -= not destination.proven
        changed = None if reached is None else self._learn(destination, now, reached=reached)
        if again is not None:
            self.add(job, again)
        self._plan(job[1], destination)
        if destination.idle and len(self._destinations) > _KNOWN:
            del self._destinations[job[1]]
        return changed

    def open(self, name: str) -> None:
        """Forget that a destination could not be reached: the operator wants another try.

        When that fails, its waits start again: trying often shall not make them long.
        """
        destination = self._destinations.get(name)
        if destination is not None:
            destination.failures = 0
            destination.closed_until = 0.0
            self._plan(name, destination)

    def next_time(self) -> float | None:
        """Return when `take` is worth a call again; None = not before something changes."""
        times = [heads[0][0] for heads in self._open_heads()]
        return min(times) if times else None

    def _learn(self, destination: _Destination, now: float, *, reached: bool) -> float | None:
        if destination.proven != reached:
            self._unproven_running += destination.running * (1 if destination.proven else -1)
            destination.proven = reached
            destination.look_at = inf  # it belongs to the other heads now
        if reached:
            was_closed = destination.failures > 0
            destination.failures = 0
            destination.closed_until = 0.0
            destination.limit = min(destination.limit + 1, self._concurrency)
            return 0.0 if was_closed else None
        if now < destination.closed_until:  # another job that was under way has found out
            return None
        destination.failures += 1
        wait = delay(self._retry, destination.failures)
        destination.limit = 1
        destination.closed_until = now + wait
        return wait

    def _open_heads(self) -> list[list[tuple[float, str]]]:
        """Return the heads for which there are places."""
        if len(self._running) >= self._places:
            return []
        kinds = [True]
        if self._unproven_running < self._unproven_places:
            kinds.append(False)
        return [self._heads[kind] for kind in kinds if self._heads[kind]]

    def _due(self, now: float) -> list[tuple[float, str]] | None:
        heads = min(self._open_heads(), key=lambda heads: heads[0], default=None)
        return heads if heads and heads[0][0] <= now else None

    def _plan(self, name: str, destination: _Destination) -> None:
        self._tidy(name, destination)
        if destination.jobs and destination.running < destination.limit:
            self._look(name, destination, destination.jobs[0][0])

    def _look(self, name: str, destination: _Destination, when: float) -> None:
        when = max(when, destination.closed_until)
        if when < destination.look_at:
            destination.look_at = when
            heapq.heappush(self._heads[destination.proven], (when, name))

    def _tidy(self, name: str, destination: _Destination) -> None:
        while destination.jobs:
            when, message = destination.jobs[0]
            if self._known.get((message, name)) == when:
                return
            heapq.heappop(destination.jobs)
