"""Files that survive a crash, and values read from files that people edit.

What these functions have written is on disk when they return: data first, then the directory
entry that leads to it. POSIX promises a new or renamed entry only once its directory is synced.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SECRET_LENGTH = 32  # octets
_MARKS = re.compile(rb"(?m)^(?:\xef\xbb\xbf)++")
T = TypeVar("T")
_log = logging.getLogger(__name__)


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` under `path`, so that a reader or a crash finds the old content or all of the new.

    `mode` is for a new file (the umask applies); an old one keeps its mode, and its owner as far as
    we may set it. Raise OSError and leave the old file as it was.
    """
    with DurableFile(_beside(path), path, mode) as file:
        _keep_access(file.descriptor, path)
        file.write(data)
    sync_directory(path.parent)


class DurableFile:
    """A file that is written under a temporary name, synced, and then renamed to its own.

    The block of a `with` writes to `descriptor` and keeps `size`, the octets written, up to date;
    `write` does both. It may replace `sync` by a function that returns once the file is on disk.
    If anything raises, the file is removed. `sync_directory` makes the rename durable.

    The file is locked (flock(2)) while it is written. A process that cleans up after a crash takes
    only files that it can lock. A temporary file that a crash left is replaced.

    Raise OSError; FileExistsError if another process writes under the temporary name; and
    MisdirectedError if something closed the descriptor, which is then left open because it belongs
    to another file.
    """

    __slots__ = ("_path", "_temporary", "descriptor", "size", "status", "sync")

    def __init__(self, temporary: Path | str, path: Path | str, mode: int = 0o600) -> None:
        self._temporary = temporary
        self._path = path
        self.size = 0
        self.sync: Callable[[], object] = lambda: os.fsync(self.descriptor)
        self.descriptor, self.status = _create(temporary, mode)

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self.sync()
                check_written(self.descriptor, self.status, self.size)
                os.rename(self._temporary, self._path)  # noqa: PTH104 - plain strings are faster
        except BaseException as failure:
            error = failure
            raise
        finally:
            if not isinstance(error, MisdirectedError):
                os.close(self.descriptor)
            if error is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary)  # noqa: PTH108 - the same


def read_file(path: Path) -> bytes:
    """Return what people have written into a file, without byte order marks. Raise OSError.

    Editors put one at the beginning; it is at that of other lines where files were put together.
    OpenSSL skips those in PEM by itself.
    """
    return without_marks(path.read_bytes())


def without_marks(data: bytes) -> bytes:
    """Return UTF-8 without the byte order marks at the beginnings of its lines."""
    return _MARKS.sub(b"", data) if codecs.BOM_UTF8 in data else data


def kept_secret(path: Path) -> bytes:
    """Return 32 random octets that stay the same; the first caller writes them, mode 0600.

    Processes may call at once: one file wins. Raise OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if len(found := path.read_bytes()) == _SECRET_LENGTH:
            return found
        path.unlink()  # nothing that we have written
    temporary = _beside(path)
    atomic_write(temporary, secrets.token_bytes(_SECRET_LENGTH))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    sync_directory(path.parent)
    return path.read_bytes()


class MisdirectedError(OSError):
    """A descriptor is not what it was: somebody has closed it, and the number was given out again.

    It is not to be closed: it belongs to another.
    """

    def __init__(self) -> None:
        super().__init__(errno.EBADF, "the descriptor was closed by somebody else")


def check_written(descriptor: int, begun: os.stat_result, size: int) -> None:
    """Raise MisdirectedError unless a descriptor is the file that it was, with `size` octets.

    `begun` is what `os.fstat` said of it when it was opened. A plugin or library that closes a
    descriptor twice closes one of another thread, and what is written then goes elsewhere.
    """
    now = os.fstat(descriptor)
    if (now.st_dev, now.st_ino, now.st_size) != (begun.st_dev, begun.st_ino, size):
        raise MisdirectedError


def sync_directory(path: Path | str) -> None:
    """Make the entries of a directory durable: new names, renames and removals."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory, and the parents that it lacks, durably; one that is there already is fine.

    The parent is synced in that case too: whoever made the directory may have been killed before
    the sync. Raise FileExistsError when `path` is something else than a directory.
    """
    with contextlib.suppress(FileNotFoundError):
        return _make_one(path, mode)
    make_directory(path.parent, mode)
    return _make_one(path, mode)


def warn_of_readers(option: str, path: Path) -> None:
    """Log a warning when everybody can read a file that holds secrets, under its option's name."""
    if path.stat().st_mode & stat.S_IROTH:
        _log.warning("%s: %s can be read by everybody (chmod o-r)", option, path)


