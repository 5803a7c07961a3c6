"""A few figures of the whole server in shared memory."""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import astuple, dataclass
from typing import Final

_FORMAT: Final = struct.Struct("?i?d")
_QUEUE: Final = struct.Struct("qd?")
#: Why a process of each kind was replaced.
REPLACEMENTS: Final = tuple(
    (kind, reason)
    for kind in ("worker", "outbound runner", "metrics endpoint")
    for reason in ("died", "hung")
)
_REPLACED: Final = struct.Struct(f"{len(REPLACEMENTS)}q")


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """Whether the server is `ready`, how many `workers` serve, and how the last reload went.

    `reloaded_at` is seconds since the epoch.
    """

    ready: bool = False
    workers: int = 0
    reload_ok: bool = True
    reloaded_at: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueStanding:
    """How many `messages` wait for delivery, as said at the monotonic second `beat` (0: never).

    `stuck` says that deliveries are due and none ends.
    """

    messages: int = 0
    beat: float = 0.0
    stuck: bool = False


class Scoreboard:
    """Where processes post for others: the supervisor the standing, the runner its queue.

    Besides, the supervisor counts the processes that it had to replace.

    Make it before a fork.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FORMAT.size + _QUEUE.size + _REPLACED.size)

    def post(self, standing: WorkersStatus) -> None:
        """Show a new standing to all processes."""
        self._memory[: _FORMAT.size] = _FORMAT.pack(*astuple(standing))

    def read(self) -> WorkersStatus:
        """Return the standing as last posted."""
        ready, workers, reload_ok, reloaded_at = _FORMAT.unpack(self._memory[: _FORMAT.size])
        return WorkersStatus(ready, workers, reload_ok, reloaded_at)

    def post_queue(self, messages: int, *, stuck: bool = False) -> None:
        """Show how the queue stands, and that the runner lives."""
        _QUEUE.pack_into(self._memory, _FORMAT.size, messages, time.monotonic(), stuck)

    def queue(self) -> int:
        """Return how many messages wait for delivery."""
        return self.queue_standing().messages

    def queue_standing(self) -> QueueStanding:
        """Return how the queue stood as last posted."""
        return QueueStanding(*_QUEUE.unpack_from(self._memory, _FORMAT.size))

    def count_replacement(self, kind: str, reason: str) -> None:
        """Count a process that died, or was killed because it hung; see `REPLACEMENTS`."""
        counts = list(self.replacements().values())
        counts[REPLACEMENTS.index((kind, reason))] += 1
        _REPLACED.pack_into(self._memory, _FORMAT.size + _QUEUE.size, *counts)

    def replacements(self) -> dict[tuple[str, str], int]:
        """Return how many processes of each kind were replaced since the start, and why."""
        counts = _REPLACED.unpack_from(self._memory, _FORMAT.size + _QUEUE.size)
        return dict(zip(REPLACEMENTS, counts, strict=True))
