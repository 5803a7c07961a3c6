"""The processes of a server: forked, heard, signalled, buried (layer 7).

Each child has a pipe on which it says that it is ready, and the read end of the lifeline: a pipe
that nobody writes to, whose end tells that the parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from minismtp.log import Log

Group = TypeVar("Group")


@dataclass(slots=True)
class Child(Generic[Group]):
    """A process: its slot, a number that no other living one has, and what it belongs to.

    `ready` is the pipe that it becomes ready on, -1 once it has; `started` is monotonic seconds.
    """

    slot: int
    ready: int
    started: float
    group: Group
    serving: bool = False


class Children(Generic[Group]):
    """All children that have not been buried yet, by process id. The parent has no threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._children: dict[int, Child[Group]] = {}
        self.lifeline, self._lifeline_write = os.pipe()

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[tuple[int, Child[Group]]]:
        return iter(self._children.items())

    def of(self, group: Group) -> list[Child[Group]]:
        """Give those that belong to a group."""
        return [child for child in self._children.values() if child.group is group]

    def free_slot(self) -> int:
        """Give the lowest slot that nobody has."""
        taken = {child.slot for child in self._children.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def fork(
        self, name: str, slot: int, group: Group, user: str, body: Callable[[int], int]
    ) -> int:
        """Start a process that takes on `user` and ends with what `body` gives.

        `body` is given the descriptor on which to say, by one octet, that it is ready. `name` is
        what `ps` and `top` show behind "minismtp-". Gives the process id.
        """
        ready_read, ready_write = os.pipe()
        os.set_blocking(ready_read, False)
        pid = os.fork()
        if pid:
            os.close(ready_write)
            self._children[pid] = Child(slot, ready_read, time.monotonic(), group)
            return pid
        status = 1
        try:
            os.close(self._lifeline_write)
            _call_oneself(f"minismtp-{name}")
            _take_on(user)
            status = body(ready_write)
        except Exception as error:  # noqa: BLE001 - the last line of a process
            self._log.exception("process failed", error, slot=slot)
        finally:
            os._exit(status)

    def hear(self) -> None:
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
        """Give those that have ended since the last look, with their exit status."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                _close_ready(child)
                yield pid, child, os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End all at once and wait for them; nothing acknowledged is lost by it."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
        self._children.clear()


def _close_ready(child: Child[Group]) -> None:
    if child.ready >= 0:
        os.close(child.ready)
        child.ready = -1


def _call_oneself(name: str) -> None:
    """Set the name of the process, of which the kernel keeps 15 octets."""
    with contextlib.suppress(OSError):  # a container may have no /proc
        Path("/proc/self/comm").write_text(name, encoding="ascii")


def _take_on(user: str) -> None:
    """Become `user`, when the process is root and one is named."""
    if user and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
