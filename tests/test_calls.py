"""The function calls of a message stay within the budget of `make calls`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CALLS = Path(__file__).parent / "bench" / "calls.py"


def test_no_scenario_makes_more_calls_than_its_budget() -> None:
    ran = subprocess.run(
        [sys.executable, CALLS, "--check"], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
