"""Writes that survive a crash, and values that follow their files."""

import errno
import fcntl
import itertools
import logging
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minismtp.values.durable_files import (
    DurableFile,
    MisdirectedError,
    WatchedFiles,
    atomic_write,
    kept_secret,
    make_directory,
    sync_directory,
    unusable_files,
)

# Rewrites one file per step; each time a child dies before the system call of that number.
KILLED_WRITERS = """
import itertools, os, signal, sys
from pathlib import Path
from minismtp.values.durable_files import atomic_write
step = 0
def deadly(real, fatal):
    def call(*arguments, **options):
        global step
        step += 1
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
for fatal in itertools.count(1):
    path = Path(sys.argv[1], str(fatal), "file")
    path.parent.mkdir()
    path.write_bytes(b"old")
    if not os.fork():
        for name in ("open", "write", "fsync", "close", "replace", "rename"):
            setattr(os, name, deadly(getattr(os, name), fatal))
        atomic_write(path, b"new" * 1000)
        os._exit(0)
    if os.wait()[1] == 0:
        break
"""


@pytest.fixture
def _seconds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "minismtp.values.durable_files.monotonic", itertools.count(10**9, 2).__next__
    )


def test_temporary_file_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"left by a crash")
    with DurableFile(tmp_path / "t", tmp_path / "file") as file:
        file.write(b"data")
        assert not (tmp_path / "file").exists()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"data")]


