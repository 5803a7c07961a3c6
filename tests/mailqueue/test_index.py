import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from minismtp.mailqueue.database import Arrival, Batch, Outcome, QueueDatabase, Row, State
from minismtp.mailqueue.index import QueuedMessage, QueueIndex
from minismtp.mailqueue.journal import DatabaseWriter
from minismtp.mailqueue.scheduler import Job, Scheduler
from minismtp.runtime.log import Log
from minismtp.values.clock import GRACE


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def index(clock: Clock) -> QueueIndex:
    index = QueueIndex(Scheduler([60.0], 5, 10), clock)
    index.add("m1", 900.0, [QueuedMessage("b"), QueuedMessage("c"), QueuedMessage("b")], {})
    index.add("m2", 950.0, [QueuedMessage("d", "held")], {})
    return index


def jobs(index: QueueIndex) -> set[Job]:
    found = set()
    while (job := index.take()) is not None:
        found.add(job)
    return found


def row(number: int, destination: str, state: State) -> Row:
    return Row("m1", number, "x@y.test", destination, state, 0, 0.0, 0.0, "", "")


DAY = 86_400.0
NOW = 2e9  # epoch seconds


@pytest.fixture
def wall() -> Clock:
    wall = Clock()
    wall.now = NOW
    return wall


@pytest.fixture
def aging(clock: Clock, wall: Clock) -> QueueIndex:
    return QueueIndex(Scheduler([60.0], 5, 10), clock, wall=wall, expire=5 * DAY)


@pytest.mark.parametrize("jump", [-3650 * DAY, -DAY, 0.0, DAY, 6 * DAY, 3650 * DAY])
def test_a_message_goes_back_at_its_age_whatever_the_clock_does(
    aging: QueueIndex, clock: Clock, wall: Clock, jump: float
) -> None:
    aging.add("m", NOW - DAY, [QueuedMessage("b")], {})
    wall.now += jump
    assert aging.left("m") == 4 * DAY
    clock.now += 4 * DAY
    wall.now += 4 * DAY
    assert (aging.left("m"), aging.age("m")) == (0, 5 * DAY)
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
    aging.add("m", arrived, [QueuedMessage("b")], {})
    assert aging.left("m") == left


def test_a_job_is_for_all_recipients_at_its_destination(index: QueueIndex) -> None:
    assert jobs(index) == {("m1", "b"), ("m1", "c")}
    assert index.standing(("m1", "b")) == [(0, 0), (2, 0)]
    assert index.standing(("m2", "d")) == []
    assert index.standing(("gone", "b")) == []


def test_a_message_is_settled_with_its_last_recipient(index: QueueIndex) -> None:
    jobs(index)
    outcomes = [Outcome(0, "delivered", "250 ok"), Outcome(2, "queued", "451 no")]
    assert not index.settle("m1", outcomes)
    assert not index.settle("m1", [Outcome(1, "failed", "550 no")])
    assert index.standing(("m1", "b")) == [(2, 1)]
    assert index.settle("m1", [Outcome(2, "delivered", "250 ok")])


def test_what_waits_comes_again_after_its_wait(index: QueueIndex, clock: Clock) -> None:
    jobs(index)
    index.settle("m1", [Outcome(1, "queued", "451 no")])
    assert index.done(("m1", "c"), reached=True, wait=30.0) == (None, False)
    assert jobs(index) == set()
    assert index.patience() == 30.0
    clock.now = 30.0
    assert jobs(index) == {("m1", "c")}


def test_a_message_is_counted_under_one_state(index: QueueIndex) -> None:
    assert index.census().states == {"queued": 1, "deferred": 0, "held": 1}
    assert index.census().oldest == 900.0
    jobs(index)
    assert index.census().active == 2
    index.settle("m1", [Outcome(1, "queued", "451 no")])
    assert index.census().states == {"queued": 0, "deferred": 1, "held": 1}
    index.forget("m1")
    assert index.census().states == {"queued": 0, "deferred": 0, "held": 1}
    assert index.census().oldest == 950.0


