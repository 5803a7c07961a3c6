"""Wall time for decisions, which does not follow a jump of the machine's clock at once.

When the clock is set wrong, or corrected, it moves against the monotonic clock. Limits,
greylisting, expiry and signatures depend on ages, and would take everything for years too old or
too young. So `steady_time` ignores a jump for ten minutes, in which an operator may correct the
clock, and follows it only after that. Each process logs the jumps that it notices. The supervisor
reads the clock first, and its children continue from that reading.

Headers and the log show the time of the machine's clock, so they use `time.time`.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE: Final = 600.0
"""Seconds for which a jump is not followed."""
# Seconds; smaller steps are followed at once, because they change no decision.
_TOLERANCE: Final = 10.0
_log = logging.getLogger(__name__)


class SteadyClock:
    """Wall time continued by the monotonic clock. Threads may share it."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset = wall() - monotonic()
        self._jumped_to: float | None = None  # the offset after a jump that is not followed yet
        self._jumped_at = -GRACE  # monotonic time of the last jump

    def time(self) -> float:
        """Return epoch seconds without a jump of the last ten minutes."""
        monotonic = self._monotonic()
        offset = self._wall() - monotonic
        if self._jumped_to is not None or abs(offset - self._offset) > _TOLERANCE:
            offset = self._settled()
        self._offset = offset
        return monotonic + offset

    def jumped_lately(self) -> bool:
        """Return whether the clock jumped within the last ten minutes."""
        self.time()
        return self._monotonic() - self._jumped_at < GRACE

    def _settled(self) -> float:
        """Return the offset to use while the clock differs from the expected time."""
        with self._lock:
            # Read again, because this thread may have been stopped between the two clocks.
            monotonic = self._monotonic()
            offset = self._wall() - monotonic
            if _is_near(offset, self._offset):
                if self._jumped_to is not None:
                    _log.warning("the clock of the machine is back where it was")
                self._jumped_to = None
                return offset
            if self._jumped_to is None or not _is_near(offset, self._jumped_to):
                self._jumped_to, self._jumped_at = offset, monotonic
                _log.warning(
                    "the clock of the machine jumped by %s; ages do not follow it for %d minutes",
                    _shown(offset - self._offset),
                    GRACE // 60,
                )
            elif monotonic - self._jumped_at >= GRACE:
                self._jumped_to = None
                _log.warning("ages follow the clock of the machine from now on")
                return offset
            return self._offset


def _is_near(offset: float, other: float) -> bool:
    return abs(offset - other) <= _TOLERANCE


def _shown(seconds: float) -> str:
    """Return a span with a sign, because timedelta shows -1 h as `-1 day, 23:00:00`."""
    return f"{'-' if seconds < 0 else '+'}{timedelta(seconds=round(abs(seconds)))}"


class Clock:
    """The time of a test, which goes on by itself and can be moved. Threads may share it.

    `monotonic` is for spans, and `wall` for epoch seconds, like `clock` and `wall` of a server.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall or steady_time
        self._monotonic = monotonic
        self._ahead = 0.0

    def advance(self, by: timedelta) -> None:
        """Let this much time pass at once. Raise ValueError for a negative time."""
        if by < timedelta(0):
            raise ValueError(f"expected a time to go forward, not {by}")
        self._ahead += by.total_seconds()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._monotonic() + self._ahead

    def wall(self) -> float:
        """Return epoch seconds."""
        return self._wall() + self._ahead


_clock = SteadyClock()
steady_time = _clock.time
jumped_lately = _clock.jumped_lately
