"""What Prometheus and health checks are told."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Running


def test_promtool_has_nothing_to_say_about_the_metrics(
    server: Running, require_program: Callable[[str], str]
) -> None:
    promtool = require_program("promtool")
    status, metrics = server.http("/metrics")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False
    )
    assert (status, checked.returncode, checked.stdout, checked.stderr) == (200, 0, "", "")


def test_server_that_takes_mail_is_healthy_and_ready(server: Running) -> None:
    assert server.http("/healthz") == (200, "ok\n")
    assert server.http("/readyz") == (200, "ready\n")


def test_other_paths_are_not_found(server: Running) -> None:
    assert server.http("/nothing")[0] == 404


def test_head_is_answered_without_a_body(server: Running) -> None:
    assert server.http("/healthz", "HEAD") == (200, "")


def series(metrics: str) -> set[str]:
    """Give the names and labels of a scrape, without the values."""
    return {line.rpartition(" ")[0] for line in metrics.splitlines() if not line.startswith("#")}


def test_file_that_a_worker_has_just_made_does_not_spoil_a_scrape(server: Running) -> None:
    before = server.http("/metrics")[1]
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in server.tree())
    counters = re.search(r"/.*/metrics/counter_(?=\d+\.db$)", maps, re.MULTILINE)
    assert counters is not None
    empty = Path(f"{counters[0]}99.db")
    empty.touch()
    status, metrics = server.http("/metrics")
    empty.unlink()
    assert status == 200
    assert series(before) <= series(metrics)
