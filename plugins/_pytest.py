"""Fixtures for the tests of plugins, which pytest finds by itself where minismtp is installed.

`dialogue` begins sessions, `mailroom` takes what no filter refused; see `minismtp.testing`.

Not in the package `minismtp`: pytest imports this in every run of its environment, so it imports
nothing of minismtp before a test asks (which also lets coverage see all of it).
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from minismtp.testing import Dialogues, Mailroom


@pytest.fixture
def dialogue(tmp_path: Path) -> Iterator[Dialogues]:
    """Begin sessions in memory: call it like `minismtp.testing.Dialogue`.

    They, and the plugins in them, end with the test; their state directory is `tmp_path`.
    """
    from minismtp.testing import Dialogues

    dialogues = Dialogues(tmp_path)
    yield dialogues
    dialogues.close()


@pytest.fixture
def mailroom() -> Mailroom:
    """Return the plugin that takes mail for everybody and keeps it in memory."""
    from minismtp.testing import Mailroom

    return Mailroom()
