"""The totals of the last hour, which the status page plots."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

from minismtp.server.figures import Counts, Overview
from minismtp.values.threads import start_thread

INTERVAL: Final = 15.0  # seconds between two points of a plot
_POINTS: Final = 240  # an hour of them


class _Point(NamedTuple):
    at: float  # monotonic seconds
    flows: Counts
    errors: Counts


class History:
    """The totals of the last hour, which a thread notes every 15 seconds."""

    def __init__(self, look: Callable[[], Overview]) -> None:
        self._look = look
        self._points: tuple[_Point, ...] = ()  # replaced whole
        self._also: Callable[[], object] = bool

    def start(self) -> None:
        """Start the thread."""
        start_thread("history", self._run)

    def also(self, action: Callable[[], object]) -> None:
        """Have the thread call `action` at each look but the first one."""
        self._also = action

    def look(self, at: float) -> None:
        """Note the current totals. `at` is the time in monotonic seconds."""
        found = self._look()
        self._points = (*self._points[-_POINTS:], _Point(at, found.flows, {**found.errors}))

    def _run(self) -> None:
        while True:
            self.look(time.monotonic())
            time.sleep(INTERVAL)
            self._also()

    def rates(self, flow: str) -> list[float]:
        """Return the rates per second between the points, the oldest first."""
        return [
            max(0.0, now.flows[flow] - then.flows[flow]) / (now.at - then.at)
            for then, now in pairwise(self._points)
        ]

    @property
    def seconds(self) -> float:
        """How many seconds the points cover."""
        points = self._points
        return points[-1].at - points[0].at if points else 0.0

    def errors(self, figures: Overview) -> Counts:
        """Return how many exceptions each plugin raised since the first point."""
        before = self._points[0].errors if self._points else {}
        return {
            plugin: max(0.0, count - before.get(plugin, 0.0))
            for plugin, count in figures.errors.items()
        }
