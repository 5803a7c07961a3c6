"""One sync of a file system for everybody who waits for one: group commit.

A sync costs about the same for one new file as for fifty, so writers share them. Each takes a
`ticket`, writes, and calls `commit`, which returns once a sync has ended that began after the call.
The first who comes leads: it syncs for all who were ready before; those who come meanwhile wait,
and the next leader syncs for all of them. Nobody waits for company: a lone writer syncs at once.

Processes share three counters in a small file and a lock on it, which the kernel frees when its
holder dies: the next leader then syncs again.

An error of the kernel says that some page was not written, not whose, and says so once (syncfs(2)).
So it fails every writer whose ticket is older than the end of that sync: whoever could be meant.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_STARTED: Final = 0  # syncs begun
_FINISHED: Final = 1  # the newest sync that has ended well
_FAILED: Final = 2  # syncs that have failed
_SIZE: Final = 24  # octets: three counters of 64 bits


def sync_file_system(descriptor: int) -> None:
    """Write out the file system that `descriptor` belongs to. Raise OSError (syncfs(2))."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc: Final = ctypes.CDLL(None, use_errno=True)


class GroupSync:
    """Syncs the file system of `directory` together with all who share the file `counters`.

    Threads and processes may use it; a process that forks makes its own afterwards.
    """

    def __init__(
        self,
        directory: Path | str,
        counters: Path | str,
        sync: Callable[[int], None] = sync_file_system,
    ) -> None:
        self._sync = sync
        # Errors are told once per descriptor: this one stays open to hear of all since now.
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = os.open(counters, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # A hole in a file that is mapped would end the process by SIGBUS once the disk is full.
        os.posix_fallocate(self._lock, 0, _SIZE)
        self._counters = memoryview(mmap.mmap(self._lock, _SIZE)).cast("Q")
        self._leading = threading.Lock()

    def ticket(self) -> int:
        """Return what `commit` needs; take it before the first octet is written."""
        return self._counters[_FAILED]

    def commit(self, ticket: int) -> None:
        """Return once all that this thread has written is on disk. Raise OSError."""
        wanted = self._counters[_STARTED] + 1
        with self._leading:  # one thread of each process asks for the lock of all processes
            if not self._settled(wanted, ticket):
                self._lead(wanted, ticket)
        if self._counters[_FAILED] != ticket:
            raise OSError(errno.EIO, "the file system reported an error while it was synced")

    def close(self) -> None:
        """Close the files; nobody may wait any more."""
        os.close(self._directory)
        os.close(self._lock)

    def _settled(self, wanted: int, ticket: int) -> bool:
        return self._counters[_FINISHED] >= wanted or self._counters[_FAILED] != ticket

    def _lead(self, wanted: int, ticket: int) -> None:
        counters = self._counters
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if self._settled(wanted, ticket):
                return  # another process has led meanwhile
            counters[_STARTED] += 1
            number = counters[_STARTED]
            try:
                self._sync(self._directory)
            except OSError:
                counters[_FAILED] += 1
                raise
            counters[_FINISHED] = number
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
