"""Absolute deadlines for threads that block on sockets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Protocol, Self

from minismtp.config.outbound_tables import Outbound
from minismtp.values.threads import start_thread, surviving


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each phase of a connection as a whole, sending included.

    `data` is for progress: octets of content buy it back at `rate`, until `content` has passed.
    """

    connect: float
    command: float
    data: float
    end: float
    content: float = inf
    rate: float = inf

    @classmethod
    def of(cls, outbound: Outbound) -> Self:
        """Take them from the configuration."""
        return cls(
            outbound.connect_timeout.total_seconds(),
            outbound.command_timeout.total_seconds(),
            outbound.data_timeout.total_seconds(),
            outbound.end_timeout.total_seconds(),
            outbound.content_timeout.total_seconds(),
            outbound.min_data_rate,
        )


class Interruptible(Protocol):
    """What a thread may wait for."""

    def hang_up(self) -> None:
        """Wake up who waits for it, from another thread; it cannot be used any more."""


class Deadlines:
    """Hangs up lines whose time has passed: a timeout for each wait would not end a drip.

    It looks every `interval` seconds.
    """

    def __init__(self, interval: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._due: dict[Interruptible, float] = {}
        self._passed: set[Interruptible] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread that watches."""
        start_thread("deadlines", self._run)

    @contextlib.contextmanager
    def within(self, line: Interruptible, seconds: float) -> Iterator[None]:
        """Let the block run for `seconds`, then end its waits and raise TimeoutError."""
        with self._lock:
            self._due[line] = self._clock() + seconds
        try:
            yield
        finally:
            with self._lock:
                del self._due[line]
                passed = line in self._passed
                self._passed.discard(line)
            if passed:
                raise TimeoutError

    def progress(self, line: Interruptible, seconds: float, *, most: float, end: float) -> None:
        """Allow the block of a line `seconds` more: `most` from now, and until `end` at most.

        `end` is a time of this clock.
        """
        with self._lock:
            if line in self._due:
                self._due[line] = min(self._due[line] + seconds, self._clock() + most, end)

    def now(self) -> float:
        """Return the time of this clock."""
        return self._clock()

    def look(self) -> None:
        """Hang up the lines whose time has passed."""
        now = self._clock()
        with self._lock:
            for line, due in self._due.items():
                if due <= now:
                    self._passed.add(line)
                    # One that its peer has reset cannot be shut down (ENOTCONN).
                    with surviving("deadlines"), contextlib.suppress(OSError):
                        line.hang_up()

    def _run(self) -> None:
        while True:
            time.sleep(self._interval)
            self.look()
