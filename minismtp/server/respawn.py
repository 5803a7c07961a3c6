"""When a process that ended is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SHORT_LIFE: Final = 10.0  # seconds; a process that dies younger is replaced after a pause
_LONGEST_PAUSE: Final = 5.0


class Respawn:
    """Keeps one process of a kind running, as seen by the supervisor.

    `start` returns the id of the process that it started, or 0 if none is needed now. It may raise
    OSError or MemoryError, and is called again at the next step.
    """

    def __init__(self, start: Callable[[], int]) -> None:
        self._start = start
        self._pid = 0
        self._pause = 0.0
        self._next = 0.0

    def step(self) -> None:
        """Start the process if it is missing and its pause is over."""
        if not self._pid and time.monotonic() >= self._next:
            self._pid = self._start()

    def ended(self, pid: int, now: float, lived: float) -> None:
        """Note that a process ended at `now` after it `lived` for some seconds."""
        if pid == self._pid:
            self._pid = 0
            self._pause = pause(self._pause, lived)
            self._next = now + self._pause

    def replace(self) -> None:
        """Let the next step start another process. The present one was told to end."""
        self._pid = 0


def pause(before: float, lived: float) -> float:
    """Return the pause before a dead process is replaced, in seconds.

    `before` is the pause before it started, and `lived` how long it ran. The pause grows while
    processes die young. It stays short, because mail waits meanwhile.
    """
    return 0.0 if lived >= SHORT_LIFE else min(max(before * 2, 1.0), _LONGEST_PAUSE)
