"""Move complete messages that a crash left in tmp/ of Maildirs into new/ (see `maildir`)."""

# ruff: noqa: PTH104, PTH108, PTH123, S108 - system calls on plain strings, as in maildir.py
import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterable

from minismtp import steady_time, sync_directory

_log = logging.getLogger(__name__)
_OURS = re.compile(r"[0-9]+\.M[0-9]{6}I.*,S=([0-9]+)")
_STALE = 36 * 3600.0  # seconds after which tmp/ may be cleared, by the Maildir specification


def rescue(temporaries: Iterable[str]) -> None:
    """Move complete files that are not locked from tmp/ into new/, and remove stale ones."""
    for temporary in temporaries:
        try:
            if _rescue_file(temporary):
                _log.info("found after a crash, now in new/: %s", temporary)
        except OSError as error:
            _log.warning("left in tmp/: %s: %s", temporary, error)


def _rescue_file(temporary: str) -> bool:
    folder, _, name = temporary.rpartition("/tmp/")
    match = _OURS.fullmatch(name)
    if match is None:
        return False
    with contextlib.suppress(FileNotFoundError), open(temporary, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # being written
        status = os.fstat(file.fileno())
        size = int(match[1])
        if status.st_size == size > 0 and os.lseek(file.fileno(), 0, os.SEEK_HOLE) == size:
            os.fsync(file.fileno())
            os.rename(temporary, f"{folder}/new/{name}")
            sync_directory(f"{folder}/new")
            return True
        if status.st_mtime < steady_time() - _STALE:
            os.unlink(temporary)
    return False
