"""How long an address must wait before its next login, known to all workers (layer 2).

The table lies in shared memory made before the fork. Every failed login doubles the wait of its
address up to a minute; attempts queue up behind one another, so many connections at once gain
nothing. A success, or a quarter of an hour of peace, forgives.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import threading
from collections.abc import Callable
from typing import Final

from minismtp.admission import SharedLock

_ROW: Final = struct.Struct("=8sIdd")  # digest of the address, failures, next allowed, last failure
_ROWS: Final = 4096
LONGEST: Final = 60.0  # seconds
_FORGET: Final = 900.0  # seconds


class Backoff:
    """Waits by address; `base` is the first one in seconds, 0 = none. Make it before the fork.

    An address shares its row with those that fall on the same place of the table: the newer one
    takes it over.
    """

    def __init__(self, base: float, clock: Callable[[], float]) -> None:
        self._base = base
        self._clock = clock
        self._table = mmap.mmap(-1, _ROWS * _ROW.size)
        self._lock = SharedLock("minismtp-backoff")

    def reserve(self, address: str) -> float:
        """Give the seconds to wait before the next attempt, and take that turn."""
        with self._lock:
            place, (failures, allowed, last) = self._find(address)
            now = self._clock()
            if not failures or not self._base:
                return 0.0
            turn = max(allowed, now)
            if turn - now <= LONGEST:
                self._put(place, address, failures, turn + self._wait(failures), last)
            return turn - now

    def failed(self, address: str) -> None:
        """Count a failed login."""
        with self._lock:
            place, (failures, allowed, _) = self._find(address)
            now = self._clock()
            wait = self._wait(failures + 1)
            self._put(place, address, failures + 1, max(allowed, now + wait), now)

    def succeeded(self, address: str) -> None:
        """Forgive an address."""
        with self._lock:
            place, (failures, _, _) = self._find(address)
            if failures:
                self._put(place, address, 0, 0.0, 0.0)

    def _wait(self, failures: int) -> float:
        return min(self._base * 2.0 ** min(failures - 1, 30), LONGEST)

    def _find(self, address: str) -> tuple[int, tuple[int, float, float]]:
        digest = _digest(address)
        place = int.from_bytes(digest[:4], "big") % _ROWS * _ROW.size
        found, failures, allowed, last = _ROW.unpack_from(self._table, place)
        if found != digest or self._clock() - last > _FORGET:
            return place, (0, 0.0, 0.0)
        return place, (failures, allowed, last)

    def _put(self, place: int, address: str, failures: int, allowed: float, last: float) -> None:
        _ROW.pack_into(self._table, place, _digest(address), failures, allowed, last)


def _digest(address: str) -> bytes:
    return hashlib.blake2b(address.encode(), digest_size=8).digest()


def wait_for_turn(backoff: Backoff, address: str, stop: threading.Event) -> bool:
    """Wait until `address` may try a login; False when the wait would be too long."""
    seconds = backoff.reserve(address)
    if seconds > LONGEST:
        return False
    if seconds > 0:
        stop.wait(seconds)
    return True
