"""What tests mount is gone with the process that mounted it, also if that process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

KILLED: Final = """
import os, signal, subprocess, sys
import conftest

subprocess.run(["mount", "-t", "tmpfs", "tmpfs", sys.argv[1]], check=True)
assert os.path.ismount(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_mount_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    if done.returncode == 1 and not os.environ.get("MINISMTP_REQUIRE_SERVICES"):
        pytest.skip("no disk can be mounted here")
    assert done.returncode == -signal.SIGKILL
    assert not tmp_path.is_mount()
