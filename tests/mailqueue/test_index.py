import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
from fakes import Clock

from minismtp.mailqueue.database import Arrival, Batch, DatabaseWriter, QueueDatabase
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.recipient import RecipientStatus, State
from minismtp.mailqueue.scheduler import Job, Scheduler
from minismtp.runtime.log import Log
from minismtp.values.clock import GRACE

DAY = 86_400.0
NOW = 2e9  # epoch seconds


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def wall() -> Clock:
    wall = Clock(0.0)
    wall.now = NOW
    return wall


@pytest.fixture
def index(clock: Clock, wall: Clock) -> QueueIndex:
    index = QueueIndex(Scheduler([60.0], 5, 10), clock, wall=wall, longest=70.0)
    index.add("m1", 900.0, [status(number) for number in range(3)])
    index.add("m2", 950.0, [RecipientStatus("m2", 0, "x@y.test", "d", "held")])
    return index


def status(number: int, state: State = "queued", wait: float = 0.0) -> RecipientStatus:
    """Return a status of a message with recipients at b, c and b, which comes again later."""
    attempts = 1 if wait else 0
    return RecipientStatus(
        "m1", number, "x@y.test", "bcb"[number], state, attempts, next=NOW + wait
    )


def after(number: int, state: State = "deferred", wait: float = 0.0) -> RecipientStatus:
    """Return the status of such a recipient after its first attempt."""
    return status(number).attempted(state, "000 any", at=NOW, again=NOW + wait)


def jobs(index: QueueIndex) -> set[Job]:
    found = set()
    while (job := index.take()) is not None:
        found.add(job)
    return found


@pytest.fixture
def aging(clock: Clock, wall: Clock) -> QueueIndex:
    return QueueIndex(Scheduler([60.0], 5, 10), clock, wall=wall, expire=5 * DAY)


@pytest.mark.parametrize("jump", [-3650 * DAY, -DAY, 0.0, DAY, 6 * DAY, 3650 * DAY])
def test_a_message_goes_back_at_its_age_whatever_the_clock_does(
    aging: QueueIndex, clock: Clock, wall: Clock, jump: float
) -> None:
    aging.add("m", NOW - DAY, [status(0)])
    wall.now += jump
    assert aging.left("m") == 4 * DAY
    clock.now += 4 * DAY
    wall.now += 4 * DAY
    assert aging.left("m") == 0
    assert aging.unwarned(5 * DAY) == ["m"]
    assert aging.unwarned(5 * DAY + 1) == []
    assert aging.overdue(60) == []
    clock.now += 60
    assert aging.overdue(60) == ["m"]


@pytest.mark.parametrize(
    ("arrived", "left"),
    [
        (NOW + 3650 * DAY, 5 * DAY),
        (NOW - 6 * DAY, GRACE),
        (NOW - 3650 * DAY, GRACE),
        (100.0, 5 * DAY),
        (-1e12, 5 * DAY),
    ],
    ids=["future", "too old", "far too old", "before the clock was set", "before all"],
)
def test_an_age_that_is_not_plausible_returns_nothing_at_once(
    aging: QueueIndex, arrived: float, left: float
) -> None:
    aging.add("m", arrived, [status(0)])
    assert aging.left("m") == left
    assert aging.unwarned(DAY) == []


def test_a_job_is_for_all_recipients_at_its_destination(index: QueueIndex) -> None:
    assert jobs(index) == {("m1", "b"), ("m1", "c")}
    assert index.queued("m1", "b") == [status(0), status(2)]
    assert index.queued("m1") == [status(0), status(1), status(2)]
    assert index.queued("m2", "d") == index.queued("gone", "b") == index.queued("gone") == []


def test_a_message_is_settled_with_its_last_recipient(index: QueueIndex) -> None:
    jobs(index)
    assert not index.settle("m1", [after(0, "delivered"), after(2)])
    assert not index.settle("m1", [after(1, "failed")])
    assert index.queued("m1", "b") == [after(2)]
    assert index.settle("m1", [after(2, "delivered")])


