"""Why mail waits, in few lines."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from minismtp.mailqueue.database import Arrival, Batch, QueueDatabase
from minismtp.mailqueue.reasons import Reason, WaitingGroup, pattern, reasons
from minismtp.mailqueue.recipient import RecipientStatus, State

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (
            "451 4.4.1 cannot connect to mx.example[192.0.2.1]:25: Connection refused",
            "451 4.4.1 cannot connect to \u2026: Connection refused",
        ),
        ("450 4.2.0 <a@b.example>: Greylisted", "450 4.2.0 <\u2026>: Greylisted"),
        ("421 too many connections from 192.0.2.1 (192.0.2.2)", None),
        ("421 mx7.example shuts down", "421 \u2026 shuts down"),
        ("451 4.3.0 id 8a1f0c5d7e21 7 8 9 failed", "451 4.3.0 id \u2026 failed"),
        ("timed out", "timed out"),
        ("", ""),
    ],
)
def test_reply_loses_what_differs(reply: str, kind: str | None) -> None:
    if kind is None:
        kind = "421 too many connections from \u2026 (\u2026)"
    assert pattern(reply) == kind


def test_reason_is_short() -> None:
    assert len(pattern("450 " + "word " * 1000)) == 160
    assert pattern("450 " + "x" * 1000).endswith("x\u2026")


def test_groups_with_one_reason_are_added_up() -> None:
    found = reasons(
        [
            WaitingGroup(False, "450 4.2.0 <a@b.test> no", "b.test", 1, 70.0),
            WaitingGroup(False, "450 4.2.0 <c@b.test> no", "b.test", 2, 50.0),
            WaitingGroup(False, "450 4.2.0 <d@e.test> no", "e.test", 1, 60.0),
            WaitingGroup(True, "450 4.2.0 <d@e.test> no", "e.test", 5, 90.0),
            WaitingGroup(False, "", "f.test", 5, 80.0),
        ]
    )
    assert found == [
        Reason("not tried yet", 5, 80.0, {"f.test": 5}),
        Reason("held: 450 4.2.0 <\u2026> no", 5, 90.0, {"e.test": 5}),
        Reason("450 4.2.0 <\u2026> no", 4, 50.0, {"b.test": 3, "e.test": 1}),
    ]


def test_database_groups_the_oldest_recipients(tmp_path: Path) -> None:
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as database:
        for number, reply in enumerate(["451 no", "451 no", "", "452 full", "452 full"]):
            name = f"m{number}"
            status = RecipientStatus(name, 0, f"x@{number}.test", "d.test")
            state: State = "held" if number == 3 else "deferred"
            if reply:
                status = status.attempted(state, reply, at=5.0)
            batch = Batch({name: Arrival(name, "a@b.test", 10.0 + number, 9)})
            batch.record([status])
            database.write(batch)
        database.write(Batch(closed={"d.test": (99.0, "451 4.4.1 closed")}))
        assert sorted(database.waiting_groups(4)) == [
            (False, "451 4.4.1 closed", "d.test", 1, 12.0),
            (False, "451 no", "d.test", 2, 10.0),
            (True, "452 full", "d.test", 1, 13.0),
        ]
