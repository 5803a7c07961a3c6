"""Where `maildir` stores a message: the Maildir, a folder in it, and after a crash in tmp/."""

# ruff: noqa: PTH104, PTH108, PTH123, PTH207, S108 - system calls on plain strings, as in maildir.py

import contextlib
import fcntl
import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from minismtp import Address, Message, steady_time, sync_directory

from ._options import check_placeholders

# A file name has at most 255 octets, and a template may put both values into one name.
_LONGEST_VALUE = 120
_KNOWN = 4096  # values whose form is remembered
# A dot separates the levels of Maildir++; "&" would begin modified UTF-7 (RFC 3501 section 5.1.3).
_NAME = re.compile(r"[!-%'-\-0-~](?:[ -%'-.0-~]{0,98}[!-%'-\-0-~])?", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?")
# Compiled before the fork, because that takes 0.2 MB in each process that does it.
_PLACEHOLDER = re.compile(r"\{(?:domain|local)\}")
_JOINED = re.compile(r"\}[\w.~+=%-]*\{", re.ASCII)
_LOOKED_AT = 1000  # characters of a field
_log = logging.getLogger(__name__)
_OURS = re.compile(r"[0-9]+\.M[0-9]{6}I.*,S=([0-9]+)")
_STALE = 36 * 3600.0  # seconds after which tmp/ may be cleared, by the Maildir specification


class Template:
    """A path with the placeholders {domain} and {local}. Raise ValueError for another one.

    `own_levels` is the number of directories at the end of a path that depend on the mailbox, and
    `fixed` the directory above them.
    """

    def __init__(self, path: Path) -> None:
        self._text = str(path)
        check_placeholders("path", self._text, ("domain", "local"))
        if _JOINED.search(self._text):
            raise ValueError(f"path: {self._text!r}: expected / or @ between the placeholders")
        varying = [number for number, part in enumerate(path.parts) if "{" in part]
        self.own_levels = len(path.parts) - varying[0] if varying else 1
        self.fixed = Path(*path.parts[: varying[0]]) if varying else path

    def fill(self, mailbox: Address) -> str:
        """Return the path for a mailbox."""
        return self._text.format(
            domain=path_component(mailbox.ascii_domain), local=path_component(mailbox.local)
        )

    def temporaries(self, folders: Iterable[str]) -> Iterator[str]:
        """Yield the files in tmp/ of all existing Maildirs and of these folders in them."""
        parts = [glob.escape(part) for part in _PLACEHOLDER.split(self._text)]
        for folder in ("", *(f"/.{glob.escape(name)}" for name in folders)):
            yield from glob.iglob("*".join(parts) + f"{folder}/tmp/[0-9]*")


def name_part(text: str) -> str:
    r"""Return a part of a file's name; the Maildir specification writes `/` as \057, `:` \072."""
    return text.replace("/", r"\057").replace(":", r"\072")


@lru_cache(_KNOWN)
def path_component(value: str) -> str:
    """Return a value as (part of) one path component; different values stay different."""
    text = quote(value, safe="+=", errors="surrogatepass") or "%"
    if text.startswith("."):
        text = f"%2E{text[1:]}"
    if len(text) > _LONGEST_VALUE:
        digest = sha256(text.encode("ascii")).hexdigest()
        text = f"{text[: _LONGEST_VALUE - 66]}%%{digest}"
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder, and the value that a field must have for it; the topmost field counts."""

    folder: str
    header: str
    value: str = ""
    least: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.folder) or ".." in self.folder:
            raise ValueError(f"folder: {self.folder!r}: expected a name such as Junk or Lists.News")
        if not re.fullmatch(r"[!-9;-~]+", self.header):
            raise ValueError(f"header: expected a field's name, not {self.header!r}")
        if bool(self.value) == (self.least is not None):
            raise ValueError("value: expected either value or least")

    def takes(self, message: Message) -> bool:
        """Return whether the message belongs into this folder."""
        found = message.headers.get(self.header)[:_LOOKED_AT]
        if self.least is None:
            return fnmatchcase(found.lower(), self.value.lower())
        number = _NUMBER.match(found)
        return number is not None and float(number[0]) >= self.least


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
