"""Writing to standard error without waiting for its reader.

The reader may stop, for example a journal that hangs, or a pager. A plain write would then wait for
ever. O_NONBLOCK must not be set, because it belongs to the open file, which other programs share.
So a pipe or a terminal is opened a second time, and a socket, such as that of systemd's journal, is
written with MSG_DONTWAIT.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from typing import Final

_PIPE_BUF: Final = select.PIPE_BUF  # octets that a ready pipe takes without waiting


class Output:
    """Writes to a descriptor without waiting, and without a change for others that share it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ours = -1
        self._socket: socket.socket | None = None
        self._most: int | None = None
        with contextlib.suppress(OSError):
            self._prepare(descriptor, os.fstat(descriptor).st_mode)

    def _prepare(self, descriptor: int, mode: int) -> None:
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            self._most = _PIPE_BUF
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            # This fails if it belongs to another user. Then at most `_PIPE_BUF` octets are written.
            self._descriptor = self._ours = os.open(f"/proc/self/fd/{descriptor}", flags)
            self._most = None

    def __del__(self) -> None:
        """Close the descriptors that this object opened."""
        if self._ours >= 0:
            os.close(self._ours)
        if self._socket is not None:
            self._socket.close()

    def write(self, data: bytes) -> int:
        """Write without waiting. Return the octets written. Raise OSError if no reader is left."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            if self._most is not None:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                if not poll.poll(0):
                    return 0
            return os.write(self._descriptor, data[: self._most])
        except BlockingIOError:
            return 0


class Printed(io.TextIOBase):
    """A replacement for `sys.stderr` that passes whole lines to `say` and never waits."""

    def __init__(self, say: Callable[[str], object], descriptor: int) -> None:
        super().__init__()
        self._say = say
        self._descriptor = descriptor
        self._begun = ""
        self._lock = threading.RLock()  # a finalizer may print while the same thread prints

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of standard error."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Pass on the whole lines of the text, and keep the rest for the next call."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._say(line)
        return len(text)
