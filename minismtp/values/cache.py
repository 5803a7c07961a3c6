"""Caches filled by strangers, which are limited in octets and not in entries."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")

_ENTRY: Final = 300  # octets that an entry takes besides its key and value


class BoundedCache(Generic[K, V]):
    """Keeps values for a time, in a number of octets. It drops the oldest. Threads may share it."""

    def __init__(self, octets: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._octets = octets
        self._clock = clock
        self._lock = threading.Lock()
        self._used = 0
        self._entries: dict[K, tuple[float, int, V]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return a value, or None if there is none or its time is over."""
        found = self._entries.get(key)
        return found[2] if found is not None and self._clock() < found[0] else None

    def put(self, key: K, value: V, seconds: float, size: int) -> None:
        """Keep a value instead of an earlier one. `size` is about the octets of key and value."""
        size += _ENTRY
        with self._lock:
            self._drop(key)
            if size > self._octets:
                return
            self._entries[key] = (self._clock() + seconds, size, value)
            self._used += size
            while self._used > self._octets:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: K) -> None:
        if found := self._entries.pop(key, None):
            self._used -= found[1]
