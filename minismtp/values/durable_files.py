"""Files that survive a crash, and values read from files that people edit.

When these functions return, what they wrote is on disk: first the data, then the directory entry.
POSIX guarantees a new or renamed entry only after its directory was synced.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import logging
import os
import re
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
    """Write a file so that readers find the old or the new content, even after a crash.

    `mode` is for a new file (the umask applies). An old file keeps its mode, and its owner if this
    process may set it. Raise OSError and leave the old file as it was.
    """
    with DurableFile(_beside(path), path, mode) as file:
        _keep_access(file.descriptor, path)
        file.write(data)
    sync_directory(path.parent)


class DurableFile:
    """A file that is written under a temporary name, synced, and then renamed to its own.

    The block of a `with` writes to `descriptor` and keeps `size`, the octets written, up to date;
    `write` does both. `sync` may be a function that returns once the file is on disk; without one
    it is fsync(2). If anything raises, the file is removed. `sync_directory` makes the rename
    durable.

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
        self.sync: Callable[[], object] | None = None
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
                if self.sync is None:
                    os.fsync(self.descriptor)
                else:
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
    """Return the content of a file that people edit, without byte order marks. Raise OSError.

    Editors write such a mark at the beginning. Concatenated files have them at other lines too.
    OpenSSL ignores them in PEM files.
    """
    return without_marks(path.read_bytes())


def without_marks(data: bytes) -> bytes:
    """Return UTF-8 without the byte order marks at the beginning of lines."""
    return _MARKS.sub(b"", data) if codecs.BOM_UTF8 in data else data


def kept_secret(path: Path) -> bytes:
    """Return 32 random octets, which the first call writes to a file with mode 0600.

    Processes may call this at the same time and get the same octets. Raise OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if len(found := path.read_bytes()) == _SECRET_LENGTH:
            return found
        path.unlink()  # this function did not write it
    temporary = _beside(path)
    atomic_write(temporary, os.urandom(_SECRET_LENGTH))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    sync_directory(path.parent)
    return path.read_bytes()


class MisdirectedError(OSError):
    """A descriptor was closed elsewhere, and its number now belongs to another file.

    So it must not be closed.
    """

    def __init__(self) -> None:
        super().__init__(errno.EBADF, "the descriptor was closed elsewhere")


def check_written(descriptor: int, begun: os.stat_result, size: int) -> None:
    """Raise MisdirectedError unless a descriptor is still the same file, with `size` octets.

    `begun` is its `os.fstat` when it was opened. If a plugin or library closes a descriptor twice,
    it may close that of another thread, whose data then goes to another file.
    """
    now = os.fstat(descriptor)
    if (now.st_dev, now.st_ino, now.st_size) != (begun.st_dev, begun.st_ino, size):
        raise MisdirectedError


def sync_directory(path: Path | str) -> None:
    """Make new names, renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o700, *, within: Path | None = None) -> None:
    """Make a directory and its missing parents durably. The directory may exist.

    Its parent is synced in that case too, because the process that made it may have been killed
    before the sync. Of a path `within` another one, that is not made if it is missing, as after a
    move of the state directory. Raise FileExistsError if `path` is not a directory, and
    FileNotFoundError if `within` is missing.
    """
    try:
        return _make_one(path, mode)
    except FileNotFoundError:
        if path.parent == within:
            raise
    make_directory(path.parent, mode, within=within)
    return _make_one(path, mode)


def warn_of_readers(option: str, path: Path) -> None:
    """Log a warning that names the option of a secret file if all users can read that file."""
    if path.stat().st_mode & stat.S_IROTH:
        _log.warning("%s: %s can be read by everybody (chmod o-r)", option, path)


class EmptyFileError(OSError):
    """A file that should contain entries is empty, which is probably an accident."""


class WatchedFiles(Generic[T]):
    """A value made from files, and made again after one of them changed.

    `load` reads the files and raises OSError or ValueError if they are invalid. The first time the
    caller gets the error; later it is logged, and the last value stays. OSError means that a file
    is missing, unreadable or empty. Then `problem` says so, for plugins that would otherwise refuse
    users whom the file does not list any more. If the files are empty at first, the value is
    `empty`, if given, and there is a `problem` too. The files are checked at most once a second, by
    the thread that calls. Other threads get the last value meanwhile.
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
        """Return the value of the files, at most a second old."""
        if monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._next_look = monotonic() + 1
                self._refresh()
            finally:
                self._lock.release()
        return self._value

    @property
    def problem(self) -> str:
        """Why a file cannot be read, or "" if all can."""
        self.get()
        return self._problem

    def _refresh(self) -> None:
        seen = self._look()  # before reading, so that the next check finds a change meanwhile
        if seen == self._seen:
            return
        self._seen, warning, problem = seen, "", ""
        try:
            self._value = self._load()
        except OSError as error:
            self._seen = None  # try again next time, even if the files did not change
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
    """Check all watched files of this process. Return how many values have a `problem`."""
    return sum(bool(each.problem) for each in list(_watched))


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return a value that differs after any change of a file, or None if it cannot be reached.

    A change of mode, owner or access list counts too, because it may make a file readable.
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
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}")


def _create(path: Path | str, mode: int) -> tuple[int, os.stat_result]:
    """Make a file and lock it. Return its descriptor and status."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    while True:
        try:
            descriptor = os.open(path, flags, mode)
        except FileExistsError:
            _remove_leftover(path)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # the file system has no locks
            os.close(descriptor)
            os.unlink(path)  # noqa: PTH108 - plain strings are faster
            raise
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
