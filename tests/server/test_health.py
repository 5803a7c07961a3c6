"""What is wrong, in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minismtp.server.figures import Overview
from minismtp.server.health import troubles

DAY = 86_400.0
GB = 1e9


@pytest.mark.parametrize(
    ("figures", "text", "fatal"),
    [
        (Overview(problems={"workers"}), "workers: no worker serves", True),
        (Overview(problems={"threads"}), "threads: see /readyz", False),
        (Overview(reload_ok=False), "the last reload failed", False),
        (Overview(certificates={"smtp": 5 * DAY}), "certificate of smtp expires in 5d", False),
        (Overview(certificates={"smtp": -DAY}), "certificate of smtp expired 1d ago", True),
        (Overview(stale={"smtp"}), "the new certificate of smtp does not load", False),
        (Overview(unusable_files=1.0), "a file of users or passwords cannot be used", True),
        (Overview(dns_records={"wrong": 1.0}), "one record in the DNS is missing or wrong", False),
        (
            Overview(dns_records={"wrong": 1.0, "missing": 2.0, "right": 9.0}),
            "3 records in the DNS are missing or wrong: run `minismtp dns --check`",
            False,
        ),
        (
            Overview(free={"state": 2 * GB}, reserve=GB),
            "disk of state has only 1.9 GiB left",
            False,
        ),
        (Overview(active=90.0, limit=100.0), "90 of 100 sessions are open", False),
        (Overview(oldest=3 * DAY), "a message has waited for 3d", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_trouble_is_said_in_one_sentence(figures: Overview, text: str, fatal: bool) -> None:
    [found] = troubles(figures, {}, now=0.0, sentences={"workers": "no worker serves"})
    assert text in found.text
    assert found.fatal == fatal


def test_server_in_order_has_no_trouble() -> None:
    figures = Overview(
        active=50.0,
        limit=100.0,
        oldest=3600.0,
        dns_records={"right": 9.0, "missing": 0.0, "wrong": 0.0, "unanswered": 1.0},
        certificates={"smtp": 60 * DAY},
        free={"state": 50 * GB, "maildir": 50 * GB},
        reserve=GB,
    )
    assert troubles(figures, {"spam": 0.0}, now=0.0) == []


def test_what_stops_mail_comes_first() -> None:
    figures = replace(Overview(reload_ok=False), problems={"disk"})
    assert [each.fatal for each in troubles(figures, {"spam": 1.0}, now=0.0)] == [
        True,
        False,
        False,
    ]
    assert troubles(figures, {"spam": 1.0}, now=0.0)[2].text == (
        "the plugin spam failed once in the last hour: see `plugin failed` in the log"
    )
