"""What is known of deliveries: those under way, and what became of each attempt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from minismtp.config import Config
from minismtp.mailqueue.scheduler import Job
from minismtp.runtime.control_socket import Answerer, Control, Say
from minismtp.runtime.decision_log import DecisionLog, Record
from minismtp.runtime.log import Log, bind, unbind
from minismtp.runtime.thread_activity import Activity, current, taken_up


class Watch:
    """The jobs that run, each with what its thread is doing."""

    def __init__(self, config: Config, log: Log) -> None:
        self._directory = config.state_directory / "control"
        self._chronicle = DecisionLog(config.state_directory, config.log.chronicle, log)
        self._log = log
        self._running: dict[Job, tuple[float, Activity]] = {}

    def start(self) -> None:
        """Answer questions, and write down what is told. Raise OSError."""
        self._chronicle.start()
        flush = self._chronicle.flush
        answers: dict[str, Answerer] = {"sessions": self._report, "flush": lambda _, __: flush()}
        Control(self._directory, "outbound", answers).start()

    def tell(self, event: str, identifier: str, **fields: str | int) -> None:
        """Log what became of a message, and keep it with the steps of this thread's job."""
        self._log.info(event, id=identifier, **fields)
        steps, begun = [*current().steps], perf_counter()
        if steps:
            begun = min(begun, steps[0][2])
        self._chronicle.keep(Record(event, identifier, time.time(), begun, fields, steps))

    def close(self) -> None:
        """Write what was told."""
        self._chronicle.flush()

    @contextlib.contextmanager
    def on(self, job: Job) -> Iterator[None]:
        """Show a job, which this thread does, for as long as a block."""
        activity = Activity()
        bind(id=job[0])
        self._running[job] = (time.monotonic(), activity)
        try:
            with taken_up(activity):
                yield
        finally:
            del self._running[job]
            unbind("id")

    def _report(self, question: dict[str, Any], say: Say) -> None:
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
