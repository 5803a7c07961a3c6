"""Whether the server should be sent mail, and what is wrong with it.

A server is not ready if it refuses mail or cannot deliver it, because a load balancer can then use
another instance. Failures of threads and lost lines of the log are only warnings. They stop no
mail, and one message may cause them at every instance, which the balancer must not all remove.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prometheus_client.core import Metric

from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.values.units import octets

#: The problems that make a server not ready, and those that are warnings.
FATAL: Final = ("workers", "queue", "state", "disk")
WARNINGS: Final = ("threads", "log")
_SILENCE: Final = 30.0  # seconds; a runner that starts reads the whole queue first
_RECENT: Final = 300.0  # seconds for which a warning is reported
_COUNTED: Final = {
    "minismtp_thread_failures": "threads",
    "minismtp_log_lines_dropped": "log",
}


class Readiness:
    """Finds the problems. Call `observe` regularly. `reserve` octets of the disk must stay free."""

    def __init__(
        self,
        scoreboard: Scoreboard,
        state_directory: Path,
        reserve: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scoreboard = scoreboard
        self._state_directory = state_directory
        self._reserve = reserve
        self._clock = clock
        self._begun = clock()
        self._counts: dict[tuple[str, str], float] = {}
        self._changed: dict[tuple[str, str], float] = {}  # when each count last grew

    def observe(self, families: Iterable[Metric]) -> None:
        """Note which of the counted warnings increased."""
        now = self._clock()
        for family in families:
            problem = _COUNTED.get(family.name)
            if problem is None:
                continue
            for sample in family.samples:
                key = (problem, sample.labels.get("thread", ""))
                if sample.value > self._counts.get(key, 0.0):
                    self._changed[key] = now
                self._counts[key] = sample.value

    def problems(self) -> dict[str, str]:
        """Return a sentence for each of `FATAL` and `WARNINGS` that is a problem now."""
        found = {
            "workers": "" if self._scoreboard.workers().ready else "no worker serves",
            "queue": self._queue(),
            "state": self._state(),
            "disk": self._disk(),
            "threads": self._threads(),
            "log": "lines were dropped because standard error is not read"
            if self._recent("log")
            else "",
        }
        return {problem: sentence for problem, sentence in found.items() if sentence}

    def _queue(self) -> str:
        queue = self._scoreboard.queue()
        if self._clock() - max(queue.beat, self._begun) > _SILENCE:
            return "the process that delivers does not answer"
        if queue.stuck:
            return "deliveries are due, but no attempt ended in the last quarter of an hour"
        return ""

    def _state(self) -> str:
        for name in ("", "spool/tmp", "spool/queue", "state.db", "spool/queue.db"):
            path = self._state_directory / name
            try:
                if path.is_dir():
                    _probe(path)
                elif name.endswith(".db"):
                    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                else:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:  # see `_disk`
                    where = name or "the state directory"
                    return f"{where} cannot be used: {error.strerror}"
        return ""

    def _disk(self) -> str:
        try:
            status = os.statvfs(self._state_directory)
            if status.f_bavail * status.f_frsize < self._reserve:
                return f"less than free_space ({octets(self._reserve)}) is free, so mail is refused"
            _probe(self._state_directory)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                return f"the state directory is full: {error.strerror}"
        return ""

    def _threads(self) -> str:
        names = sorted({name for problem, name in self._recent("threads") if problem})
        return f"threads have failed and went on: {', '.join(names)}" if names else ""

    def _recent(self, problem: str) -> list[tuple[str, str]]:
        now = self._clock()
        return [
            key for key, at in [*self._changed.items()] if key[0] == problem and now - at < _RECENT
        ]


class ProblemLog:
    """Logs when a problem begins, and when it is over. Any thread may use it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def note(self, found: dict[str, str]) -> None:
        """Take the problems of this moment, as `Readiness.problems` returns them."""
        with self._lock:
            self._note(found)

    def _note(self, found: dict[str, str]) -> None:
        for problem in found.keys() - self._known.keys():
            log = self._log.error if problem in FATAL else self._log.warning
            log("problem", problem=problem, what=found[problem])
        for problem in self._known.keys() - found.keys():
            self._log.info("problem over", problem=problem)
        self._known = found


def _probe(directory: Path) -> None:
    """Write an octet to an unnamed file. Raise OSError if that fails."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # Some file systems have no unnamed files.
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            raise
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
        return
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)
