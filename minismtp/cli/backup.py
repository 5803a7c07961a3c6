"""A copy of all that a server has, while it runs: `minismtp backup`.

The copy has the directory of the configuration file and the state directory, at their own paths
below the target. It is made under another name and renamed at its end, so what has the name is
whole. Three things of a running server cannot be copied like other files:

- A database changes while it is read, and its newest part is in another file. SQLite copies it.
- The queue is a directory of messages and a database of their recipients. The messages are copied
  first. So what the database says about a message is never older than the message, and a recipient
  that it shows as delivered gets no second copy. Messages that were settled meanwhile are removed.
- An IMAP server renames messages. Names that are gone when their turn comes are looked for again.

As in `privileges`, root reads a directory as its owner, because the owner could replace a file by a
link to another one. Links are copied as links, and sockets not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from minismtp.cli.common import CommandError, add_config, configuration, say
from minismtp.cli.progress import Progress
from minismtp.config import Config
from minismtp.config.mistakes import reason
from minismtp.inspection.permissions import named_paths
from minismtp.server.privileges import acting_as_owner
from minismtp.values.units import octets

_MAGIC: Final = b"SQLite format 3\0"
_JOURNALS: Final = ("-wal", "-shm", "-journal")
_TEMPORARY: Final = "/var/tmp"  # noqa: S108 - for files of a directory that only their owner reads
_BUSY: Final = 10.0  # seconds that SQLite waits for a writer
_PASSES: Final = 5  # over Maildirs, in which messages were renamed meanwhile
_SYSTEM: Final = [Path(name) for name in ("/usr", "/run", "/dev", "/proc", "/bin", "/sbin")]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="made; must not exist")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out what has this name in the state directory, such as `mail`; may be repeated",
    )
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Copy everything. Raise CommandError."""
    config, target = configuration(arguments), arguments.directory.resolve()
    if not config.file:
        raise CommandError("there is no configuration file, and so no server to copy")
    state = config.state_directory.resolve()
    directories = [Path(config.file).resolve().parent, state]
    partial = target.with_name(f"{target.name}.partial")
    excluded = [state / name for name in arguments.exclude]
    _check(directories, target, partial, excluded)
    try:
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise CommandError(f"{partial}: {error.strerror}") from error
    try:
        _copy(directories, partial, excluded)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CommandError(f"no backup was made: {reason(error)}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    say(f"The backup is complete: {target}", *_left_out(config, directories))
    return 0


def _check(directories: list[Path], target: Path, partial: Path, excluded: list[Path]) -> None:
    for directory in directories:
        if not directory.is_dir():
            raise CommandError(f"{directory} does not exist")
        if target.is_relative_to(directory):
            raise CommandError(f"{target} is in {directory}, which is copied; choose another place")
    for path in excluded:
        if not path.exists():
            raise CommandError(f"--exclude: {path} does not exist")
    if target.exists():
        raise CommandError(f"{target} exists already; choose another name")
    if partial.exists():
        raise CommandError(f"{partial} exists; if no backup is running, remove it")


def _copy(directories: list[Path], target: Path, excluded: list[Path]) -> None:
    trees = [(each, [*excluded, *({*directories} - {each})]) for each in directories]
    progress = Progress("copying", in_words=octets)
    if progress.is_shown:
        progress.total = sum(_size(directory, left_out) for directory, left_out in trees)
    with progress:
        for directory, left_out in trees:
            copy = TreeCopy(directory, target, left_out, progress)
            copy.make()
            queue = directory / "spool" / "queue"
            if directory == directories[-1] and queue.is_dir():
                copy.prune(queue)
            progress.clear()
            say(str(copy))
        os.sync()


def _size(directory: Path, excluded: list[Path]) -> int:
    """Return about how many octets will be copied. What cannot be read counts nothing."""
    left_out, size = {str(path) for path in excluded}, 0
    for place, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if f"{place}/{name}" not in left_out]
        for name in files:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{place}/{name}").st_size
    return size


def _left_out(config: Config, directories: list[Path]) -> Iterator[str]:
    """Yield a line for each place outside the copied ones that the configuration names."""
    for key, path in named_paths(config):
        real = path.resolve()
        known = any(real.is_relative_to(place) for place in (*directories, *_SYSTEM))
        if not known and real.exists():
            yield f"It does not contain {path} ({key}); copy that too."


class TreeCopy:
    """The copy of a directory below `target`, without the paths in `excluded`."""

    def __init__(
        self,
        directory: Path,
        target: Path,
        excluded: list[Path],
        progress: Progress | None = None,
    ) -> None:
        self._directory = directory
        self._progress = progress or Progress("copying")
        self._target = target
        self._excluded = {str(path) for path in excluded}
        self._files = self._octets = self._databases = 0
        self._missed = False  # whether something was gone when its turn came

    def __str__(self) -> str:
        databases = f" (databases: {self._databases})" if self._databases else ""
        return f"{self._directory}: {self._files} files{databases}, {self._octets:,} octets"

    def make(self) -> None:
        """Copy everything. Raise OSError or CommandError."""
        for path in reversed([self._directory, *self._directory.parents]):
            if not self._place(path).is_dir():
                self._make_directory(path)
        self._copy_directory(str(self._directory))
        for _ in range(_PASSES):
            self._missed = False
            self._copy_directory(str(self._directory), again=True)
            if not self._missed:
                break

    def prune(self, directory: Path) -> None:
        """Remove from the copy what is no longer in a directory."""
        with acting_as_owner(directory):
            present = {path.name for path in directory.iterdir()}
        for path in self._place(directory).iterdir():
            if path.name not in present:
                path.unlink()
                self._files -= 1

    def _place(self, path: str | Path) -> Path:
        return self._target / str(path).lstrip("/")

    def _make_directory(self, path: str | Path) -> None:
        status, place = Path(path).stat(), self._place(path)
        place.mkdir(exist_ok=True)
        _own(place, status)
        place.chmod(stat.S_IMODE(status.st_mode))

    def _copy_directory(self, path: str, *, again: bool = False) -> None:
        """Copy a directory, the directories in it first, and `new` before `cur`.

        IMAP servers move messages from `new` to `cur`, so this order misses none. They may also
        move them to another folder. So with `again`, only messages of Maildirs are copied that are
        not there yet, under whatever name.
        """
        try:
            with acting_as_owner(Path(path)), os.scandir(path) as found:
                items = sorted(found, key=lambda item: item.name, reverse=True)
        except FileNotFoundError:
            self._missed = True
            return
        items = [item for item in items if item.path not in self._excluded]
        maildir = Path(path).name in {"new", "cur"}
        present = _messages(self._place(path)) if maildir and again else set()
        for item in sorted(items, key=lambda item: not item.is_dir(follow_symlinks=False)):
            if item.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    self._make_directory(item.path)
                self._copy_directory(item.path, again=again)
            elif not again or (maildir and _message(item.name) not in present):
                self._copy_item(item.path)

    def _copy_item(self, path: str) -> None:
        place = self._place(path)
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                place.symlink_to(Path(path).readlink())
                _own(place, status)
            elif stat.S_ISREG(status.st_mode) and not path.endswith(_JOURNALS):
                self._copy_file(path, place)
        except FileNotFoundError:
            self._missed = True

    def _copy_file(self, path: str, place: Path) -> None:
        with contextlib.ExitStack() as stack:
            with acting_as_owner(Path(path).parent):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = stack.enter_context(os.fdopen(os.open(path, flags), "rb"))
                status = os.fstat(file.fileno())
                database = _is_database(file, path)
                source = stack.enter_context(_database(path)) if database else file
            with place.open("xb") as copy:
                while piece := source.read(1 << 20):
                    copy.write(piece)
                    self._octets += len(piece)
                    self._progress.add(len(piece))
        _own(place, status)
        place.chmod(stat.S_IMODE(status.st_mode))
        os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
        self._files += 1
        self._databases += database


def _own(place: Path, status: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.lchown(place, status.st_uid, status.st_gid)


def _message(name: str) -> str:
    """Return the part of a message's name that no IMAP server changes."""
    return name.partition(":")[0]


def _messages(directory: Path) -> set[str]:
    """Return the messages in the copy of a Maildir, whether they are in `new` or in `cur`."""
    places = [directory.parent / name for name in ("new", "cur")]
    return {_message(path.name) for place in places if place.is_dir() for path in place.iterdir()}


def _is_database(file: IO[bytes], path: str) -> bool:
    """Return whether a file is a database, which SQLite can read."""
    start = file.read(len(_MAGIC))
    file.seek(0)
    return start == _MAGIC and not path.endswith(_JOURNALS)


@contextlib.contextmanager
def _database(path: str) -> Iterator[IO[bytes]]:
    """Yield a consistent copy of a database that others may be changing. Raise CommandError."""
    with tempfile.NamedTemporaryFile(dir=_TEMPORARY) as file:
        address = f"{Path(path).as_uri()}?mode=rw"
        with (
            contextlib.closing(
                sqlite3.connect(address, uri=True, timeout=_BUSY, isolation_level=None)
            ) as database,
            contextlib.closing(sqlite3.connect(file.name)) as copy,
        ):
            try:
                database.backup(copy)
            except sqlite3.Error as error:
                raise CommandError(f"no backup was made: {path}: {error}") from error
        yield file
