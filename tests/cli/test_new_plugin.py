"""The package of a new plugin: it passes its own tests, ruff and mypy, and works in a server."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

from minismtp.cli.common import CommandError
from minismtp.cli.main import main
from minismtp.cli.new_plugin import make

ROOT: Final = Path(__file__).parents[2]
LISTENER: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a package and install it where `run` finds it. Return its directory."""
    directory = make("no_lottery", tmp_path_factory.mktemp("new_plugin") / "package")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    run(directory, *pip, "--target", "installed", ".")
    return directory


def run(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed, as in an environment where the package is installed."""
    places = {"PYTHONPATH": str(directory / "installed"), "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | places,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done


def test_tests_of_a_new_package_pass(package: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:randomly"]
    assert "5 passed" in run(package, *command).stdout


@pytest.mark.parametrize(
    "command",
    [["check"], ["check", "--isolated", "--select=E,F,I,B,UP,SIM,D1"], ["format", "--check"]],
)
def test_ruff_has_nothing_to_say_of_a_new_package(command: list[str], package: Path) -> None:
    options = ["--line-length=100", "--per-file-ignores=tests/*:D"] * ("--isolated" in command)
    run(package, sys.executable, "-m", "ruff", *command, *options, "src", "tests")


def test_types_of_a_new_package_are_right(package: Path) -> None:
    run(package, sys.executable, "-m", "mypy")


def test_types_of_a_new_package_are_installed(package: Path) -> None:
    assert (package / "installed" / "minismtp_no_lottery" / "py.typed").exists()


def test_new_plugin_is_configured_by_its_name(package: Path) -> None:
    table = '[[plugins]]\nuse = "no_lottery"\nwords = ["lottery"]\n'
    (package / "x.toml").write_text(LISTENER + table)
    command = [sys.executable, "-m", "minismtp", "check", "--config", "x.toml"]
    assert "configuration ok" in run(package, *command).stdout


def test_new_package_needs_the_version_that_made_it(package: Path) -> None:
    assert (
        f'dependencies = ["minismtp>={version("minismtp")}"]'
        in (package / "pyproject.toml").read_text()
    )


def test_package_is_made_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "first_contact"]) == 0
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {
        "minismtp-first-contact/pyproject.toml",
        "minismtp-first-contact/README.md",
        "minismtp-first-contact/src/minismtp_first_contact/__init__.py",
        "minismtp-first-contact/tests/test_first_contact.py",
    } <= made
    assert "cd minismtp-first-contact\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("No Lottery!", "did you mean 'no_lottery'?"),
        ("no-lottery", "did you mean 'no_lottery'?"),
        ("", "expected a name of"),
        ("2fast", "expected a name of"),
        ("../up", "did you mean 'up'?"),
        ("class", "expected a name of"),
        ("x" * 41, "40 at most"),
        ("maildir", "minismtp has a plugin of this name"),
    ],
)
def test_name_is_refused(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", name]) == 1
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_directory_that_exists_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "there").mkdir()
    assert main(["new-plugin", "x", "--directory", str(tmp_path / "there")]) == 1
    assert "there exists; expected a directory to be made" in capsys.readouterr().err
    assert list((tmp_path / "there").iterdir()) == []


def test_directory_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    assert main(["new-plugin", "x", "--directory", str(tmp_path / "file" / "x")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_class_whose_name_would_hide_an_import_gets_another(tmp_path: Path) -> None:
    made = make("message", tmp_path / "x") / "src" / "minismtp_message" / "__init__.py"
    assert "class MessagePlugin:" in made.read_text()


def test_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        make("A B", tmp_path / "x")
    assert not (tmp_path / "x").exists()
