"""Absolute deadlines for threads that block on sockets (layer 6)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from minismtp.sending import Outbound
from minismtp.threads import start_thread, surviving


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each phase of a connection as a whole, sending included."""

    connect: float
    command: float
    data: float
    end: float

    @classmethod
    def of(cls, outbound: Outbound) -> Self:
        """Take them from the configuration."""
        return cls(
            outbound.connect_timeout.total_seconds(),
            outbound.command_timeout.total_seconds(),
            outbound.data_timeout.total_seconds(),
            outbound.end_timeout.total_seconds(),
        )


class Line(Protocol):
    """What a thread may wait for."""

    def hang_up(self) -> None:
        """Wake up who waits for it, from another thread; it cannot be used any more."""


class Deadlines:
    """Hangs up lines whose time has passed: a timeout for each wait would not end a drip.

    It looks every `interval` seconds.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval
        self._due: dict[Line, float] = {}
        self._passed: set[Line] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread that watches."""
        start_thread("deadlines", self._run)

    @contextlib.contextmanager
    def within(self, line: Line, seconds: float) -> Iterator[None]:
        """Give the block so long; what it waits for then ends, and TimeoutError is raised."""
        with self._lock:
            self._due[line] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                del self._due[line]
                passed = line in self._passed
                self._passed.discard(line)
            if passed:
                raise TimeoutError

    def _run(self) -> None:
        while True:
            time.sleep(self._interval)
            now = time.monotonic()
            with self._lock:
                for line, due in self._due.items():
                    if due <= now:
                        self._passed.add(line)
                        # One that its peer has reset cannot be shut down (ENOTCONN).
                        with surviving("deadlines"), contextlib.suppress(OSError):
                            line.hang_up()
