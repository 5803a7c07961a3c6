"""The messages in progress when a process died, as the next process finds them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from minismtp.mailqueue.in_progress import InProgress
from minismtp.runtime.log import Log


def started(directory: Path, supervisor: str = "one") -> InProgress:
    progress = InProgress(directory, 3, Log(level="error"), supervisor)
    progress.start()
    return progress


def die(directory: Path, *keys: str) -> None:
    """Let a process die at work; a suspect message that has to wait is not in progress."""
    source = f"""
        import os
        from pathlib import Path
        from minismtp.runtime.log import Log
        from minismtp.mailqueue.in_progress import InProgress
        progress = InProgress(Path({str(directory)!r}), 3, Log(level="error"), "one")
        progress.start()
        for key in {keys!r}:
            progress.begin(key)
        os._exit(9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(source)], check=False)


def test_what_two_runners_died_on_is_poison(tmp_path: Path) -> None:
    die(tmp_path, "a x", "b x")
    assert not started(tmp_path).poison
    die(tmp_path, "b x", "a x")  # suspects are sent one at a time, so `a x` is not in progress
    assert started(tmp_path).poison == {"b x"}


def test_poison_is_named_until_it_is_held(tmp_path: Path) -> None:
    die(tmp_path, "a x")
    die(tmp_path, "a x")
    assert started(tmp_path).poison == {"a x"}
    progress = started(tmp_path)
    assert progress.poison == {"a x"}
    progress.forget_poison()
    assert not started(tmp_path).poison
    die(tmp_path, "a x")
    assert not started(tmp_path).poison


def test_work_that_ended_is_not_suspect(tmp_path: Path) -> None:
    die(tmp_path, "a x")
    progress = started(tmp_path)
    place = progress.begin("a x")
    assert place is not None
    progress.end(place, "a x")
    progress.close()
    die(tmp_path, "a x")
    assert not started(tmp_path).poison


def test_suspects_are_tried_one_at_a_time(tmp_path: Path) -> None:
    die(tmp_path, "a x", "b x")
    progress = started(tmp_path)
    place = progress.begin("a x")
    assert place
    assert progress.begin("b x") is None
    assert progress.begin("c x")
    progress.end(place, "a x")
    assert progress.begin("b x")


def test_runner_that_lives_or_ended_in_order_leaves_no_suspect(tmp_path: Path) -> None:
    lives = started(tmp_path)
    lives.begin("a x")
    ended = started(tmp_path)
    ended.begin("a x")
    ended.close()
    for _ in range(2):
        assert started(tmp_path).poison == frozenset()
    assert not (tmp_path / "suspects").exists()


def test_death_of_the_whole_server_is_no_messages_doing(tmp_path: Path) -> None:
    for _ in range(3):
        die(tmp_path, "a x")
        started(tmp_path, "another")
    assert not started(tmp_path).poison
    assert not (tmp_path / "suspects").exists()


def test_any_key_and_any_number_of_them_is_taken(tmp_path: Path) -> None:
    progress = started(tmp_path)
    keys = ["x" * 5000, "\udc80é", "", "a", "b"]
    places = [progress.begin(key) for key in keys]
    for place, key in zip(places, keys, strict=True):
        assert place is not None
        progress.end(place, key)
    assert all(progress.begin(key) for key in keys[:3])


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "rubbish"])
def test_whatever_lies_there_is_no_hindrance(tmp_path: Path, kind: str) -> None:
    for path in (tmp_path / "working.1", tmp_path / "suspects"):
        match kind:
            case "directory":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "link":
                path.symlink_to(path)
            case "rubbish":
                path.write_bytes(b"\xff" * 3000)
    progress = started(tmp_path)
    assert not progress.poison
    assert progress.begin("a x")


def test_disk_without_room_costs_the_notes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    progress = started(tmp_path)
    place = progress.begin("a x")
    assert place is not None
    progress.end(place, "a x")
    assert not list(tmp_path.iterdir())
