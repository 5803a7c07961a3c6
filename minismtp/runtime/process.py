"""How each process of the server begins: its log, its metrics, and its tie to the supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from minismtp.config import Config
from minismtp.runtime.log import Log, bridge, capture
from minismtp.runtime.metrics import Metrics, use_slot
from minismtp.values.threads import count_failures, start_thread


def open_log(config: Config) -> Log:
    """Return the log of this process, which also takes what libraries and plugins write."""
    log = Log(level=config.log.level, style=config.log.format, patient=False)
    bridge(log, config.log.level)
    capture(log)
    return log


def open_log_and_metrics(
    config: Config, directory: Path, slot: int, listeners: Iterable[str] = ()
) -> tuple[Log, Metrics]:
    """Return the log and the metrics, which are kept in the files of `slot` in `directory`."""
    log = open_log(config)
    use_slot(directory, slot)
    metrics = Metrics(listeners)
    count_failures(metrics.thread_failed)
    log.count_dropped = metrics.log_dropped
    return log, metrics


def report_ready(descriptor: int) -> None:
    """Tell the supervisor, through the pipe that it gave this process, that this one serves."""
    os.write(descriptor, b"r")
    os.close(descriptor)


def end_with_supervisor(lifeline: int) -> None:
    """Send this process SIGTERM when the supervisor dies, which ends the pipe `lifeline`."""

    def wait() -> None:
        if not os.read(lifeline, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    start_thread("lifeline", wait)
