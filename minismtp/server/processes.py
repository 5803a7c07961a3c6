"""The processes of a server: forked, heard, signalled, buried.

Each child has a pipe on which it says that it is ready, and the read end of the lifeline: a pipe
that nobody writes to, whose end tells that the parent is gone.

A child may keep to one core. Only one of its threads runs Python at a time: on two cores each turn
wakes the other core and moves what is in its caches. Durable mail is taken a quarter faster so,
and the queue sent out 1.7 times as fast (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final, Generic, TypeVar

from minismtp.runtime.log import Log
from minismtp.server.privileges import drop_privileges

Group = TypeVar("Group")
_LAST_WAIT: Final = 5.0  # seconds for killed processes to be gone; one in a dead disk never is
_LAST_TICK: Final = 0.01


class Role(enum.Enum):
    """The processes that there is one of, as the log calls them."""

    ENDPOINT = "metrics endpoint"
    RUNNER = "outbound runner"


@dataclass(slots=True)
class Child(Generic[Group]):
    """A process: its slot, a number that no other living one has, and what it belongs to.

    `core` is the one that it keeps to, -1 when it runs on any. `ready` is the pipe that it becomes
    ready on, -1 once it has; `started` is monotonic seconds.
    """

    slot: int
    ready: int
    started: float
    group: Group
    core: int
    serving: bool = False
    end_by: float = inf

    @property
    def kind(self) -> str:
        """What the log calls it."""
        return self.group.value if isinstance(self.group, Role) else "worker"


class Children(Generic[Group]):
    """All children that have not been buried yet, by process id. The parent has no threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._children: dict[int, Child[Group]] = {}
        self.dead_slots: set[int] = set()  # what their processes left has to be cleaned away first
        self.lifeline, self._lifeline_write = os.pipe()

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[tuple[int, Child[Group]]]:
        return iter(self._children.items())

    def of(self, group: Group) -> list[Child[Group]]:
        """Return the processes that belong to a group."""
        return [child for child in self._children.values() if child.group is group]

    def free_slot(self) -> int:
        """Return the lowest slot that nobody has."""
        taken = {child.slot for child in self._children.values()} | self.dead_slots
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def fork(
        self,
        name: str,
        slot: int,
        group: Group,
        user: str,
        body: Callable[[int], int],
        *,
        affinity: bool = False,
    ) -> int:
        """Start a process that takes on `user` and ends with what `body` gives.

        `body` is given the descriptor on which to say, by one octet, that it is ready. `name` is
        what `ps` and `top` show behind "minismtp-". With `affinity` it keeps to one core.
        Return the process id. Raise OSError or MemoryError when the system has no room for one.
        """
        core = self._free_core(group) if affinity else -1
        ready_read, ready_write = os.pipe()
        status = 1
        try:
            os.set_blocking(ready_read, False)
            child = Child(slot, ready_read, time.monotonic(), group, core)
            pid = os.fork()
        except BaseException:
            os.close(ready_read)
            os.close(ready_write)
            raise
        if pid:
            os.close(ready_write)
            self._children[pid] = child
            return pid
        try:
            self._log.forget()
            os.close(self._lifeline_write)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
            if core >= 0:
                _keep_to(core)
            _set_process_name(f"minismtp-{name}")
            drop_privileges(user)
            status = body(ready_write)
        except Exception as error:  # noqa: BLE001 - the last line of a process
            self._log.exception("process failed", error, slot=slot)
        finally:
            os._exit(status)

    def _free_core(self, group: Group) -> int:
        """Return the core that the fewest of a group keep to, and of such the fewest of all."""
        own = Counter(child.core for child in self.of(group))
        held = Counter(child.core for child in self._children.values())
        cores = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(cores)  # or all small servers of a host would share one
        return min(cores[first:] + cores[:first], key=lambda core: (own[core], held[core]))

    def check_ready(self) -> None:
        """Note which have become ready."""
        for child in self._children.values():
            if child.ready >= 0:
                try:
                    said = os.read(child.ready, 1)
                except BlockingIOError:
                    continue
                child.serving = bool(said)
                _close_ready(child)

    def reap(self) -> Iterator[tuple[int, Child[Group], int]]:
        """Yield those that have ended since the last look, with their exit status."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                _close_ready(child)
                self.dead_slots.add(child.slot)
                yield pid, child, os.waitstatus_to_exitcode(status)

    def send_signal(self, group: Group, number: int) -> None:
        """Send a signal to the processes of a group."""
        for pid, child in self._children.items():
            if child.group is group:
                os.kill(pid, number)

    def end(self, group: Group, patience: float, number: int = signal.SIGTERM) -> None:
        """Have the processes of a group drain, and be killed after `patience` seconds.

        Each is told only once, because a second TERM would cut its sessions.
        """
        for pid, child in self._children.items():
            if child.group is group and child.end_by == inf:
                child.end_by = time.monotonic() + patience
                os.kill(pid, number)

    def kill(self) -> None:
        """End all at once; nothing acknowledged is lost by it."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def kill_and_wait(self) -> None:
        """End all at once and wait until they are gone, for some seconds at most."""
        self.kill()
        end = time.monotonic() + _LAST_WAIT
        while self._children and time.monotonic() < end:
            for _ in self.reap():
                pass
            time.sleep(_LAST_TICK)


def _close_ready(child: Child[Group]) -> None:
    if child.ready >= 0:
        os.close(child.ready)
        child.ready = -1


def _set_process_name(name: str) -> None:
    """Set the name of the process, of which the kernel keeps 15 octets."""
    with contextlib.suppress(OSError):  # a container may have no /proc
        Path("/proc/self/comm").write_text(name, encoding="ascii")


def _keep_to(core: int) -> None:
    """Run on one core; on any where that is forbidden."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core})
