"""Which users could change a file or put another one in its place.

A path is safe if only trusted users can write the file, each directory above it, and each symbolic
link on the way. The path is followed step by step, as the kernel does.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_MOST_LINKS: Final = 40  # as in the kernel


@dataclass(frozen=True, slots=True)
class Trust:
    """The users and groups that may write, besides root."""

    users: Collection[int] = ()
    groups: Collection[int] = field(default_factory=tuple)

    @classmethod
    def of(cls, *names: str) -> Trust:
        """Trust the user of this process and the named users, each with their own group."""
        entries = [pwd.getpwnam(name) for name in names if name]
        with contextlib.suppress(KeyError):  # in a container the user may have no name
            entries.append(pwd.getpwuid(os.geteuid()))
        users = {os.geteuid(), *(entry.pw_uid for entry in entries)}
        return cls(users, {entry.pw_gid for entry in entries})

    def and_owner(self, status: os.stat_result) -> Trust:
        """Return a trust that includes the owner and the group of a file."""
        return Trust({*self.users, status.st_uid}, {*self.groups, status.st_gid})

    def objections(self, path: Path, status: os.stat_result) -> Iterator[str]:
        """Yield a problem for each other user or group that can write this file or directory."""
        if status.st_uid not in {0, *self.users}:
            yield f"{path} belongs to {user_name(status.st_uid)}"
        if stat.S_ISLNK(status.st_mode):
            return
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
            return  # in it, only the owner of a file can replace it
        if status.st_mode & stat.S_IWGRP and status.st_gid not in {0, *self.groups}:
            yield f"{path} can be written by the group {_group(status.st_gid)} (chmod g-w)"
        if status.st_mode & stat.S_IWOTH:
            yield f"{path} can be written by everybody (chmod o-w)"


def exposures(path: Path, trust: Trust) -> Iterator[str]:
    """Yield each way in which users without trust could change the file under a path.

    Parts that do not exist yield nothing. Raise OSError if a part cannot be examined.
    """
    waiting = list(reversed(path.absolute().parts[1:]))
    place, links = Path("/"), 0
    yield from trust.objections(place, place.stat())
    while waiting:
        name = waiting.pop()
        if name == "..":
            place = place.parent
            continue
        try:
            status = (place / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        yield from trust.objections(place / name, status)
        if not stat.S_ISLNK(status.st_mode):
            place /= name
            continue
        links += 1
        if links > _MOST_LINKS:
            return
        target = (place / name).readlink()
        waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        place = Path("/") if target.is_absolute() else place


def user_name(number: int) -> str:
    """Return the name of a user, or its number in words."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
