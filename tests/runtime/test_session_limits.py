"""The number of sessions, counted exactly over all workers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import linecache
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from minismtp.runtime.session_limits import Admission, SharedLock

PEER = "192.0.2.1"


def enter(admission: Admission, peer: str = PEER, *, slot: int = 0) -> bytes:
    ticket = admission.enter(slot, peer)
    assert isinstance(ticket, bytes), ticket
    return ticket


def introduce(admission: Admission, peer: str) -> bytes | None:
    """Take a place for a session whose peer is known later, and name the peer."""
    assert enter(admission, "") == b""
    return admission.introduce(0, peer)


def child(job: Callable[[], int]) -> int:
    """Run `job` in a process of its own and give the process id; its result is the exit status."""
    pid = os.fork()
    if pid == 0:
        status = 255
        with contextlib.suppress(BaseException):
            status = job()
        os._exit(status)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_sessions_enter_up_to_the_limit_of_the_server() -> None:
    admission = Admission(3, 10)
    for number in range(3):
        enter(admission, f"192.0.2.{number}")
    assert admission.enter(0, "192.0.2.9") == "sessions"


def test_sessions_of_one_address_enter_up_to_its_limit() -> None:
    admission = Admission(10, 2)
    enter(admission)
    enter(admission)
    assert admission.enter(0, PEER) == "address"
    enter(admission, "192.0.2.2")


def test_sessions_of_one_ipv6_network_enter_up_to_the_limit_of_an_address() -> None:
    admission = Admission(200, 3)
    taken = [admission.enter(0, f"2001:db8:1:2:{number:x}::{number:x}") for number in range(50)]
    assert [isinstance(each, bytes) for each in taken] == [True] * 3 + [False] * 47
    assert set(taken[3:]) == {"address"}
    enter(admission, "2001:db8:1:3::1")
    for each in taken[:3]:
        assert isinstance(each, bytes)
        admission.leave(0, each)
    enter(admission, "2001:db8:1:2:ffff::")


def test_place_of_a_balancer_is_counted_for_the_network_that_it_names() -> None:
    admission = Admission(10, 1)
    assert introduce(admission, "2001:db8::1") is not None
    assert introduce(admission, "2001:db8::2") is None


def test_refused_session_takes_no_place() -> None:
    admission = Admission(3, 1)
    enter(admission)
    for _ in range(5):
        assert admission.enter(0, PEER) == "address"
    enter(admission, "192.0.2.2")
    enter(admission, "192.0.2.3")


def test_place_is_free_again_when_its_session_leaves() -> None:
    admission = Admission(1, 1)
    for _ in range(10):
        admission.leave(0, enter(admission))
    enter(admission)
    assert admission.enter(0, PEER) == "sessions"


def test_peers_without_an_address_share_only_the_limit_of_the_server() -> None:
    admission = Admission(3, 1)
    for _ in range(3):
        enter(admission, "unix")
    assert admission.enter(0, "unix") == "sessions"


def test_ipv4_address_is_the_same_through_an_ipv6_socket() -> None:
    admission = Admission(5, 1)
    enter(admission, "192.0.2.1")
    assert admission.enter(0, "::ffff:192.0.2.1") == "address"


def test_reserved_places_are_left_to_others() -> None:
    admission = Admission(3, 3)
    enter(admission)
    assert admission.enter(0, PEER, reserved=2) == "sessions"
    assert isinstance(admission.enter(0, PEER, reserved=1), bytes)


def test_introduced_peer_counts_for_its_own_address() -> None:
    admission = Admission(5, 1)
    assert introduce(admission, PEER) is not None
    assert introduce(admission, PEER) is None
    assert admission.enter(0, PEER) == "address"


def test_introduced_peer_gives_back_its_address_and_its_place() -> None:
    admission = Admission(1, 1)
    for _ in range(3):
        ticket = introduce(admission, PEER)
        assert ticket is not None
        admission.leave(0, ticket)
    enter(admission)


def test_dead_worker_gives_back_its_places_and_no_others() -> None:
    admission = Admission(6, 2)
    for slot in (0, 1):
        for number in range(3):
            enter(admission, f"192.0.2.{number}", slot=slot)
    admission.forget(1)
    for number in range(3):
        enter(admission, f"192.0.2.{number}", slot=2)
        assert admission.enter(2, f"192.0.2.{number}") in {"address", "sessions"}


@pytest.mark.parametrize("order", ["first in, first out", "last in, first out"])
def test_every_address_is_found_again_while_the_table_is_full(order: str) -> None:
    admission = Admission(500, 1)
    for _ in range(3):
        tickets = [enter(admission, f"2001:db8:0:{number:x}::1") for number in range(500)]
        if order == "last in, first out":
            tickets.reverse()
        for ticket in tickets:
            admission.leave(0, ticket)
        # Half of them end, the other half continue, and the count is right.
        kept = [enter(admission, f"192.0.2.{number}") for number in range(250)]
        for ticket in kept[::2]:
            admission.leave(0, ticket)
        for number in range(1, 250, 2):
            assert admission.enter(0, f"192.0.2.{number}") == "address"
        for ticket in kept[1::2]:
            admission.leave(0, ticket)


def test_limits_are_exact_over_four_processes() -> None:
    admission = Admission(100, 10)

    def enter_many(slot: int) -> int:
        return sum(
            isinstance(admission.enter(slot, f"192.0.2.{number % 25}"), bytes)
            for number in range(200)
        )

    pids = [child(lambda slot=slot: enter_many(slot)) for slot in range(4)]  # type: ignore[misc]
    assert sum(status_of(pid) for pid in pids) == 100


def test_counts_hold_after_many_processes_came_and_went() -> None:
    admission = Admission(8, 2)

    def come_and_go(slot: int) -> int:
        for number in range(500):
            ticket = admission.enter(slot, f"192.0.2.{number % 7}")
            if isinstance(ticket, bytes):
                admission.leave(slot, ticket)
        return 0

    pids = [child(lambda slot=slot: come_and_go(slot)) for slot in range(4)]  # type: ignore[misc]
    assert [status_of(pid) for pid in pids] == [0] * 4
    for number in range(4):
        enter(admission, f"192.0.2.{number}")
        enter(admission, f"192.0.2.{number}")
    assert admission.enter(0, "192.0.2.9") == "sessions"


def test_worker_killed_at_any_moment_lets_go_of_the_lock() -> None:
    admission = Admission(5, 5)
    for _ in range(5):
        read, write = os.pipe()

        def come_and_go(write: int = write) -> int:
            os.write(write, b"x")
            while True:
                admission.leave(1, enter(admission, slot=1))

        pid = child(come_and_go)
        os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == -signal.SIGKILL
        os.close(read)
        os.close(write)
        admission.forget(1)
        admission.leave(0, enter(admission))


def test_worker_that_dies_at_any_line_leaves_exact_counts() -> None:
    admission = Admission(5, 5)

    def come_and_go() -> None:
        for number in (1, 4):
            admission.leave(1, enter(admission, f"192.0.2.{number}", slot=1))

    line = 0
    died = True
    while died:
        others = [enter(admission, f"192.0.2.{number}") for number in (1, 2, 3)]
        died = dies_at(line, come_and_go)
        admission.forget(1)
        others += [enter(admission, "192.0.2.4") for _ in range(2)]
        assert admission.enter(0, "192.0.2.5") == "sessions"
        for ticket in others:
            admission.leave(0, ticket)
        line += 1
    assert line > 100


class Death(BaseException):
    """Ends a job as a signal would. No code of minismtp catches it."""


def dies_at(line: int, job: Callable[[], None]) -> bool:
    """Run `job` and let it die at its `line`th line in the table. Return False if it has fewer."""
    passed = itertools.count()

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        # The kernel releases the lock; another test kills a real process.
        in_lock = isinstance(frame.f_locals.get("self"), SharedLock)
        if frame.f_globals["__name__"] != Admission.__module__ or in_lock:
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not source.startswith("with ") and next(passed) == line:
            raise Death
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        job()
    except Death:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_deadlock_that_only_the_kernel_sees_is_waited_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It treats a process as one thread, so threads with two locks look like a deadlock."""
    lock, real = SharedLock("test"), fcntl.lockf
    problems = [OSError(errno.EDEADLK, "Resource deadlock avoided")] * 2

    def lockf(descriptor: int, how: int) -> None:
        if problems:
            raise problems.pop()
        real(descriptor, how)

    monkeypatch.setattr("minismtp.runtime.session_limits.fcntl.lockf", lockf)
    with lock:
        assert problems == []
    problems.append(OSError(errno.ENOLCK, "No locks available"))
    with pytest.raises(OSError, match="No locks"), lock:
        pass
    with lock:
        pass  # the failure has not kept it


@pytest.mark.parametrize("number", range(3))
def test_lock_is_free_if_a_call_that_takes_it_fails(number: int) -> None:
    """Without memory, a call can fail before its first line."""
    lock, calls, before = SharedLock("test"), itertools.count(), sys.gettrace()

    def trace(_frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and next(calls) == number:
            raise MemoryError

    with contextlib.suppress(MemoryError):
        sys.settrace(trace)
        lock.__enter__()
        sys.settrace(before)
        lock.__exit__()
    sys.settrace(before)
    assert not lock._threads.locked()  # noqa: SLF001


def test_table_that_a_stopped_process_holds_is_not_waited_for_without_end() -> None:
    """The supervisor must live to kill that process."""
    admission = Admission(5, 5)
    enter(admission, slot=1)
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if not pid:
        with admission._lock:  # noqa: SLF001 - as a process that is stopped there
            os.write(ready_write, b"x")
            signal.pause()
    os.read(ready_read, 1)
    with pytest.raises(TimeoutError):
        admission.forget(1, patience=0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    admission.forget(1, patience=60)
    assert admission.sessions == 0
    with admission._lock:  # noqa: SLF001 - it is free for the threads of this process as well
        pass
