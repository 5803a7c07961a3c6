"""How the runner learns of new messages: a FIFO with their names.

A process that adds a message writes its name into the FIFO `wake`. If the FIFO is full, the process
makes the file `missed` instead, and the runner lists the queue once more. If no runner reads,
nothing needs to be done, because each runner lists the queue when it starts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import threading
from pathlib import Path
from typing import Final

from minismtp.storage.spool_file import NAME, move_into

_FIFO_SIZE: Final = 1 << 20  # octets: the names of 50,000 messages
_PATIENCE: Final = 1000  # milliseconds that a full FIFO may delay the acknowledgement


class Trigger:
    """The FIFO of the spool in `directory`. Any number of processes may notify its one reader."""

    def __init__(self, directory: Path) -> None:
        self._fifo = directory / "wake"
        self._missed = directory / "missed"
        self._damaged = directory / "damaged"
        self._writer = -1
        self._lock = threading.Lock()  # because the number of a closed descriptor is reused at once

    def prepare(self) -> None:
        """Make the FIFO if it is missing. Raise OSError."""
        if not self._fifo.is_fifo():
            with contextlib.suppress(FileNotFoundError):
                move_into(self._damaged, self._fifo)
            os.mkfifo(self._fifo, 0o600)

    def open(self) -> int:
        """Return a descriptor to `read` from; it is a writer too, so it never reaches the end."""
        descriptor = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # an unprivileged user has a quota of such memory
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _FIFO_SIZE)
        return descriptor

    @staticmethod
    def read(descriptor: int) -> tuple[list[str], bool]:
        """Return the names of new messages, and whether an operator changed the queue."""
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(descriptor, _FIFO_SIZE):
                pieces.append(piece)
        lines = b"".join(pieces).decode("ascii", "replace").split("\n")[:-1]
        return [line for line in lines if NAME.fullmatch(line)], "" in lines

    def notify(self, name: str = "") -> None:
        """Tell the runner of a new message, or, without a name, of a change by an operator."""
        line = f"{name}\n".encode("ascii")
        for _ in range(2):  # the first write may go to the FIFO of a runner that ended
            try:
                self._write(line)
            except BlockingIOError:
                if self._missed.exists():
                    return  # another process already waited in vain
                if not self._has_room():
                    break
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # no runner reads, and the next one lists the queue
            else:
                return
        with contextlib.suppress(OSError):
            self._missed.touch()

    def overflowed(self) -> bool:
        """Return whether a process could not write into the FIFO since the last call."""
        try:
            self._missed.unlink()
        except FileNotFoundError:
            return False
        except OSError:  # not a file of this server
            with contextlib.suppress(OSError):
                move_into(self._damaged, self._missed)
        return True

    def _write(self, line: bytes) -> None:
        """Write into the FIFO. Raise OSError, after which the next call opens the FIFO again."""
        with self._lock:
            try:
                if self._writer < 0:
                    self._writer = self._open_writer()
                os.write(self._writer, line)
            except BlockingIOError:
                raise
            except OSError:
                if self._writer >= 0:
                    os.close(self._writer)
                    self._writer = -1
                raise

    def _open_writer(self) -> int:
        return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _has_room(self) -> bool:
        """Wait until the FIFO takes more, for a second at most."""
        with contextlib.suppress(OSError):
            descriptor = self._open_writer()
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                return bool(poll.poll(_PATIENCE))
            finally:
                os.close(descriptor)
        return True
