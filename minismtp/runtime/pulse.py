"""Signs of life of the processes, in shared memory.

A worker beats from a thread of its own, and only when the threads that its service hangs on have
turned since the last time (see `worker`): no session pays for it, and one that waits in a plugin
does not stop it. A process that is stopped, or in which one thread never lets go of the
interpreter, falls silent.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Final

from minismtp.runtime.session_limits import SLOTS

ENDPOINT_SLOT: Final = SLOTS  # its own: the endpoint has no metrics and no sessions
INTERVAL: Final = 1.0  # seconds between two beats, twice that where they are out of step
_BEAT: Final = struct.Struct("d")


class Heartbeats:
    """The last beat of each slot; make it before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, (SLOTS + 1) * _BEAT.size)

    def beat(self, slot: int) -> None:
        """Show that the process of a slot is alive."""
        _BEAT.pack_into(self._memory, slot * _BEAT.size, time.monotonic())

    def clear(self, slot: int) -> None:
        """Forget the process that had the slot before."""
        _BEAT.pack_into(self._memory, slot * _BEAT.size, 0.0)

    def silence(self, slot: int) -> float:
        """Return the seconds since the last beat of a slot, 0 before its first one."""
        last: float = _BEAT.unpack_from(self._memory, slot * _BEAT.size)[0]
        return time.monotonic() - last if last else 0.0
