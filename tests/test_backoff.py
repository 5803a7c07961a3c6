"""How long an address waits before its next login."""

from __future__ import annotations

import os
import threading

import pytest

from minismtp.backoff import LONGEST, Backoff, wait_for_turn

GUESSER = "192.0.2.1"
OTHER = "192.0.2.2"


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backoff(clock: Clock) -> Backoff:
    return Backoff(1.0, clock)


def failures(backoff: Backoff, count: int) -> None:
    for _ in range(count):
        backoff.failed(GUESSER)


def test_first_login_does_not_wait(backoff: Backoff) -> None:
    assert [backoff.reserve(GUESSER) for _ in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, LONGEST), (500, LONGEST)]
)
def test_every_failure_doubles_the_wait_up_to_a_minute(
    backoff: Backoff, clock: Clock, count: int, seconds: float
) -> None:
    for _ in range(count):
        backoff.failed(GUESSER)
        clock.now += LONGEST
    clock.now -= LONGEST
    assert backoff.reserve(GUESSER) == seconds


def test_time_that_has_passed_counts(backoff: Backoff, clock: Clock) -> None:
    failures(backoff, 1)
    clock.now += 0.75
    assert backoff.reserve(GUESSER) == 0.25
    clock.now += 5
    assert backoff.reserve(GUESSER) == 0.0


def test_attempts_at_once_queue_up(backoff: Backoff) -> None:
    failures(backoff, 2)
    assert [backoff.reserve(GUESSER) for _ in range(3)] == [2.0, 4.0, 6.0]


def test_queue_has_an_end(backoff: Backoff) -> None:
    failures(backoff, 7)
    waits = [backoff.reserve(GUESSER) for _ in range(4)]
    assert waits == [LONGEST, 2 * LONGEST, 2 * LONGEST, 2 * LONGEST]
    assert not wait_for_turn(backoff, GUESSER, threading.Event())


def test_other_addresses_do_not_wait(backoff: Backoff) -> None:
    failures(backoff, 5)
    assert backoff.reserve(OTHER) == 0.0


def test_success_forgives(backoff: Backoff) -> None:
    failures(backoff, 5)
    backoff.succeeded(GUESSER)
    assert backoff.reserve(GUESSER) == 0.0
    backoff.failed(GUESSER)
    assert backoff.reserve(GUESSER) == 1.0


@pytest.mark.parametrize(("seconds", "forgiven"), [(899, False), (901, True)])
def test_quarter_of_an_hour_of_peace_forgives(
    backoff: Backoff, clock: Clock, seconds: float, *, forgiven: bool
) -> None:
    failures(backoff, 3)
    clock.now += seconds
    backoff.failed(GUESSER)
    assert backoff.reserve(GUESSER) == (1.0 if forgiven else 8.0)


def test_base_of_zero_never_waits(clock: Clock) -> None:
    backoff = Backoff(0.0, clock)
    failures(backoff, 5)
    assert backoff.reserve(GUESSER) == 0.0


def test_failures_in_another_process_count(backoff: Backoff) -> None:
    pid = os.fork()
    if not pid:
        backoff.failed(GUESSER)
        os._exit(0)
    os.waitpid(pid, 0)
    assert backoff.reserve(GUESSER) == 1.0


def test_turn_is_waited_for_until_the_server_ends(backoff: Backoff) -> None:
    failures(backoff, 7)
    stop = threading.Event()
    stop.set()
    assert wait_for_turn(backoff, GUESSER, stop)
