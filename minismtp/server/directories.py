"""The directories that a server makes when it starts.

A server that was started as root makes them as the user that it becomes. Root itself makes only
directories that the user cannot make, and only in places where no other user could interfere.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import struct
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.inspection.exposure import Trust, exposures, user_name
from minismtp.server.privileges import acting_as
from minismtp.storage.state_format import mark_format

_LOCK: Final = struct.Struct("hhqqi")  # struct flock of fcntl(2): type, whence, start, length, pid


def lock_state_directory(config: Config) -> int:
    """Lock the state directory until this process ends. Return a descriptor to keep open.

    Children do not inherit a record lock, so workers that outlive a killed supervisor for a moment
    do not keep the next one from starting. Raise ConfigError if another server uses the directory,
    if the user cannot write to it, or if a later release wrote it, or OSError.
    """
    own(config, config.state_directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with acting_as(*_owner(config)):
        try:
            descriptor = os.open(config.state_directory / "server.lock", flags, 0o600)
        except PermissionError:  # as a volume of a container that belongs to root
            user = user_name(os.geteuid())
            raise ConfigError(
                f"{config.state_directory} cannot be written by {user}: chown it to that user",
                file=config.file,
                key="state_directory",
            ) from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
        pid = _holder(descriptor)
        os.close(descriptor)
        raise ConfigError(
            f"{config.state_directory} is in use by another server, process {pid}",
            file=config.file,
            key="state_directory",
        ) from None
    with acting_as(*_owner(config)):
        mark_format(config)
    return descriptor


def server_process(state_directory: Path) -> int:
    """Return the process id of the server that uses this directory, or 0."""
    try:
        descriptor = os.open(state_directory / "server.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return _holder(descriptor)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> int:
    """Return the process that holds the lock, or 0 if no process does."""
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def runtime_directory(config: Config, name: str) -> Path:
    """Return an empty directory for data that need not survive a restart, in memory if possible."""
    variable = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    base = Path(variable) if variable else config.state_directory
    own(config, base)
    directory = base / name
    with acting_as(*_owner(config)):
        _clear(directory)
        _make(directory)
    return directory


def make_control_directory(config: Config) -> None:
    """Make the directory of the control sockets, and a link to it in the state directory.

    The commands find it through that link, because they do not know the server's environment.
    """
    directory, entry = runtime_directory(config, "control"), config.state_directory / "control"
    if directory != entry:
        with acting_as(*_owner(config)):
            _clear(entry)
            entry.symlink_to(directory)


def own(config: Config, directory: Path) -> None:
    """Make a directory for the user that the server becomes, with mode 0700 despite the umask.

    An existing directory keeps its mode. Raise ConfigError if root would have to give away a
    directory that another user could replace.
    """
    uid, gid = _owner(config)
    with acting_as(uid, gid):
        try:
            _make(directory)
        except PermissionError:
            if os.getuid() != 0:
                raise
        else:
            if os.getuid() != 0 or directory.stat().st_uid == uid:
                return
    _give(config, directory, uid, gid)


def _owner(config: Config) -> tuple[int, int]:
    if not (config.user and os.geteuid() == 0):
        return os.geteuid(), os.getegid()
    entry = pwd.getpwnam(config.user)
    return entry.pw_uid, entry.pw_gid


def _give(config: Config, directory: Path, uid: int, gid: int) -> None:
    for problem in exposures(directory, Trust()):
        expected = f"a place that only root can change, or that belongs to {config.user}"
        raise ConfigError(
            f"{directory}: expected {expected}, but {problem}",
            file=config.file,
            key="state_directory",
        )
    _make(directory)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(directory.resolve(), flags)
    try:
        os.fchown(descriptor, uid, gid)
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    """Make a directory with mode 0700, and missing parents with mode 0755."""
    parents = [(parent, 0o755) for parent in reversed(directory.parents)]
    for path, mode in [*parents, (directory, 0o700)]:
        if path.is_dir():
            continue
        path.mkdir(mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def _clear(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
