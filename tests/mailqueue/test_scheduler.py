import pytest

from minismtp.mailqueue.scheduler import ProcessorTime, Scheduler, delay


def scheduler(concurrency: int = 5, places: int = 100) -> Scheduler:
    return Scheduler([60.0, 300.0], concurrency, places)


def taken(plan: Scheduler, now: float = 10.0) -> list[tuple[str, str]]:
    found = []
    while (job := plan.take(now)) is not None:
        found.append(job)
    return found


def test_jobs_come_in_the_order_of_their_time() -> None:
    plan = scheduler()
    for number, when in enumerate((3.0, 1.0, 2.0)):
        plan.add((f"m{number}", f"d{number}"), when)
    assert [message for message, _ in taken(plan)] == ["m1", "m2", "m0"]


def test_a_job_waits_for_its_time() -> None:
    plan = scheduler()
    plan.add(("m", "d"), 20.0)
    assert plan.take(10.0) is None
    assert plan.next_time() == 20.0
    assert plan.take(20.0) == ("m", "d")


def test_one_job_at_once_finds_out_about_a_destination() -> None:
    plan = scheduler()
    for number in range(4):
        plan.add((f"m{number}", "d"), float(number))
    assert taken(plan) == [("m0", "d")]
    plan.finish(("m0", "d"), 10.0, reached=True, again=None)
    assert taken(plan) == [("m1", "d"), ("m2", "d")]
    plan.finish(("m1", "d"), 10.0, reached=True, again=None)
    assert taken(plan) == [("m3", "d")]


def test_concurrency_ends_at_its_limit() -> None:
    plan = scheduler(concurrency=2)
    for number in range(9):
        plan.add((f"m{number}", "d"), 0.0)
    for _ in range(3):
        taken(plan)
        plan.finish(min(plan.running), 10.0, reached=True, again=None)
    taken(plan)
    assert len(plan.running) == 2


def run(plan: Scheduler, seconds: float) -> int:
    """Run all jobs that have a place, each for some seconds, and return how many they are."""
    jobs = taken(plan)
    for job in jobs:
        plan.finish(job, 10.0 + seconds, reached=True, again=None)
    return len(jobs)


@pytest.mark.parametrize(
    ("seconds", "numbers"),
    [(0.001, [1, 2, 4, 5, 2, 2]), (1.0, [1, 2, 4, 5, 5, 5])],
    ids=["quick", "slow"],
)
def test_a_busy_process_runs_fewer_jobs_for_a_destination_that_answers_at_once(
    seconds: float, numbers: list[int]
) -> None:
    busy = False
    plan = Scheduler([60.0], 5, 100, lambda: busy)
    for number in range(99):
        plan.add((f"m{number:02}", "d"), 0.0)
    found = [run(plan, seconds) for _ in range(3)]
    busy = True
    found += [run(plan, seconds) for _ in range(3)]
    assert found == numbers
    busy = False
    run(plan, seconds)
    assert run(plan, seconds) > numbers[-1] - (seconds > 0.5)


def test_a_process_is_busy_that_uses_nearly_all_its_time() -> None:
    now, used = 0.0, 0.0
    time = ProcessorTime(lambda: now, lambda: used)
    assert not time.is_busy()
    now, used = 0.1, 0.09
    assert time.is_busy()
    now = 0.11
    assert time.is_busy()  # in the last period
    now = 0.2
    assert not time.is_busy()


def test_a_dead_destination_is_closed_for_all_its_messages() -> None:
    plan = scheduler()
    plan.add(("m0", "dead"), 0.0)
    plan.add(("m1", "dead"), 0.0)
    plan.add(("m2", "well"), 0.0)
    assert taken(plan) == [("m0", "dead"), ("m2", "well")]
    plan.finish(("m0", "dead"), 10.0, reached=False, again=70.0)
    assert taken(plan, 60.0) == []
    assert taken(plan, 77.0) == [("m1", "dead")]
    plan.finish(("m1", "dead"), 77.0, reached=False, again=137.0)
    assert taken(plan, 77.0 + 269.0) == []
    assert len(taken(plan, 77.0 + 331.0)) == 1


def test_an_operator_opens_a_destination() -> None:
    plan = scheduler()
    plan.add(("m0", "dead"), 0.0)
    taken(plan)
    plan.finish(("m0", "dead"), 10.0, reached=False, again=10.0)
    assert taken(plan) == []
    plan.open("dead")
    assert taken(plan) == [("m0", "dead")]


def test_an_operators_try_that_fails_makes_no_wait_longer() -> None:
    plan = scheduler()
    plan.add(("m", "dead"), 0.0)
    for _ in range(3):
        taken(plan, 10.0)
        wait = plan.finish(("m", "dead"), 10.0, reached=False, again=10.0)
        assert wait is not None
        assert wait < 70.0
        plan.open("dead")


