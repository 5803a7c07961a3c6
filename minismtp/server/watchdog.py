"""Finds processes that show no life, has them print their stacks, and kills them."""

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
from minismtp.server.processes import Child, Group

_LONGEST_SILENCE: Final = 10.0  # seconds; a worker whose sessions compute hard is late, not silent
#: Has a process print the stacks of its threads, even if one of them keeps the interpreter: the
#: handler is one of `faulthandler` and no Python. Ctrl-\\ in a terminal sends it too.
DUMP_SIGNAL: Final = signal.SIGQUIT


_GRACE: Final = 5.0  # seconds; what hung may have held a lock that others waited for


class Watchdog:
    """Knows which processes are silent and since when it has known, and which it has killed."""

    def __init__(self, log: Log, scoreboard: Scoreboard) -> None:
        self._log = log
        self._scoreboard = scoreboard
        self._silent: dict[int, float] = {}
        self._killed: dict[int, frozenset[int]] = {}
        self._last_kill = -inf

    @property
    def silent(self) -> Collection[int]:
        """The process ids of those that do not answer."""
        return self._silent.keys()

    def look(self, children: Iterable[tuple[int, Child[Group]]], patience: float) -> None:
        """Look at all that serve, and kill the one that has been silent for `patience` seconds.

        Without patience, 0, nothing is killed.
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
            # We may have been stopped together with it: then it gets its time from now on.
            elif patience and silence > patience and now > self._silent[pid] + patience - limit:
                overdue.append((silence, pid, child))
        if overdue and now > self._last_kill + _GRACE:
            silence, pid, child = max(overdue, key=itemgetter(0))
            self._last_kill = now
            self._kill(pid, child, f"silent for {silence:.0f} s")

    def kill_late_starts(
        self, children: Iterable[tuple[int, Child[Group]]], patience: float
    ) -> None:
        """Kill processes that have not begun to serve for `patience` seconds."""
        for pid, child in children:
            if not child.serving and time.monotonic() > child.started + patience:
                self._kill(pid, child, f"not ready after {patience:.0f} s")

    def _kill(self, pid: int, child: Child[Group], reason: str) -> None:
        if pid not in self._killed:
            self._killed[pid] = running_threads(pid)
            self._log.error(f"{child.kind} is killed", pid=pid, reason=reason)
        os.kill(pid, signal.SIGKILL)

    def forget(self, pid: int) -> frozenset[int] | None:
        """Forget a process that has ended.

        Return the threads that ran when it was killed because it hung, None if it was not.
        """
        self._silent.pop(pid, None)
        return self._killed.pop(pid, None)


def running_threads(pid: int) -> frozenset[int]:
    """Return the threads of a process that hangs that may be the reason.

    Those are the ones that run. If all sleep, it may be any; if somebody has stopped them, none.
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
