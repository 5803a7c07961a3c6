"""Which messages the runner works on just now, recorded where its death does not erase it.

A message on which the process dies (by a fault in a library, for lack of memory, or killed because
it hangs) would kill each runner that follows. So each runner notes its work in a file of its own,
mapped into memory that the kernel keeps when the process dies. That costs no system call and no
sync for a message. The work in the file of a dead runner is suspect. Suspects are worked on one at
a time, so the next death tells which one caused it. That one is poison: it is held, and the rest
goes on.

A runner that ends in order removes its file, and a file that is locked belongs to a runner that
still lives. A file of another supervisor shows that all processes were killed at once, which was
not the fault of a message.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import threading
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from minismtp.runtime.log import Log
from minismtp.storage.spool_file import DamagedError, open_message

_PLACE: Final = 1024  # octets: a name of the spool and a destination
_LONGEST: Final = 1 << 24  # octets that are read of a file
_DEATHS: Final = 2  # after which work is poison


def work_key(message: str, destination: str = "") -> str:
    """Return the key of the work on a message at a destination, or, without one, at none."""
    return f"{message} {destination}"


class InProgress:
    """Notes work by keys, which are any text of one line. Threads may share it.

    `supervisor` is a name that no other supervisor has. After `start`, `poison` has the keys of
    work on which two of its runners died.
    """

    def __init__(self, directory: Path, places: int, log: Log, supervisor: str) -> None:
        self.poison: frozenset[str] = frozenset()
        self._directory = directory
        self._log = log
        self._supervisor = supervisor
        self._suspects: dict[str, int] = {}
        self._trying = False  # whether a suspect is worked on
        self._lock = threading.Lock()
        self._free = deque(range(1, places + 1))  # the first place names the supervisor
        self._size = (places + 1) * _PLACE
        self._notes: mmap.mmap | bytearray = bytearray(self._size)
        self._path: Path | None = None
        self._descriptor = -1

    def start(self) -> None:
        """Read the files of dead runners, and begin one."""
        counts = self._known()
        for path in sorted(self._directory.glob("working.*")):
            for key in self._left(path):
                counts[key] = counts.get(key, 0) + 1
                self._log.warning("a runner died while at work", work=key, deaths=counts[key])
        self.poison = frozenset(key for key, count in counts.items() if count >= _DEATHS)
        self._suspects = counts
        self._write()
        try:
            self._make()
        except OSError as error:
            self._log.error("work under way is not noted", error=str(error))

    def forget_poison(self) -> None:
        """Forget which work is poison, after it was held, so that an operator may release it."""
        for key in self.poison:
            self._suspects.pop(key, None)
        self.poison = frozenset()
        self._write()

    def begin(self, key: str) -> int | None:
        """Note work; return its place for `end`, or None while another suspect is tried."""
        if self._suspects and key in self._suspects:
            with self._lock:
                if self._trying:
                    return None
                self._trying = True
        try:
            place = self._free.pop()
        except IndexError:  # there are more threads than places
            return 0
        self._note(place, key)
        return place

    def end(self, place: int, key: str) -> None:
        """Note that work ended, in whatever way, and that this process lives."""
        if place:
            self._note(place, "")
            self._free.append(place)
        if self._suspects and key in self._suspects:
            with self._lock:
                self._suspects.pop(key, None)
                self._trying = False
                self._write()

    def close(self) -> None:
        """Remove the file, because the process ends in order."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _note(self, place: int, key: str) -> None:
        start = place * _PLACE
        octets = key.encode("utf-8", "surrogateescape")[: _PLACE - 1]
        self._notes[start : start + _PLACE] = octets.ljust(_PLACE, b"\0")

    def _make(self) -> None:
        path = self._directory / f"working.{secrets.token_hex(6)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, self._size)  # else a full disk would raise SIGBUS
            self._notes = mmap.mmap(descriptor, self._size)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        self._descriptor, self._path = descriptor, path  # stays open, because the lock ends with it
        self._note(0, self._supervisor)

    def _left(self, path: Path) -> set[str]:
        """Return the keys in the file of a dead runner, and remove it."""
        try:
            descriptor = open_message(str(path))
        except (OSError, DamagedError):
            return set()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            octets = os.read(descriptor, _LONGEST)
            path.unlink()
        except OSError:  # a runner that lives holds its lock
            return set()
        finally:
            os.close(descriptor)
        places = [octets[start : start + _PLACE] for start in range(0, len(octets), _PLACE)]
        # The file is empty if the runner died while it made it.
        first, *keys = [
            place.rstrip(b"\0").decode("utf-8", "surrogateescape") for place in places
        ] or [""]
        return set(filter(None, keys)) if first == self._supervisor else set()

    @property
    def _file(self) -> Path:
        return self._directory / "suspects"

    def _known(self) -> dict[str, int]:
        try:
            descriptor = open_message(str(self._file))
            try:
                return msgspec.json.decode(os.read(descriptor, _LONGEST), type=dict[str, int])
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # DamagedError among them
            return {}

    def _write(self) -> None:
        """Keep the suspects for the next runner, without a sync because a boot clears them."""
        with contextlib.suppress(OSError, ValueError):
            self._file.unlink(missing_ok=True)
            if self._suspects:
                self._file.write_bytes(msgspec.json.encode(self._suspects))
