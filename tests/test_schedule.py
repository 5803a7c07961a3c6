"""What happens to a run of several processes, in `schedule.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from schedule import LONG

TESTS = Path(__file__).parent
SUITE = """\
import time

import pytest

def test_that_hangs():
    time.sleep(600)

@pytest.mark.parametrize("number", range(5))
def test_that_passes(number):
    pass
"""


def test_a_test_that_hangs_fails_once_and_all_others_run(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        text = SUITE if name == "a" else SUITE.replace("600", "0.01")
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.toml").write_text(
        "[pytest]\nfaulthandler_timeout = 1\nfaulthandler_exit_on_timeout = true\n"
    )
    options = ("-n2", "--dist=loadfile", "-pno:randomly", "-pschedule", "--rootdir", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert re.search(r"^=+ 1 failed, 23 passed in ", done.stdout, re.MULTILINE), done.stdout
    assert "crashed while running 'test_a.py::test_that_hangs'" in done.stdout
    assert "in test_that_hangs" in done.stderr + done.stdout  # the stack says where


def test_the_long_files_are_there() -> None:
    assert [file for file in LONG if not (TESTS.parent / file).exists()] == []
