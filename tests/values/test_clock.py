"""Wall time that does not follow a jump of the machine's clock at once."""

from __future__ import annotations

import logging

import pytest

from minismtp.values.clock import GRACE, SteadyClock, jumped_lately, steady_time

DAY = 86_400.0
START = 1_800_000_000.0


class Machine:
    """A machine's clocks, which move when a test says so."""

    def __init__(self) -> None:
        self.wall = START
        self.monotonic = 1000.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.monotonic)

    def pass_time(self, seconds: float) -> None:
        """Advance both clocks."""
        self.wall += seconds
        self.monotonic += seconds

    @property
    def ahead(self) -> float:
        """The steady time, in seconds since the start."""
        return self.clock.time() - START


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_time_is_that_of_the_machine(machine: Machine) -> None:
    machine.pass_time(60)
    assert machine.ahead == pytest.approx(60)
    assert not machine.clock.jumped_lately()


@pytest.mark.parametrize("jump", [60, DAY, 3650 * DAY, -60, -DAY, -3650 * DAY])
def test_a_jump_is_followed_after_a_while_and_logged(
    machine: Machine, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    machine.wall += jump
    machine.pass_time(1)
    assert machine.ahead == pytest.approx(1)
    assert machine.clock.jumped_lately()
    machine.pass_time(GRACE - 1)
    assert machine.ahead == pytest.approx(GRACE)
    machine.pass_time(1)
    assert machine.ahead == pytest.approx(GRACE + 1 + jump)
    assert not machine.clock.jumped_lately()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert f"jumped by {'-' if jump < 0 else '+'}" in caplog.text


def test_a_jump_ahead_and_back_leaves_no_trace(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.wall += DAY
    machine.pass_time(60)
    assert machine.ahead == pytest.approx(60)
    machine.wall -= DAY
    machine.pass_time(60)
    assert machine.ahead == pytest.approx(120)
    machine.pass_time(2 * GRACE)
    assert machine.ahead == pytest.approx(120 + 2 * GRACE)
    assert "back where it was" in caplog.text


def test_each_further_jump_begins_the_wait_again(machine: Machine) -> None:
    for _ in range(5):
        machine.wall += DAY
        machine.pass_time(GRACE / 2)
        assert machine.ahead < DAY
    machine.pass_time(GRACE)
    assert machine.ahead == pytest.approx(5 * DAY + 3.5 * GRACE)


def test_small_steps_are_followed_and_add_up_to_no_jump(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        machine.wall -= 5
        machine.pass_time(1)
        machine.clock.time()
    assert machine.ahead == pytest.approx(100 - 500)
    assert not caplog.records


def test_a_thread_stopped_between_the_two_clocks_sees_no_jump(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wall = iter([START, START + 3600, START + 3600])
    monotonic = iter([0.0, 0.0, 3600.0])
    clock = SteadyClock(lambda: next(wall), lambda: next(monotonic))
    assert clock.time() == pytest.approx(START)  # when it began to look
    assert not caplog.records


def test_the_process_has_one(caplog: pytest.LogCaptureFixture) -> None:
    assert steady_time() > START / 2
    assert not jumped_lately()
    assert not caplog.records
