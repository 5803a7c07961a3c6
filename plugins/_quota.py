"""The size of a mailbox and its limit, kept in the file `maildirsize` of Maildir++.

The first line is the limit, `1073741824S`; the other lines, `size count`, are added up. A program
that stores or removes a message appends a line, so the directories are listed only
- if the file is missing, has another limit, or is malformed,
- if it has grown to 5,120 octets, about 300 lines,
- if a message does not fit, and the file did not change for 15 minutes, because a program that does
  not know the file may have removed messages.

The server's processes lock the file (flock(2)), so together they do not exceed the limit. Each adds
its line before it writes the message, so a new count includes files in tmp/. It can only miss a
message in the instant between the two. Other programs append without a lock. Lines that they append
during a new count appear in the next one, as with all programs that use this file.
"""

# ruff: noqa: PTH116, S108 - system calls on plain strings, as in maildir.py
import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator

from minismtp import Defer, DurableFile, Reject

_LONGEST = 5120  # octets of the file
_TRUSTED = 900.0  # seconds
_SIZE = re.compile(r",S=([0-9]+)")
_FOLDERS = ("new", "cur", "tmp")


class Quota:
    """The free space in mailboxes of at most `limit` octets; threads may share it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._definition = b"%dS" % limit

    @contextlib.contextmanager
    def room(self, box: str, size: int) -> Iterator[None]:
        """Reserve space for a message that the block stores; release it if the block fails.

        Raise Defer if there is not enough now, Reject if the message is too large, and OSError.
        """
        if size > self._limit:
            # RFC 3463 section 3.3: X.2.3, "message length exceeds administrative limit".
            raise Reject("message is larger than the mailbox", code=552, enhanced="5.2.3")
        self._take(box, size)
        try:
            yield
        except BaseException:
            with (
                contextlib.suppress(OSError),
                self._locked(f"{box}/maildirsize") as descriptor,
            ):
                os.write(descriptor, b"%d -1\n" % -size)
            raise

    def _take(self, box: str, size: int) -> None:
        with self._locked(f"{box}/maildirsize") as descriptor:
            used = self._read(descriptor)
            if used is not None and used + size > self._limit:
                counted = os.fstat(descriptor).st_mtime
                used = None if abs(time.time() - counted) > _TRUSTED else used
            if used is not None and used + size <= self._limit:
                os.write(descriptor, b"%d 1\n" % size)
                return
            if used is None:
                used, count = _count(box)
                text = self._definition + b"\n%d %d\n" % (used, count)
                if used + size <= self._limit:
                    _write(box, text + b"%d 1\n" % size)
                    return
                _write(box, text)
        # RFC 5321 section 4.2.3, RFC 3463 section 3.3: X.2.2. Deferred, because the owner can
        # delete mail, and the client tries again for days.
        raise Defer("mailbox full", code=452, enhanced="4.2.2")

    @contextlib.contextmanager
    def _locked(self, path: str) -> Iterator[int]:
        """Open the file, or create it, and lock it."""
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_at(descriptor, path):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _read(self, descriptor: int) -> int | None:
        """Return the sum of octets, None if they must be counted again."""
        text = os.read(descriptor, _LONGEST)
        definition, _, rest = text.partition(b"\n")
        if definition.strip() != self._definition or len(text) == _LONGEST:
            return None
        try:
            # Pairs of a size and a count; Python reads numbers from text faster than from octets.
            total = sum(map(int, rest.decode("ascii").split()[::2]))
        except ValueError:
            return None
        return total if rest[-1:] == b"\n" and total >= 0 else None


def _is_at(descriptor: int, path: str) -> bool:
    """Return whether the file still has this name, or another one replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write(box: str, data: bytes) -> None:
    """Replace maildirsize by a complete file."""
    temporary = f"{box}/tmp/maildirsize.{secrets.token_hex(8)}"
    with DurableFile(temporary, f"{box}/maildirsize") as file:
        file.write(data)


def _count(box: str) -> tuple[int, int]:
    """Return the octets and the number of the messages in a Maildir and its folders."""
    size = count = 0
    with os.scandir(box) as entries:
        folders = [item.path for item in entries if item.name[0] == "." and item.is_dir()]
    for folder in [box, *folders]:
        for part in _FOLDERS:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for octets in _sizes(f"{folder}/{part}", named=part == "tmp"):
                    size, count = size + octets, count + 1
    return size, count


def _sizes(directory: str, *, named: bool) -> Iterator[int]:
    """Yield the size of each message from its name, or of the file unless `named`."""
    with os.scandir(directory) as entries:
        for item in entries:
            match = _SIZE.search(item.name)
            if match is not None:
                yield int(match[1])
            elif not named and item.name[0] != ".":
                with contextlib.suppress(FileNotFoundError):
                    yield item.stat().st_size
