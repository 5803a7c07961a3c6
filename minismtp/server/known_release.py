"""The newest release that the server knows of, in a file of the state directory."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

import msgspec

from minismtp import __version__
from minismtp.values.durable_files import atomic_write
from minismtp.values.version import Version

_FILE: Final = "newest-release.json"
_MOST_OCTETS: Final = 1000  # of the file


class Answer(msgspec.Struct, frozen=True):
    """The newest release, and when an index named it, in epoch seconds."""

    version: str
    asked: float


def known_answer(state_directory: Path) -> Answer | None:
    """Return the last answer. Without one that can be read, return None."""
    try:
        with (state_directory / _FILE).open("rb") as file:
            return msgspec.json.decode(file.read(_MOST_OCTETS), type=Answer)
    except (OSError, ValueError):
        return None


def keep_answer(state_directory: Path, newest: Version) -> None:
    """Remember an answer that came now. A full disk, of which others complain, forgets it."""
    data = msgspec.json.encode(Answer(newest.text, time.time()))
    with contextlib.suppress(OSError):
        atomic_write(state_directory / _FILE, data + b"\n")


def is_newer(version: str, running: str = __version__) -> bool:
    """Return whether a version is a stable release that is newer than the one that runs."""
    try:
        found = Version.parse(version)
        return found.is_stable and found > Version.parse(running)
    except ValueError:
        return False


def newer_release(state_directory: Path) -> str:
    """Return the version of a newer release that the server knows of, or an empty text."""
    answer = known_answer(state_directory)
    return answer.version if answer and is_newer(answer.version) else ""