class EmptyFileError(OSError):
    """A file that should name somebody is empty, as an accident leaves it."""


class WatchedFiles(Generic[T]):
    """A value made from files, made again after one of them has changed.

    `load` reads the files and raises OSError or ValueError when they are no good: at first that
    goes to the caller, later it is logged and the value before stays. OSError is for a file that is
    gone, unreadable or empty; `problem` then says so, for plugins that would refuse people whom
    the file no longer names. With `empty`, that is the value while EmptyFileError is raised at
    first: a process that starts then has a `problem` too. Files are looked at no more than once a
    second, by whichever thread calls; the others meanwhile get the value before.
    """

    def __init__(self, load: Callable[[], T], *paths: Path, empty: T | None = None) -> None:
        self._load = load
        self._paths = paths
        self._lock = threading.Lock()
        self._next_look = monotonic() + 1
        self._seen: list[tuple[int, ...] | None] | None = self._look()
        self._warned = self._problem = ""
        try:
            self._value = load()
        except EmptyFileError as error:
            if empty is None:
                raise
            self._value, self._seen = empty, None
            self._warned = self._problem = str(error)
            _log.warning("%s", error)
        _watched.add(self)

    def get(self) -> T:
        """Return the value of the files as they were within the last second."""
        if monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._next_look = monotonic() + 1
                self._refresh()
            finally:
                self._lock.release()
        return self._value

    @property
    def problem(self) -> str:
        """Why no file can be read that could be before, "" while all is well."""
        self.get()
        return self._problem

    def _refresh(self) -> None:
        seen = self._look()  # before reading: a change meanwhile is found by the next look
        if seen == self._seen:
            return
        self._seen, warning, problem = seen, "", ""
        try:
            self._value = self._load()
        except OSError as error:
            self._seen = None  # what failed may go well the next time, without a change
            warning = problem = str(error)
        except ValueError as error:
            warning = str(error)
        if warning and warning != self._warned:
            _log.warning("what was read before stays in use: %s", warning)
        self._warned, self._problem = warning, problem

    def _look(self) -> list[tuple[int, ...] | None]:
        return [stamp(path) for path in self._paths]


_watched: weakref.WeakSet[WatchedFiles[Any]] = weakref.WeakSet()


def unusable_files() -> int:
    """Return how many of this process's watched values have a `problem`; looks at all files."""
    return sum(bool(each.problem) for each in list(_watched))


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return what differs after any change of a file, also of its mode, owner or access list.

    Those move ctime, and may let us read what we could not. None while the file cannot be reached.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _make_one(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_directory(path.parent)


def _keep_access(descriptor: int, path: Path) -> None:
    """Set mode and owner of a new file to those of the file that it replaces, if that exists."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o777)


def _beside(path: Path) -> Path:
    """Return a temporary name for a file, in the same directory."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _create(path: Path | str, mode: int) -> tuple[int, os.stat_result]:
    """Make a file and lock it. Return its descriptor and status."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    while True:
        try:
            descriptor = os.open(path, flags, mode)
        except FileExistsError:
            _remove_leftover(path)
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        status = os.fstat(descriptor)
        if status.st_nlink:
            return descriptor, status
        os.close(descriptor)  # a process that cleans up locked it first, and removed it


def _remove_leftover(path: Path | str) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)  # noqa: PTH108 - plain strings are faster
        except BlockingIOError:
            raise FileExistsError(errno.EEXIST, "another process writes this file", path) from None
        finally:
            os.close(descriptor)
