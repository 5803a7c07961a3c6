from pathlib import Path

import pytest

from minismtp.log import Log
from minismtp.message import Content, Message
from minismtp.outbound.handover import Handover
from minismtp.outbound.ledger import Ledger
from minismtp.outbound.schedule import Schedule
from minismtp.spool import Entry, Spool, Target, heard


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path)
    spool.prepare()
    target = Target(kind="relay", address="b@example.net", recipient="b@example.net")
    for name in ("m1", "m2"):
        entry = Entry(
            id=name, sender="", listener="", peer="", helo="", login=None, arrived=1.0,
            targets=(target,),
        )  # fmt: skip
        spool.add(entry, Message(name, Content.of(b"Subject: x\r\n\r\n")))
    return spool


@pytest.fixture
def schedule(tmp_path: Path) -> Schedule:
    return Schedule(tmp_path / "queue.db")


def test_a_message_is_left_alone_until_its_last_job_ends(
    spool: Spool, schedule: Schedule, tmp_path: Path
) -> None:
    old = Handover(spool, Ledger(schedule, Log()))
    old.keep([("m1", "a"), ("m1", "b"), ("gone", "a")])
    new_schedule = Schedule(tmp_path / "queue.db")
    new = Handover(spool, Ledger(new_schedule, Log()))
    new.expect(new_schedule.changed())
    assert new.foreign("m1")
    assert not new.foreign("m2")
    old.done(("m1", "a"))
    assert not new.take_over("m1")
    fifo = spool.listen()
    old.done(("m1", "b"))
    assert new.take_over("m1")
    assert not new.foreign("m1")
    assert heard(fifo) == ([], True)
    assert new_schedule.changed() == ["m1"]


def test_a_message_that_is_done_is_taken_over_at_once(spool: Spool, schedule: Schedule) -> None:
    new = Handover(spool, Ledger(schedule, Log()))
    new.expect(["m1", "m2"])
    spool.remove("m1")
    assert new.take_over("m1")
    assert new.take_over("m2")


def test_a_job_may_end_twice_or_before_it_is_kept(spool: Spool, schedule: Schedule) -> None:
    handover = Handover(spool, Ledger(schedule, Log()))
    handover.done(("m1", "a"))
    handover.keep([("m1", "a"), ("m1", "b")])
    handover.done(("m1", "a"))
    handover.done(("m1", "a"))
    assert spool.kept("m1")
    handover.done(("m1", "b"))
    assert not spool.kept("m1")