@pytest.mark.parametrize(("again", "wait"), [(30.0, 30.0), (-5.0, 0.0), (90.0, 70.0)])
def test_a_job_comes_again_at_the_next_attempt_of_its_recipients(
    index: QueueIndex, clock: Clock, again: float, wait: float
) -> None:
    jobs(index)
    index.settle("m1", [after(1, wait=again)])
    assert index.finish(("m1", "c"), reached=True, wait=None) == (None, False)
    assert index.seconds_to_next() == wait
    clock.now = wait
    assert jobs(index) == {("m1", "c")}


def test_a_job_that_tried_no_recipient_comes_again_after_its_wait(
    index: QueueIndex, clock: Clock
) -> None:
    jobs(index)
    index.finish(("m1", "c"), reached=None, wait=1.0)
    assert jobs(index) == set()
    clock.now = 1.0
    assert jobs(index) == {("m1", "c")}


def test_recipients_that_are_not_due_wait_after_a_start(index: QueueIndex, clock: Clock) -> None:
    jobs(index)
    index.forget("m1")
    index.add("m1", 900.0, [status(0, wait=40.0), status(1), status(2, wait=20.0)])
    clock.now = 19.0
    assert jobs(index) == set()  # as b and c have one job each that runs
    index.finish(("m1", "b"), reached=True, wait=None)
    assert jobs(index) == set()
    clock.now = 39.0
    assert jobs(index) == {("m1", "b")}


def test_a_sender_is_warned_of_a_delay_once(index: QueueIndex, clock: Clock) -> None:
    clock.now = 10.0
    assert index.unwarned(5.0) == ["m1", "m2"]
    index.warned("m1")
    index.warned("gone")
    assert index.unwarned(5.0) == ["m2"]


def test_a_message_is_counted_under_one_state(index: QueueIndex) -> None:
    assert index.counts() == ({"queued": 1, "deferred": 0, "held": 1, "active": 0}, NOW - 900)
    jobs(index)
    index.settle("m1", [after(1)])
    assert index.counts() == ({"queued": 0, "deferred": 1, "held": 1, "active": 2}, NOW - 900)
    index.forget("m1")
    assert index.counts() == ({"queued": 0, "deferred": 0, "held": 1, "active": 2}, NOW - 950)
    index.forget("m2")
    assert index.counts()[1] == 0.0


def test_a_message_is_deferred_while_its_destination_cannot_be_reached(index: QueueIndex) -> None:
    index.add("m3", 960.0, [RecipientStatus("m3", 0, "x@c.test", "c")])
    index.add("m4", 970.0, [RecipientStatus("m4", 0, "x@e.test", "e")])
    assert index.take_from("c") == ("m1", "c")
    index.settle("m1", [after(1)])
    index.finish(("m1", "c"), reached=False, wait=None)
    assert index.counts()[0] == {"queued": 1, "deferred": 2, "held": 1, "active": 0}
    index.revise("m3", [RecipientStatus("m3", 0, "x@c.test", "c")])  # an operator wants a try
    assert index.counts()[0]["deferred"] == 2
    assert index.take_from("c") is not None
    job = next(iter(index.running()))
    assert index.finish(job, reached=True, wait=None)[0] == 0.0  # so queue.db learns of it too
    assert index.counts()[0] == {"queued": 2, "deferred": 1, "held": 1, "active": 0}


def test_a_hold_takes_jobs_away_and_a_release_brings_them_back(index: QueueIndex) -> None:
    assert not index.revise("m1", [status(0, "held"), status(1), status(2, "held")])
    assert jobs(index) == {("m1", "c")}
    assert not index.revise("m1", [status(0), status(1), status(2, "held")])
    assert jobs(index) == {("m1", "b")}
    assert index.queued("m1", "b") == [status(0)]


def test_only_a_try_is_another_chance_for_a_destination_that_could_not_be_reached(
    index: QueueIndex,
) -> None:
    assert jobs(index) == {("m1", "b"), ("m1", "c")}
    index.finish(("m1", "b"), reached=False, wait=60.0)
    index.add("m3", 990.0, [status(0)])
    assert not index.revise("m1", [status(n, "held") for n in range(3)])
    assert jobs(index) == set()
    assert not index.revise("m1", [status(0), status(1, wait=60.0), status(2)])
    assert jobs(index) == {("m1", "b")}


