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
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

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
_NETWORKS: Final = 1024  # addresses whose network is remembered


class _Row(NamedTuple):
    failures: int = 0
    pending: int = 0  # attempts without a result yet
    allowed: float = 0.0  # when the next attempt may begin
    last: float = 0.0  # when an attempt began or failed


_NONE: Final = _Row()
_Key: TypeAlias = tuple[int, bytes]  # the place of a row, and the digest in it


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
        self._secret = os.urandom(16)
        self._lock = SharedLock("minismtp-backoff")

    def reserve(self, address: str) -> float:
        """Return the seconds to wait before the next attempt, and claim that turn.

        A wait longer than PATIENCE claims none. End each claim by `failed`, `succeeded` or
        `release`.
        """
        if not self._base:
            return 0.0
        key = self._key_of(address)
        with self._lock:
            row, now = self._find(key), self.clock()
            free = _FREE if self._remembers(key) else 0
            turn = max(row.allowed, now)
            if turn - now <= PATIENCE:
                pending = row.pending + 1
                wait = self._wait(row.failures + max(0, pending - free))
                self._put(key, _Row(row.failures, pending, turn + wait, now))
            return turn - now

    def forgiven(self, address: str, turn: float) -> bool:
        """Return whether a success reset the wait of an address since `turn` was claimed."""
        key = self._key_of(address)
        with self._lock:
            return self._find(key).allowed < turn

    def is_open(self, address: str) -> bool:
        """Return whether attempts of the address are under way and no attempt failed."""
        key = self._key_of(address)
        with self._lock:
            row = self._find(key)
            return row.pending > 0 and not row.failures

    def release(self, address: str) -> None:
        """End a claim without a result."""
        key = self._key_of(address)
        with self._lock:
            row = self._find(key)
            pending = max(0, row.pending - 1)
            allowed = row.allowed if row.failures or pending else 0.0
            self._put(key, row._replace(pending=pending, allowed=allowed))

    def failed(self, address: str) -> None:
        """End a claim with a failed login."""
        key = self._key_of(address)
        with self._lock:
            row, now = self._find(key), self.clock()
            failures = row.failures + 1
            allowed = max(row.allowed, now + self._wait(failures))
            self._put(key, _Row(failures, max(0, row.pending - 1), allowed, now))

    def succeeded(self, address: str, username: str = "") -> None:
        """Reset the wait of an address. Remember the address, and the user in its network."""
        key, user = self._key_of(address), self._key_of_user(username, address)
        with self._lock:
            row, now = self._find(key), self.clock()
            if row != _NONE:
                self._put(key, _Row(pending=max(0, row.pending - 1), last=row.last))
            for place, digest in (key, user):
                _KNOWN.pack_into(self._known, place * _KNOWN.size, digest, now)

    def knows(self, address: str, username: str) -> bool:
        """Return whether the address logged in before, or the user from an address near it.

        A user name alone does not count, because the waits would reveal which users exist.
        """
        known = self._remembers(self._key_of(address))
        return known or self._remembers(self._key_of_user(username, address))

    def _remembers(self, key: _Key) -> bool:
        place, digest = key
        found, when = _KNOWN.unpack_from(self._known, place * _KNOWN.size)
        return bool(found == digest and self.clock() - when < _REMEMBER)

    def _wait(self, failures: int) -> float:
        return min(self._base * 2.0 ** min(failures - 1, 30), LONGEST) if failures else 0.0

    def _find(self, key: _Key) -> _Row:
        place, digest = key
        found, *values = _ROW.unpack_from(self._table, place * _ROW.size)
        row = _Row(*values)
        return row if found == digest and self.clock() - row.last <= _FORGET else _NONE

    def _put(self, key: _Key, row: _Row) -> None:
        place, digest = key
        _ROW.pack_into(self._table, place * _ROW.size, digest, *row)

    def _key_of(self, address: str) -> _Key:
        return self._hashed(peer_key(address) or address.encode())

    def _key_of_user(self, username: str, address: str) -> _Key:
        name = f"{username.casefold()}@{_network_of(address)}"
        return self._hashed(name.encode("utf-8", "surrogatepass"))

    def _hashed(self, octets: bytes) -> _Key:
        digest = hashlib.blake2b(octets, key=self._secret, digest_size=8).digest()
        return int.from_bytes(digest[:4], "big") % _ROWS, digest


@lru_cache(_NETWORKS)
def _network_of(address: str) -> str:
    """Return the network of a provider, in which phones change addresses."""
    try:
        length = 16 if ipaddress.ip_address(address).version == 4 else 32  # noqa: PLR2004
        return str(ipaddress.ip_network(f"{address}/{length}", strict=False))
    except ValueError:
        return address  # a unix socket


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
