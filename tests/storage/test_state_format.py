"""The format of the state directory: an earlier release refuses what a later one wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.storage.state_format import FORMAT, mark_format, state_directory

if TYPE_CHECKING:
    from conftest import Configure, Start

LATER = FORMAT + 1


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minismtp", *arguments, "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [("serve",), ("check",), ("queue", "list"), ("quarantine", "list")]
)
def test_state_of_a_later_release_is_refused(
    arguments: tuple[str, ...], configure: Configure
) -> None:
    config = configure('[[plugins]]\nuse = "quarantine"\n')
    state = config.parent / "state"
    state.mkdir(mode=0o700)
    (state / "format").write_text(f"{LATER}\n")
    done = command(config, *arguments)
    assert done.returncode == 78
    assert f"{state} was written by a later release of minismtp" in done.stderr
    assert f"up to {FORMAT}. Install the later release" in done.stderr
    assert {path.name for path in state.iterdir()} <= {"format", "server.lock"}


@pytest.mark.parametrize("content", ["999999999\n", "0\n", f"{LATER}\nqueue 3\n", "1", "two", ""])
def test_content_that_this_release_does_not_know_is_of_a_later_one(
    content: str, configure: Configure
) -> None:
    config = Config.load(configure())
    config.state_directory.mkdir()
    (config.state_directory / "format").write_text(content)
    with pytest.raises(ConfigError, match="later release"):
        state_directory(config)


def test_server_writes_the_format_before_mail_arrives(configure: Configure, start: Start) -> None:
    server = start(configure())
    assert (server.directory / "state" / "format").read_text() == f"{FORMAT}\n"


def test_format_is_kept_and_what_had_none_is_the_first(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.load(configure())
    (config.state_directory / "spool").mkdir(parents=True)
    assert state_directory(config) == config.state_directory
    mark_format(config)
    monkeypatch.setattr("minismtp.storage.state_format.FORMAT", LATER)
    mark_format(config)
    assert (config.state_directory / "format").read_text() == f"{FORMAT}\n"
    monkeypatch.setattr("minismtp.storage.state_format.FORMAT", FORMAT - 1)
    with pytest.raises(ConfigError, match="later release"):
        mark_format(config)


def test_a_disk_that_takes_no_format_is_no_reason_to_refuse_mail(configure: Configure) -> None:
    config = Config.load(configure())  # its state directory does not exist
    mark_format(config)
    assert not config.state_directory.exists()
