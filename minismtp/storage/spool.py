"""Messages that wait for delivery, one file each.

The file of a message begins with its octets as they will be sent; after them stand its envelope
(JSON) and a footer with the sizes of both. It is written once, synced and renamed, and never
changed; what becomes of its recipients is kept by the schedule of the runner.

| state | tmp/ID | queue/ID | damaged/ID | how it got here, and what a crash leaves |
| --- | --- | --- | --- | --- |
| S1 writing | partial | - | - | `add`; not acknowledged, removed by the next start |
| S2 synced | whole | - | - | the sync of `add`; the next start makes it S3 |
| S3 queued | - | whole | - | the rename; acknowledged. A power cut may make it S2 again |
| S4 done | - | - | - | `remove`, once every recipient's fate is settled. May become S3 again |
| S5 set aside | - | - | as found | `set_aside`: a file that no `add` has written so |

Guarantees. A message is acknowledged in S3 only, and its octets and its name were synced in S2
(fsync(2) of a new file writes its directory entry too, on the file systems with a journal); so a
crash at any instant leaves it in S2 or S3, and every start makes S3 of S2. A file is whole when its
footer fits its size and it has no hole, so nothing partial is ever sent. After a crash a message
may be sent again, never lost: at least once.

`lock` is held by the process that takes messages out; a second one cannot. One that ends may give
it up early and `keep` the few messages that it still delivers: then their files are locked. `wake`
is a FIFO that carries the names of new messages; who cannot write there makes the file `missed`,
and the reader looks through queue/ once more. Nothing else ever lists a directory. `working.*` and
`suspects` are the reader's own (`outbound.in_progress`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
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
    DamagedError,
    UnreadableError,
    encoded,
    footer,
    open_message,
    read_message,
    write,
)
from minismtp.values.durable_files import (
    MisdirectedError,
    check_written,
    make_directory,
    sync_directory,
)
from minismtp.values.threads import surviving

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}")
__all__ = ["BusyError", "DamagedError", "Spool", "UnreadableError", "heard"]

_FIFO_SIZE: Final = 1 << 20  # octets: the names of 50,000 messages
_log = logging.getLogger(__name__)
_FREE_FOR: Final = 1.0  # seconds
_PATIENCE: Final = 1000  # milliseconds that a full FIFO may hold up the acknowledgement


class BusyError(RuntimeError):
    """Another process takes messages out of this spool."""


class Spool:
    """The directory of waiting messages; any number of processes may add.

    `reserve` is how many octets of the file system stay free.
    """

    def __init__(self, directory: Path, reserve: int = 0) -> None:
        self._directory = directory
        self._reserve = reserve
        self._temporary = str(directory / "tmp")
        self._queue = str(directory / "queue")
        self._wake = directory / "wake"
        self._missed = directory / "missed"
        self._waker = -1
        # A descriptor that is closed may be another file's at once.
        self._calling = threading.Lock()
        self._free = (0, -inf)  # octets, and until when that counts

    def prepare(self) -> None:
        """Make what is missing of the directories; raise OSError.

        The state directory is not made, because it may have been moved: mail that went into another
        one would be missed when it comes back.
        """
        self._directory.mkdir(0o700, exist_ok=True)
        for name in ("tmp", "queue", "damaged"):
            make_directory(self._directory / name)
        if not self._wake.is_fifo():
            with contextlib.suppress(FileNotFoundError):
                self._move_aside(self._wake)
            os.mkfifo(self._wake, 0o600)

    def has_space(self, size: int = 0) -> bool:
        """Whether a message of `size` octets leaves the reserve free.

        Every MAIL asks, so the file system is asked once a second; the reserve covers what comes
        in meanwhile, and a disk that is full all the same is told by `add`.
        """
        now = time.monotonic()
        free, until = self._free
        if now >= until:
            try:
                status = os.statvfs(self._directory)
                free = status.f_bavail * status.f_frsize
            except OSError as error:  # somebody moved the directory, or its disk is gone
                if self._free[0] >= 0:
                    _log.error("no mail is taken, %s: %s", self._directory, error.strerror)
                free = -1
            self._free = (free, now + _FREE_FOR)
        return free >= size + self._reserve

    def add(self, entry: QueueEntry, message: Message) -> None:
        """Queue a message: it is on disk when this returns.

        Raises OSError and UnreadableError, and leaves nothing then.
        """
        text = encoded(entry)
        if not self.has_space(message.size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._queue)
        temporary = f"{self._temporary}/{entry.id}"
        descriptor, begun = _begin(temporary)
        try:
            try:
                size = message.write_to(descriptor)
                end = text + footer(size, len(text))
                write(descriptor, end)
                os.fsync(descriptor)
                check_written(descriptor, begun, size + len(end))
                os.rename(temporary, f"{self._queue}/{entry.id}")  # noqa: PTH104 - plain strings
            except MisdirectedError:
                descriptor = -1
                raise
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        with surviving():  # the message is ours already
            self._call(entry.id)

    def open(self, name: str) -> tuple[QueueEntry, Message]:
        """Read a message. Raises FileNotFoundError when it is gone, and DamagedError."""
        descriptor = open_message(f"{self._queue}/{name}")
        try:
            entry, size, small = read_message(descriptor, name)
        except BaseException:
            os.close(descriptor)
            raise
        if small is None:
            content = Content.stored(descriptor, size)
        else:
            content = Content.of(small)
            os.close(descriptor)
        message = Message(name, content)
        message.quarantined = entry.quarantined
        return entry, message

    def remove(self, name: str) -> None:
        """Drop a message whose every recipient is settled; one that is gone is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._queue}/{name}")  # noqa: PTH108 - plain strings

    def set_aside(self, name: str) -> None:
        """Put what is damaged, or no message, where it is in nobody's way. Raises OSError."""
        self._move_aside(Path(self._queue, name))

    def _move_aside(self, path: Path) -> None:
        path.rename(_free_name(self._directory / "damaged", path.name))

    def lock(self) -> int:
        """Become the one process that takes messages out, until the descriptor is closed.

        Raises BusyError when another process is.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._directory / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(f"another process holds {self._directory / 'lock'}") from None
        return descriptor

    def served(self) -> bool:
        """Whether a process takes messages out."""
        try:
            os.close(self.lock())
        except BusyError:
            return True
        return False

    def keep(self, name: str) -> int:
        """Keep a message from other runners, until the descriptor is closed. Raises OSError."""
        descriptor = open_message(f"{self._queue}/{name}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def kept(self, name: str) -> bool:
        """Whether another runner keeps a message. Raises OSError."""
        try:
            os.close(self.keep(name))
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def recover(self) -> Iterator[tuple[str, bool]]:
        """Make S3 of S2 and nothing of S1; yields each name, and whether it was whole.

        What cannot be read stays where it is, and is no message that was acknowledged.
        """
        for item in os.scandir(self._temporary):
            with contextlib.suppress(DamagedError, OSError):
                descriptor = open_message(item.path)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a worker writes it
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
        """Walk through all queued messages; for the start, and after `missed`."""
        return (item.name for item in os.scandir(self._queue) if _NAME.fullmatch(item.name))

    def strange(self) -> list[str]:
        """Set aside what has a name that `add` gives nobody; returns these names."""
        names = [each.name for each in os.scandir(self._queue) if not _NAME.fullmatch(each.name)]
        for name in names:
            with contextlib.suppress(OSError):
                self._move_aside(Path(self._queue, name))
        return names

    def listen(self) -> int:
        """Open the FIFO for `hear`; a writer of our own keeps it open."""
        descriptor = os.open(self._wake, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # an unprivileged user has a quota of such memory
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _FIFO_SIZE)
        return descriptor

    def missed(self) -> bool:
        """Whether somebody could not write to the FIFO since the last call."""
        try:
            self._missed.unlink()
        except FileNotFoundError:
            return False
        except OSError:  # somebody has put something else there, which is moved out of the way
            with contextlib.suppress(OSError):
                self._move_aside(self._missed)
        return True

    def knock(self) -> None:
        """Have the runner look again, for instance because the schedule was changed."""
        self._call("")

    def _call(self, name: str) -> None:
        line = f"{name}\n".encode("ascii")
        for _ in range(2):  # a runner that was started again has another reader
            try:
                self._say(line)
            except BlockingIOError:
                if self._missed.exists():
                    return  # who came before has waited in vain already
                if not self._has_room():
                    break
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # nobody listens: the next start walks through the queue
            else:
                return
        with contextlib.suppress(OSError):
            self._missed.touch()

    def _say(self, line: bytes) -> None:
        """Write into the FIFO; raises OSError, and then opens it anew the next time."""
        with self._calling:
            try:
                if self._waker < 0:
                    self._waker = os.open(self._wake, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.write(self._waker, line)
            except BlockingIOError:
                raise
            except OSError:
                if self._waker >= 0:
                    os.close(self._waker)
                    self._waker = -1
                raise

    def _has_room(self) -> bool:
        """Wait until the FIFO takes more, or not much longer."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._wake, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                return bool(poll.poll(_PATIENCE))
            finally:
                os.close(descriptor)
        return True


def heard(descriptor: int) -> tuple[list[str], bool]:
    """Read what stands in the FIFO: the names of new messages, and whether somebody knocked."""
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(descriptor, _FIFO_SIZE):
            pieces.append(piece)
    lines = b"".join(pieces).decode("ascii", "replace").split("\n")[:-1]
    return [line for line in lines if _NAME.fullmatch(line)], "" in lines


def _begin(path: str) -> tuple[int, os.stat_result]:
    """Make a file and lock it: then a starting runner leaves it alone. Give its status too."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        status = os.fstat(descriptor)
        if status.st_nlink:
            return descriptor, status
        os.close(descriptor)  # `recover` found it before it was locked, and removed it


def _free_name(directory: Path, name: str) -> Path:
    """Return a path for `name`, or one like it where there is something already."""
    path = directory / name
    return directory / f"{name}.{time.time_ns()}" if os.path.lexists(path) else path
