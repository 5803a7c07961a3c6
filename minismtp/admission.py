"""How many sessions the whole server has, in all and for each address (layer 2).

The table lies in shared memory made before the fork, so the limits hold exactly over all workers.
A row is one session: the peer's address and the slot of its worker. Every change happens under a
POSIX record lock, which the kernel releases when a worker is killed; the supervisor then clears the
rows of its slot. One entry costs about 5 us with 2,000 sessions.
"""

from __future__ import annotations

import fcntl
import ipaddress
import mmap
import os
import threading
from typing import Final, Literal, TypeAlias

_ADDRESS: Final = 16  # octets; IPv4 as an IPv4-mapped IPv6 address
_ROW: Final = _ADDRESS + 4  # the address, the slot plus one
_FREE: Final = bytes(_ROW)
_UNKNOWN: Final = bytes(_ADDRESS)  # the row of a peer without an address: a unix socket, a balancer

Ticket: TypeAlias = int
Refusal: TypeAlias = Literal["sessions", "address"]


class SharedLock:
    """A lock among processes and their threads; a process that dies lets go of it.

    A POSIX record lock belongs to a process, so its threads need one more among themselves. Make it
    before the fork.
    """

    def __init__(self, name: str) -> None:
        self._file = os.memfd_create(name)
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._threads.release()


class Admission:
    """Lets sessions in: `limit` in all, `per_address` from one address. Make it before the fork."""

    def __init__(self, limit: int, per_address: int) -> None:
        self._limit = limit
        self._per_address = per_address
        size = max(limit, 1) * _ROW
        self._rows = mmap.mmap(-1, size)
        self._lock = SharedLock("minismtp-admission")

    def enter(self, slot: int, peer: str, *, reserved: int = 0) -> Ticket | Refusal:
        """Take a place for a session; give its ticket, or which limit is in the way.

        The last `reserved` places are not for this session. A peer that is "" is not known yet.
        """
        address = _packed(peer)
        with self._lock:
            rows = self._rows[: max(self._limit - reserved, 0) * _ROW]
            if address and self._count(self._rows[:], address) >= self._per_address:
                return "address"
            place = _find(rows, _FREE)
            if place < 0:
                return "sessions"
            row = (address or _UNKNOWN) + (slot + 1).to_bytes(4, "big")
            self._rows[place : place + _ROW] = row
            return place

    def rename(self, ticket: Ticket, peer: str) -> bool:
        """Say who the peer of a session is after all; False when that address has no place left."""
        address = _packed(peer)
        if not address:
            return True
        with self._lock:
            if self._count(self._rows[:], address) >= self._per_address:
                return False
            self._rows[ticket : ticket + _ADDRESS] = address
            return True

    def leave(self, ticket: Ticket) -> None:
        """Give a place back."""
        with self._lock:
            self._rows[ticket : ticket + _ROW] = _FREE

    def forget(self, slot: int) -> None:
        """Give back all places of a worker that has died."""
        mark = (slot + 1).to_bytes(4, "big")
        with self._lock:
            for place in range(0, self._limit * _ROW, _ROW):
                if self._rows[place + _ADDRESS : place + _ROW] == mark:
                    self._rows[place : place + _ROW] = _FREE

    def _count(self, rows: bytes, address: bytes) -> int:
        count, place = 0, _find(rows, address)
        while place >= 0 and count < self._per_address:
            count += 1
            place = _find(rows, address, place + _ROW)
        return count


def _find(rows: bytes, wanted: bytes, start: int = 0) -> int:
    """Give the place of the first row that begins with `wanted`, or -1."""
    place = rows.find(wanted, start)
    while place >= 0 and place % _ROW:
        place = rows.find(wanted, place + 1)
    return place


def _packed(peer: str) -> bytes:
    """Give an IP address as 16 octets, nothing for a peer that has none (a unix socket)."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return b""
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed
