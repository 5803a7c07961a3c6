"""SQLite files that are rebuilt when they are damaged.

The data in such a file can be lost. Limits and greylisting begin again, and the database of the
queue is read from the spool. To refuse all mail until an operator repairs the file would be worse.
So a damaged file is renamed, which keeps it for the operator, and a new one takes its place.
Several processes may have it open. One of them renames it, and the others open the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_log = logging.getLogger(__name__)


class DatabaseFile:
    """The file `path`. `prepare` opens it and makes its missing tables."""

    def __init__(self, path: Path, prepare: Callable[[str], sqlite3.Connection]) -> None:
        self._path = path
        self._prepare = prepare
        self._opened: tuple[int, int] | None = None

    def open(self) -> sqlite3.Connection:
        """Open the file, or a new one if it is damaged.

        Raise OSError or sqlite3.Error.
        """
        with _locked(self._path.parent):
            try:
                return self._open()
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                set_aside(self._path, error)
                return self._open()

    def set_aside(self, error: sqlite3.Error) -> None:
        """Rename the opened file, unless another process already did."""
        with _locked(self._path.parent):
            if not self.is_another():
                set_aside(self._path, error)

    def is_another(self) -> bool:
        """Return whether the opened file was renamed or replaced."""
        return _identity(self._path) != self._opened

    def _open(self) -> sqlite3.Connection:
        # Other users must not read who sends and receives mail here.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        self._opened = _identity(self._path)
        return self._prepare(str(self._path))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error means that the file is damaged, or was emptied."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in _DAMAGE or "no such table" in str(error)


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file to `NAME.damaged-TIME`, and remove an earlier damaged one."""
    for old in path.parent.glob(f"{path.name}.damaged-*"):
        old.unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    _log.error("%s is damaged (%s) and was replaced; the old file is %s", path, reason, aside.name)


def damage(path: Path) -> str:
    """Return the damage of a file that a server may be using, "" if it is good or missing.

    No file is made or changed. Raise sqlite3.Error if the file cannot be read.
    """
    if not path.exists():
        return ""
    # SQLite would make missing files of the journal, perhaps with another owner.
    used = all(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-shm"))
    url = f"{path.absolute().as_uri()}?{'mode=ro' if used else 'immutable=1'}"
    with contextlib.closing(sqlite3.connect(url, uri=True)) as connection:
        try:
            text = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return str(error)
    return "" if text == "ok" else text


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let only one process make or rename files. SQLite does not wait while it turns on WAL."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
