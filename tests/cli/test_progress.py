"""The bar of long work: on one line of a terminal, and gone in the end."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.cli import progress as module
from minismtp.cli.main import main
from minismtp.cli.progress import Progress
from minismtp.values.units import octets

if TYPE_CHECKING:
    from conftest import Configure

GONE: Final = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(patch: pytest.MonkeyPatch, *, patience: float = 0.0, columns: int = 80) -> Terminal:
    """Make standard error a terminal where bars are drawn again and again after `patience`."""
    stream = Terminal()
    patch.setenv("TERM", "xterm")
    patch.setattr(sys, "stderr", stream)
    patch.setattr(stream, "fileno", lambda: -1)
    patch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    patch.setattr(module, "_PATIENCE", patience)
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by one whose only item a test changes."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_work_of_a_second_shows_nothing(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(monkeypatch, patience=1.0)
    with Progress("copying", 10) as progress:
        clock[0] += 0.9
        progress.show(9)
    assert stream.getvalue() == ""


def test_long_work_is_drawn_ten_times_a_second_at_most(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(monkeypatch, patience=1.0)
    with Progress("copying", 1000) as progress:
        clock[0] += 1.0
        for _ in range(500):
            progress.add()
        clock[0] += 0.2
        progress.add()
    assert stream.getvalue().split(GONE) == [
        "",
        f"[{'':30}]   0% copying: 1 of 1,000",
        f"[{'#' * 15:30}]  50% copying: 501 of 1,000",
        "",
    ]


def test_line_of_output_takes_the_place_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    progress = Progress("copying", 2, octets)
    progress.show(1)
    progress.clear()
    progress.clear()
    assert stream.getvalue().endswith(f" 50% copying: 1 B of 2 B{GONE}")
    assert stream.getvalue().count(GONE) == 2


def test_total_that_is_not_known_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    Progress("reading").show(1234)
    assert stream.getvalue() == f"{GONE}reading: 1,234"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_bar_is_gone_whatever_ends_the_work(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        with Progress("copying", 2) as progress:
            progress.show(1)
            raise error

    stream = terminal(monkeypatch)
    with pytest.raises(error):
        work()
    assert stream.getvalue().endswith(f"1 of 2{GONE}")


@pytest.mark.parametrize(
    ("stream", "term", "shown"),
    [(io.StringIO, "xterm", True), (Terminal, "dumb", True), (Terminal, "xterm", False)],
    ids=["pipe", "dumb", "JSON"],
)
def test_bar_is_for_people_only(
    stream: Callable[[], io.StringIO], term: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(monkeypatch)
    output = stream()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", output)
    with Progress("copying", 2, shown=shown) as progress:
        progress.show(1)
    assert output.getvalue() == ""


@given(st.integers(1, 200), st.integers(0, 10**12), st.integers(0, 10**12))
def test_bar_is_never_wider_than_the_terminal(columns: int, done: int, total: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stream = terminal(patch, columns=columns)
        Progress("copying", total).show(done)
    assert len(stream.getvalue().removeprefix(GONE)) <= columns - 1


def test_backup_shows_how_much_is_copied(
    configure: Configure,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    config = configure()
    (config.parent / "state" / "other").mkdir(parents=True)
    (config.parent / "state" / "big").write_bytes(bytes(3 << 20))
    (config.parent / "state" / "other" / "left-out").write_bytes(bytes(9 << 20))
    target: Path = tmp_path_factory.mktemp("outside") / "copy"
    stream = terminal(monkeypatch)
    command = ["backup", str(target), "--exclude", "other", "--config", str(config)]
    assert main(command) == 0
    drawn = stream.getvalue().split(GONE)
    assert any("copying: 2.0 MiB of 3.0 MiB" in each for each in drawn)
    assert drawn[-1] == ""
    [copied] = target.rglob("big")
    assert copied.stat().st_size == 3 << 20


def test_backup_that_is_interrupted_leaves_neither_bar_nor_copy(
    configure: Configure,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure()
    (config.parent / "state").mkdir()
    target: Path = tmp_path_factory.mktemp("outside") / "copy"
    add = Progress.add

    def add_and_interrupt(self: Progress, more: int) -> None:
        add(self, more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "add", add_and_interrupt)
    stream = terminal(monkeypatch)
    assert main(["backup", str(target), "--config", str(config)]) == 130
    assert stream.getvalue().endswith(GONE)
    assert "copying" in stream.getvalue()
    assert [*target.parent.iterdir()] == []
