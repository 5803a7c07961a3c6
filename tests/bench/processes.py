"""What a tree of processes uses: CPU time and memory, read from /proc."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat behind the name in parentheses: proc(5) counts from 1, this from 3.
_PARENT: Final = 1
_TIMES: Final = slice(11, 15)  # utime, stime, and those of reaped children


def tree(roots: Iterable[int]) -> list[int]:
    """Return the processes `roots` and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if fields := _stat(int(entry.name)):
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of processes, with that of their children that ended."""
    return sum(sum(map(int, _stat(pid)[_TIMES])) for pid in pids) / _TICKS


def resident(pids: Iterable[int]) -> int:
    """Return the resident memory in octets; shared memory counts for each process."""
    pages = [_read(pid, "statm").split()[1:2] for pid in pids]
    return sum(int(number) for found in pages for number in found) * _PAGE


def proportional(pids: Iterable[int]) -> int:
    """Return the resident memory in octets; shared memory is divided among the processes."""
    total = 0
    for pid in pids:
        for line in _read(pid, "smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class Sampler(threading.Thread):
    """Watches the memory of a tree while the `with` block runs, and keeps the peaks."""

    def __init__(self, roots: list[int], interval: float = 0.1) -> None:
        super().__init__(daemon=True)
        self.resident = self.proportional = 0
        self._roots = roots
        self._interval = interval
        self._end = threading.Event()

    def run(self) -> None:
        """Read RSS in every interval, and PSS in every tenth, because it costs the kernel more."""
        pids: list[int] = []
        number = 0
        while not self._end.wait(self._interval):
            if number % 5 == 0:
                pids = tree(self._roots)
            self.resident = max(self.resident, resident(pids))
            if number % 10 == 0:
                self.proportional = max(self.proportional, proportional(pids))
            number += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self.join()


def _read(pid: int, name: str) -> str:
    try:
        return (_PROC / str(pid) / name).read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _stat(pid: int) -> list[str]:
    return _read(pid, "stat").rpartition(")")[2].split()
