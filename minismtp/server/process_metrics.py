"""What Prometheus scrapes of each process and of the disk, as the kernel counts it.

prometheus-client has these metrics only for a single process. Here the endpoint reads them for all
processes of the server: a process shows its id in the beats of its slot (`runtime.scoreboard`), and
the supervisor is the parent. The endpoint sees all of it, because they run as the same user; of a
supervisor that runs as root it cannot count the open files.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from minismtp.config import Config
from minismtp.runtime.scoreboard import Scoreboard

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: The kinds of processes by their names, which `server.processes` sets.
_KINDS: Final = {
    "minismtp-worker": "worker",
    "minismtp-queue": "runner",
    "minismtp-http": "endpoint",
    "minismtp-web": "web",
    "minismtp-acme": "certificates",
}
_LABELS: Final = ["process", "slot"]
_GAUGES: Final = {
    "resident_memory_bytes": "Memory of a process in use.",
    "virtual_memory_bytes": "Memory that is mapped by a process.",
    "start_time_seconds": "When a process started.",
    "threads": "Threads of a process.",
    "open_fds": "Files and sockets that a process has open.",
    "max_fds": "Files and sockets that a process may have open.",
}


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process uses; `values` by the names of the metrics, without those not known."""

    process: str
    slot: str
    cpu: float
    values: dict[str, float]


class ProcessCollector:
    """The metrics `process_*` of the supervisor and of its children."""

    def __init__(self, scoreboard: Scoreboard, supervisor: int) -> None:
        self._scoreboard = scoreboard
        self._supervisor = supervisor
        self._boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for one scrape."""
        found = self.uses()
        cpu = CounterMetricFamily(
            "process_cpu_seconds", "CPU time that a process used.", labels=_LABELS
        )
        for each in found:
            cpu.add_metric([each.process, each.slot], each.cpu)
        yield cpu
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"process_{name}", text, labels=_LABELS)
            for each in found:
                if name in each.values:
                    gauge.add_metric([each.process, each.slot], each.values[name])
            yield gauge

    def uses(self) -> list[ProcessUse]:
        """Return what each process uses that lives now."""
        found = []
        with contextlib.suppress(OSError):  # a container may have no /proc
            found.append(self._use(self._supervisor, "supervisor", "-"))
        for slot, pid in self._scoreboard.processes().items():
            with contextlib.suppress(OSError):  # it ended
                kind = _KINDS.get(Path(f"/proc/{pid}/comm").read_text().strip(), "")
                if kind:  # or another program has its number now
                    found.append(self._use(pid, kind, str(slot)))
        return found

    def _use(self, pid: int, process: str, slot: str) -> ProcessUse:
        # The name in parentheses may contain blanks; see proc(5) for the numbers of the fields.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system, threads, start, virtual, resident = (
            int(fields[number - 3]) for number in (14, 15, 20, 22, 23, 24)
        )
        values = {
            "resident_memory_bytes": float(resident * _PAGE),
            "virtual_memory_bytes": float(virtual),
            "start_time_seconds": self._boot + start / _TICKS,
            "threads": float(threads),
        }
        with contextlib.suppress(OSError):
            values["open_fds"] = float(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))
            values["max_fds"] = float(resource.prlimit(pid, resource.RLIMIT_NOFILE)[0])
        return ProcessUse(process, slot, (user + system) / _TICKS, values)


class DiskCollector:
    """The free space of the state directory and of each Maildir plugin's directory.

    `directories` are by their labels; `reserve` is the space of the first that has to stay free.
    """

    def __init__(self, directories: Mapping[str, Path], reserve: int) -> None:
        self._directories = directories
        self._reserve = reserve

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for one scrape."""
        text = "Space that may stay free at least, `free_space` of [outbound]."
        yield GaugeMetricFamily("minismtp_disk_reserve_bytes", text, value=float(self._reserve))
        free = GaugeMetricFamily(
            "minismtp_disk_free_bytes", "Space that may still be used.", labels=["directory"]
        )
        size = GaugeMetricFamily(
            "minismtp_disk_size_bytes", "Size of the file system.", labels=["directory"]
        )
        for label, directory in self._directories.items():
            found = disk_free(directory)
            if found is not None:
                free.add_metric([label], found[0])
                size.add_metric([label], found[1])
        yield from (free, size)


def mail_directories(config: Config) -> dict[str, Path]:
    """Return the directories whose disks mail needs: "state", and those of `maildir` by plugin.

    The path of `maildir` has names of users in it, so it is the directory above the first of them.
    """
    found = {"state": config.state_directory}
    for table in config.plugins:
        path = table.options.get("path")
        if table.use == "maildir" and isinstance(path, str):
            root = config.base / f"{path.partition('{')[0]}x"
            found[table.name] = root.parent
    return found


def disk_free(directory: Path) -> tuple[float, float] | None:
    """Return the octets that are free and the size of a file system; None if it is not there."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return None
    return float(status.f_bavail * status.f_frsize), float(status.f_blocks * status.f_frsize)
