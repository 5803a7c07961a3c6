"""Finds processes that fell silent, has them write their stacks, and kills them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Final

from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.server.processes import Child

_LONGEST_SILENCE: Final = 10.0  # seconds; busy sessions delay the beats of their worker
#: Has a process write the stacks of its threads to standard error, even if a thread never releases
#: the interpreter, because `faulthandler` runs no Python. Ctrl-\\ in a terminal sends it too.
DUMP_SIGNAL: Final = signal.SIGQUIT


_GRACE: Final = 5.0  # seconds; others may have waited for a lock of the process that was killed


class Watchdog:
    """Keeps which processes are silent and since when, and which ones it killed."""

    def __init__(self, log: Log, scoreboard: Scoreboard) -> None:
        self._log = log
        self._scoreboard = scoreboard
        self._silent: dict[int, float] = {}
        self._killed: dict[int, frozenset[int]] = {}
        self._last_kill = -inf

    @property
    def silent(self) -> Collection[int]:
        """The process ids of the silent processes."""
        return self._silent.keys()

    def look(self, children: Iterable[tuple[int, Child]], patience: float) -> None:
        """Check all serving processes, and kill one that is silent for `patience` seconds.

        With a patience of 0 none is killed.
        """
        now = time.monotonic()
        limit = min(_LONGEST_SILENCE, patience / 2 or _LONGEST_SILENCE)
        overdue = []
        for pid, child in children:
            silence = self._scoreboard.silence(child.slot) if child.serving else 0.0
            if silence <= limit:
                self._silent.pop(pid, None)
            elif pid not in self._silent:
                self._silent[pid] = now
                self._log.error(
                    f"{child.kind} does not answer", pid=pid, state=state_of(Path(f"/proc/{pid}"))
                )
                os.kill(pid, DUMP_SIGNAL)
            # If both were stopped together, the time of the child begins now.
            elif patience and silence > patience and now > self._silent[pid] + patience - limit:
                overdue.append((silence, pid, child))
        if overdue and now > self._last_kill + _GRACE:
            silence, pid, child = max(overdue, key=itemgetter(0))
            self._last_kill = now
            self._kill(pid, child, f"silent for {silence:.0f} s")

    def kill_late_starts(self, children: Iterable[tuple[int, Child]], patience: float) -> None:
        """Kill processes that did not become ready within `patience` seconds."""
        for pid, child in children:
            if not child.serving and time.monotonic() > child.started + patience:
                self._kill(pid, child, f"not ready after {patience:.0f} s")

    def _kill(self, pid: int, child: Child, reason: str) -> None:
        if pid not in self._killed:
            self._killed[pid] = running_threads(pid)
            self._log.error(f"{child.kind} is killed", pid=pid, reason=reason)
        os.kill(pid, signal.SIGKILL)

    def forget(self, pid: int) -> frozenset[int] | None:
        """Forget a process that ended.

        If the watchdog killed it, return the threads that ran then, otherwise None.
        """
        self._silent.pop(pid, None)
        return self._killed.pop(pid, None)


def running_threads(pid: int) -> frozenset[int]:
    """Return the threads that may have caused a process to hang.

    These are the running threads, or all sleeping ones if none runs. Stopped threads never count.
    """
    try:
        states = {int(path.name): state_of(path) for path in Path(f"/proc/{pid}/task").iterdir()}
    except OSError:
        return frozenset()
    running = frozenset(thread for thread, state in states.items() if state == "R")
    asleep = frozenset(thread for thread, state in states.items() if state in {"S", "D"})
    return running or asleep


def state_of(task: Path) -> str:
    """Return the state of a process or thread as in proc(5), such as R or T; "" if it is gone."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
