"""The claims of docs/hardening.md about the processes."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from source import ROOT

if TYPE_CHECKING:
    from conftest import Configure, Start


@pytest.fixture
def _cores_allowed() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.usefixtures("_cores_allowed")
def test_no_process_leaves_a_dump_of_its_memory(configure: Configure, start: Start) -> None:
    server = start(configure())
    for pid in server.tree():
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE), limits


def test_unit_allows_no_dump() -> None:
    unit = (ROOT / "systemd" / "minismtp.service").read_text()
    assert "\nLimitCORE=0\n" in unit
