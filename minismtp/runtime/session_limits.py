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
_COUNTS: Final = struct.Struct(f"={1 + SLOTS}I")  # the total, then one count for each slot
_COUNT: Final = 4
_ROW: Final = _ADDRESS + _COUNTS.size
_FREE: Final = bytes(_ADDRESS)

Refusal: TypeAlias = Literal["sessions", "address"]


class SharedLock:
    """A lock among processes and their threads, released when a process dies.

    A POSIX record lock belongs to a process, so its threads need a second lock among themselves.
    Make it before the fork.
    """

    def __init__(self, name: str) -> None:
        self._file = os.memfd_create(name)
        self._threads = threading.Lock()

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._threads.release()

    @contextlib.contextmanager
    def within(self, patience: float) -> Iterator[None]:
        """Hold the lock in a block. Raise TimeoutError if it is not free within `patience` seconds.

        A process that was stopped while it held the lock keeps it until it is killed.
        """
        deadline = time.monotonic() + patience
        patience = min(patience, threading.TIMEOUT_MAX)
        self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB, patience, deadline)
        try:
            yield
        finally:
            self.__exit__()

    def _acquire(
        self, how: int = fcntl.LOCK_EX, patience: float = -1, deadline: float = inf
    ) -> None:
        """Take both locks, or none: no call that could fail is between the first and the `try`."""
        if not self._threads.acquire(timeout=patience):
            raise TimeoutError("another thread holds the lock")
        try:
            while True:
                try:
                    fcntl.lockf(self._file, how)
                except OSError as error:
                    # The kernel treats a process as one thread. If two threads use two of these
                    # locks, it may report a deadlock that cannot happen, because no thread waits
                    # while it holds one.
                    if error.errno != errno.EDEADLK and not how & fcntl.LOCK_NB:
                        raise
                    if time.monotonic() > deadline:
                        raise TimeoutError("another process holds the lock") from None
                else:
                    return
                time.sleep(_RETRY)
        except BaseException:
            self._threads.release()
            raise

    __enter__ = _acquire  # a function between them would be called twice for each session


class Admission:
    """Admits `limit` sessions, and `per_address` from one address. Make it before the fork.

    A row has the packed address, the number of its sessions, and the number in each slot. Behind
    the table is a row without an address, which counts all sessions.
    """

    def __init__(self, limit: int, per_address: int) -> None:
        self.limit = limit
        self._per_address = per_address
        self._capacity = 2 * limit + 1  # never more than half full, so probing stays short
        self._size = self._capacity * _ROW
        self._memory = mmap.mmap(-1, self._size + _ROW)  # unused pages take no memory
        self._counts = memoryview(self._memory).cast("I")
        self._lock = SharedLock("minismtp-admission")

    @property
    def sessions(self) -> int:
        """The number of open sessions."""
        return self._counts[(self._size + _ADDRESS) // _COUNT]

    def enter(self, slot: int, peer: str, *, reserved: int = 0) -> bytes | Refusal:
        """Take a place for a session. Return its packed address, or the limit that was reached.

        The packed address is for `leave`, and empty if the peer has none. The last `reserved`
        places are kept for other sessions. The peer is "" if not known yet.
        """
        address = peer_key(peer)
        with self._lock:
            if self._counts[(self._size + _ADDRESS) // _COUNT] >= self.limit - reserved:
                return "sessions"
            if address and not self._add(slot, address):
                return "address"
            self._change(self._size, slot, 1)
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
            self._change(self._size, slot, -1)
            if address:
                place = self._find(address)
                if not self._change(place, slot, -1):
                    self._remove(place)

    def forget(self, slot: int, patience: float = inf) -> None:
        """Free all places of a worker that died, even if it was changing the table.

        Raise TimeoutError if another process holds the lock for `patience` seconds.
        """
        memory, size = self._memory, self._size
        with self._lock.within(patience):
            memory[size + _ADDRESS :] = _without(memory[size + _ADDRESS :], slot)
            rows = {}
            for place in range(0, size, _ROW):
                address = memory[place : place + _ADDRESS]
                if address != _FREE:
                    # A row that was being moved appears twice. Only the first one is used.
                    found = self._find(address)
                    rows[address] = _without(memory[found + _ADDRESS : found + _ROW], slot)
            memory[:size] = bytes(size)
            for address, counts in rows.items():
                if any(counts):
                    place = self._find(address)
                    memory[place : place + _ROW] = address + counts

    def _add(self, slot: int, address: bytes) -> bool:
        place = self._find(address)
        if self._counts[(place + _ADDRESS) // _COUNT] >= self._per_address:
            return False
        self._memory[place : place + _ADDRESS] = address
        self._change(place, slot, 1)
        return True

    def _find(self, address: bytes) -> int:
        """Return the place of the row of an address, or of the free row that it would take."""
        place, memory = self._home(address), self._memory
        while memory[place : place + _ADDRESS] not in (address, _FREE):
            place = (place + _ROW) % self._size
        return place

    def _change(self, place: int, slot: int, amount: int) -> int:
        """Change the counts of a row, and return how many sessions it has then."""
        counts, first = self._counts, (place + _ADDRESS) // _COUNT
        for at in (first, first + 1 + slot):
            # Not below 0: if a worker was killed between the two, they differ until `forget`.
            if (count := counts[at] + amount) >= 0:
                counts[at] = count
        return counts[first]

    def _remove(self, place: int) -> None:
        """Free a row, and move up the rows behind it that it kept from their home."""
        memory, size, later = self._memory, self._size, place
        while True:
            later = (later + _ROW) % size
            address = memory[later : later + _ADDRESS]
            if address == _FREE:
                break
            # A row may move up, but not above the place where its probing begins.
            home = self._home(address)
            if (home - place - 1) % size >= (later - place) % size:
                memory[place : place + _ROW] = memory[later : later + _ROW]
                place = later
        memory[place : place + _ROW] = bytes(_ROW)

    def _home(self, address: bytes) -> int:
        # Children inherit the seed of `hash`, and clients do not know it.
        return hash(address) % self._capacity * _ROW


def _without(counts: bytes, slot: int) -> bytes:
    """Return the counts without those of a slot, and with the total of the others."""
    _, *held = _COUNTS.unpack(counts)
    held[slot] = 0
    return _COUNTS.pack(sum(held), *held)