def test_a_hold_takes_jobs_away_and_a_release_brings_them_back(index: QueueIndex) -> None:
    held = [row(0, "b", "held"), row(1, "c", "queued"), row(2, "b", "held")]
    assert not index.revise("m1", held, {})
    assert jobs(index) == {("m1", "c")}
    free = [row(0, "b", "queued"), row(1, "c", "queued"), row(2, "b", "held")]
    assert not index.revise("m1", free, {})
    assert jobs(index) == {("m1", "b")}
    assert index.standing(("m1", "b")) == [(0, 0)]


def test_only_a_try_is_another_chance_for_a_destination_that_could_not_be_reached(
    index: QueueIndex,
) -> None:
    assert jobs(index) == {("m1", "b"), ("m1", "c")}
    index.done(("m1", "b"), reached=False, wait=60.0)
    index.add("m3", 990.0, [QueuedMessage("b")], {})
    assert not index.revise("m1", [row(n, "bcb"[n], "held") for n in range(3)], {})
    assert jobs(index) == set()
    assert not index.revise("m1", [row(n, "bcb"[n], "queued") for n in range(3)], {"c": 60.0})
    assert jobs(index) == {("m1", "b")}


def test_a_return_waits_for_the_attempt_that_runs(index: QueueIndex) -> None:
    assert jobs(index) == {("m1", "b"), ("m1", "c")}
    index.done(("m1", "c"), reached=True, wait=60.0)
    states: list[State] = ["returning", "returning", "queued"]
    rows = [row(number, "bcb"[number], state) for number, state in enumerate(states)]
    assert index.revise("m1", rows, {})
    assert index.decided("m1") == [1]
    index.settle("m1", [Outcome(0, "queued", "451 no"), Outcome(2, "delivered", "250 ok")])
    assert index.done(("m1", "b"), reached=True, wait=60.0) == (None, True)
    assert index.decided("m1") == [0, 1]
    assert jobs(index) == set()


def test_a_removed_message_is_settled(index: QueueIndex) -> None:
    rows = [row(number, "bcb"[number], "removed") for number in range(3)]
    assert index.revise("m1", rows, {})
    assert index.settle("m1", [])
    assert jobs(index) == set()


def test_what_is_withdrawn_is_not_tried_again(index: QueueIndex) -> None:
    assert index.take_from("b") == ("m1", "b")
    assert index.withdraw("m1") == [1]
    assert index.withdraw("gone") == []
    assert jobs(index) == set()


def test_nothing_starts_after_the_stop(index: QueueIndex) -> None:
    job = index.take()
    assert index.stop() == {job} == index.running()
    assert index.take() is None
    assert index.take_from("c") is None


# The ledger


@pytest.fixture
def schedule(tmp_path: Path) -> Iterator[QueueDatabase]:
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as schedule:
        yield schedule


def arrival(name: str) -> Arrival:
    return Arrival(name, "a@b.test", 1.0, 10, (("x@y.test", "y.test"),))


def test_what_comes_and_goes_at_once_is_never_written(
    schedule: QueueDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Batch] = []
    monkeypatch.setattr(schedule, "write", written.append)
    writer = DatabaseWriter(schedule, Log())
    writer.arrive(arrival("m1"))
    writer.arrive(arrival("m2"))
    writer.forget("m1")
    assert writer.flush()
    [batch] = written
    assert [*batch.arrivals] == ["m2"]
    assert not batch.gone


def test_what_cannot_be_written_is_written_later(
    schedule: QueueDatabase, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = DatabaseWriter(schedule, Log())

    def fail(_: Batch) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "write", fail)
        writer.arrive(arrival("m1"))
        assert not writer.flush()
        writer.record("m1", [Outcome(0, "queued", "451 no")], 2.0)
        assert not writer.flush()
    assert schedule.rows("m1") == []
    assert writer.flush()
    assert schedule.rows("m1")[0].reply == "451 no"
    said = capfd.readouterr().err
    assert said.count("error schedule not written") == 1
    assert said.count("info schedule written again") == 1
