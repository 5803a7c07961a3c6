"""The directories that a server makes when it starts (layer 7)."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from minismtp.config import Config


def runtime_directory(config: Config, name: str) -> Path:
    """Give an empty directory for what a restart does not need, in memory if there is one."""
    base = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    directory = (Path(base) if base else config.state_directory) / name
    _clear(directory)
    directory.mkdir(parents=True, mode=0o700)
    own(config, directory)
    return directory


def make_control_directory(config: Config) -> None:
    """Make the directory of the sockets for questions, and a way there from the state directory.

    Who asks knows the configuration, but not the environment of the server.
    """
    directory, entry = runtime_directory(config, "control"), config.state_directory / "control"
    if directory != entry:
        _clear(entry)
        entry.symlink_to(directory)


def _clear(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def own(config: Config, directory: Path) -> None:
    """Make a directory, and give it to the user that the server becomes."""
    directory.mkdir(parents=True, mode=0o700, exist_ok=True)
    if config.user and os.geteuid() == 0:
        entry = pwd.getpwnam(config.user)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
