"""Standard error, which others may hold up.

Who reads there may stop reading: a journal that hangs, a pager, a pipe that was left. A plain write
then waits for ever. That a descriptor does not wait (O_NONBLOCK) belongs to the open file, which
other programs share, so it is not ours to set: a pipe or a terminal is opened once more for us, and
a socket, such as that of systemd's journal, is written with MSG_DONTWAIT.
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

_PIPE_BUF: Final = select.PIPE_BUF  # octets that a pipe which is ready takes without waiting


class Output:
    """A descriptor to which `write` never waits; what it is stays as it is for others."""

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
            # Forbidden where it belongs to another user: then only as much as it has room for.
            self._descriptor = self._ours = os.open(f"/proc/self/fd/{descriptor}", flags)
            self._most = None

    def __del__(self) -> None:
        """Close what was opened for this one."""
        if self._ours >= 0:
            os.close(self._ours)
        if self._socket is not None:
            self._socket.close()

    def write(self, data: bytes) -> int:
        """Write what is taken at once; gives how many octets. Raise OSError when nobody reads."""
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
    """What stands for `sys.stderr`: whole lines are given to `say`, and nobody waits."""

    def __init__(self, say: Callable[[str], object], descriptor: int) -> None:
        super().__init__()
        self._say = say
        self._descriptor = descriptor
        self._begun = ""
        self._lock = threading.RLock()  # a finalizer may print while its thread does

    def writable(self) -> bool:
        """Say yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor itself, for those who need one."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Take some text."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._say(line)
        return len(text)
