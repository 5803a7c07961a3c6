"""Messages that wait for delivery, one file each.

The file of a message begins with its octets as they will be sent. Its envelope (JSON) follows, then
a footer with the sizes of both. The file is written once, synced and renamed, and never changed.
How its recipients stand is in the runner's database.

| state | tmp/ID | queue/ID | damaged/ID | how it got here, and what a crash leaves |
| --- | --- | --- | --- | --- |
| S1 writing | partial | - | - | `add`; not acknowledged, the next start removes it |
| S2 synced | whole | - | - | the sync of `add`; the next start makes it S3 |
| S3 queued | - | whole | - | the rename; acknowledged. A power cut may make it S2 again |
| S4 done | - | - | - | `remove`, once all recipients are settled. May become S3 again |
| S5 set aside | - | - | as found | `set_aside`: a file that `add` did not write so |

Guarantees. A message is acknowledged only in S3, and its octets and its name were synced in S2
(fsync(2) of a new file writes its directory entry too, on file systems with a journal). So a crash
at any instant leaves it in S2 or S3, and every start makes S3 of S2. A file is whole if its footer
fits its size and it has no hole, so nothing partial is ever sent. After a crash a message may be
sent again, but is never lost: at least once.

The process that takes messages out holds `lock`, and a second one cannot. A process that ends may
give it up early and call `lock_message` for the few messages that it still delivers. Other
processes notify it through its `Trigger`. Nothing lists a directory but a start, and the reader
after the FIFO was full.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Final

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.storage.spool_file import (
    NAME,
    DamagedError,
    UnreadableError,
    encoded,
    footer,
    move_into,
    open_message,
    open_unchecked,
    read_message,
)
from minismtp.values.durable_files import DurableFile, make_directory, sync_directory
from minismtp.values.threads import surviving

__all__ = ["BusyError", "DamagedError", "Spool", "UnreadableError"]

_log = logging.getLogger(__name__)
_FREE_FOR: Final = 1.0  # seconds
_FIFO_SIZE: Final = 1 << 20  # octets: the names of 50,000 messages
_PATIENCE: Final = 1000  # milliseconds that a full FIFO may delay the acknowledgement


class BusyError(RuntimeError):
    """Another process takes messages out of this spool."""


class Spool:
    """The directory of waiting messages, to which any number of processes may add.

    `reserve` is how many octets of the file system stay free.
    """

    def __init__(self, directory: Path, reserve: int = 0) -> None:
        self._directory = directory
        self._reserve = reserve
        self._temporary = str(directory / "tmp")
        self._queue = str(directory / "queue")
        self.trigger = Trigger(directory)
        self._free = (0, -inf)  # octets, and until when that counts

    def prepare(self) -> None:
        """Make the directories that are missing. Raise OSError.

        The state directory is not made. It may have been moved, and mail that went into a new one
        would be missing when the old one comes back.
        """
        self._directory.mkdir(0o700, exist_ok=True)
        for name in ("tmp", "queue", "damaged"):
            make_directory(self._directory / name, within=self._directory)
        self.trigger.prepare()

    def has_space(self, size: int = 0) -> bool:
        """Return whether a message of `size` octets leaves the reserve free.

        Every MAIL asks, but the file system is asked only once a second. The reserve covers what
        comes in meanwhile, and `add` raises OSError if the disk is full nevertheless.
        """
        now = time.monotonic()
        free, until = self._free
        if now >= until:
            try:
                status = os.statvfs(self._directory)
                free = status.f_bavail * status.f_frsize
            except OSError as error:  # the directory was moved, or its disk is gone
                if self._free[0] >= 0:
                    _log.error("no mail is taken, %s: %s", self._directory, error.strerror)
                free = -1
            self._free = (free, now + _FREE_FOR)
        return free >= size + self._reserve

    def add(self, entry: QueueEntry, message: Message) -> None:
        """Queue a message, which is on disk when this returns.

        Raise OSError or UnreadableError, in which case nothing is left of it.
        """
        text, size = encoded(entry), message.size
        if not self.has_space(size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._queue)
        with DurableFile(f"{self._temporary}/{entry.id}", f"{self._queue}/{entry.id}") as file:
            end = text + footer(size, len(text))
            file.size = message.write_to(file.descriptor, after=end)
        with surviving():  # because this server has the message already
            self.trigger.notify(entry.id)

    def open(self, name: str) -> tuple[QueueEntry, Message]:
        """Read a message. Raise DamagedError, or FileNotFoundError if it is gone."""
        descriptor = open_unchecked(f"{self._queue}/{name}")
        try:
            entry, size, small = read_message(descriptor, name)
        except BaseException:
            os.close(descriptor)
            raise
        if small is None:
            content = Content.stored(descriptor, size, known_7bit=entry.is_7bit)
        else:
            content = Content(small, size, known_7bit=entry.is_7bit)
            os.close(descriptor)
        message = Message(name, content)
        message.quarantined = entry.quarantined
        return entry, message

    def remove(self, name: str) -> None:
        """Drop a message whose recipients are all settled; it may be gone already."""
        try:  # noqa: SIM105 - `suppress` takes 1 us
            os.unlink(f"{self._queue}/{name}")  # noqa: PTH108 - plain strings
        except FileNotFoundError:
            pass

    def set_aside(self, name: str) -> None:
        """Move a file that is damaged, or no message, into damaged/. Raise OSError."""
        move_into(self._directory / "damaged", Path(self._queue, name))

    def lock(self) -> int:
        """Become the one process that takes messages out, until the descriptor is closed.

        Raise BusyError if another process is.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._directory / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(f"another process holds {self._directory / 'lock'}") from None
        return descriptor

    def has_runner(self) -> bool:
        """Return whether a process takes messages out."""
        try:
            os.close(self.lock())
        except BusyError:
            return True
        return False

    def lock_message(self, name: str) -> int:
        """Lock a message against other runners, until the descriptor is closed. Raise OSError."""
        descriptor = open_message(f"{self._queue}/{name}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def is_locked(self, name: str) -> bool:
        """Return whether another runner holds the lock of a message. Raise OSError."""
        try:
            os.close(self.lock_message(name))
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def recover(self) -> Iterator[tuple[str, bool]]:
        """Make S3 of S2, and remove S1. Yield each name, and whether the message was whole.

        A file that cannot be read stays where it is, as it holds no acknowledged message.
        """
        for item in os.scandir(self._temporary):
            with contextlib.suppress(DamagedError, OSError):
                descriptor = open_message(item.path)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or a worker writes it
                    yield item.name, self._complete(item, descriptor)
                finally:
                    os.close(descriptor)
        sync_directory(self._queue)

    def _complete(self, item: os.DirEntry[str], descriptor: int) -> bool:
        try:
            read_message(descriptor, item.name)
        except DamagedError:
            Path(item.path).unlink()
            return False
        os.fsync(descriptor)
        Path(item.path).rename(Path(self._queue, item.name))
        return True

    def names(self) -> Iterator[str]:
        """Iterate over the names of all queued messages."""
        return (item.name for item in os.scandir(self._queue) if NAME.fullmatch(item.name))

    def set_aside_misnamed(self) -> list[str]:
        """Set aside files with names that `add` does not give, and return their names."""
        names = [each.name for each in os.scandir(self._queue) if not NAME.fullmatch(each.name)]
        for name in names:
            with contextlib.suppress(OSError):
                self.set_aside(name)
        return names


class Trigger:
    """How the runner learns of new messages: the FIFO `wake` of the spool in `directory`.

    A process that adds a message writes its name into the FIFO. If the FIFO is full, the process
    makes the file `missed` instead, and the runner lists the queue once more. If no runner reads,
    nothing needs to be done, because each runner lists the queue when it starts.
    """

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
