"""The directories of a server, which root makes for an untrusted user."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.server.directories import (
    lock_state_directory,
    make_control_directory,
    own,
    runtime_directory,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory that others can enter, unlike those of pytest."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def config(state: Path, user: str = "nobody") -> Config:
    listener = {"name": "smtp", "address": "127.0.0.1:0", "tls": "none"}
    table: dict[str, object] = {"state_directory": str(state), "listeners": [listener]}
    return Config.build({**table, "user": user}, file="minismtp.toml", base=state.parent)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o277])
@pytest.mark.parametrize("user", ["", pytest.param("nobody", marks=as_root)])
def test_state_directory_is_for_its_user_alone_whatever_the_umask(
    place: Path, umask: int, user: str
) -> None:
    state = place / "lib" / "state"
    before = os.umask(umask)
    try:
        metrics = runtime_directory(config(state, user), "metrics")
        own(config(state, user), state)
        make_control_directory(config(state, user))
    finally:
        os.umask(before)
    assert {mode(path) for path in (state, metrics, state / "control")} == {0o700}
    assert mode(state.parent) == 0o755
    owner = NOBODY.pw_uid if user else os.geteuid()
    assert {path.stat().st_uid for path in (state, metrics, state / "control")} == {owner}


def test_directory_that_is_there_keeps_its_mode(place: Path) -> None:
    (place / "state").mkdir(mode=0o750)
    own(config(place / "state", ""), place / "state")
    assert mode(place / "state") == 0o750


@as_root
def test_state_directory_that_the_user_cannot_write_to_is_named(place: Path) -> None:
    """As a volume of a container, in which the server is not root."""
    (place / "state").mkdir(mode=0o500)
    os.chown(place / "state", NOBODY.pw_uid, NOBODY.pw_gid)
    expected = r"state_directory: .*/state cannot be written by nobody: chown it to that user"
    with pytest.raises(ConfigError, match=expected):
        lock_state_directory(config(place / "state"))


@as_root
@pytest.mark.parametrize("name", ["metrics", "control"])
def test_root_gives_away_nothing_that_a_link_leads_to(place: Path, name: str) -> None:
    """The service's user made links in place of the server's directories."""
    victim, state = place / "victim", place / "state"
    victim.mkdir(mode=0o700)
    (victim / "file").touch(mode=0o600)
    own(config(state), state)
    (state / name).symlink_to(victim)
    runtime_directory(config(state), "metrics")
    make_control_directory(config(state))
    assert (victim.stat().st_uid, (victim / "file").stat().st_uid) == (0, 0)
    assert (victim / "file").exists()
    assert not (state / name).is_symlink()


@as_root
def test_root_does_nothing_by_name_in_the_users_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = place / "state"
    own(config(state), state)
    acts: list[int] = []

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: object, **options: object) -> object:
            acts.append(os.geteuid())
            return real(*arguments, **options)

        return act

    for name in ("mkdir", "rmdir", "unlink", "symlink", "chmod", "chown", "rename"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    for _ in range(2):
        runtime_directory(config(state), "metrics")
        make_control_directory(config(state))
    assert acts
    assert set(acts) == {NOBODY.pw_uid}


@as_root
def test_root_gives_away_no_directory_that_the_user_chose(place: Path) -> None:
    """A state directory within a directory of the user itself may be a link to anything."""
    home, victim = place / "home", place / "victim"
    home.mkdir()
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    victim.mkdir(mode=0o755)
    (home / "state").symlink_to(victim)
    with pytest.raises(ConfigError, match=r"state_directory: .*home belongs to nobody"):
        own(config(home / "state"), home / "state")
    assert victim.stat().st_uid == 0


@as_root
def test_user_that_may_make_it_itself_needs_no_root(place: Path) -> None:
    home = place / "home"
    home.mkdir()
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    own(config(home / "state"), home / "state")
    assert ((home / "state").stat().st_uid, mode(home / "state")) == (NOBODY.pw_uid, 0o700)


@as_root
def test_directory_that_root_has_made_before_is_given_to_the_user(place: Path) -> None:
    (place / "state").mkdir(mode=0o755)
    own(config(place / "state"), place / "state")
    assert (place / "state").stat().st_uid == NOBODY.pw_uid
