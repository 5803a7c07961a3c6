"""The file of a message that waits: its octets, its envelope, and a footer with sizes.

`spool` says when a file is written and what a crash leaves of it. Anything else that lies where
such a file should be raises DamagedError here, and never blocks its reader.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from pathlib import Path
from typing import Final

import msgspec

from minismtp.mail.queue_entry import QueueEntry

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}")  #: of a message in the spool
_FOOTER: Final = re.compile(rb"minismtp-spool-1 +([0-9]+) +([0-9]+)\n")
_FOOTER_FORMAT: Final = b"minismtp-spool-1 %15d %10d\n"
_FOOTER_SIZE: Final = len(_FOOTER_FORMAT % (0, 0))
_DECODER: Final = msgspec.json.Decoder(QueueEntry)
_LONGEST_ENVELOPE: Final = 1 << 26  # octets: 64 MiB
_SMALL: Final = 65536  # octets of a file that is read whole


class DamagedError(ValueError):
    """A file of the spool is not as `add` wrote it."""


class UnreadableError(ValueError):
    """An envelope cannot be written so that it is read back unchanged; nothing was queued."""


def open_message(path: str) -> int:
    """Open a file that should hold a message. Raise OSError, or DamagedError for anything else."""
    descriptor = open_unchecked(path)
    try:
        size_of(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_unchecked(path: str) -> int:
    """Open what should hold a message, for `read_message`. Raise OSError and DamagedError.

    A pipe or a link in its place must not block this process.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket
            raise DamagedError("not a regular file") from None
        raise


def footer(size: int, length: int) -> bytes:
    """Return the end of a file: the sizes of its message and of its envelope."""
    return _FOOTER_FORMAT % (size, length)


def read_message(descriptor: int, name: str) -> tuple[QueueEntry, int, bytes | None]:
    """Return the envelope, the size of the message, and a small message itself.

    Raise DamagedError.
    """
    total = size_of(descriptor)
    start = max(0, total - _SMALL)
    end = os.pread(descriptor, _SMALL, start)  # most messages are read whole by this
    match = _FOOTER.fullmatch(end[-_FOOTER_SIZE:])
    if match is None:
        raise DamagedError("the end is missing")
    size, length = int(match[1]), int(match[2])
    if size + length + _FOOTER_SIZE != total or length > _LONGEST_ENVELOPE:
        raise DamagedError("the sizes do not fit")
    if os.lseek(descriptor, 0, os.SEEK_HOLE) != total:
        raise DamagedError("a part was never written")
    text = end[size - start :] if size >= start else os.pread(descriptor, length, size)
    try:
        entry = _decoded(text[:length])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedError(f"the envelope cannot be read: {error}") from None
    if entry.id != name:
        raise DamagedError(f"holds the message {entry.id}")
    return entry, size, None if start else end[:size]


def size_of(descriptor: int) -> int:
    """Return the octets of an open file. Raise DamagedError for anything but a regular file."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError("not a regular file")
    return status.st_size


def encoded(entry: QueueEntry) -> bytes:
    """Return an envelope as it is written, after a trial reading. Raise UnreadableError."""
    try:
        text = msgspec.json.encode(entry)
        if _decoded(text) == entry:
            return text
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableError(f"the envelope cannot be kept: {error}") from None
    raise UnreadableError("the envelope would come back as another one")


def _decoded(text: bytes) -> QueueEntry:
    """Return the envelope that a text holds. Raise msgspec.MsgspecError or ValueError."""
    entry = _DECODER.decode(text)
    entry.check()
    return entry


def move_into(directory: Path, path: Path) -> None:
    """Move a file into a directory, under another name if its own is taken. Raise OSError."""
    target = directory / path.name
    if os.path.lexists(target):
        target = directory / f"{path.name}.{time.time_ns()}"
    path.rename(target)