def test_a_job_planned_again_comes_once_at_the_new_time() -> None:
    plan = scheduler()
    plan.add(("m", "d"), 50.0)
    plan.add(("m", "d"), 5.0)
    assert taken(plan) == [("m", "d")]
    plan.finish(("m", "d"), 10.0, reached=True, again=None)
    assert taken(plan, 100.0) == []


def test_a_running_job_is_not_started_again() -> None:
    plan = scheduler()
    plan.add(("m", "d"), 0.0)
    taken(plan)
    plan.add(("m", "d"), 0.0)
    assert taken(plan) == []
    plan.finish(("m", "d"), 10.0, reached=True, again=15.0)
    assert taken(plan, 15.0) == [("m", "d")]


def test_a_connection_takes_the_next_message_for_its_destination() -> None:
    plan = scheduler()
    plan.add(("m0", "d"), 0.0)
    plan.add(("m1", "d"), 1.0)
    taken(plan)
    plan.finish(("m0", "d"), 10.0, reached=True, again=None)
    assert plan.take_from("d", 10.0) == ("m1", "d")
    assert plan.take_from("d", 10.0) is None


def test_a_job_that_was_dropped_does_not_come() -> None:
    plan = scheduler()
    plan.add(("m0", "d"), 0.0)
    plan.add(("m1", "d"), 1.0)
    assert plan.drop(("m0", "d"))
    assert not plan.drop(("m0", "d"))
    assert taken(plan) == [("m1", "d")]


def test_no_more_jobs_run_than_there_are_places() -> None:
    plan = scheduler(places=4)
    for number in range(9):
        plan.add((f"m{number}", "well"), float(number))
    while len(plan.running) < 4:
        taken(plan)
        if len(plan.running) < 4:
            plan.finish(min(plan.running), 10.0, reached=True, again=None)
    assert plan.next_time() is None
    plan.finish(min(plan.running), 10.0, reached=True, again=None)
    assert len(taken(plan)) == 1


def test_a_quarter_of_the_places_is_left_to_destinations_that_work() -> None:
    plan = scheduler(places=8)
    plan.add(("m", "well"), 0.0)
    plan.finish(taken(plan)[0], 0.0, reached=True, again=None)
    for number in range(20):
        plan.add(("m", f"tarpit{number}"), 1.0)
    assert len(taken(plan)) == 6
    for number in range(3):
        plan.add((f"m{number}", "well"), 9.0)
    assert taken(plan) == [("m0", "well"), ("m1", "well")]
    plan.finish(("m0", "well"), 10.0, reached=True, again=None)
    assert taken(plan) == [("m2", "well")]


def test_a_destination_tells_when_it_closes_and_opens() -> None:
    plan = scheduler()
    plan.add(("m", "d"), 0.0)
    taken(plan)
    closed = plan.finish(("m", "d"), 10.0, reached=False, again=11.0)
    assert closed is not None
    assert 54 <= closed <= 66
    assert taken(plan, 100.0) == [("m", "d")]
    assert plan.finish(("m", "d"), 100.0, reached=True, again=101.0) == 0.0
    assert taken(plan, 101.0) == [("m", "d")]
    assert plan.finish(("m", "d"), 101.0, reached=True, again=None) is None


def test_who_finds_out_late_does_not_close_a_destination_for_longer() -> None:
    plan = scheduler()
    for number in range(3):
        plan.add((f"m{number}", "d"), 0.0)
    plan.finish(taken(plan)[0], 0.0, reached=True, again=None)
    one, other = taken(plan)
    assert plan.finish(one, 10.0, reached=False, again=None) is not None
    assert plan.finish(other, 11.0, reached=False, again=None) is None


@pytest.mark.parametrize(("attempts", "wait"), [(0, 60), (1, 60), (2, 300), (9, 300)])
def test_delays_follow_the_configuration_with_jitter(attempts: int, wait: float) -> None:
    found = {delay([60.0, 300.0], attempts) for _ in range(100)}
    assert all(0.9 * wait <= each <= 1.1 * wait for each in found)
    assert len(found) > 50


def test_job_is_due_even_if_all_places_are_taken() -> None:
    plan = Scheduler([60.0], concurrency=1, places=1)
    plan.add(("m0", "hangs"), 5.0)
    assert not plan.is_due(4.0)
    assert plan.take(5.0) == ("m0", "hangs")
    assert not plan.is_due(6.0)
    plan.add(("m1", "waits"), 7.0)
    assert plan.next_time() is None
    assert plan.is_due(7.0)


def test_job_is_due_even_if_its_destination_has_no_place() -> None:
    plan = Scheduler([60.0], concurrency=1, places=9)
    plan.add(("m0", "hangs"), 5.0)
    assert plan.take(5.0) == ("m0", "hangs")
    plan.add(("m1", "hangs"), 7.0)
    assert not plan.is_due(6.0)
    assert plan.is_due(7.0)
    plan.drop(("m1", "hangs"))
    assert not plan.is_due(7.0)