def test_file_that_cannot_be_locked_is_closed_and_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_locks(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def descriptors() -> list[Path]:
        return sorted(Path("/proc/self/fd").iterdir())

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        with pytest.raises(OSError, match="No locks"):
            DurableFile(tmp_path / "t", tmp_path / "file")
    assert descriptors() == before
    assert not any(tmp_path.iterdir())


def test_temporary_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """Otherwise the first writer would rename the unfinished file of the second."""
    with DurableFile(tmp_path / "t", tmp_path / "file") as file:
        file.write(b"first")
        with pytest.raises(FileExistsError):
            DurableFile(tmp_path / "t", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_file_that_is_not_whole_is_removed(tmp_path: Path) -> None:
    with pytest.raises(MisdirectedError), DurableFile(tmp_path / "t", tmp_path / "file") as file:
        os.write(file.descriptor, b"by another thread")
    assert list(tmp_path.iterdir()) == []
    os.close(file.descriptor)
    with pytest.raises(ZeroDivisionError), DurableFile(tmp_path / "t", tmp_path / "file") as file:
        file.write(b"%d" % (1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_file_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = fcntl.flock, list[bool]()

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            (tmp_path / "t").unlink()
            removed.append(True)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with DurableFile(tmp_path / "t", tmp_path / "file") as file:
        file.write(b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_atomic_write_makes_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    atomic_write(path, b"data")
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_atomic_write_replaces_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old" * 100_000)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_mode_of_the_file_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o640)
    atomic_write(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_atomic_write_keeps_the_owner_of_the_file_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 65534, 65534)
    atomic_write(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_failed_atomic_write_leaves_only_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path / "directory", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_atomic_write_killed_at_any_step_leaves_old_or_new_content(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_WRITERS, str(tmp_path)], check=True)
    contents = [path.read_bytes() for path in tmp_path.glob("*/file")]
    assert set(contents) == {b"old", b"new" * 1000}
    assert len(contents) > 5


def test_make_directory_makes_parents_for_us_alone(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_make_directory_accepts_one_that_is_there(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    make_directory(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_make_directory_refuses_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "a")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_make_directory_makes_nothing_within_a_directory_that_was_moved(
    depth: int, tmp_path: Path
) -> None:
    base = tmp_path / "parent" / "state"
    path = base.joinpath(*"abc"[:depth])
    with pytest.raises(FileNotFoundError):
        make_directory(path, within=base)
    assert not base.parent.exists()
    base.mkdir(parents=True)
    make_directory(path, within=base)
    assert path.is_dir()
    make_directory(tmp_path / "other" / "a", within=base)  # which is elsewhere
    assert (tmp_path / "other" / "a").is_dir()


def test_make_directory_ends_at_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "link" / "a")


def test_sync_directory_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "a")


def test_watched_file_that_is_missing_at_first_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        WatchedFiles(path.read_text, path)


@pytest.mark.usefixtures("_seconds_pass")
def test_watched_value_follows_each_of_its_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    second.write_text("b")
    watched = WatchedFiles(lambda: first.read_text() + second.read_text(), first, second)
    assert watched.get() == "ab"
    first.write_text("longer")
    assert watched.get() == "longerb"
    atomic_write(second, b"c")
    assert watched.get() == "longerc"


@pytest.mark.usefixtures("_seconds_pass")
def test_watched_value_is_not_made_again_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    made = itertools.count()
    watched = WatchedFiles(made.__next__, path)
    assert [watched.get(), watched.get()] == [0, 0]


def test_files_are_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.9, 101.1, 101.1])
    monkeypatch.setattr("minismtp.values.durable_files.monotonic", times.__next__)
    path = tmp_path / "file"
    path.write_text("old")
    watched = WatchedFiles(path.read_text, path)
    path.write_text("changed")
    assert watched.get() == "old"
    assert watched.get() == "changed"


@pytest.mark.usefixtures("_seconds_pass")
@pytest.mark.parametrize("content", [b"\xff", None], ids=["malformed", "removed"])
def test_broken_change_keeps_the_value_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    path = tmp_path / "file"
    path.write_text("good")
    watched = WatchedFiles(lambda: path.read_text(encoding="utf-8"), path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert [watched.get(), watched.get()] == ["good", "good"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    path.write_text("good again")
    assert watched.get() == "good again"


@pytest.mark.usefixtures("_seconds_pass", "_no_other_files")
def test_file_that_is_gone_is_a_problem_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("good")
    watched = WatchedFiles(lambda: path.read_text(encoding="utf-8"), path)
    other = WatchedFiles(lambda: path.read_text(encoding="utf-8"), path)
    assert (watched.problem, unusable_files()) == ("", 0)
    path.rename(tmp_path / "moved")
    assert "No such file" in watched.problem
    assert unusable_files() == 2
    path.write_bytes(b"\xff")
    assert watched.problem == ""  # the value before stays, because the content is wrong
    path.write_text("good again")
    assert (watched.problem, other.problem, unusable_files()) == ("", "", 0)


@pytest.mark.usefixtures("_seconds_pass")
def test_file_that_could_not_be_read_once_is_read_again_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    answers: list[str | OSError] = ["old", OSError(24, "Too many open files"), "new"]

    def load() -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    watched = WatchedFiles(load, path)
    path.write_text("changed")
    assert "Too many open files" in watched.problem
    assert watched.get() == "new"
    assert watched.problem == ""


@pytest.mark.usefixtures("_seconds_pass")
def test_other_threads_have_the_value_before_while_one_reads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    reading, go_on = threading.Event(), threading.Event()

    def load() -> str:
        if path.stat().st_size:
            reading.set()
            assert go_on.wait(30)
        return path.read_text()

    watched = WatchedFiles(load, path)
    path.write_text("new")
    reader = threading.Thread(target=watched.get)
    reader.start()
    assert reading.wait(30)
    assert watched.get() == ""
    go_on.set()
    reader.join(30)
    assert watched.get() == "new"


def test_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret = kept_secret(tmp_path / "secret")
    finally:
        os.umask(before)
    assert len(secret) == 32
    assert kept_secret(tmp_path / "secret") == secret
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [tmp_path / "secret"]


def test_secret_that_is_asked_for_at_once_is_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: kept_secret(tmp_path / "secret"), range(8)))
    assert found == {(tmp_path / "secret").read_bytes()}


@pytest.mark.parametrize("damaged", [b"", b"x" * 31, b"x" * 33])
def test_damaged_secret_is_replaced(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "secret").write_bytes(damaged)
    secret = kept_secret(tmp_path / "secret")
    assert len(secret) == 32
    assert kept_secret(tmp_path / "secret") == secret
