"""Several files appear together or not at all, whatever ends the process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from minismtp.cli.common import CommandError
from minismtp.cli.setup.placement import STAGING, Owner, Placement, pending

# A child for each file operation: at its `number`th one it is killed, or the operation fails. The
# state afterwards is that before, or the whole new one. `recover` is what the next run begins with.
SCRIPT: Final = """
import os, pathlib, signal, sys
from minismtp.cli.setup.placement import Owner, Placement

base, how = pathlib.Path(sys.argv[1]), sys.argv[2]
OPERATIONS = {"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.chmod"}
OPERATIONS |= {"os.chown", "os.listdir", "os.scandir"}
seen = 0

os.fsync = lambda _: None  # the machine goes on

def state():
    return {str(path.relative_to(base)): path.read_bytes()
            for path in sorted(base.rglob("*")) if path.is_file()}

def attempt(number):
    def hook(event, arguments):
        global seen
        if event in OPERATIONS:
            seen += 1
            if seen == number and how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if seen == number:
                raise OSError(28, "No space left on device")
    sys.addaudithook(hook)
    with Placement(base, Owner()) as placement:
        placement.stage(
            [base / "keys", base / "keys" / "a", base / "plugins"],
            [(base / "keys" / "a" / "key", b"key", None),
             (base / "passwords", b"old and new", b"old"),
             (base / "main", b"new", b"before" if replaces else None)],
        )
        placement.place()
        placement.commit()

def in_child(number):
    child = os.fork()
    if not child:
        try:
            attempt(number)
        except OSError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0 if seen >= number else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def begin():
    for path in sorted(base.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (base / "passwords").write_bytes(b"old")
    if replaces:
        (base / "main").write_bytes(b"before")
    return state()

for replaces in (False, True):
    new = {"keys/a/key": b"key", "main": b"new", "passwords": b"old and new"}
    number, taken_back, done, status = 0, 0, 0, None
    while status != 3:
        number += 1
        assert number < 500, status  # else it would go on without end
        before = begin()
        status = in_child(number)
        assert status in ((-9, 3) if how == "kill" else (1, 0, 3)), (number, status)
        counts = (base / "main").exists() and (base / "main").read_bytes() == b"new"
        assert how == "kill" or counts == (status != 1), (number, status)
        with Placement(base, Owner()):
            pass
        assert state() == (new if counts else before), (number, state())
        if not counts:
            assert not (base / "keys").exists() and not (base / "plugins").exists(), number
        taken_back, done = taken_back + (not counts), done + counts
    print(number, taken_back, done)
"""


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_all_files_or_none_are_there_after_any_file_operation(how: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        operations, taken_back, complete = map(int, line.split())
        assert operations > 25
        assert taken_back > 15
        assert complete > 1


@pytest.mark.parametrize("name", ["x" * 300, "file/x", "circle/x", "missing/x"])
def test_path_that_no_file_can_have_leaves_nothing(name: str, tmp_path: Path) -> None:
    """Recovery has to take back the other files in spite of it."""
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    before = {*tmp_path.iterdir()}

    def attempt() -> None:
        with Placement(tmp_path, Owner()) as placement:
            placement.stage([], [(tmp_path / each, b"", None) for each in ("a", name, "b")])
            placement.place()

    with pytest.raises(OSError, match=name.split("/", maxsplit=1)[0]):
        attempt()
    assert {*tmp_path.iterdir()} == before


def test_directory_that_is_made_goes_again_without_a_commit(tmp_path: Path) -> None:
    for base, other in (("a/../b", "c/d"), ("x" * 300, "")):
        with contextlib.suppress(OSError), Placement(tmp_path / "new" / base, Owner()) as placement:
            placement.make(tmp_path / other, Owner())
            assert (tmp_path / other).is_dir()
        assert not any(tmp_path.iterdir())


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def attempt() -> None:
        with Placement(tmp_path, Owner()) as placement:
            placement.stage([], [(first, b"", None), (second, b"", None)])
            placement.place()
            second.write_text("of another")
            placement.commit()

    with pytest.raises(FileExistsError):
        attempt()
    assert list(tmp_path.iterdir()) == [second]
    assert second.read_text() == "of another"


def test_second_process_is_refused_meanwhile(tmp_path: Path) -> None:
    with Placement(tmp_path, Owner()):
        assert pending(tmp_path)
        with pytest.raises(CommandError, match="another `minismtp setup` is at work"):
            Placement(tmp_path, Owner()).__enter__()
    assert not (tmp_path / STAGING).exists()


def test_replaced_file_keeps_mode(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o604)
    with Placement(tmp_path, Owner()) as placement:
        placement.stage([], [(tmp_path / "file", b"new", b"old")])
        placement.commit()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("last", [False, True])
def test_file_that_changes_meanwhile_is_not_replaced(last: bool, tmp_path: Path) -> None:
    """As two that add a domain to one configuration, both after having read it."""
    first, second = tmp_path / "first", tmp_path / "second"
    files = [(first, b"", None), (second, b"by us", b"old")]
    files = files if last else files[::-1]
    second.write_text("old")

    def attempt() -> None:
        with Placement(tmp_path, Owner()) as placement:
            placement.stage([], files)
            second.write_text("by another")
            placement.place()
            placement.commit()

    with pytest.raises(CommandError, match="second was changed by another process meanwhile"):
        attempt()
    assert list(tmp_path.iterdir()) == [second]
    assert second.read_text() == "by another"


def test_link_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    link, target = tmp_path / "passwords", tmp_path / "others"
    target.write_text("old")
    link.symlink_to(target)

    def attempt() -> None:
        with Placement(tmp_path, Owner()) as placement:
            placement.stage([], [(link, b"new", b"old")])

    with pytest.raises(CommandError, match=f"passwords is a symbolic link.*put {target} in its"):
        attempt()
    assert link.is_symlink()
    assert not (tmp_path / STAGING).exists()


def test_journal_of_another_user_is_not_followed(tmp_path: Path) -> None:
    """Whose links could lead root to any file, if the configuration is in a shared directory."""
    if os.geteuid() != 0:
        pytest.skip("only root gives directories to others")
    victim, staging = tmp_path / "victim", tmp_path / STAGING
    victim.write_text("precious")
    staging.mkdir()
    (staging / "0").symlink_to(victim)
    (staging / "0.old").write_text("planted")
    entries = [[0, str(victim), True], [1, str(tmp_path / "none"), False]]
    (staging / "journal").write_text(json.dumps({"directories": [], "entries": entries}))
    os.chown(staging, 65534, 65534)
    with pytest.raises(CommandError, match=r"\.setup belongs to another user; remove it"):
        Placement(tmp_path, Owner()).__enter__()
    assert victim.read_text() == "precious"
