"""Which job is next, so that no dead or slow destination keeps the others waiting (layer 6).

A job is one message for one destination. Each destination has a queue of its own, a number of jobs
that may run at once, and, after it could not be reached, a time before which nothing is tried: one
job finds out for all. That number starts at one and grows with each success, so a host that takes
its time, or none that answers, holds few threads.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Job: TypeAlias = tuple[str, str]  #: message and destination

_JITTER = 0.1


def delay(retry: Sequence[float], attempts: int) -> float:
    """Give the seconds until the next attempt after so many; the last wait repeats.

    Jitter of a tenth keeps messages of one moment from coming again at one moment.
    """
    wait = retry[min(max(attempts, 1), len(retry)) - 1]
    return wait * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


@dataclass(slots=True)
class _Destination:
    jobs: list[tuple[float, str]] = field(default_factory=list)
    running: int = 0
    limit: int = 1
    failures: int = 0
    closed_until: float = 0.0


class Agenda:
    """The jobs of the runner by time and destination; used under the runner's lock."""

    def __init__(self, retry: Sequence[float], concurrency: int) -> None:
        self._retry = retry
        self._concurrency = concurrency
        self._destinations: dict[str, _Destination] = {}
        self._heads: list[tuple[float, str]] = []
        self._known: dict[Job, float] = {}  # waiting jobs; what the heaps have beside them is stale
        self._running: set[Job] = set()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def running(self) -> int:
        """How many jobs run."""
        return len(self._running)

    def add(self, job: Job, when: float) -> None:
        """Plan a job, or plan it anew; one that is running is left to `done`."""
        if job in self._running or self._known.get(job) == when:
            return
        message, name = job
        self._known[job] = when
        destination = self._destinations.setdefault(name, _Destination())
        heapq.heappush(destination.jobs, (when, message))
        heapq.heappush(self._heads, (when, name))

    def take(self, now: float) -> Job | None:
        """Start a job that is due and that its destination allows; None = none."""
        while self._heads and self._heads[0][0] <= now:
            _, name = heapq.heappop(self._heads)
            job = self.take_from(name, now)
            if job is not None:
                return job
        return None

    def take_from(self, name: str, now: float) -> Job | None:
        """Start a job for one destination, as who has a connection there wants."""
        destination = self._destinations.get(name)
        if destination is None or destination.running >= destination.limit:
            return None  # `done` looks again
        self._tidy(name, destination)
        if not destination.jobs:
            return None
        when, message = destination.jobs[0]
        if max(when, destination.closed_until) > now:
            heapq.heappush(self._heads, (max(when, destination.closed_until), name))
            return None
        heapq.heappop(destination.jobs)
        job = (message, name)
        del self._known[job]
        self._running.add(job)
        destination.running += 1
        self._plan(name, destination)
        return job

    def done(self, job: Job, now: float, *, reached: bool | None, again: float | None) -> None:
        """End a job: whether the destination was reached (None = unknown), and when it is next."""
        self._running.discard(job)
        destination = self._destinations[job[1]]
        destination.running -= 1
        if reached:
            destination.failures = 0
            destination.closed_until = 0.0
            destination.limit = min(destination.limit + 1, self._concurrency)
        elif reached is False:
            destination.failures += 1
            destination.limit = 1
            destination.closed_until = now + delay(self._retry, destination.failures)
        if again is not None:
            self.add(job, again)
        self._plan(job[1], destination)
        if not destination.jobs and not destination.running and not destination.failures:
            del self._destinations[job[1]]

    def open(self, name: str) -> None:
        """Forget that a destination could not be reached: the operator wants another try."""
        destination = self._destinations.get(name)
        if destination is not None:
            destination.closed_until = 0.0
            self._plan(name, destination)

    def clear(self) -> None:
        """Forget all jobs but those that run; destinations stay known."""
        self._known.clear()
        self._heads.clear()
        for destination in self._destinations.values():
            destination.jobs.clear()

    def next_time(self) -> float | None:
        """Give when `take` is worth a call again; None = not before something changes."""
        return self._heads[0][0] if self._heads else None

    def _plan(self, name: str, destination: _Destination) -> None:
        self._tidy(name, destination)
        if destination.jobs and destination.running < destination.limit:
            when = max(destination.jobs[0][0], destination.closed_until)
            heapq.heappush(self._heads, (when, name))

    def _tidy(self, name: str, destination: _Destination) -> None:
        while destination.jobs:
            when, message = destination.jobs[0]
            if self._known.get((message, name)) == when:
                return
            heapq.heappop(destination.jobs)
