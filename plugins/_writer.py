"""Write one file of a Maildir; why no crash loses it is told in `maildir`."""

# ruff: noqa: PTH104, PTH108, S108 - system calls on plain strings, as in maildir.py
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Literal

from minismtp import GroupSync, Message, MisdirectedError, check_written


class Writer:
    """Writes messages and syncs each, or all that are being written at once; threads may share it.

    `state` is the directory in which all workers find each other for that.
    """

    def __init__(self, sync: Literal["file", "group"], state: Path) -> None:
        self._sync = sync
        self._state = state
        self._groups: dict[int, GroupSync] = {}  # by device

    def write(self, folder: str, name: str, trace: bytes, message: Message) -> None:
        """Have a message, with `trace` before it, in new/ and on disk. Raise OSError."""
        temporary = f"{folder}/tmp/{name}"
        descriptor = _create(temporary)
        begun, size = os.fstat(descriptor), len(trace) + message.size
        try:
            try:
                if self._sync == "file":
                    message.write_to(descriptor, before=trace)
                    os.fsync(descriptor)
                else:
                    group = self._group(begun.st_dev, folder)
                    ticket = group.ticket()
                    message.write_to(descriptor, before=trace)
                    group.commit(ticket)
                check_written(descriptor, begun, size)
                os.rename(temporary, f"{folder}/new/{name}")
            except MisdirectedError:
                descriptor = -1
                raise
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _group(self, device: int, box: str) -> GroupSync:
        """Return the group of a file system: Maildirs may lie on several."""
        group = self._groups.get(device)
        if group is None:
            group = self._groups[device] = GroupSync(box, self._state / f"sync-{device}")
        return group


def _create(path: str) -> int:
    """Make a file that nobody else will take for one that a crash has left."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:  # left by a crash
        os.unlink(path)
        descriptor = os.open(path, flags, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
