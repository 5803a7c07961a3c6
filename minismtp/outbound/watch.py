"""Which deliveries are under way, for `minismtp sessions` (layer 6)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from minismtp.activity import Activity, taken_up
from minismtp.control import Say
from minismtp.outbound.agenda import Job


class Watch:
    """The jobs that run, each with what its thread is doing."""

    def __init__(self) -> None:
        self._running: dict[Job, tuple[float, Activity]] = {}

    @contextlib.contextmanager
    def on(self, job: Job) -> Iterator[None]:
        """Show a job, which this thread does, for as long as a block."""
        activity = Activity()
        self._running[job] = (time.monotonic(), activity)
        try:
            with taken_up(activity):
                yield
        finally:
            del self._running[job]

    def report(self, question: dict[str, Any], say: Say) -> None:
        """Say each delivery, in the form of a session."""
        now = time.monotonic()
        for (name, destination), (begun, activity) in [*self._running.items()]:
            report = activity.report() | {
                "id": name,
                "peer": destination,
                "listener": "outbound",
                "state": "delivering",
                "age": now - begun,
                "message": name,
            }
            say(report | {"stack": activity.stack()} if question.get("stack") else report)
