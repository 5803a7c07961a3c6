"""The page with whole plugins: its files pass their tests, its commands print what it shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from plugin_page import PAGE, run, transcript, write_files
from source import ROOT

if TYPE_CHECKING:
    from conftest import Configure, Start

# What differs from run to run.
_VARYING: Final = re.compile(r"\d+\.\d+ ms|\d+\.\d+s|[0-9a-f]{12}\.1|\d+ informations|\d+ notes")
_NO_INDEX: Final = "--no-build-isolation --no-deps"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the files of the page as an author would; return their directory."""
    write_files(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    return tmp_path


def masked(text: str) -> str:
    return _VARYING.sub("#", text).strip()


def test_tests_of_the_page_pass(place: Path) -> None:
    command = f"{sys.executable} -m pytest -q -W error -p no:cacheprovider"
    assert "18 passed" in run(command, place)


def test_files_of_the_page_are_well_typed(place: Path) -> None:
    run(f"{sys.executable} -m mypy --strict .", place)


def test_try_shows_what_the_page_shows(place: Path) -> None:
    for command, shown in transcript(" try "):
        assert masked(run(command, place)) == masked(shown)


def packaged(place: Path, skip: Callable[[str], bool]) -> Path:
    """Run the commands that make the package; return the directory with the installed one."""
    for command, shown in transcript("new-plugin"):
        if command.startswith("cd "):
            place = place / command.removeprefix("cd ")
        elif command.startswith("pip install"):
            run(f"{sys.executable} -m pip install -q {_NO_INDEX} --target installed .", place)
            os.environ["PYTHONPATH"] = str(place / "installed")
        elif not skip(command):
            build = command.replace("-m build", "-m build --no-isolation")
            printed = run(build, place).splitlines()
            wanted = shown.splitlines()
            last = [masked(line) for line in printed[-len(wanted) :]] if wanted else []
            assert last == [masked(line) for line in wanted], command
    return place / "installed"


def test_package_is_made_as_the_page_shows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("NO_COLOR", "1")
    installed = packaged(place, skip=lambda command: not shutil.which(command.split()[0]))
    assert (installed / "minismtp_new_links" / "py.typed").exists()


def test_installed_package_counts_links_in_a_server(
    place: Path, configure: Configure, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    packaged(place, skip=lambda command: not command.startswith(("minismtp", "cp", "sed")))
    table = '[[plugins]]\nuse = "new_links"\n'
    config = configure(table)
    refused = subprocess.run(
        [sys.executable, "-m", "minismtp", "check", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    [problem] = re.findall(r"^error: .*(plugin 'new_links': .*)$", PAGE, re.MULTILINE)
    assert refused.returncode == 78
    assert problem in refused.stderr + refused.stdout
    server = start(configure(f'[[plugins]]\nuse = "dkim_verify"\n{table}'))
    with server.connect() as client:
        client.begin_data("bob@example.org")
        client.send("Subject: x\r\n\r\nhttps://www.shop.example.co.uk/pay\r\n.\r\n")
        assert client.reply().startswith("250 ")
    shown = re.findall(r'^minismtp_(plugin\w+){age="(\w+)".*} (.*)$', PAGE, re.MULTILINE)
    assert len(shown) == 2
    for name, age, value in shown:
        server.wait_until(
            lambda name=name, age=age, value=value: server.metric(name, age=age) == float(value)  # type: ignore[misc]
        )
