"""The server's question, from time to time, whether there is a newer release of minismtp.

A thread of the process that delivers asks the package index, if `[updates]` says so. The answer is
kept in the state directory, so a restart does not ask again, and `minismtp` shows it without a
question. An index that fails is one line in the log, and no mail waits for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from minismtp import __version__
from minismtp.config import Config
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server.known_release import is_newer, keep_answer, known_answer
from minismtp.services.release_index import newest_release
from minismtp.values.threads import start_thread

_FIRST: Final = 60.0  # seconds until the first question, so that a restart does not wait for it
_AGAIN: Final = 4 * 3600.0  # seconds until the next one after a failure
_JITTER: Final = 0.1
_chance: Final = random.SystemRandom()


class UpdateWatch:
    """Asks again and again. `running` is the version that runs."""

    def __init__(
        self, config: Config, metrics: Metrics, log: Log, *, running: str = __version__
    ) -> None:
        self._interval = config.updates.check.total_seconds()
        self._index = config.updates.index
        self._directory = config.state_directory
        self._running = running
        self._log = log
        self._told = ""
        self._failed = False
        text = "1 for the newest release of minismtp, if it is newer than the one that runs."
        gauge = partial(metrics.gauge, multiprocess_mode="livemostrecent")
        self._gauge = gauge("update_available", text, ["version"])

    def start(self) -> None:
        """Start the thread."""
        start_thread("updates", self.run)

    def run(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Ask for ever. A test may give `sleep`."""
        sleep(self._first_pause())
        while True:
            pause = self._interval if self.look() else min(self._interval, _AGAIN)
            sleep(pause * _chance.uniform(1 - _JITTER, 1 + _JITTER))

    def look(self) -> bool:
        """Ask once; return whether there was an answer."""
        try:
            newest = newest_release(self._index)
        except OSError as error:
            if not self._failed:
                self._log.info("the package index did not answer", error=str(error))
            self._failed = True
            return False
        self._failed = False
        keep_answer(self._directory, newest)
        self._tell(newest.text)
        return True

    def _first_pause(self) -> float:
        """Tell what is known from before the start; return the seconds until the next question."""
        soon = min(_FIRST, self._interval) * _chance.uniform(0.5, 1.0)
        answer = known_answer(self._directory)
        if answer is None:
            return soon
        self._tell(answer.version)
        age = time.time() - answer.asked
        return max(soon, self._interval - age) if age >= 0 else soon

    def _tell(self, version: str) -> None:
        """Log a version that is newer than the one that runs, once, and show it."""
        if version == self._told:
            return
        if self._told:
            self._gauge.labels(self._told).set(0)
        self._told = ""
        if is_newer(version, self._running):
            self._told = version
            self._gauge.labels(version).set(1)
            self._log.warning("newer release", version=version, running=self._running)
