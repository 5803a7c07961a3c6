"""Questions to the DNS whose threads fail."""

import logging
from pathlib import Path

import pytest

from minismtp.config import Config
from minismtp.inspection.questions import HurriedResolver, check_names
from minismtp.services.resolver import Found

CONFIG = """
hostname = "mx.example.org"

[[listeners]]
name = "smtp"
address = "0.0.0.0:25"
tls = "none"
"""


class Broken(HurriedResolver):
    """A resolver with a bug."""

    def lookup(self, name: str, kind: str, *, seconds: float = 5.0) -> Found:
        raise RuntimeError(f"wanted: {name} {kind} {seconds}")


def test_a_question_that_raises_counts_as_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    resolver = Broken([], lambda _: None, seconds=0.2)
    [problem] = check_names(Config.parse(CONFIG, Path("x.toml")), [], resolver)
    assert "the DNS does not answer for mx.example.org" in str(problem)
    assert [each.message for each in caplog.records] == ["thread failed: name"]
    assert caplog.records[0].levelno == logging.ERROR
