"""Puts several files into place together: all of them, or none.

The files are written into the directory `.setup` beside the configuration, and synced. A journal in
it names them. Then each gets its name by link(2), which replaces nothing, or by rename(2) if it
replaces a file. The last file is the configuration, without which no other counts. If anything goes
wrong before, all is taken back. If the process is killed, the next run finds the journal: it takes
all back, or, if the configuration is there, only removes `.setup`.

The states on disk, in order:

no `.setup`              nothing happened, or all is done
`.setup` without journal nothing has its name yet, or all is done
journal                  some files have their names; the next run takes them back
journal, configuration   all files have their names
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from minismtp.cli.common import CommandError
from minismtp.values.durable_files import read_file, sync_directory

STAGING: Final = ".setup"
_JOURNAL: Final = "journal"
_DIRECTORY_MODE: Final = 0o750
_FILE_MODE: Final = 0o600
_SHARED_MODE: Final = 0o640  # with the group of the server
#: Errors of paths that no file can have got, such as one with a name that is too long.
_IMPOSSIBLE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


@dataclass(frozen=True, slots=True)
class Owner:
    """The numbers that new files get. -1 leaves what the system gives."""

    user: int = -1
    group: int = -1

    @property
    def mode(self) -> int:
        """The mode of new files, which contain secrets."""
        return _FILE_MODE if self.group == -1 else _SHARED_MODE


class Entry(NamedTuple):
    """A line of the journal: the number of a staged file, and the path that it gets."""

    number: int
    path: str
    replaces: bool


class Placement:
    """One attempt to put files into place, for the block of a `with`. Raise OSError.

    Raise CommandError if another process places files there, or changed a file meanwhile. `stage`
    writes the files, `place` gives all but the last their names, and `commit` the last. A block
    that ends without `commit` changes nothing.
    """

    def __init__(self, base: Path, owner: Owner) -> None:
        self._base = base
        self._owner = owner
        self._staging = base / STAGING
        self._made: list[Path] = []
        self._entries: list[Entry] = []
        self._before: dict[int, bytes] = {}
        self._done = False

    def __enter__(self) -> Self:
        try:
            if self._make(self._base):
                self._own(self._base)
            self._lock = _locked(self._staging)
        except BaseException:
            self._remove_made()
            raise
        try:
            _recover(self._staging)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # What cannot be cleaned up after all is done waits for the next run.
            with contextlib.suppress(*[OSError] * self._done):
                _recover(self._staging, certainly=not self._done)
                self._staging.rmdir()
                sync_directory(self._base)
            self._remove_made()
        finally:
            os.close(self._lock)

    def stage(
        self, directories: Sequence[Path], files: Sequence[tuple[Path, bytes, bytes | None]]
    ) -> None:
        """Write files, each a path, its content, and that of the file that it replaces, or None.

        Raise CommandError for a symbolic link, because the new file would take its place.
        """
        missing = [str(each) for each in directories if not each.exists()]
        for number, (path, content, before) in enumerate(files):
            replaces = before is not None
            if replaces and path.is_symlink():
                text = f"{path} is a symbolic link, and would become a file"
                raise CommandError(f"{text}; put {path.resolve()} in its place")
            self._write(self._staging / f"{number}", content, path if replaces else None)
            if before is not None:
                os.link(path, self._staging / f"{number}.old")
                self._before[number] = before
            self._entries.append(Entry(number, str(path), replaces))
        journal = {"directories": missing, "entries": self._entries}
        self._write(self._staging / "new", json.dumps(journal).encode(), None)
        sync_directory(self._staging)
        (self._staging / "new").rename(self._staging / _JOURNAL)
        sync_directory(self._staging)
        for directory in missing:
            self._own(_made_directory(Path(directory)))

    def place(self) -> None:
        """Let all files except the last appear under their names."""
        for entry in self._entries[:-1]:
            self._place(entry)

    def make(self, directory: Path, owner: Owner) -> None:
        """Make a directory for an owner, unless it exists; it goes again if `commit` is not called.

        Raise OSError.
        """
        if self._make(directory):
            os.chown(directory, owner.user, owner.group)
            directory.chmod(_DIRECTORY_MODE)

    def commit(self) -> None:
        """Let the last file appear, after all others are on disk."""
        *others, last = self._entries
        for directory in {Path(entry.path).parent for entry in others}:
            sync_directory(directory)
        self._place(last)
        sync_directory(Path(last.path).parent)
        for directory in self._made:
            sync_directory(directory.parent)
        self._made.clear()
        self._done = True

    def _place(self, entry: Entry) -> None:
        staged = self._staging / f"{entry.number}"
        if not entry.replaces:
            try:
                os.link(staged, entry.path)
            except OSError as error:  # which names the staged file
                raise OSError(error.errno, error.strerror, entry.path) from None
            return
        if read_file(Path(entry.path)) != self._before[entry.number]:
            text = "was changed by another process meanwhile; nothing was written"
            raise CommandError(f"{entry.path} {text}, so run the command again")
        os.link(staged, f"{staged}.new")
        Path(f"{staged}.new").rename(entry.path)

    def _write(self, path: Path, content: bytes, like: Path | None) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            if like is None:
                os.fchown(descriptor, self._owner.user, self._owner.group)
                os.fchmod(descriptor, self._owner.mode)
            else:
                old = like.stat()
                os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            os.fsync(descriptor)

    def _make(self, directory: Path) -> bool:
        """Make a directory and its parents; return whether it was missing."""
        if directory.is_dir():
            return False
        if os.path.lexists(directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        self._make(directory.parent)
        if directory.is_dir():  # such as `new/..`
            return False
        directory.mkdir(0o755)
        self._made.append(directory)
        return True

    def _own(self, directory: Path) -> None:
        os.chown(directory, self._owner.user, self._owner.group)
        directory.chmod(_DIRECTORY_MODE)

    def _remove_made(self) -> None:
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):
                directory.rmdir()


def pending(base: Path) -> bool:
    """Return whether an earlier attempt was killed, and waits for the next one to clean up."""
    return (base / STAGING).is_dir()


def _locked(staging: Path) -> int:
    """Make the directory, and return a descriptor that holds its lock."""
    while True:
        with contextlib.suppress(FileExistsError):
            staging.mkdir(0o700)
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _lock(descriptor, staging)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(staging.stat(), os.fstat(descriptor)):
                    return descriptor
            # Another process removed the directory between the two calls.
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, staging: Path) -> None:
    if os.fstat(descriptor).st_uid != os.geteuid():  # its journal may name any file
        raise CommandError(f"{staging} belongs to another user; remove it")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = f"another `minismtp setup` is at work in {staging.parent}; wait for its end"
        raise CommandError(text) from None


def _made_directory(path: Path) -> Path:
    with contextlib.suppress(FileExistsError):
        path.mkdir(_DIRECTORY_MODE)
    return path


def _recover(staging: Path, *, certainly: bool = False) -> None:
    """Take back what was placed, `certainly` or unless all was, and empty the directory."""
    journal = staging / _JOURNAL
    if journal.exists():
        found = json.loads(journal.read_bytes())
        entries = [Entry(*entry) for entry in found["entries"]]
        if certainly or not _is_placed(staging, entries[-1]):
            for entry in reversed(entries):
                _take_back(staging, entry)
            for directory in map(Path, reversed(found["directories"])):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            for directory in {Path(entry.path).parent for entry in entries}:
                with _if_possible():
                    sync_directory(directory)
        journal.unlink()
        sync_directory(staging)
    for left in staging.iterdir():
        left.unlink()


def _is_placed(staging: Path, entry: Entry) -> bool:
    with _if_possible():
        return (staging / f"{entry.number}").samefile(entry.path)
    return False


@contextlib.contextmanager
def _if_possible() -> Iterator[None]:
    """Let the block end early for a path that nothing can have. Raise other OSErrors."""
    try:
        yield
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise


def _take_back(staging: Path, entry: Entry) -> None:
    if not _is_placed(staging, entry):
        return
    if entry.replaces:
        (staging / f"{entry.number}.old").rename(entry.path)
    else:
        Path(entry.path).unlink()
