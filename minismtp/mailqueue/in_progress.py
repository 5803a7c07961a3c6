"""Which messages the runner works on just now, and those on which runners died.

A message on which the process dies (by a fault in a library, for lack of memory, or killed because
it hangs) would kill each runner that follows. So each runner notes its work in `runtime.suspects`,
as workers do. What a dead runner worked on is suspect. Suspects are worked on one at a time, so the
next death tells which one caused it. That one is poison: it is held, and the rest goes on. If all
processes are killed at once, that was not the fault of a message, and nothing is suspect.
"""

from __future__ import annotations

import threading

from minismtp.runtime.suspects import Notes


def work_key(message: str, destination: str = "") -> str:
    """Return the key of the work on a message at a destination, or, without one, at none."""
    return f"{message} {destination}"


class InProgress:
    """Notes work by keys, which are any text of one line. Threads may share it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._tried = ""  # the suspect that is worked on
        self._lock = threading.Lock()

    def poison(self, *keys: str) -> list[str]:
        """Return those of the keys on whose work two runners died."""
        if not self._notes.any[0]:
            return []
        return [key for key in keys if self._notes.is_fatal(hash(key))]

    def begin(self, key: str) -> int | None:
        """Note work; return its place for `end`, or None while another suspect is tried."""
        mark = hash(key)
        if self._notes.any[0] and self._notes.is_suspect(mark):
            with self._lock:
                if self._tried:
                    return None
                self._tried = key
        return self._notes.begin(mark, key)

    def end(self, place: int, key: str) -> None:
        """Note that work ended, in whatever way, and that this process lives."""
        self._notes.end(place, hash(key))
        if self._tried == key:
            self._tried = ""

    def forget(self, key: str) -> None:
        """Forget that work is poison, after it was held, so that an operator may release it."""
        self._notes.end(-1, hash(key))
