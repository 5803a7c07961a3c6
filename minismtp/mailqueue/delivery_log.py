"""The deliveries that run, for `minismtp sessions`, and the result of each attempt."""

from __future__ import annotations

import time
from time import perf_counter
from typing import Any

from minismtp.config import Config
from minismtp.mailqueue.scheduler import Job
from minismtp.runtime.control_socket import Answerer, Control, Say
from minismtp.runtime.decision_log import DecisionLog, Record
from minismtp.runtime.log import Log, bound
from minismtp.runtime.thread_activity import Activity, here


class DeliveryLog:
    """The running jobs, each with what its thread is doing, and the log of their attempts."""

    def __init__(self, config: Config, log: Log) -> None:
        self._directory = config.state_directory / "control"
        self._decisions = DecisionLog(config.state_directory, config.log.chronicle, log)
        self._log = log
        self._running: dict[Job, tuple[float, Activity]] = {}

    def start(self) -> None:
        """Start to answer questions and to write the decision log. Raise OSError."""
        self._decisions.start()
        flush = self._decisions.flush
        answers: dict[str, Answerer] = {"sessions": self._report, "flush": lambda _, __: flush()}
        Control(self._directory, "outbound", answers).start()

    def record(self, event: str, identifier: str, **fields: str | int) -> None:
        """Log an event of a message, and keep it with the steps of this thread's job."""
        self._log.log("info", event, {"id": identifier, **fields})
        steps, begun = [*here.activity.steps], perf_counter()
        if steps:
            begun = min(begun, steps[0][2])
        self._decisions.keep(Record(event, identifier, time.time(), begun, fields, steps))

    def close(self) -> None:
        """Write what is not written yet."""
        self._decisions.flush()

    def begin(self, job: Job) -> Activity:
        """Show a job of this thread from now until `end`. The thread enters the activity."""
        activity = Activity()
        bound()["id"] = job[0]
        self._running[job] = (time.monotonic(), activity)
        return activity

    def end(self, job: Job) -> None:
        """Show the job no more."""
        self._running.pop(job, None)
        bound().pop("id", None)

    def _report(self, question: dict[str, Any], say: Say) -> None:
        """Describe each delivery in the form of a session."""
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
            say(report | activity.stack() if question.get("stack") else report)
