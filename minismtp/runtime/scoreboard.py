"""Figures of the whole server in shared memory, written by one process and read by others.

Each process shows that it is alive by a beat in its slot. A worker beats from a thread of its own,
and only if the threads that its service depends on have turned since the last beat (see
`server.worker`). So no session pays for it, and a session that waits in a plugin does not stop it.
A process that was stopped, or in which one thread never releases the interpreter, falls silent.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import astuple, dataclass
from typing import Final

from minismtp.runtime.session_limits import SLOTS

ENDPOINT_SLOT: Final = SLOTS  # of the metrics endpoint, which has no sessions to count
BEAT_INTERVAL: Final = 1.0  # seconds between two beats, twice that where they are out of step
_WORKERS: Final = struct.Struct("?i?dq")
_QUEUE: Final = struct.Struct("qd?7x")
#: Why a process of each kind was replaced.
REPLACEMENTS: Final = tuple(
    (kind, reason)
    for kind in (
        "worker",
        "outbound runner",
        "metrics endpoint",
        "web server",
        "certificate process",
    )
    for reason in ("died", "hung")
)
_REPLACED: Final = struct.Struct(f"{len(REPLACEMENTS)}q")
_BEAT: Final = struct.Struct("dq")  # when the last beat was, and the id of the process
_BEATS: Final = _WORKERS.size + _QUEUE.size + _REPLACED.size  # where the beats of all slots begin


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """Whether the server is `ready`, how many `workers` serve, and how the last reload went.

    `reloaded_at` is seconds since the epoch, and `reloads` counts those that are over.
    """

    ready: bool = False
    workers: int = 0
    reload_ok: bool = True
    reloaded_at: float = 0.0
    reloads: int = 0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How many `messages` waited for delivery at the monotonic second `beat` (0: never posted).

    `stuck` means that deliveries are due and none ends.
    """

    messages: int = 0
    beat: float = 0.0
    stuck: bool = False


class Scoreboard:
    """The figures. Make it before the fork, so that all processes share its memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BEATS + (SLOTS + 1) * _BEAT.size)

    def post_workers(self, status: WorkersStatus) -> None:
        """Show the status of the workers to all processes; only the supervisor does so."""
        self._put(0, _WORKERS.pack(*astuple(status)))

    def workers(self) -> WorkersStatus:
        """Return the status of the workers as last posted."""
        return WorkersStatus(*_WORKERS.unpack_from(self._memory))

    def post_queue(self, messages: int, *, stuck: bool = False) -> None:
        """Show the status of the queue to all processes; only the queue runner does so."""
        self._put(_WORKERS.size, _QUEUE.pack(messages, time.monotonic(), stuck))

    def queue(self) -> QueueStatus:
        """Return the status of the queue as last posted."""
        return QueueStatus(*_QUEUE.unpack_from(self._memory, _WORKERS.size))

    def count_replacement(self, kind: str, reason: str) -> None:
        """Count a process that died, or was killed because it hung; see `REPLACEMENTS`."""
        counts = list(self.replacements().values())
        counts[REPLACEMENTS.index((kind, reason))] += 1
        self._put(_WORKERS.size + _QUEUE.size, _REPLACED.pack(*counts))

    def replacements(self) -> dict[tuple[str, str], int]:
        """Return how many processes of each kind were replaced since the start, and why."""
        counts = _REPLACED.unpack_from(self._memory, _WORKERS.size + _QUEUE.size)
        return dict(zip(REPLACEMENTS, counts, strict=True))

    def beat(self, slot: int) -> None:
        """Show that the process of a slot is alive."""
        self._put(_BEATS + slot * _BEAT.size, _BEAT.pack(time.monotonic(), os.getpid()))

    def processes(self) -> dict[int, int]:
        """Return the process ids by slot. Some may have ended."""
        beats = _BEAT.iter_unpack(self._memory[_BEATS:])
        return {slot: pid for slot, (_, pid) in enumerate(beats) if pid}

    def clear_beat(self, slot: int) -> None:
        """Forget the process that had the slot before."""
        self._put(_BEATS + slot * _BEAT.size, _BEAT.pack(0.0, 0))

    def silence(self, slot: int) -> float:
        """Return the seconds since the last beat of a slot, 0 before its first one."""
        last: float = _BEAT.unpack_from(self._memory, _BEATS + slot * _BEAT.size)[0]
        return time.monotonic() - last if last else 0.0

    def _put(self, start: int, octets: bytes) -> None:
        # Not `pack_into`, which writes zeros first, and another process might read those.
        self._memory[start : start + len(octets)] = octets
