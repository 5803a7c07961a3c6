"""The child processes of the supervisor: how they are forked, signalled and reaped.

Each child has a pipe on which it reports that it is ready, and the read end of the lifeline. The
lifeline is a pipe to which no process writes. Its end means that the parent died.

A child may run on a single core. Only one of its threads runs Python at a time, and on two cores
each change of threads wakes the other core and moves the contents of its caches. With one core,
durable mail is received a quarter faster, and the queue is delivered 1.7 times as fast
(docs/performance.md).
"""

from __future__ import annotations

import contextlib
import enum
import gc
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final, TypeAlias

from minismtp.runtime.log import Log
from minismtp.server.generation import Generation
from minismtp.server.privileges import drop_privileges

_LAST_WAIT: Final = 5.0  # seconds; a killed process that waits for a dead disk never ends
_LAST_TICK: Final = 0.01


class Role(enum.Enum):
    """The kinds of process of which one runs, as the log calls them."""

    ENDPOINT = "metrics endpoint"
    RUNNER = "outbound runner"
    WEB = "web server"
    CERTIFICATES = "certificate process"


#: What a process belongs to. The workers belong to the generation of their configuration.
Group: TypeAlias = Generation | Role


@dataclass(slots=True)
class Child:
    """A process: its slot, a number that no other living one has, and the group it belongs to.

    `core` is the core it runs on, -1 for any. `ready` is the pipe on which it reports that it is
    ready, -1 after that. `started` and `end_by` are monotonic seconds.
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
        """The name of this kind of process in the log."""
        return self.group.value if isinstance(self.group, Role) else "worker"


class Children:
    """All children that were not reaped yet, by process id. The parent has no threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._children: dict[int, Child] = {}
        self.dead_slots: set[int] = set()  # not free before they are cleaned
        self.lifeline, self._lifeline_write = os.pipe()

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[tuple[int, Child]]:
        return iter(self._children.items())

    def of(self, group: Group) -> list[Child]:
        """Return the processes that belong to a group."""
        return [child for child in self._children.values() if child.group is group]

    def free_slot(self) -> int:
        """Return the lowest free slot."""
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
        """Start a process that runs `body` as `user`, and return its process id.

        `body` takes the descriptor on which to report, by one octet, that the process is ready. It
        returns the exit status. `ps` and `top` show `name` behind "minismtp-". With `affinity` the
        process runs on one core. Raise OSError or MemoryError if the system has no resources.
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
            gc.freeze()  # a full collection would copy all memory that it shares with the parent
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
        """Return the core with the fewest children of a group, and of those the fewest in all."""
        own = Counter(child.core for child in self.of(group))
        held = Counter(child.core for child in self._children.values())
        cores = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(cores)  # or all small servers of a host would share one
        return min(cores[first:] + cores[:first], key=lambda core: (own[core], held[core]))

    def check_ready(self) -> None:
        """Note which children became ready."""
        for child in self._children.values():
            if child.ready >= 0:
                try:
                    said = os.read(child.ready, 1)
                except BlockingIOError:
                    continue
                child.serving = bool(said)
                _close_ready(child)

    def reap(self) -> Iterator[tuple[int, Child, int]]:
        """Yield the children that ended since the last call, each with its exit status."""
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
        """Signal the processes of a group to end, and set when they will be killed.

        That is after `patience` seconds. Each process is signalled only once, because a second TERM
        would cut its sessions.
        """
        for pid, child in self._children.items():
            if child.group is group and child.end_by == inf:
                child.end_by = time.monotonic() + patience
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill all children. No acknowledged message is lost by that."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def kill_and_wait(self) -> None:
        """Kill all children, and wait a few seconds at most for their end."""
        self.kill()
        end = time.monotonic() + _LAST_WAIT
        while self._children and time.monotonic() < end:
            for _ in self.reap():
                pass
            time.sleep(_LAST_TICK)


def _close_ready(child: Child) -> None:
    if child.ready >= 0:
        os.close(child.ready)
        child.ready = -1


def _set_process_name(name: str) -> None:
    """Set the name of this process; the kernel keeps 15 octets of it."""
    with contextlib.suppress(OSError):  # a container may have no /proc
        Path("/proc/self/comm").write_bytes(name.encode())


def _keep_to(core: int) -> None:
    """Have this process run on one core, unless the system forbids it."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core})


def forbid_core_dumps() -> None:
    """Have no process leave a dump of its memory, with mail and keys in it, when it dies.

    An operator allows it again with `prlimit --core=unlimited --pid PID`.
    """
    with contextlib.suppress(OSError, ValueError):  # a unit may forbid the call, and has LimitCORE
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))
