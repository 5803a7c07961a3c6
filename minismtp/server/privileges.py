"""How a process that was started as root acts as another user, or becomes it.

Root does not act in a directory that belongs to a user. The user could place a link there, and root
would overwrite or give away the file it points to. Acting as the user, the process can do no more
than the user. Only a process with one thread may act as another user for a while.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def acting_as(uid: int, gid: int, *, with_all_groups: bool = False) -> Iterator[None]:
    """Act as a user within the block, if this process runs as root; by default with one group."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    own = [gid]
    if with_all_groups:
        with contextlib.suppress(KeyError):  # in a container the user may have no name
            own = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    os.setgroups(own)
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
    """Act as the owner of a directory, or of its nearest parent that exists."""
    existing = directory.absolute()
    while not existing.is_dir():
        existing = existing.parent
    status = existing.stat()
    with acting_as(status.st_uid, status.st_gid):
        yield


def drop_privileges(user: str) -> None:
    """Become `user` for the rest of this process, if it runs as root."""
    if user and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
