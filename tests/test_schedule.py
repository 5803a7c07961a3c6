import sqlite3
from pathlib import Path

import pytest

from minismtp.outbound.agenda import Agenda, delay
from minismtp.outbound.schedule import Filter, Outcome, Schedule

NOW = 1000.0


@pytest.fixture
def schedule(tmp_path: Path) -> Schedule:
    schedule = Schedule(tmp_path / "queue.db")
    schedule.add("m1", "a@one.test", 900.0, 10, [("x@b.test", "b.test"), ("y@c.test", "c.test")])
    schedule.add("m2", "b@two.test", 950.0, 20, [("z@b.test", "b.test")])
    return schedule


def addresses(schedule: Schedule, which: Filter) -> list[str]:
    return [row.address for *_, row in schedule.select(which, NOW)]


def test_a_message_is_noted_once(schedule: Schedule) -> None:
    assert not schedule.add("m1", "other", 1.0, 1, [("q@q.test", "q.test")])
    assert [row.address for row in schedule.rows("m1")] == ["x@b.test", "y@c.test"]
    assert schedule.names() == {"m1", "m2"}


def test_waiting_gives_each_job_with_its_time(schedule: Schedule) -> None:
    assert sorted(schedule.waiting()) == [
        ("m1", "b.test", 900.0),
        ("m1", "c.test", 900.0),
        ("m2", "b.test", 950.0),
    ]


def test_outcomes_are_kept_for_each_recipient(schedule: Schedule, tmp_path: Path) -> None:
    schedule.record(
        "m1",
        [Outcome(0, "delivered", "250 ok", "mx"), Outcome(1, "queued", "451 no", "", 1060.0)],
        NOW,
    )
    schedule.close()
    first, second = Schedule(tmp_path / "queue.db").rows("m1")
    assert (first.state, first.reply, first.host, first.attempts) == (
        "delivered",
        "250 ok",
        "mx",
        1,
    )
    assert (second.state, second.next, second.tried, second.attempts) == ("queued", 1060.0, NOW, 1)


def test_a_message_is_settled_when_nobody_waits(schedule: Schedule) -> None:
    schedule.record("m1", [Outcome(0, "delivered", "250 ok")], NOW)
    assert schedule.settled() == []
    schedule.record("m1", [Outcome(1, "failed", "550 no")], NOW)
    assert schedule.settled() == ["m1"]
    schedule.forget("m1")
    assert schedule.rows("m1") == []


def test_what_is_held_during_an_attempt_stays_held(schedule: Schedule) -> None:
    schedule.change(Filter(ids=("m2",)), NOW, "held")
    schedule.record("m2", [Outcome(0, "queued", "451 no", "", 1060.0)], NOW)
    assert schedule.rows("m2")[0].state == "held"
    schedule.record("m2", [Outcome(0, "delivered", "250 ok")], NOW)
    assert schedule.rows("m2")[0].state == "delivered"


def test_a_held_message_is_no_job(tmp_path: Path) -> None:
    schedule = Schedule(tmp_path / "queue.db")
    schedule.add("m1", "", 1.0, 1, [("x@b.test", "b.test")], held=True)
    assert list(schedule.waiting()) == []
    assert schedule.counts() == ({"queued": 0, "deferred": 0, "held": 1}, 1.0)


def test_counts_tell_new_messages_from_deferred_ones(schedule: Schedule) -> None:
    schedule.record("m2", [Outcome(0, "queued", "451 no", "", 1060.0)], NOW)
    assert schedule.counts() == ({"queued": 1, "deferred": 1, "held": 0}, 900.0)


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
def test_filters_choose_recipients(schedule: Schedule, which: Filter, found: list[str]) -> None:
    schedule.record("m1", [Outcome(1, "queued", "451 Greylisted", "", 1060.0)], NOW)
    assert addresses(schedule, which) == found


def test_changes_concern_only_what_was_chosen(schedule: Schedule) -> None:
    assert schedule.change(Filter(to_domain="b.test"), NOW, "held", only="unheld") == 2
    assert schedule.change(Filter(), NOW, "held", only="unheld") == 1
    assert schedule.change(Filter(ids=("m1",)), NOW, "queued", only="held") == 2
    assert addresses(schedule, Filter(state="held")) == ["z@b.test"]
    assert [row.next for row in schedule.rows("m1")] == [NOW, NOW]


def test_another_process_s_change_is_seen_once(schedule: Schedule, tmp_path: Path) -> None:
    assert not schedule.changed()
    other = Schedule(tmp_path / "queue.db")
    other.change(Filter(ids=("m2",)), NOW, "removed")
    assert schedule.changed()
    assert not schedule.changed()
    assert schedule.settled() == ["m2"]


