"""Files that survive a crash, and values read from files that people edit.

What these functions have written is on disk when they return: data first, then the directory
entry that leads to it. POSIX promises a new or renamed entry only once its directory is synced.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import re
import secrets
import stat
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        try:
            _keep_access(descriptor, path)
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
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


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
