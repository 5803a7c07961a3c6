"""How long an address must wait before its next login. All workers share it.

The table lies in shared memory made before the fork. An attempt counts as failed from its beginning
until it has a result, so simultaneous connections gain no extra attempts. Each failure doubles the
wait of its address, up to a minute. A success, or fifteen minutes without attempts, resets it.
Addresses that succeeded are kept in a second table, where strangers cannot push them out.
"""

from __future__ import annotations

import hashlib
import ipaddress
import mmap
import os
import struct
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from minismtp.runtime.session_limits import SharedLock
from minismtp.runtime.thread_activity import here
from minismtp.values.peer import peer_key

_ROW: Final = struct.Struct("=8sIIdd")  # digest of the address, then the fields of `_Row`
_KNOWN: Final = struct.Struct("=8sd")  # digest, time of the last success
_ROWS: Final = 4096
LONGEST: Final = 60.0  # seconds
PATIENCE: Final = 10.0  # seconds; mail programs do not wait longer for an answer
_STEP: Final = 0.05  # seconds between two checks whether a success reset the wait
_FORGET: Final = 900.0  # seconds
_REMEMBER: Final = 30 * 86400.0  # seconds
# Simultaneous attempts of an address that succeeded before: in the morning, all mail programs of an
# office log in from one address.
_FREE: Final = 8


class _Row(NamedTuple):
    failures: int = 0
    pending: int = 0  # attempts without a result yet
    allowed: float = 0.0  # when the next attempt may begin
    last: float = 0.0  # when an attempt began or failed


class Backoff:
    """The waits by address. `base` is the first in seconds, 0 for none. Make it before the fork.

    Addresses with the same place in the table share a row, which the newest one takes. Clients do
    not know the key of the digests, so they cannot choose an address to share a row with.
    """

    def __init__(self, base: float, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._base = base
        self._table = mmap.mmap(-1, _ROWS * _ROW.size)
        self._known = mmap.mmap(-1, _ROWS * _KNOWN.size)
        self._key = os.urandom(16)
        self._lock = SharedLock("minismtp-backoff")

    def reserve(self, address: str) -> float:
        """Return the seconds to wait before the next attempt, and claim that turn.

        A wait longer than PATIENCE claims none. End each claim by `failed`, `succeeded` or
        `release`.
        """
        if not self._base:
            return 0.0
        with self._lock:
            row, now = self._find(address), self.clock()
            free = _FREE if self._remembers(address) else 0
            turn = max(row.allowed, now)
            if turn - now <= PATIENCE:
                pending = row.pending + 1
                wait = self._wait(row.failures + max(0, pending - free))
                self._put(address, _Row(row.failures, pending, turn + wait, now))
            return turn - now

    def forgiven(self, address: str, turn: float) -> bool:
        """Return whether a success reset the wait of an address since `turn` was claimed."""
        with self._lock:
            return self._find(address).allowed < turn

    def is_open(self, address: str) -> bool:
        """Return whether attempts of the address are under way and no attempt failed."""
        with self._lock:
            row = self._find(address)
            return row.pending > 0 and not row.failures

    def release(self, address: str) -> None:
        """End a claim without a result."""
        with self._lock:
            row = self._find(address)
            pending = max(0, row.pending - 1)
            allowed = row.allowed if row.failures or pending else 0.0
            self._put(address, row._replace(pending=pending, allowed=allowed))

    def failed(self, address: str) -> None:
        """End a claim with a failed login."""
        with self._lock:
            row, now = self._find(address), self.clock()
            failures = row.failures + 1
            allowed = max(row.allowed, now + self._wait(failures))
            self._put(address, _Row(failures, max(0, row.pending - 1), allowed, now))

    def succeeded(self, address: str, username: str = "") -> None:
        """Reset the wait of an address. Remember the address, and the user in its network."""
        with self._lock:
            row = self._find(address)
            if row != _Row():
                self._put(address, _Row(pending=max(0, row.pending - 1), last=row.last))
            for name in (address, _at(username, address)):
                place, digest = self._place(name)
                _KNOWN.pack_into(self._known, place * _KNOWN.size, digest, self.clock())

    def knows(self, address: str, username: str) -> bool:
        """Return whether the address logged in before, or the user from an address near it.

        A user name alone does not count, because the waits would reveal which users exist.
        """
        return self._remembers(address) or self._remembers(_at(username, address))

    def _remembers(self, name: str) -> bool:
        place, digest = self._place(name)
        found, when = _KNOWN.unpack_from(self._known, place * _KNOWN.size)
        return bool(found == digest and self.clock() - when < _REMEMBER)

    def _wait(self, failures: int) -> float:
        return min(self._base * 2.0 ** min(failures - 1, 30), LONGEST) if failures else 0.0

    def _find(self, address: str) -> _Row:
        place, digest = self._place(address)
        found, *values = _ROW.unpack_from(self._table, place * _ROW.size)
        row = _Row(*values)
        return row if found == digest and self.clock() - row.last <= _FORGET else _Row()

    def _put(self, address: str, row: _Row) -> None:
        place, digest = self._place(address)
        _ROW.pack_into(self._table, place * _ROW.size, digest, *row)

    def _place(self, name: str) -> tuple[int, bytes]:
        octets = peer_key(name) or name.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(octets, key=self._key, digest_size=8).digest()
        return int.from_bytes(digest[:4], "big") % _ROWS, digest


def _at(username: str, address: str) -> str:
    """Return a key for a user in the network of a provider, where phones change addresses."""
    try:
        length = 16 if ipaddress.ip_address(address).version == 4 else 32  # noqa: PLR2004
        network = str(ipaddress.ip_network(f"{address}/{length}", strict=False))
    except ValueError:
        network = address  # a unix socket
    return f"{username.casefold()}@{network}"


def wait_for_turn(backoff: Backoff, address: str, stop: threading.Event) -> bool:
    """Wait until `address` may try a login. Return False if the wait would be too long.

    After a success of the address, all waiting attempts ask again. While no attempt of the address
    failed, they wait for that even if their own turn is too late, because after a restart all mail
    programs of an office log in at once.
    """
    until = backoff.clock() + PATIENCE
    while True:
        seconds = backoff.reserve(address)
        if seconds > PATIENCE:
            if stop.is_set() or backoff.clock() >= until or not backoff.is_open(address):
                return False
            stop.wait(_STEP)
            continue
        turn = backoff.clock() + seconds
        if not seconds:
            return True
        with here.activity.during("waits after a failed login"):
            if _wait(backoff, address, turn, stop):
                return True
        backoff.release(address)


def _wait(backoff: Backoff, address: str, turn: float, stop: threading.Event) -> bool:
    """Wait for a turn. Return False if a success of the address reset the wait meanwhile."""
    while not (stop.is_set() or backoff.clock() >= turn):
        stop.wait(min(_STEP, turn - backoff.clock()))
        if backoff.forgiven(address, turn):
            return False
    return True
