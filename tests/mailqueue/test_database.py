import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from minismtp.mailqueue.database import Arrival, Batch, Outcome, QueueDatabase
from minismtp.mailqueue.queries import Filter

NOW = 1000.0


@pytest.fixture
def schedule(tmp_path: Path) -> Iterator[QueueDatabase]:
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as schedule:
        targets = (("x@b.test", "b.test"), ("y@c.test", "c.test"))
        arrive(
            schedule,
            Arrival("m1", "a@one.test", 900.0, 10, targets),
            Arrival("m2", "b@two.test", 950.0, 20, (("z@b.test", "b.test"),)),
        )
        yield schedule


def arrive(schedule: QueueDatabase, *arrivals: Arrival) -> None:
    schedule.write(Batch(arrivals={each.name: each for each in arrivals}))


def record(schedule: QueueDatabase, name: str, *outcomes: Outcome) -> None:
    schedule.write(Batch(outcomes=[(name, outcome, NOW) for outcome in outcomes]))


def addresses(schedule: QueueDatabase, which: Filter) -> list[str]:
    return [each.address for each in schedule.select(which, NOW)]


def test_a_message_is_noted_once(schedule: QueueDatabase) -> None:
    arrive(schedule, Arrival("m1", "other", 1.0, 1, (("q@q.test", "q.test"),)))
    assert [row.address for row in schedule.rows("m1")] == ["x@b.test", "y@c.test"]


def test_everything_comes_by_message_and_the_oldest_first(schedule: QueueDatabase) -> None:
    found = [(arrived, [row.address for row in rows]) for arrived, rows in schedule.everything()]
    assert found == [(900.0, ["x@b.test", "y@c.test"]), (950.0, ["z@b.test"])]


def test_outcomes_are_kept_for_each_recipient(schedule: QueueDatabase, tmp_path: Path) -> None:
    record(
        schedule,
        "m1",
        Outcome(0, "delivered", "250 ok", "mx"),
        Outcome(1, "queued", "451 no", "", 1060.0),
    )
    schedule.close()
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as later:
        first, second = later.rows("m1")
    assert (first.state, first.reply, first.host, first.attempts) == (
        "delivered",
        "250 ok",
        "mx",
        1,
    )
    assert (second.state, second.next, second.tried, second.attempts) == ("queued", 1060.0, NOW, 1)


def test_a_batch_may_bring_a_message_with_its_outcome(schedule: QueueDatabase) -> None:
    arrival = Arrival("m3", "", 1.0, 1, (("x@b.test", "b.test"),))
    schedule.write(Batch({"m3": arrival}, [("m3", Outcome(0, "queued", "451 no"), NOW)]))
    assert schedule.rows("m3")[0].reply == "451 no"


def test_each_attempt_of_one_batch_counts(schedule: QueueDatabase) -> None:
    record(schedule, "m2", Outcome(0, "queued", "451 no"), Outcome(0, "queued", "452 nor now"))
    [row] = schedule.rows("m2")
    assert (row.attempts, row.reply) == (2, "452 nor now")


def test_a_large_batch_takes_no_more_statements_than_a_small_one(schedule: QueueDatabase) -> None:
    """Each statement takes the interpreter from the threads that deliver, and waits for them."""

    def statements(names: list[str]) -> int:
        told: list[str] = []
        batch = Batch(
            {name: Arrival(name, "a@b.test", 1.0, 1, (("x@b.test", "b.test"),)) for name in names},
            [(name, Outcome(0, "queued", "451 no"), NOW) for name in names],
            moved=[("c.test", name, 0) for name in names],
            warned={*names},
            changed={*names},
        )
        steps = [batch, Batch(gone={*names})]
        schedule._database.set_trace_callback(told.append)  # noqa: SLF001
        for step in steps:
            schedule.write(step)
        schedule._database.set_trace_callback(None)  # noqa: SLF001
        return len({*told})  # one that cascades is told again for each row

    assert statements([f"n{number}" for number in range(500)]) == statements(["o"])


def test_a_message_that_is_gone_leaves_no_rows(schedule: QueueDatabase) -> None:
    schedule.write(Batch(gone={"m1"}))
    assert schedule.rows("m1") == []
    assert addresses(schedule, Filter()) == ["z@b.test"]


