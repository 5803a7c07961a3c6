from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.runtime.session_limits import Admission
from minismtp.server.status import StatusReporter

if TYPE_CHECKING:
    from conftest import Configure, Start


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield the socket on which systemd would listen."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


@pytest.fixture
def admission() -> Admission:
    return Admission(10, 10)


@pytest.fixture
def reporter(manager: socket.socket, admission: Admission) -> StatusReporter:  # noqa: ARG001 - listens
    return StatusReporter(Log(), admission, Scoreboard())


def heard(manager: socket.socket) -> list[str]:
    """Return the messages to systemd, without the times."""
    manager.setblocking(False)
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode().partition("\n")[0])
        except BlockingIOError:
            return messages


def test_first_worker_that_serves_makes_the_server_ready(
    reporter: StatusReporter, manager: socket.socket
) -> None:
    assert not reporter.tell("Starting", 0, 2)
    assert not reporter.scoreboard.workers().ready
    assert reporter.tell("Serving", 1, 2)
    assert reporter.scoreboard.workers().ready
    assert not reporter.tell("Serving", 1, 2)
    assert heard(manager) == [
        "WATCHDOG=1",
        "STATUS=Starting: workers 0/2, sessions 0, queue 0",
        "READY=1",
        "STATUS=Serving: workers 1/2, sessions 0, queue 0",
    ]


def test_status_has_the_figures_of_now(
    reporter: StatusReporter, manager: socket.socket, admission: Admission
) -> None:
    for _ in range(3):
        admission.enter(1, "192.0.2.1")
    reporter.scoreboard.post_queue(7)
    reporter.tell("Serving", 0, 4)
    assert heard(manager)[-1] == "STATUS=Serving: workers 0/4, sessions 3, queue 7"


def test_reload_is_told_with_its_end(reporter: StatusReporter, manager: socket.socket) -> None:
    reporter.reloading()
    reporter.reloaded()
    assert reporter.scoreboard.workers().reload_ok
    reporter.reloading()
    reporter.reload_failed("a mistake")
    assert not reporter.scoreboard.workers().reload_ok
    reporter.tell("Serving", 0, 1)
    *states, _, status = heard(manager)
    assert states == ["RELOADING=1", "READY=1"] * 2
    assert status.endswith("; the last reload failed")


def test_watchdog_is_fed_while_one_worker_answers(
    reporter: StatusReporter, manager: socket.socket
) -> None:
    reporter.tell("Serving", 3, 3, silent=2)
    assert heard(manager) == [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=Serving: workers 1/3, sessions 0, queue 0",
    ]
    assert reporter.scoreboard.workers().ready


def test_server_whose_workers_all_hang_is_not_ready_and_feeds_no_watchdog(
    reporter: StatusReporter, manager: socket.socket
) -> None:
    reporter.tell("Serving", 3, 3, silent=3)
    assert heard(manager) == ["STATUS=Serving: workers 0/3, sessions 0, queue 0"]
    assert not reporter.scoreboard.workers().ready


def test_watchdog_is_fed_while_dead_workers_are_replaced(
    reporter: StatusReporter, manager: socket.socket
) -> None:
    reporter.tell("Serving", 0, 3)
    assert "WATCHDOG=1" in heard(manager)


def test_watchdog_is_fed_while_the_server_stops(
    reporter: StatusReporter, manager: socket.socket
) -> None:
    reporter.stopping(3, 50.0)
    reporter.tell("Stopping", 0, 2)
    assert heard(manager)[:2] == ["STOPPING=1", "WATCHDOG=1"]


def test_server_tells_systemd_how_it_is(
    configure: Configure, start: Start, manager: socket.socket
) -> None:
    def wait_for(message: str) -> None:
        while manager.recv(4096).decode().partition("\n")[0] != message:
            pass

    server = start(configure())
    wait_for("READY=1")
    assert server.http("/readyz") == (200, "ready\n")
    wait_for("STATUS=Serving: workers 1/1, sessions 0, queue 0")
    server.signal(signal.SIGHUP)
    for message in ("RELOADING=1", "READY=1"):
        wait_for(message)
    server.signal(signal.SIGTERM)
    wait_for("STOPPING=1")
    assert server.wait() == 0
