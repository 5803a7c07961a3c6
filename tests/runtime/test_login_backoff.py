"""How long an address waits before its next login."""

from __future__ import annotations

import os
import threading

import pytest
from fakes import Clock

from minismtp.runtime.login_backoff import LONGEST, PATIENCE, Backoff, wait_for_turn

GUESSER = "192.0.2.1"
OTHER = "192.0.2.2"


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
    assert backoff.reserve(GUESSER) == 0.0


def test_first_burst_is_not_free(backoff: Backoff) -> None:
    """An attempt counts as failed from its beginning, so few of 95 simultaneous guesses begin."""
    waits = [backoff.reserve(GUESSER) for _ in range(95)]
    assert waits[:5] == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert sum(wait <= PATIENCE for wait in waits) == 4


def test_attempts_that_prove_nothing_are_taken_back(backoff: Backoff) -> None:
    for _ in range(10):
        assert backoff.reserve(GUESSER) == 0.0
        backoff.release(GUESSER)


def test_what_failed_stays_when_another_attempt_is_taken_back(backoff: Backoff) -> None:
    failures(backoff, 1)
    assert backoff.reserve(GUESSER) == 1.0
    backoff.release(GUESSER)
    assert backoff.reserve(GUESSER) >= 1.0


def test_address_that_succeeded_has_some_attempts_at_once(backoff: Backoff) -> None:
    backoff.reserve(GUESSER)
    backoff.succeeded(GUESSER, "alice")
    waits = [backoff.reserve(GUESSER) for _ in range(95)]
    assert waits[:10] == [0.0] * 9 + [1.0]
    assert sum(wait <= PATIENCE for wait in waits) == 12


def test_address_that_succeeded_waits_after_its_failures(backoff: Backoff) -> None:
    backoff.succeeded(GUESSER, "alice")
    failures(backoff, 2)
    assert backoff.reserve(GUESSER) == 2.0


@pytest.mark.parametrize(
    ("address", "username", "known"),
    [
        (GUESSER, "bob", True),  # the address
        ("192.0.3.9", "alice", True),  # the user, near it
        ("192.0.3.9", "ALICE", True),
        ("192.0.3.9", "bob", False),
        ("198.51.100.1", "alice", False),  # otherwise the waits would show which users exist
        ("unix", "alice", False),
        ("2001:db8::1", "alice", False),
    ],
)
def test_those_who_succeeded_are_known(
    backoff: Backoff, address: str, username: str, *, known: bool
) -> None:
    assert not backoff.knows(address, username)
    backoff.succeeded(GUESSER, "alice")
    assert backoff.knows(address, username) is known


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
    ],
)
def test_addresses_of_one_network_wait_for_one_another(
    backoff: Backoff, first: str, second: str, *, same: bool
) -> None:
    backoff.failed(first)
    assert (backoff.reserve(second) > 0) is same


def test_strangers_do_not_push_out_those_who_are_known(backoff: Backoff) -> None:
    backoff.succeeded(GUESSER, "alice")
    for number in range(20_000):
        backoff.failed(f"2001:db8:{number:x}::1")
    assert backoff.knows(GUESSER, "alice")


def test_those_who_are_known_are_forgotten_after_a_month(backoff: Backoff, clock: Clock) -> None:
    backoff.succeeded(GUESSER, "alice")
    clock.now += 29 * 86400
    assert backoff.knows(GUESSER, "alice")
    clock.now += 2 * 86400
    assert not backoff.knows(GUESSER, "alice")


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
    failures(backoff, 1)
    assert [backoff.reserve(GUESSER) for _ in range(3)] == [1.0, 3.0, 7.0]


def test_queue_has_an_end(backoff: Backoff) -> None:
    failures(backoff, 7)
    assert [backoff.reserve(GUESSER) for _ in range(4)] == [LONGEST] * 4
    assert not wait_for_turn(backoff, GUESSER, threading.Event())


def test_those_whose_turn_is_far_off_hope_while_nothing_has_failed(backoff: Backoff) -> None:
    while backoff.reserve(GUESSER) <= PATIENCE:
        assert backoff.is_open(GUESSER)
    backoff.failed(GUESSER)
    assert not backoff.is_open(GUESSER)
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


def test_success_lets_those_go_on_that_wait_for_a_turn(backoff: Backoff) -> None:
    failures(backoff, 4)
    result = []
    waiting = threading.Thread(
        target=lambda: result.append(wait_for_turn(backoff, GUESSER, threading.Event()))
    )
    waiting.start()
    while waiting.is_alive():  # the clock stands still, so only the success ends the wait
        backoff.succeeded(GUESSER)
    assert result == [True]


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
    failures(backoff, 3)
    stop = threading.Event()
    stop.set()
    assert wait_for_turn(backoff, GUESSER, stop)
