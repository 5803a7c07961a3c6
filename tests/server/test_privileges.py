"""In directories of the service's user, root acts as that user."""

from __future__ import annotations

import io
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minismtp.cli.main import main
from minismtp.config import Config
from minismtp.config.types import SocketAddress
from minismtp.mailqueue.database import QueueDatabase
from minismtp.server.privileges import acting_as, acting_as_owner
from minismtp.server.sockets import open_socket

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Make a directory of the user nobody."""
    directory = Path(tempfile.mkdtemp())
    os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Make a file that root alone can read and write."""
    file = tmp_path / "ours"
    file.write_text("root:secret\n")
    file.chmod(0o600)
    return file


def test_root_is_another_user_within_the_block_and_root_after_it(theirs: Path) -> None:
    before = os.geteuid(), os.getegid(), os.getgroups()
    with acting_as_owner(theirs / "nothing" / "here"):
        assert (os.geteuid(), os.getegid()) == (NOBODY.pw_uid, NOBODY.pw_gid)
        assert os.getgroups() == [NOBODY.pw_gid]
        with acting_as(1, 1):  # who is not root stays the same
            assert os.geteuid() == NOBODY.pw_uid
    with pytest.raises(KeyError), acting_as_owner(theirs):
        raise KeyError
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def test_password_file_of_the_user_leads_root_nowhere(
    theirs: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (theirs / "passwords").symlink_to(ours)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"secret\n")))
    assert main(["passwd", str(theirs / "passwords"), "alice"]) == 1
    assert "Permission denied" in capsys.readouterr().err
    assert ours.read_text() == "root:secret\n"


def test_password_file_in_the_users_directory_is_the_users(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"secret\n")))
    assert main(["passwd", str(theirs / "passwords"), "alice"]) == 0
    assert (theirs / "passwords").stat().st_uid == NOBODY.pw_uid


def test_queue_leaves_no_file_of_root(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = theirs / "state" / "spool"
    with acting_as_owner(theirs):
        spool.mkdir(parents=True)
        QueueDatabase(spool / "queue.db").close()
    config = theirs / "minismtp.toml"
    config.write_text(
        'state_directory = "state"\n[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
        'tls = "none"\n'
    )
    for command in (["list"], ["hold", "--all"]):
        assert main(["queue", *command, "--config", str(config)]) == 0, capsys.readouterr().err
    assert {path.stat().st_uid for path in spool.iterdir()} == {NOBODY.pw_uid}


def test_unix_socket_in_the_users_directory_is_the_users(theirs: Path, tmp_path: Path) -> None:
    for directory, owner in ((theirs, NOBODY.pw_uid), (tmp_path, 0)):
        path = directory / "smtp.sock"
        with open_socket(SocketAddress(path=path), Config.embedded(), "x"):
            assert path.stat().st_uid == owner
        with open_socket(
            SocketAddress(path=path), Config.embedded(), "x"
        ):  # in a stale one's place
            assert path.stat().st_uid == owner