@pytest.mark.parametrize("state", ["held", "returning", "removed"])
def test_what_is_decided_during_an_attempt_stands(schedule: QueueDatabase, state: str) -> None:
    schedule.change(Filter(ids=("m2",)), NOW, state)  # type: ignore[arg-type]
    record(schedule, "m2", Outcome(0, "queued", "451 no", "", 1060.0))
    assert schedule.rows("m2")[0].state == state
    record(schedule, "m2", Outcome(0, "delivered", "250 ok"))
    assert schedule.rows("m2")[0].state == "delivered"


def test_a_batch_that_fails_changes_nothing(schedule: QueueDatabase) -> None:
    wrong = Outcome(0, "queued", None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error):
        schedule.write(Batch(gone={"m1"}, outcomes=[("m2", wrong, NOW)]))
    assert len(schedule.rows("m1")) == 2


def test_two_batches_become_one() -> None:
    one = Batch(closed={"d": (1.0, "no")}, gone={"m1"})
    both = one.then(Batch(closed={"d": None}, warned={"m2"}))
    assert (both.closed, both.gone, both.warned) == ({"d": None}, {"m1"}, {"m2"})
    assert both
    assert not Batch()


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Filter(), ["x@b.test", "y@c.test", "z@b.test"]),
        (Filter(ids=("m2",)), ["z@b.test"]),
        (Filter(to_domain="B.test"), ["x@b.test", "z@b.test"]),
        (Filter(to_domain="%"), []),
        (Filter(sender="B@two.test"), ["z@b.test"]),
        (Filter(sender="@one.test"), ["x@b.test", "y@c.test"]),
        (Filter(sender=""), []),
        (Filter(older_than=60.0), ["x@b.test", "y@c.test"]),
        (Filter(state="deferred"), ["y@c.test"]),
        (Filter(state="queued"), ["x@b.test", "z@b.test"]),
        (Filter(state="held"), []),
        (Filter(reason="greylist"), ["y@c.test"]),
        (Filter(reason="_"), []),
        (Filter(to_domain="b.test", sender="@one.test"), ["x@b.test"]),
    ],
    ids=str,
)
def test_filters_choose_recipients(
    schedule: QueueDatabase, which: Filter, found: list[str]
) -> None:
    record(schedule, "m1", Outcome(1, "queued", "451 Greylisted", "", 1060.0))
    assert addresses(schedule, which) == found


def test_a_destination_that_does_not_answer_is_a_reason(schedule: QueueDatabase) -> None:
    schedule.write(Batch(closed={"b.test": (1234.0, "451 cannot connect")}))
    assert addresses(schedule, Filter(state="deferred")) == ["x@b.test", "z@b.test"]
    assert addresses(schedule, Filter(reason="connect")) == ["x@b.test", "z@b.test"]
    assert schedule.select(Filter(), NOW)[0].closed_until == 1234.0
    assert schedule.closed_reply("b.test") == "451 cannot connect"
    schedule.write(Batch(closed={"b.test": None}))
    assert addresses(schedule, Filter(state="deferred")) == []
    assert schedule.closed_reply("b.test") == ""


def test_changes_concern_only_what_was_chosen(schedule: QueueDatabase) -> None:
    assert schedule.change(Filter(to_domain="b.test"), NOW, "held", only="unheld") == 2
    assert schedule.change(Filter(), NOW, "held", only="unheld") == 1
    assert schedule.change(Filter(ids=("m1",)), NOW, "queued", only="held") == 2
    assert addresses(schedule, Filter(state="held")) == ["z@b.test"]
    assert [row.next for row in schedule.rows("m1")] == [NOW, NOW]


def test_another_process_s_change_is_seen_once(schedule: QueueDatabase, tmp_path: Path) -> None:
    assert schedule.changed() == []
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as other:
        other.change(Filter(ids=("m2",)), NOW, "removed")
    assert schedule.changed() == ["m2"]
    assert schedule.changed() == []


def test_delay_is_told_once(schedule: QueueDatabase) -> None:
    assert schedule.to_warn(910.0) == ["m1"]
    schedule.write(Batch(warned={"m1"}))
    assert schedule.to_warn(910.0) == []


@pytest.mark.parametrize("octets", [b"no database" * 100, b""], ids=["rubbish", "cut"])
def test_a_damaged_file_is_an_error(schedule: QueueDatabase, tmp_path: Path, octets: bytes) -> None:
    schedule.close()
    path = tmp_path / "queue.db"
    path.write_bytes(octets or path.read_bytes()[:6000])
    with pytest.raises(sqlite3.DatabaseError):
        QueueDatabase(path, check=True)