def test_delay_is_told_once(schedule: Schedule) -> None:
    assert schedule.to_warn(910.0) == ["m1"]
    schedule.warned("m1")
    assert schedule.to_warn(910.0) == []


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Schedule(tmp_path / "queue.db")


# The agenda


def agenda(concurrency: int = 5) -> Agenda:
    return Agenda([60.0, 300.0], concurrency)


def taken(plan: Agenda, now: float = 10.0) -> list[tuple[str, str]]:
    found = []
    while (job := plan.take(now)) is not None:
        found.append(job)
    return found


def test_jobs_come_in_the_order_of_their_time() -> None:
    plan = agenda()
    for number, when in enumerate((3.0, 1.0, 2.0)):
        plan.add((f"m{number}", f"d{number}"), when)
    assert [message for message, _ in taken(plan)] == ["m1", "m2", "m0"]


def test_a_job_waits_for_its_time() -> None:
    plan = agenda()
    plan.add(("m", "d"), 20.0)
    assert plan.take(10.0) is None
    assert plan.next_time() == 20.0
    assert plan.take(20.0) == ("m", "d")


def test_one_job_at_once_finds_out_about_a_destination() -> None:
    plan = agenda()
    for number in range(4):
        plan.add((f"m{number}", "d"), float(number))
    assert taken(plan) == [("m0", "d")]
    plan.done(("m0", "d"), 10.0, reached=True, again=None)
    assert taken(plan) == [("m1", "d"), ("m2", "d")]
    plan.done(("m1", "d"), 10.0, reached=True, again=None)
    assert taken(plan) == [("m3", "d")]


def test_concurrency_ends_at_its_limit() -> None:
    plan = agenda(concurrency=2)
    for number in range(9):
        plan.add((f"m{number}", "d"), 0.0)
    for _ in range(3):
        job, *_ = taken(plan)
        plan.done(job, 10.0, reached=True, again=None)
    assert len(taken(plan)) == 2


def test_a_dead_destination_is_closed_for_all_its_messages() -> None:
    plan = agenda()
    plan.add(("m0", "dead"), 0.0)
    plan.add(("m1", "dead"), 0.0)
    plan.add(("m2", "well"), 0.0)
    assert taken(plan) == [("m0", "dead"), ("m2", "well")]
    plan.done(("m0", "dead"), 10.0, reached=False, again=70.0)
    assert taken(plan, 60.0) == []
    assert taken(plan, 77.0) == [("m1", "dead")]
    plan.done(("m1", "dead"), 77.0, reached=False, again=137.0)
    assert taken(plan, 77.0 + 269.0) == []
    assert len(taken(plan, 77.0 + 331.0)) == 1


def test_an_operator_opens_a_destination() -> None:
    plan = agenda()
    plan.add(("m0", "dead"), 0.0)
    taken(plan)
    plan.done(("m0", "dead"), 10.0, reached=False, again=10.0)
    assert taken(plan) == []
    plan.open("dead")
    assert taken(plan) == [("m0", "dead")]


def test_a_job_planned_anew_comes_once_at_the_new_time() -> None:
    plan = agenda()
    plan.add(("m", "d"), 50.0)
    plan.add(("m", "d"), 5.0)
    assert taken(plan) == [("m", "d")]
    plan.done(("m", "d"), 10.0, reached=True, again=None)
    assert taken(plan, 100.0) == []


def test_a_running_job_is_not_started_again() -> None:
    plan = agenda()
    plan.add(("m", "d"), 0.0)
    taken(plan)
    plan.clear()
    plan.add(("m", "d"), 0.0)
    assert taken(plan) == []
    plan.done(("m", "d"), 10.0, reached=True, again=15.0)
    assert taken(plan, 15.0) == [("m", "d")]


def test_a_connection_takes_the_next_message_for_its_destination() -> None:
    plan = agenda()
    plan.add(("m0", "d"), 0.0)
    plan.add(("m1", "d"), 1.0)
    taken(plan)
    plan.done(("m0", "d"), 10.0, reached=True, again=None)
    assert plan.take_from("d", 10.0) == ("m1", "d")
    assert plan.take_from("d", 10.0) is None


@pytest.mark.parametrize(("attempts", "wait"), [(0, 60), (1, 60), (2, 300), (9, 300)])
def test_delays_follow_the_configuration_with_jitter(attempts: int, wait: float) -> None:
    found = {delay([60.0, 300.0], attempts) for _ in range(100)}
    assert all(0.9 * wait <= each <= 1.1 * wait for each in found)
    assert len(found) > 50
