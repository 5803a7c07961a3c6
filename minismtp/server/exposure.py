"""Who could change a file, or put another one in its place.

A path is safe when nobody but some trusted users can write the file, each directory up to the root,
and each symbolic link on the way. Names are looked up step by step, as the kernel does.
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

_MOST_LINKS: Final = 40  # as the kernel follows


@dataclass(frozen=True, slots=True)
class Trust:
    """Users and groups that may write: root always, and those that are given."""

    users: Collection[int] = ()
    groups: Collection[int] = field(default_factory=tuple)

    @classmethod
    def of(cls, *names: str) -> Trust:
        """Trust this process's user and those with these names, each with the own group."""
        entries = [pwd.getpwnam(name) for name in names if name]
        with contextlib.suppress(KeyError):  # a container may run as a number without a name
            entries.append(pwd.getpwuid(os.geteuid()))
        users = {os.geteuid(), *(entry.pw_uid for entry in entries)}
        return cls(users, {entry.pw_gid for entry in entries})

    def and_owner(self, status: os.stat_result) -> Trust:
        """Trust the owner of something, and its group, too."""
        return Trust({*self.users, status.st_uid}, {*self.groups, status.st_gid})

    def objections(self, path: Path, status: os.stat_result) -> Iterator[str]:
        """Say who else can write one file, link or directory."""
        if status.st_uid not in {0, *self.users}:
            yield f"{path} belongs to {_user(status.st_uid)}"
        if stat.S_ISLNK(status.st_mode):
            return
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
            return  # only owners replace what is in it
        if status.st_mode & stat.S_IWGRP and status.st_gid not in {0, *self.groups}:
            yield f"{path} can be written by the group {_group(status.st_gid)} (chmod g-w)"
        if status.st_mode & stat.S_IWOTH:
            yield f"{path} can be written by everybody (chmod o-w)"


def exposures(path: Path, trust: Trust) -> Iterator[str]:
    """Say what others than those trusted could change to change what stands under a path.

    What does not exist is not looked at. Raise OSError for what cannot be looked at.
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


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
