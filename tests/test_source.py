"""The files that tests use as the source, in a tree where the server ran."""

import os
import subprocess
from pathlib import Path

import pytest
from source import copy_source, source_files

IGNORED = "/minismtp-state/\n__pycache__/\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a source tree in the state after the first two commands of the README."""
    root = tmp_path / "tree"
    for name in (
        "pyproject.toml",
        "minismtp/cli/main.py",
        "minismtp/__pycache__/cli.pyc",
        "removed",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text(IGNORED)
    (root / "minismtp-state" / "spool").mkdir(parents=True)
    os.mkfifo(root / "minismtp-state" / "spool" / "wake")
    return root


def with_git(root: Path) -> None:
    for arguments in (["init"], ["add", "."]):
        subprocess.run(["git", "-C", root, *arguments], check=True, stdout=subprocess.DEVNULL)
    (root / "new.py").write_text("not yet added")
    (root / "removed").unlink()
    os.mkfifo(root / "pipe")


def test_source_is_what_git_has_and_what_is_new(tree: Path) -> None:
    with_git(tree)
    expected = [".gitignore", "minismtp/cli/main.py", "new.py", "pyproject.toml"]
    assert [name.as_posix() for name in source_files(tree)] == expected


def test_source_without_git_leaves_out_what_was_made(tree: Path) -> None:
    expected = [".gitignore", "minismtp/cli/main.py", "pyproject.toml", "removed"]
    assert [name.as_posix() for name in source_files(tree)] == expected


def test_named_pipe_of_a_server_that_has_run_is_not_copied(tree: Path, tmp_path: Path) -> None:
    with_git(tree)
    copy_source(tmp_path / "copy", tree)
    assert not (tmp_path / "copy" / "minismtp-state").exists()
    assert not (tmp_path / "copy" / "pipe").exists()
    copied = tmp_path / "copy" / "minismtp" / "cli" / "main.py"
    assert copied.read_text() == "minismtp/cli/main.py"
