"""Which job is next, so that no dead or slow destination keeps the others waiting.

A job is one message for one destination. Each destination has a queue of its own and a number of
jobs that may run at once. After it could not be reached it is closed until a certain time, then one
job tries it for all. The number of jobs starts at one and grows with each success, so a host that
is slow or does not answer holds few places. A quarter of the places is kept for proven
destinations, which are those whose last job reached them, however many others there are.

More threads than the processor has time for would only take the interpreter from each other: with
ten of them a message cost 70 more system calls. So while the process is busy, the number of jobs
for a destination that answers at once shrinks.

All times are seconds of one clock. The runner's is monotonic, so that nothing waits for hours
because the machine's clock was set back.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, TypeAlias

Job: TypeAlias = tuple[str, str]  #: message and destination

_chance: Final = random.SystemRandom()
JITTER = 0.1  #: the part of a wait that is left to chance
_REMEMBERED = 10_000  # destinations for which nothing waits
_QUICK = 0.02  # seconds of a job that waits for the processor rather than for a distant host
_PERIOD = 0.05  # seconds over which the use of the processor is measured
_BUSY = 0.85  # the part of that time
_FEWEST = 2  # jobs for a quick destination, because one of them may wait for the disk


def delay(retry: Sequence[float], attempts: int) -> float:
    """Return the seconds until the next attempt after `attempts`; the last wait repeats.

    A tenth of it is random, so that messages of one moment are not tried again at one moment.
    """
    wait = retry[min(max(attempts, 1), len(retry)) - 1]
    return wait * _chance.uniform(1 - JITTER, 1 + JITTER)


@dataclass(slots=True)
class _Destination:
    jobs: list[tuple[float, str]] = field(default_factory=list)
    running: int = 0
    limit: int = 1
    failures: int = 0
    closed_until: float = 0.0
    proven: bool = False  # whether the last job that tried to reach it did
    head: float = inf  # its valid entry in the heap of heads; others are stale

    @property
    def idle(self) -> bool:
        return not (self.jobs or self.running or self.failures)


class Scheduler:
    """The jobs of the runner by time and destination. Threads must not share it.

    `places` is the limit of all running jobs, `concurrency` of those for one destination. `is_busy`
    says whether the process has no time for more.
    """

    def __init__(
        self,
        retry: Sequence[float],
        concurrency: int,
        places: int,
        is_busy: Callable[[], bool] = bool,
    ) -> None:
        self._is_busy = is_busy
        self._retry = retry
        self._concurrency = concurrency
        self._places = places
        self._unproven_places = max(1, places * 3 // 4)
        self._destinations: dict[str, _Destination] = {}
        # When each destination has a job that is due, by whether the destination is proven.
        self._heads: dict[bool, list[tuple[float, str]]] = {False: [], True: []}
        self._waiting: dict[Job, float] = {}  # other jobs in the heaps are stale
        self._running: dict[Job, float] = {}  # with the time of its start
        self._unproven_running = 0
        #: Destinations that could not be reached, until a job reaches them.
        self.unreachable: set[str] = set()

    @property
    def running(self) -> frozenset[Job]:
        """The jobs that run."""
        return frozenset(self._running)

    def add(self, job: Job, when: float) -> None:
        """Plan a job, or change its time; a job that runs is left to `finish`."""
        if job in self._running or self._waiting.get(job) == when:
            return
        message, name = job
        self._waiting[job] = when
        destination = self._destinations.get(name)
        if destination is None:
            destination = self._destinations[name] = _Destination()
        heapq.heappush(destination.jobs, (when, message))
        if destination.jobs[0][1] == message and destination.running < destination.limit:
            self._push_head(name, destination, when)

    def drop(self, job: Job) -> bool:
        """Drop a job that waits; return False if it does not wait."""
        return self._waiting.pop(job, None) is not None

    def take(self, now: float) -> Job | None:
        """Start a job that is due and has a place; return None if there is no such job."""
        while (heads := self._due(now)) is not None:
            when, name = heapq.heappop(heads)
            destination = self._destinations.get(name)
            if destination is None or when != destination.head:
                continue
            destination.head = inf
            job = self.take_from(name, now)
            if job is not None:
                return job
        return None

    def take_from(self, name: str, now: float) -> Job | None:
        """Start a job for one destination, for a thread with a connection there."""
        destination = self._destinations.get(name)
        if destination is None or destination.running >= destination.limit:
            return None
        self._drop_stale(name, destination)
        if not destination.jobs:
            return None
        when, message = destination.jobs[0]
        if max(when, destination.closed_until) > now:
            self._plan(name, destination)
            return None
        heapq.heappop(destination.jobs)
        job = (message, name)
        del self._waiting[job]
        self._running[job] = now
        destination.running += 1
        self._unproven_running += not destination.proven
        self._plan(name, destination)
        return job

    def finish(
        self, job: Job, now: float, *, reached: bool | None, again: float | None
    ) -> float | None:
        """End a job: whether it reached the destination (None = unknown), and when it comes again.

        Return for how many seconds the destination is closed from now on, 0 if it just became open,
        or None if it stays as it was.
        """
        quick = now - self._running.pop(job, now) < _QUICK
        destination = self._destinations[job[1]]
        destination.running -= 1
        self._unproven_running -= not destination.proven
        changed = None
        if reached:
            self._note_reached(destination, quick=quick)
            if job[1] in self.unreachable:
                self.unreachable.remove(job[1])
                changed = 0.0
        elif reached is not None:
            changed = self._note_failure(destination, now)
            self.unreachable.add(job[1])
        if again is not None:
            self.add(job, again)
        self._plan(job[1], destination)
        if destination.idle and len(self._destinations) > _REMEMBERED:
            del self._destinations[job[1]]
        return changed

    def open(self, name: str) -> None:
        """Forget that a destination could not be reached, because the operator wants another try.

        If that fails, its waits start from the shortest, so that trying often does not make them
        long.
        """
        destination = self._destinations.get(name)
        if destination is not None:
            destination.failures = 0
            destination.closed_until = 0.0
            self._plan(name, destination)

    def next_time(self) -> float | None:
        """Return when `take` may find a job, or None if that takes a change."""
        times = [heads[0][0] for heads in self._open_heads()]
        return min(times) if times else None

    def is_due(self, now: float) -> bool:
        """Return whether a job is due, even if all places, or its destination's, are taken."""
        return any(heads and heads[0][0] <= now for heads in self._heads.values()) or any(
            self._is_due_at(name, now) for name in {name for _, name in self._running}
        )

    def _is_due_at(self, name: str, now: float) -> bool:
        destination = self._destinations[name]
        self._drop_stale(name, destination)
        return bool(destination.jobs) and destination.jobs[0][0] <= now

    def _note_reached(self, destination: _Destination, *, quick: bool) -> None:
        if not destination.proven:
            self._set_proven(destination, proven=True)
        destination.failures = 0
        destination.closed_until = 0.0
        if quick and destination.limit >= _FEWEST and self._is_busy():
            destination.limit = max(destination.limit - 1, _FEWEST)
        else:
            destination.limit = min(destination.limit + 1, self._concurrency)

    def _note_failure(self, destination: _Destination, now: float) -> float | None:
        """Close a destination, and return for how long; None if it is closed already."""
        if destination.proven:
            self._set_proven(destination, proven=False)
        if now < destination.closed_until:  # another job closed it meanwhile
            return None
        destination.failures += 1
        wait = delay(self._retry, destination.failures)
        destination.limit = 1
        destination.closed_until = now + wait
        return wait

    def _set_proven(self, destination: _Destination, *, proven: bool) -> None:
        self._unproven_running += destination.running * (-1 if proven else 1)
        destination.proven = proven
        destination.head = inf  # because it belongs into the other heap now

    def _open_heads(self) -> list[list[tuple[float, str]]]:
        """Return the heaps of heads for which there are places."""
        if len(self._running) >= self._places:
            return []
        kinds = [True]
        if self._unproven_running < self._unproven_places:
            kinds.append(False)
        return [self._heads[kind] for kind in kinds if self._heads[kind]]

    def _due(self, now: float) -> list[tuple[float, str]] | None:
        if len(self._running) >= self._places:
            return None
        first = None
        for proven, heads in self._heads.items():
            has_place = proven or self._unproven_running < self._unproven_places
            is_due = has_place and heads and heads[0][0] <= now
            if is_due and (first is None or heads[0] < first[0]):
                first = heads
        return first

    def _plan(self, name: str, destination: _Destination) -> None:
        self._drop_stale(name, destination)
        if destination.jobs and destination.running < destination.limit:
            self._push_head(name, destination, destination.jobs[0][0])

    def _push_head(self, name: str, destination: _Destination, when: float) -> None:
        when = max(when, destination.closed_until)
        if when < destination.head:
            destination.head = when
            heapq.heappush(self._heads[destination.proven], (when, name))

    def _drop_stale(self, name: str, destination: _Destination) -> None:
        while destination.jobs:
            when, message = destination.jobs[0]
            if self._waiting.get((message, name)) == when:
                return
            heapq.heappop(destination.jobs)


class ProcessorTime:
    """Tells whether this process, which can use one core, uses nearly all of its time."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._used = used
        self._last = (clock(), used())
        self._busy = False

    def is_busy(self) -> bool:
        """Return how it was in the last period; a call takes less than a microsecond."""
        since, before = self._last
        now = self._clock()
        if now - since >= _PERIOD:
            used = self._used()
            self._busy = used - before > _BUSY * (now - since)
            self._last = (now, used)
        return self._busy
