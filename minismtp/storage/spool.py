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
processes notify it through `spool_trigger`. Nothing lists a directory but a start, and the reader
after the FIFO was full. The files `working.*` and `suspects` belong to `mailqueue.in_progress`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
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
    read_message,
)
from minismtp.storage.spool_trigger import Trigger
from minismtp.values.durable_files import DurableFile, make_directory, sync_directory
from minismtp.values.threads import surviving

__all__ = ["BusyError", "DamagedError", "Spool", "UnreadableError"]

_log = logging.getLogger(__name__)
_FREE_FOR: Final = 1.0  # seconds


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
            make_directory(self._directory / name)
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
        descriptor = open_message(f"{self._queue}/{name}")
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
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._queue}/{name}")  # noqa: PTH108 - plain strings

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
