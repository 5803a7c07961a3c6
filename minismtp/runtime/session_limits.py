"""The limits on open sessions, in total and for each peer (see `values.peer`).

The counts lie in shared memory made before the fork, so the limits hold exactly over all workers.
Each slot has its own counts. When a worker is killed, the supervisor subtracts those of its slot.
Every change is made under a lock that the kernel releases when its holder dies.

Addresses are rows of a hash table with linear probing. When the last session of a row ends, later
rows move up, so the table needs no markers for deleted rows. An entry takes about 5 us.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from math import inf
from typing import Final, Literal, TypeAlias

from minismtp.values.peer import peer_key

_RETRY: Final = 0.001  # seconds
SLOTS: Final = 128  # more than two generations of processes ever need
_ADDRESS: Final = 16  # octets of a `peer_key`
_COUNT: Final = struct.Struct("=I")
_SLOTS: Final = struct.Struct(f"={SLOTS}I")
_COUNTS: Final = _COUNT.size + _SLOTS.size  # the total, then one count for each slot
_ROW: Final = _ADDRESS + _COUNTS

Refusal: TypeAlias = Literal["sessions", "address"]


class SharedLock:
    """A lock among processes and their threads, released when a process dies.

    A POSIX record lock belongs to a process, so its threads need a second lock among themselves.
    Make it before the fork.
    """

    def __init__(self, name: str) -> None:
        self._file = os.memfd_create(name)
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        self._lock_file(fcntl.LOCK_EX, inf)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._threads.release()

    @contextlib.contextmanager
    def within(self, patience: float) -> Iterator[None]:
        """Hold the lock in a block. Raise TimeoutError if it is not free within `patience` seconds.

        A process that was stopped while it held the lock keeps it until it is killed.
        """
        deadline = time.monotonic() + patience
        if not self._threads.acquire(timeout=min(patience, threading.TIMEOUT_MAX)):
            raise TimeoutError("another thread holds the lock")
        self._lock_file(fcntl.LOCK_EX | fcntl.LOCK_NB, deadline)
        try:
            yield
        finally:
            self.__exit__()

    def _lock_file(self, how: int, deadline: float) -> None:
        """Take the lock of the processes. If this raises, the lock of the threads is released."""
        try:
            while not self._locked(how, deadline):
                time.sleep(_RETRY)
        except BaseException:
            self._threads.release()
            raise

    def _locked(self, how: int, deadline: float) -> bool:
        """Try to take the lock. Return False if the caller has to try again.

        The kernel treats a process as one thread. If two threads use two of these locks, it may
        report a deadlock that cannot happen, because no thread waits while it holds one.
        """
        try:
            fcntl.lockf(self._file, how)
        except OSError as error:
            if error.errno != errno.EDEADLK and not how & fcntl.LOCK_NB:
                raise
            if time.monotonic() > deadline:
                raise TimeoutError("another process holds the lock") from None
            return False
        return True


class Admission:
    """Admits `limit` sessions, and `per_address` from one address. Make it before the fork."""

    def __init__(self, limit: int, per_address: int) -> None:
        self.limit = limit
        self._per_address = per_address
        self._capacity = 2 * limit + 1  # never more than half full, so probing stays short
        self._totals = mmap.mmap(-1, _COUNTS)
        self._rows = mmap.mmap(-1, self._capacity * _ROW)  # unused pages take no memory
        self._lock = SharedLock("minismtp-admission")

    @property
    def sessions(self) -> int:
        """The number of open sessions."""
        return _total(self._totals, 0)

    def enter(self, slot: int, peer: str, *, reserved: int = 0) -> bytes | Refusal:
        """Take a place for a session. Return its packed address, or the limit that was reached.

        The packed address is for `leave`, and empty if the peer has none. The last `reserved`
        places are kept for other sessions. The peer is "" if not known yet.
        """
        address = peer_key(peer)
        with self._lock:
            if _total(self._totals, 0) >= self.limit - reserved:
                return "sessions"
            if address and not self._add(slot, address):
                return "address"
            _change(self._totals, 0, slot, 1)
            return address

    def introduce(self, slot: int, peer: str) -> bytes | None:
        """Set the peer of a session that entered without. Return None if the peer is at its limit.

        Otherwise return its packed address.
        """
        address = peer_key(peer)
        with self._lock:
            return address if not address or self._add(slot, address) else None

    def leave(self, slot: int, address: bytes) -> None:
        """Free the place of a session by its packed address."""
        with self._lock:
            _change(self._totals, 0, slot, -1)
            if address:
                place = self._find(address)
                _change(self._rows, place + _ADDRESS, slot, -1)
                self._close_if_empty(place)

    def forget(self, slot: int, patience: float = inf) -> None:
        """Free all places of a worker that died, even if it was changing the table.

        Raise TimeoutError if another process holds the lock for `patience` seconds.
        """
        with self._lock.within(patience):
            self._totals[:] = _without(self._totals[:], slot)
            rows = {}
            for place in range(0, self._capacity * _ROW, _ROW):
                address = self._rows[place : place + _ADDRESS]
                if any(address):
                    # A row that was being moved appears twice. Only the first one is used.
                    found = self._find(address)
                    rows[address] = _without(self._rows[found + _ADDRESS : found + _ROW], slot)
            self._rows[:] = bytes(len(self._rows))
            for address, counts in rows.items():
                if any(counts):
                    place = self._find(address)
                    self._rows[place : place + _ROW] = address + counts

    def _add(self, slot: int, address: bytes) -> bool:
        place = self._find(address)
        counts = place + _ADDRESS
        if _total(self._rows, counts) >= self._per_address:
            return False
        self._rows[place:counts] = address
        _change(self._rows, counts, slot, 1)
        return True

    def _find(self, address: bytes) -> int:
        """Return the place of the row of an address, or of the free row that it would take."""
        place = self._home(address)
        while (found := self._rows[place : place + _ADDRESS]) != address and any(found):
            place = self._next(place)
        return place

    def _close_if_empty(self, place: int) -> None:
        if _total(self._rows, place + _ADDRESS):
            return
        size, later = self._capacity * _ROW, place
        while True:
            later = self._next(later)
            address = self._rows[later : later + _ADDRESS]
            if not any(address):
                break
            # A row may move up, but not above the place where its probing begins.
            home = self._home(address)
            if (home - place - 1) % size >= (later - place) % size:
                self._rows[place : place + _ROW] = self._rows[later : later + _ROW]
                place = later
        self._rows[place : place + _ROW] = bytes(_ROW)

    def _home(self, address: bytes) -> int:
        # Children inherit the seed of `hash`, and clients do not know it.
        return hash(address) % self._capacity * _ROW

    def _next(self, place: int) -> int:
        return (place + _ROW) % (self._capacity * _ROW)


def _total(memory: mmap.mmap, counts: int) -> int:
    total: int = _COUNT.unpack_from(memory, counts)[0]
    return total


def _change(memory: mmap.mmap, counts: int, slot: int, amount: int) -> None:
    for at in (counts, counts + (1 + slot) * _COUNT.size):
        # Not below 0: if a worker was killed between the two, they differ until `forget`.
        _COUNT.pack_into(memory, at, max(_total(memory, at) + amount, 0))


def _without(counts: bytes, slot: int) -> bytes:
    """Return the counts without those of a slot, and with the total of the others."""
    held = list(_SLOTS.unpack_from(counts, _COUNT.size))
    held[slot] = 0
    return _COUNT.pack(sum(held)) + _SLOTS.pack(*held)
