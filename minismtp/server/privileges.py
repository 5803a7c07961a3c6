"""Acting as another user for a while, when started as root.

Nothing below a directory that belongs to a user is done as root: the user could put a link in the
way, and root would give it, or write over, what it leads to. As the user itself that gains nothing.
For processes with one thread.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Act as a user with one group within the block; only root can, others stay what they are."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([gid])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


@contextlib.contextmanager
def acting_as_owner(directory: Path) -> Iterator[None]:
    """Act as the owner of a directory, or of the nearest one above it that exists."""
    existing = directory.absolute()
    while not existing.is_dir():
        existing = existing.parent
    status = existing.stat()
    with acting_as(status.st_uid, status.st_gid):
        yield


def drop_privileges(user: str) -> None:
    """Become `user` for the rest of this process; one that is not root stays what it is."""
    if user and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
