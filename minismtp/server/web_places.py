"""Limits how many requests to web listeners are under way at once."""

from __future__ import annotations

import threading
from collections import Counter

from minismtp.values.peer import is_loopback, peer_key


class Places:
    """How many requests are under way, in all and for each client. Threads share it.

    A client that is on this machine, or that is "" because it is not known yet, has no limit of its
    own.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._taken: Counter[bytes] = Counter()  # by `peer_key`, b"" for those without a limit
        self._changed = threading.Condition()

    def enter(self, peer: str) -> bool:
        """Take a place, and return whether there was one."""
        key = _key(peer)
        with self._changed:
            if self._taken.total() >= self._most:
                return False
            if key and self._taken[key] >= self._most_of_one:
                return False
            self._taken[key] += 1
            return True

    def identify(self, peer: str) -> bool:
        """Count a request of "", which has a place, for its client. Return whether it may go on."""
        key = _key(peer)
        with self._changed:
            if key and self._taken[key] >= self._most_of_one:
                return False
            self._taken[key] += 1
            self._taken[b""] -= 1
            return True

    def forget(self, peer: str) -> None:
        """Undo `identify`: count a request for "" again. It still has its place."""
        key = _key(peer)
        with self._changed:
            self._taken[b""] += 1
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]

    def leave(self, peer: str) -> None:
        """Free the place of a request."""
        key = _key(peer)
        with self._changed:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until no place is taken, and return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._taken, seconds)


def _key(peer: str) -> bytes:
    return peer_key(peer) if peer and not is_loopback(peer) else b""
