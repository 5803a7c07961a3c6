"""One sync of a file system for all writers that wait for one (group commit).

A sync takes about as long for fifty new files as for one, so writers share it. Each takes a
`ticket`, writes, and calls `commit`, which returns after a sync that began after the call. The
first writer leads: it syncs for all that were ready before. Writers that come meanwhile wait, and
one of them leads the next sync for all of them. A single writer syncs at once.

Processes share three counters in a small file, and a lock on it. If the leader dies, the kernel
releases the lock, and the next leader syncs again.

An error of the kernel means that some page was not written, but not of which writer, and it is
reported only once (syncfs(2)). So `commit` fails for every writer whose ticket is older than the
end of that sync.
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

_STARTED: Final = 0  # syncs that began
_FINISHED: Final = 1  # the number of the last sync that succeeded
_FAILED: Final = 2  # syncs that failed
_SIZE: Final = 24  # octets of three 64-bit counters


def sync_file_system(descriptor: int) -> None:
    """Write out the file system that `descriptor` belongs to. Raise OSError (syncfs(2))."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc: Final = ctypes.CDLL(None, use_errno=True)


class GroupSync:
    """Syncs the file system of `directory` together with all writers that share `counters`.

    Threads and processes may use it, but each process has to make its own after a fork.
    """

    def __init__(
        self,
        directory: Path | str,
        counters: Path | str,
        sync: Callable[[int], None] = sync_file_system,
    ) -> None:
        self._sync = sync
        # The kernel reports an error once per descriptor, so this one stays open for all errors.
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = os.open(counters, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # On a full disk, a hole in a mapped file would kill the process by SIGBUS.
        os.posix_fallocate(self._lock, 0, _SIZE)
        self._counters = memoryview(mmap.mmap(self._lock, _SIZE)).cast("Q")
        self._leading = threading.Lock()

    def ticket(self) -> int:
        """Return a ticket for `commit`. Take it before writing the first octet."""
        return self._counters[_FAILED]

    def commit(self, ticket: int) -> None:
        """Return once everything that this thread wrote is on disk. Raise OSError."""
        wanted = self._counters[_STARTED] + 1
        with self._leading:  # one thread of each process takes the lock of the processes
            if not self._settled(wanted, ticket):
                self._lead(wanted, ticket)
        if self._counters[_FAILED] != ticket:
            raise OSError(errno.EIO, "the file system reported an error while it was synced")

    def close(self) -> None:
        """Close the files. No thread may use this object any more."""
        os.close(self._directory)
        os.close(self._lock)

    def _settled(self, wanted: int, ticket: int) -> bool:
        return self._counters[_FINISHED] >= wanted or self._counters[_FAILED] != ticket

    def _lead(self, wanted: int, ticket: int) -> None:
        counters = self._counters
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if self._settled(wanted, ticket):
                return  # another process led meanwhile
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
