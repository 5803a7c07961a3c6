from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minismtp.server.systemd_notify import Notifier

PID = 4711


class Manager:
    """The messages to systemd."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.setblocking(False)

    @property
    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "file" else f"@minismtp-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.socket.close()


def notifier(
    address: str, clock: list[float] | None = None, variables: dict[str, str] | None = None
) -> Notifier:
    now = clock or [0.0]
    return Notifier({"NOTIFY_SOCKET": address, **(variables or {})}, PID, lambda: now[0])


def test_states_are_told_as_systemd_knows_them(address: str, manager: Manager) -> None:
    told = notifier(address)
    told.ready()
    before = time.monotonic_ns() // 1000
    told.reloading()
    told.stopping(50.5)
    ready, reloading, stopping = manager.heard
    assert ready == "READY=1"
    state, _, since = reloading.partition("\nMONOTONIC_USEC=")
    assert state == "RELOADING=1"
    assert before <= int(since) <= time.monotonic_ns() // 1000
    assert stopping == "STOPPING=1\nEXTEND_TIMEOUT_USEC=50500000"


def test_status_is_told_when_it_has_changed_but_not_all_the_time(
    address: str, manager: Manager
) -> None:
    clock = [0.0]
    told = notifier(address, clock)
    for clock[0], sessions in enumerate([1, 1, 1, 2, 3, 4]):
        told.tell(f"{sessions} sessions", answering=True)
    assert manager.heard == ["STATUS=1 sessions", "STATUS=2 sessions", "STATUS=4 sessions"]


def test_status_after_a_change_of_state_is_told_at_once(address: str, manager: Manager) -> None:
    told = notifier(address)
    told.tell("starting", answering=True)
    told.ready()
    told.tell("serving", answering=True)
    assert manager.heard == ["STATUS=starting", "READY=1", "STATUS=serving"]


def test_watchdog_is_fed_in_good_time_while_all_answer(address: str, manager: Manager) -> None:
    clock = [0.0]
    told = notifier(address, clock, {"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": str(PID)})
    fed = []
    for second in range(10):
        clock[0] = second
        told.tell("", answering=second < 5)
        fed += [second] * len(manager.heard)
    assert fed == [0, 2, 4]


@pytest.mark.parametrize(
    "variables", [{}, {"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "1"}], ids=["none", "another's"]
)
def test_watchdog_that_does_not_watch_us_is_not_fed(
    variables: dict[str, str], address: str, manager: Manager
) -> None:
    notifier(address, variables=variables).tell("", answering=True)
    assert manager.heard == []


def test_programs_that_a_plugin_starts_cannot_speak_in_our_name() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(environment, PID)
    assert environment == {"HOME": "/"}


def test_nothing_is_said_where_there_is_no_manager() -> None:
    told = Notifier({}, PID)
    told.ready()
    told.tell("status", answering=True)


def test_manager_that_is_away_ends_nothing(tmp_path: Path) -> None:
    notifier(str(tmp_path / "nobody")).ready()
