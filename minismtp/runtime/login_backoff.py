"""How long an address must wait before its next login, known to all workers.

The table lies in shared memory made before the fork. An attempt counts as failed from its beginning
until it has an outcome, so many connections at once gain nothing. Every failure doubles the wait of
its address up to a minute. A success, or a quarter of an hour of peace, forgives; what succeeded is
remembered in a table of its own, where strangers cannot push it out.
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
from minismtp.values.peer import peer_key

_ROW: Final = struct.Struct("=8sIIdd")  # digest of the address, then what `_Row` names
_KNOWN: Final = struct.Struct("=8sd")  # digest, when it last succeeded
_ROWS: Final = 4096
LONGEST: Final = 60.0  # seconds
PATIENCE: Final = 10.0  # seconds that an attempt waits for its turn; mail programs wait no longer
_STEP: Final = 0.05  # seconds between two looks whether a success has forgiven meanwhile
_FORGET: Final = 900.0  # seconds
_REMEMBER: Final = 30 * 86400.0  # seconds
# Attempts that an address may have under way at once after a success: an office behind one address
# opens its mail programs in the morning.
_FREE: Final = 8


class _Row(NamedTuple):
    failures: int = 0
    pending: int = 0  # attempts without an outcome
    allowed: float = 0.0  # when the next attempt may begin
    last: float = 0.0  # when an attempt began or failed


class Backoff:
    """Waits by address; `base` is the first one in seconds, 0 = none. Make it before the fork.

    An address shares its row with those that fall on the same place of the table: the newer one
    takes it over. Nobody outside knows the key of the digests, so nobody can choose that address.
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

        A wait beyond PATIENCE claims nothing. Each claim ends with `failed`, `succeeded` or
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
        """Return whether a success has forgiven the address since `turn` was claimed."""
        with self._lock:
            return self._find(address).allowed < turn

    def is_open(self, address: str) -> bool:
        """Return whether attempts of the address are under way, and none has failed so far."""
        with self._lock:
            row = self._find(address)
            return row.pending > 0 and not row.failures

    def release(self, address: str) -> None:
        """Take back a claim: the attempt ended without proving anything."""
        with self._lock:
            row = self._find(address)
            pending = max(0, row.pending - 1)
            allowed = row.allowed if row.failures or pending else 0.0
            self._put(address, row._replace(pending=pending, allowed=allowed))

    def failed(self, address: str) -> None:
        """Count a claimed attempt as a failed login."""
        with self._lock:
            row, now = self._find(address), self.clock()
            failures = row.failures + 1
            allowed = max(row.allowed, now + self._wait(failures))
            self._put(address, _Row(failures, max(0, row.pending - 1), allowed, now))

    def succeeded(self, address: str, username: str = "") -> None:
        """Forgive an address, and remember it and the user in its network."""
        with self._lock:
            row = self._find(address)
            if row != _Row():
                self._put(address, _Row(pending=max(0, row.pending - 1), last=row.last))
            for name in (address, _at(username, address)):
                place, digest = self._place(name)
                _KNOWN.pack_into(self._known, place * _KNOWN.size, digest, self.clock())

    def knows(self, address: str, username: str) -> bool:
        """Return whether the address, or the user from an address near it, has logged in before.

        A user name alone does not count: then the waits would tell a stranger which users exist.
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
    """Name a user in the network of a whole provider, within which phones change addresses."""
    try:
        length = 16 if ipaddress.ip_address(address).version == 4 else 32  # noqa: PLR2004
        network = str(ipaddress.ip_network(f"{address}/{length}", strict=False))
    except ValueError:
        network = address  # a unix socket
    return f"{username.casefold()}@{network}"


def wait_for_turn(backoff: Backoff, address: str, stop: threading.Event) -> bool:
    """Wait until `address` may try a login; False when the wait would be too long.

    A success of the address meanwhile makes all that wait ask again. While nothing of it has failed
    so far, that is what they hope for: after a restart an office comes all at once.
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
        while not (ready := stop.is_set() or backoff.clock() >= turn):
            stop.wait(min(_STEP, turn - backoff.clock()))
            if backoff.forgiven(address, turn):
                break
        if ready:
            return True
        backoff.release(address)
