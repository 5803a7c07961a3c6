"""`minismtp backup`: copies of a server that goes on running."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.cli.backup import TreeCopy
from minismtp.cli.main import main

if TYPE_CHECKING:
    from conftest import Configure, Running, Start

RELAY: Final = """
[outbound]
smarthost = "127.0.0.1:1"

[[plugins]]
use = "relay"
networks = ["127.0.0.1"]
"""
Capture = pytest.CaptureFixture[str]
NOBODY: Final = 65534


def send(server: Running, recipient: str, text: str) -> None:
    with server.connect() as client:
        client.begin_data(recipient)
        assert client.command(f"Subject: {text}\r\n\r\n{text}\r\n.").startswith("250 ")


def texts(paths: Iterable[Path]) -> set[str]:
    found = [re.search(r"^Subject: (\S+)", path.read_text(), re.MULTILINE) for path in paths]
    return {each[1] for each in found if each}


def waiting(config: Path, capsys: Capture) -> list[str]:
    """Return the recipients in the queue."""
    assert main(["queue", "list", "--config", str(config)]) == 0
    return re.findall(r"\S+@example\.net", capsys.readouterr().out)


@pytest.fixture
def outside() -> Iterator[Path]:
    """Yield a directory that is not in the one of the server."""
    directory = Path(tempfile.mkdtemp())
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def ended(configure: Configure) -> Path:
    """Return the configuration of a server that is not running, with a state directory."""
    config = configure()
    (config.parent / "state").mkdir()
    (config.parent / "mail").mkdir()
    return config


def test_copy_of_a_busy_server_has_all_it_acknowledged_and_can_be_started(
    configure: Configure, start: Start, outside: Path, capsys: Capture
) -> None:
    config = configure(RELAY, workers=2)
    server = start(config)
    for number in range(5):
        send(server, "spool@example.org", f"stored{number}")
        send(server, f"to{number}@example.net", f"queued{number}")
    server.wait_until(lambda: len(waiting(config, capsys)) == 5)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            send(server, "alice@example.org", "more")
            send(server, "more@example.net", "more")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        assert main(["backup", str(outside / "copy"), "--config", str(config)]) == 0
    finally:
        stop.set()
        thread.join()
    assert f"The backup is complete: {outside / 'copy'}" in capsys.readouterr().out
    server.kill()
    copied = outside / "copy" / str(config).lstrip("/")
    assert not list(copied.parent.rglob("*.db-*"))
    assert texts(copied.parent.glob("mail/spool/new/*")) == {f"stored{n}" for n in range(5)}
    queue = copied.parent / "state" / "spool" / "queue"
    assert texts(queue.iterdir()) >= {f"queued{n}" for n in range(5)}
    restored = start(copied)
    assert {f"to{n}@example.net" for n in range(5)} <= {*waiting(copied, capsys)}
    assert "damaged" not in restored.log
    send(restored, "alice@example.org", "afterwards")


def test_databases_are_whole_while_they_are_written(ended: Path, outside: Path) -> None:
    path = ended.parent / "state" / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE pairs (one INTEGER, other INTEGER)")
        database.execute("INSERT INTO pairs VALUES (0, 0)")
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                database.execute("BEGIN")
                database.execute("INSERT INTO pairs VALUES (?, ?)", (number, number))
                database.execute("UPDATE pairs SET other = ?, one = ?", (number, number))
                database.execute("COMMIT")
                number += number < 500

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert main(["backup", str(outside / "copy"), "--config", str(ended)]) == 0
        finally:
            stop.set()
            thread.join()
    with closing(sqlite3.connect(outside / "copy" / str(path).lstrip("/"))) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert len(copy.execute("SELECT DISTINCT one, other FROM pairs").fetchall()) == 1


@given(moves=st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 11), st.integers(0, 3))))
def test_no_message_is_missed_that_an_imap_server_moves_once(
    moves: dict[int, tuple[int, int]],
) -> None:
    """Each message may be moved, before any of the copier's steps, to any folder."""
    folders = ("new", "cur", ".Archive/cur", ".Junk/cur")
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "source"), Path(name, "target")
        target.mkdir()
        for folder in folders:
            (source / "bob" / folder).mkdir(parents=True)
        for number in range(6):
            (source / "bob" / folders[number % 4] / f"m{number}:2,").write_text(str(number))
        step = 0

        class Interrupted(TreeCopy):
            def _copy_item(self, path: str) -> None:
                nonlocal step
                for number, (when, where) in moves.items():
                    if when == step:
                        [present] = source.rglob(f"m{number}:*")
                        present.rename(source / "bob" / folders[where] / f"m{number}:2,S")
                step += 1
                super()._copy_item(path)

        Interrupted(source, target, []).make()
        for number in range(6):
            copies = [*target.rglob(f"m{number}:*")]
            assert copies
            assert {copy.read_text() for copy in copies} == {str(number)}


