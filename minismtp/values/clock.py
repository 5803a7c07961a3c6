"""Wall time for decisions, which does not follow a jump of the machine's clock at once.

A clock that is set wrong, or right again, moves against the monotonic clock. Whatever depends on
ages (limits, greylisting, expiry, signatures) would find everything years too old or too young. So
`steady_time` goes on for ten minutes as if nothing had happened, in which somebody may put the
clock right, and follows only after that. Each process logs the jumps that it notices. The first
reading is that of the supervisor, and the processes that it forks continue from it.

Headers and the log show what the machine's clock says: those use `time.time`.
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
_TOLERANCE: Final = 10.0  # seconds: smaller steps are followed at once, as they change no decision
_log = logging.getLogger(__name__)


class SteadyClock:
    """Wall time as the monotonic clock continues it; threads may share it."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset = wall() - monotonic()
        self._jumped_to: float | None = None  # the offset that is not followed yet
        self._jumped_at = -GRACE  # monotonic time of the last jump

    def time(self) -> float:
        """Return seconds since the epoch, without a jump of the last ten minutes."""
        monotonic = self._monotonic()
        offset = self._wall() - monotonic
        if self._jumped_to is not None or not _is_near(offset, self._offset):
            offset = self._settled()
        self._offset = offset
        return monotonic + offset

    def jumped_lately(self) -> bool:
        """Return whether the clock jumped within the last ten minutes."""
        self.time()
        return self._monotonic() - self._jumped_at < GRACE

    def _settled(self) -> float:
        """Return the offset to go by while the clock differs from what is expected."""
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
    """Return a span with its sign, as timedelta shows it: `-1 day, 0:00:00` would mislead."""
    return f"{'-' if seconds < 0 else '+'}{timedelta(seconds=round(abs(seconds)))}"


_clock = SteadyClock()
steady_time = _clock.time
jumped_lately = _clock.jumped_lately
