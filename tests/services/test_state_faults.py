"""The file of shared state: damaged, moved, flooded, or with a wrong clock."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from fakes import Clock

from minismtp import RemoteError, State
from minismtp.cli.check import check
from minismtp.config import Config
from minismtp.config.tables import StateConfig
from minismtp.services.state_sqlite import SqliteStore
from minismtp.services.state_window import MICROSECONDS, Window

HOUR: Final = timedelta(hours=1)
CONFIG: Final = """
hostname = "mx.example.org"
state_directory = "."
listeners = [{ name = "smtp", address = "127.0.0.1:0", tls = "none" }]
"""


def overwritten(path: Path, start: int, octets: bytes) -> None:
    """Put octets where others were, without a new file."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(octets)


def another_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE others (a)")
        connection.commit()


DAMAGES: Final[dict[str, Callable[[Path], object]]] = {
    "nonsense": lambda path: path.write_bytes(b"nonsense" * 1000),
    "zeros": lambda path: path.write_bytes(bytes(100_000)),
    "header": lambda path: overwritten(path, 0, b"x" * 100),
    "inside": lambda path: overwritten(path, 4096, b"x" * (path.stat().st_size - 4096)),
    "zeros inside": lambda path: overwritten(path, 4096, bytes(path.stat().st_size - 4096)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096),
    "cut in a page": lambda path: os.truncate(path, 5000),
    "emptied": lambda path: os.truncate(path, 0),
    "another database": another_database,
}


def checkpointed(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def every_call_works(state: State) -> None:
    for number in range(100):
        state.put(f"{number}", "v", HOUR)
        assert state.get(f"{number}") == "v"
        assert state.setdefault(f"{number}", "w", HOUR) == "v"
        state.delete(f"{number}")
        assert state.add(f"{number}", 1, HOUR) == 1
        assert state.take(f"limit {number}", 1, HOUR) == 0
        assert state.take(f"limit {number}", 1, HOUR) > 0


@pytest.mark.parametrize("running", [False, True], ids=["at start", "running"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file_is_set_aside_and_rebuilt(kind: str, running: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    states = [State.of(StateConfig(), tmp_path) for _ in range(2)]
    for number in range(1000):
        states[number % 2].put(f"old {number} {'x' * 100}", "v", HOUR)
    checkpointed(path)
    if not running:
        for state in states:
            state.close()
    DAMAGES[kind](path)
    for number in range(1000):
        for state in states:  # as in two processes; entries may be lost, but no call fails
            state.get(f"old {number} {'x' * 100}")
            state.put(f"new {number}", "v", HOUR)
    for state in states:
        for number in range(100):
            state.delete(f"{number}")
            state.delete(f"limit {number}")
        every_call_works(state)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    assert states[0].get("limit 0") == states[1].get("limit 0") is not None
    for state in states:
        state.close()


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
@pytest.mark.parametrize("file", ["state.db", "spool/queue.db"])
def test_check_tells_of_a_damaged_file_and_leaves_everything_as_it_is(
    file: str, running: bool, tmp_path: Path
) -> None:
    (tmp_path / "spool").mkdir()
    state = State(SqliteStore(tmp_path / file))
    for number in range(1000):
        state.put(f"{number}", "v" * 100, HOUR)
    checkpointed(tmp_path / file)
    if not running:
        state.close()
    (tmp_path / "c.toml").write_text(CONFIG)
    config = Config.load(tmp_path / "c.toml")
    assert not told(config)
    before = contents(tmp_path)
    DAMAGES["inside"](tmp_path / file)
    [finding] = told(config)
    assert f"{file} is damaged" in finding
    assert contents(tmp_path).keys() == before.keys()
    assert list((tmp_path / file).parent.glob("*damaged*")) == []
    state.close()


def told(config: Config) -> list[str]:
    return [str(each) for each in check(config) if "state_directory" in str(each)]


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_one_damaged_file_is_kept_and_the_log_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.db"
    (tmp_path / "state.db.damaged-20200101T000000").write_bytes(b"of another year")
    for _ in range(2):
        path.write_bytes(b"nonsense" * 1000)
        state = State.of(StateConfig(), tmp_path)
        state.put("k", "v", HOUR)
        state.close()
    [aside] = tmp_path.glob("state.db.damaged-*")
    assert aside.read_bytes() == b"nonsense" * 1000
    assert aside.name in caplog.text


def test_file_in_a_directory_that_was_moved_is_left_for_a_new_one(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    state = State.of(StateConfig(), directory)
    state.put("k", "v", HOUR)
    directory.rename(tmp_path / "moved")
    for _ in range(255):
        state.add("count", 1, HOUR)  # the open file is used until the next check
    with pytest.raises(RemoteError, match="No such file"):
        state.add("count", 1, HOUR)
    directory.mkdir()
    assert state.add("count", 1, HOUR) == 1
    assert (directory / "state.db").exists()
    state.close()


@pytest.mark.parametrize("value", ["", "v" * 1000], ids=["small", "large"])
def test_flood_of_one_plugin_evicts_nothing_of_another(value: str, tmp_path: Path) -> None:
    state = State(SqliteStore(tmp_path / "db", largest=512 * 1024))
    limits, greylist = state.of_plugin("rate_limit"), state.of_plugin("greylist")
    for number in range(500):
        assert limits.take(f"peer {number}", 1, HOUR) == 0
    for number in range(8000):
        greylist.put(f"{number:032}", value, 24 * HOUR)
    assert all(limits.take(f"peer {number}", 1, HOUR) > 0 for number in range(500))
    assert (tmp_path / "db").stat().st_size < 2 * 1024 * 1024
    # A single owner may use all of it.
    assert greylist.get(f"{7999:032}") == value
    state.close()


DAYS: Final = 86_400.0


@pytest.mark.parametrize("ahead", [DAYS, 3650 * DAYS], ids=["a day", "ten years"])
def test_what_a_clock_that_was_ahead_has_kept_counts_for_nothing(ahead: float) -> None:
    clock = Clock(1e6)
    state = State.in_memory(clock=clock)
    assert state.take("limit", 1, HOUR) == 0
    clock.now += ahead
    assert state.take("limit", 1, HOUR) == 0
    state.put("put", "future", HOUR)
    state.setdefault("default", "future", HOUR)
    state.add("count", 5, HOUR)
    clock.now -= ahead
    assert state.take("limit", 1, HOUR) == 0
    assert state.take("limit", 1, HOUR) <= HOUR.total_seconds() * 1.1
    assert state.get("put") is None
    assert state.setdefault("default", "now", HOUR) == "now"
    assert state.add("count", 1, HOUR) == 1


@pytest.mark.parametrize("ahead", [DAYS, 3650 * DAYS], ids=["a day", "ten years"])
def test_limit_with_parts_in_the_future_has_them_dropped(ahead: float) -> None:
    window, now = Window.of(1, 86_400), 1_000_000 * MICROSECONDS
    future = {(now + round(ahead * MICROSECONDS)) // window.length: 1}
    assert window.current(future, now) == {}
    assert window.current({now // window.length: 1}, now - 50 * MICROSECONDS)