def test_a_return_waits_for_the_attempt_that_runs(index: QueueIndex) -> None:
    assert jobs(index) == {("m1", "b"), ("m1", "c")}
    index.finish(("m1", "c"), reached=True, wait=60.0)
    assert index.revise("m1", [status(0, "bounced"), status(1, "bounced"), status(2)])
    assert index.bounced("m1") == [status(1, "bounced")]
    index.settle("m1", [after(0), after(2, "delivered")])
    assert index.finish(("m1", "b"), reached=True, wait=60.0) == (None, True)
    assert [each.number for each in index.bounced("m1")] == [0, 1]
    assert jobs(index) == set()


def test_a_removed_message_is_settled(index: QueueIndex) -> None:
    assert index.revise("m1", [status(number, "failed") for number in range(3)])
    assert index.settle("m1", [])
    assert jobs(index) == set()


def test_what_is_withdrawn_is_not_tried_again(index: QueueIndex) -> None:
    assert index.take_from("b") == ("m1", "b")
    assert index.withdraw("m1") == [status(1)]
    assert index.withdraw("gone") == []
    assert jobs(index) == set()


def test_nothing_starts_after_the_stop(index: QueueIndex) -> None:
    job = index.take()
    assert index.stop() == {job} == index.running()
    assert index.take() is None
    assert index.take_from("c") is None


def test_no_job_is_lost_when_two_threads_get_one_and_the_first_gave_up(
    clock: Clock, wall: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = QueueIndex(Scheduler([60.0], 5, 10), clock, wall=wall)
    index.add("m0", NOW, [RecipientStatus("m0", 0, "x@d", "d")])
    assert index.take() == ("m0", "d")
    index.finish(("m0", "d"), reached=True, wait=None)
    index.forget("m0")  # the destination takes two messages at once now
    found: list[Job | None] = []

    class Offers(SimpleQueue[Job | None]):
        def get(self, block: bool = True, timeout: float | None = None) -> Job | None:
            if timeout == 1.0:
                found.append(index.take_from("d", 2.0))
                raise Empty  # though a job came, a moment ago
            if timeout == 2.0:
                for name in ("m1", "m2"):
                    index.add(name, NOW, [RecipientStatus(name, 0, "x@d", "d")])
                assert jobs(index) == set()  # both threads have one
            return super().get(block)

    monkeypatch.setattr("minismtp.mailqueue.index.SimpleQueue", Offers)
    found.append(index.take_from("d", 1.0))
    assert {*found} == index.running() == {("m1", "d"), ("m2", "d")}


# What is written


@pytest.fixture
def database(tmp_path: Path) -> Iterator[QueueDatabase]:
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as database:
        yield database


def add(writer: DatabaseWriter, name: str) -> RecipientStatus:
    status = RecipientStatus(name, 0, "x@y.test", "y.test")
    with writer as batch:
        batch.arrivals[name] = Arrival(name, "a@b.test", 1.0, 10)
        batch.record([status])
    return status


def test_what_comes_and_goes_at_once_is_never_written(
    database: QueueDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Batch] = []
    monkeypatch.setattr(database, "write", written.append)
    writer = DatabaseWriter(database, Log())
    add(writer, "m1")
    add(writer, "m2")
    with writer as batch:
        batch.forget("m1")
    assert writer.flush()
    [batch] = written
    assert [*batch.arrivals] == [*batch.statuses] == ["m2"]
    assert not batch.gone


def test_what_cannot_be_written_is_written_later(
    database: QueueDatabase, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = DatabaseWriter(database, Log())

    def fail(_: Batch) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", fail)
        status = add(writer, "m1")
        assert not writer.flush()
        with writer as batch:
            batch.record([status.attempted("deferred", "451 no", at=2.0)])
        assert not writer.flush()
    assert database.statuses("m1") == []
    assert writer.flush()
    assert database.statuses("m1")[0].reply == "451 no"
    said = capfd.readouterr().err
    assert said.count("error schedule not written") == 1
    assert said.count("info schedule written again") == 1