def test_message_that_was_settled_meanwhile_is_not_sent_again(
    ended: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ended.parent / "state" / "spool" / "queue"
    queue.mkdir(parents=True)
    (queue / "settled").write_text("x")
    (queue / "waits").write_text("x")
    make = TreeCopy.make

    def make_and_settle(copy: TreeCopy) -> None:
        make(copy)
        (queue / "settled").unlink(missing_ok=True)

    monkeypatch.setattr(TreeCopy, "make", make_and_settle)
    assert main(["backup", str(outside / "copy"), "--config", str(ended)]) == 0
    copied = outside / "copy" / str(queue).lstrip("/")
    assert [path.name for path in copied.iterdir()] == ["waits"]


def test_modes_times_and_links_are_kept_and_sockets_left_out(ended: Path, outside: Path) -> None:
    state = ended.parent / "state"
    (state / "secret").write_text("x")
    (state / "secret").chmod(0o640)
    os.utime(state / "secret", (1, 2))
    (state / "control").symlink_to("/run/nothing")
    os.mkfifo(state / "wake")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(state / "socket"))
        assert main(["backup", str(outside / "copy"), "--config", str(ended)]) == 0
    copied = outside / "copy" / str(state).lstrip("/")
    assert sorted(path.name for path in copied.iterdir()) == ["control", "secret"]
    status = (copied / "secret").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o640, 2)
    assert (copied / "control").readlink() == Path("/run/nothing")
    assert (outside / "copy").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps owners")
def test_owners_are_kept_and_root_reads_as_the_owner(
    ended: Path, outside: Path, capsys: Capture
) -> None:
    for directory in [*ended.parents][:-2]:
        directory.chmod(directory.stat().st_mode | 0o011)
    state = ended.parent / "state"
    (state / "theirs").write_text("x")
    for path in (state / "theirs", state):
        os.chown(path, NOBODY, NOBODY)
    with closing(sqlite3.connect(state / "state.db")) as database:
        database.execute("CREATE TABLE t (x)")
    os.chown(state / "state.db", NOBODY, NOBODY)
    assert main(["backup", str(outside / "copy"), "--config", str(ended)]) == 0
    copied = outside / "copy" / str(state).lstrip("/")
    assert {path.stat().st_uid for path in (copied, *copied.iterdir())} == {NOBODY}
    (state / "ours").write_text("root's")
    (state / "ours").chmod(0o600)
    assert main(["backup", str(outside / "again"), "--config", str(ended)]) == 1
    assert "no backup was made: " in capsys.readouterr().err
    assert [path.name for path in outside.iterdir()] == ["copy"]


def test_part_of_the_state_can_be_left_out(ended: Path, outside: Path) -> None:
    state = ended.parent / "state"
    for name in ("mail/example.org/bob/new", "spool/queue"):
        (state / name).mkdir(parents=True)
    command = ["backup", str(outside / "copy"), "--exclude", "mail", "--config", str(ended)]
    assert main(command) == 0
    copied = outside / "copy" / str(state).lstrip("/")
    assert [path.name for path in copied.iterdir()] == ["spool"]


def test_places_elsewhere_are_named(
    configure: Configure, outside: Path, capsys: Capture, tmp_path: Path
) -> None:
    (outside / "users").write_text("alice\n")
    (outside / "post" / "alice").mkdir(parents=True)
    config = configure(
        plugins=f"""
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
users_file = "{outside}/users"

[[plugins]]
use = "maildir"
path = "{outside}/post/{{local}}"
"""
    )
    (tmp_path / "state").mkdir()
    assert main(["backup", str(outside / "copy"), "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert f"It does not contain {outside}/users (plugins[0].users_file); copy that too." in said
    assert f"It does not contain {outside}/post (plugins[1].path); copy that too." in said


Prepare = Callable[[Path], object]
REFUSED: Final[dict[str, tuple[Prepare, list[str], str]]] = {
    "exists": (lambda d: (d / "copy").mkdir(), [], "exists already; choose another name"),
    "half": (lambda d: (d / "copy.partial").mkdir(), [], "if no backup is running, remove it"),
    "unknown": (lambda _d: None, ["--exclude", "mial"], "/state/mial does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_backup_that_would_surprise_is_refused(
    name: str, ended: Path, outside: Path, capsys: Capture
) -> None:
    prepare, options, said = REFUSED[name]
    prepare(outside)
    before = sorted(outside.rglob("*"))
    assert main(["backup", str(outside / "copy"), *options, "--config", str(ended)]) == 1
    assert said in capsys.readouterr().err
    assert sorted(outside.rglob("*")) == before


def test_backup_in_the_copied_directory_is_refused(ended: Path, capsys: Capture) -> None:
    assert main(["backup", str(ended.parent / "copy"), "--config", str(ended)]) == 1
    assert "which is copied; choose another place" in capsys.readouterr().err
    assert not (ended.parent / "copy").exists()


def test_backup_without_a_directory_to_put_it_in_is_refused(
    ended: Path, outside: Path, capsys: Capture
) -> None:
    assert main(["backup", str(outside / "no" / "copy"), "--config", str(ended)]) == 1
    assert "copy.partial: No such file or directory" in capsys.readouterr().err


def test_nothing_is_left_of_a_backup_that_failed(
    ended: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.utime", full)
    assert main(["backup", str(outside / "copy"), "--config", str(ended)]) == 1
    assert "no backup was made: No space left on device" in capsys.readouterr().err
    assert list(outside.iterdir()) == []


def test_damaged_database_is_no_backup(ended: Path, outside: Path, capsys: Capture) -> None:
    (ended.parent / "state" / "state.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    assert main(["backup", str(outside / "copy"), "--config", str(ended)]) == 1
    assert re.search("no backup was made: .*/state.db: ", capsys.readouterr().err)


def test_without_a_configuration_there_is_nothing_to_copy(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(outside)
    monkeypatch.delenv("MINISMTP_CONFIG", raising=False)
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", outside / "no.toml")
    assert main(["backup", str(outside / "copy")]) == 1
    assert "there is no configuration file" in capsys.readouterr().err
