"""The answers of /readyz: true, and without paths."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes import Clock
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily

from minismtp.config import Config
from minismtp.mailqueue.metrics import StallDetector
from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard, WorkersStatus
from minismtp.server.http_endpoint import HttpServer
from minismtp.server.readiness import FATAL, WARNINGS, ProblemLog, Readiness

if TYPE_CHECKING:
    from conftest import Configure, Start


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Make the state directory of a server that runs."""
    for name in ("tmp", "queue"):
        (tmp_path / "state" / "spool" / name).mkdir(parents=True)
    return tmp_path / "state"


@pytest.fixture
def scoreboard(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Scoreboard:
    """Return the reports of the processes of a working server."""
    monkeypatch.setattr("minismtp.runtime.scoreboard.time.monotonic", clock)
    scoreboard = Scoreboard()
    scoreboard.post_workers(WorkersStatus(ready=True, workers=2))
    scoreboard.post_queue(3)
    return scoreboard


@pytest.fixture
def readiness(scoreboard: Scoreboard, state: Path, clock: Clock) -> Readiness:
    return Readiness(scoreboard, state, 0, clock)


def counted(name: str, value: float, **labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily(f"minismtp_{name}", "text", labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def refusing(number: int) -> object:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


def test_server_that_works_has_no_problem(readiness: Readiness) -> None:
    assert readiness.problems() == {}


def test_every_problem_is_fatal_or_a_warning() -> None:
    assert not {*FATAL} & {*WARNINGS}


def test_no_worker_is_a_problem(readiness: Readiness, scoreboard: Scoreboard) -> None:
    scoreboard.post_workers(WorkersStatus())
    assert readiness.problems() == {"workers": "no worker serves"}


def test_runner_that_is_silent_is_a_problem_until_it_speaks(
    readiness: Readiness, scoreboard: Scoreboard, clock: Clock
) -> None:
    clock.now += 30
    assert readiness.problems() == {}
    clock.now += 1
    assert readiness.problems() == {"queue": "the process that delivers does not answer"}
    scoreboard.post_queue(3)
    assert readiness.problems() == {}


def test_queue_that_does_not_move_is_a_problem(
    readiness: Readiness, scoreboard: Scoreboard
) -> None:
    scoreboard.post_queue(3, stuck=True)
    [(problem, sentence)] = readiness.problems().items()
    assert problem == "queue"
    assert "no attempt ended" in sentence


@pytest.mark.parametrize("name", ["", "spool/tmp", "spool/queue"])
def test_directory_that_is_gone_or_no_directory_is_a_problem(
    name: str, readiness: Readiness, state: Path
) -> None:
    shutil.rmtree(state / name)
    for _ in range(2):
        sentence = readiness.problems()["state"]
        assert sentence.endswith("cannot be used: No such file or directory")
        assert str(state) not in sentence
        (state / name).touch()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_directory_that_takes_no_file_is_a_problem(
    number: int, readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", refusing(number))
    assert readiness.problems().keys() == {"state"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_takes_no_octet_is_a_problem(
    number: int, readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", refusing(number))
    assert readiness.problems().keys() == {"disk"}


def test_file_system_without_nameless_files_is_none(
    readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", refusing(errno.EOPNOTSUPP))
    assert readiness.problems() == {}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert readiness.problems().keys() == {"state"}


def test_database_that_cannot_be_written_is_a_problem(
    readiness: Readiness, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(state / "state.db").execute("CREATE TABLE x (y)").connection.close()
    assert readiness.problems() == {}
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "state.db")
    assert readiness.problems() == {"state": "state.db cannot be used: Permission denied"}


def test_disk_below_the_reserve_is_a_problem(
    scoreboard: Scoreboard, state: Path, clock: Clock
) -> None:
    found = Readiness(scoreboard, state, 1 << 60, clock).problems()
    sentence = "less than free_space (1048576.0 TiB) is free, so mail is refused"
    assert found == {"disk": sentence}


def test_failures_of_threads_and_lost_lines_are_told_for_a_while(
    readiness: Readiness, clock: Clock, scoreboard: Scoreboard
) -> None:
    readiness.observe([counted("thread_failures", 0, thread="clerk")])
    assert readiness.problems() == {}
    for _ in range(2):
        readiness.observe(
            [
                counted("thread_failures", 1, thread="clerk"),
                counted("log_lines_dropped", 5),
                counted("hook_errors", 7, plugin="x"),
            ]
        )
        assert readiness.problems() == {
            "threads": "threads have failed and went on: clerk",
            "log": "lines were dropped because standard error is not read",
        }
        clock.now += 200
        scoreboard.post_queue(0)
    assert readiness.problems() == {}


def test_queue_is_stuck_when_nothing_due_has_ended_for_long(clock: Clock) -> None:
    detector = StallDetector(clock)

    def stopped(after: float, ended: int, *, due: bool = True) -> bool:
        clock.now += after
        return detector.is_stalled(ended, due=due)

    assert not stopped(900.0, 0)
    assert stopped(1.0, 0)
    assert not stopped(1.0, 1)
    assert stopped(901.0, 1)
    assert not stopped(1.0, 1, due=False)
    assert not stopped(900.0, 1)


def test_readyz_is_503_while_the_state_directory_is_away(
    configure: Configure, start: Start
) -> None:
    server = start(configure())
    server.wait_for_log(" queue opened ")
    assert server.http("/readyz") == (200, "ready\n")
    state = server.directory / "state" / "spool" / "tmp"
    state.rename(state.with_name("elsewhere"))
    assert server.http("/readyz") == (
        503,
        "not ready\nstate: spool/tmp cannot be used: No such file or directory\n",
    )
    assert server.metric("problem", problem="state") == 1
    state.with_name("elsewhere").rename(state)
    assert server.http("/readyz") == (200, "ready\n")
    assert server.metric("problem") == 0


def test_readyz_is_503_below_the_free_space(configure: Configure, start: Start) -> None:
    server = start(configure('[outbound]\nfree_space = "1000000GiB"'))
    status, text = server.http("/readyz")
    assert (status, text[:40]) == (503, "not ready\ndisk: less than free_space (97")


FAILING = """
from minismtp import ServerInfo, hookimpl, plugin, start_thread

@plugin
class Failing:
    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        start_thread("trial", self._work, once=True)

    def _work(self) -> None:
        raise RuntimeError("made by a test")
"""


def test_readyz_tells_of_warnings_and_strictly_refuses(configure: Configure, start: Start) -> None:
    config = configure('[[plugins]]\nuse = "failing"\n')
    (config.parent / "local_plugins" / "failing.py").write_text(FAILING)
    server = start(config)
    told = "threads: threads have failed and went on: trial\n"
    server.wait_until(lambda: server.metric("thread_failures_total", thread="trial") > 0)
    assert server.http("/readyz") == (200, f"ready\nwarning: {told}")
    assert server.http("/readyz?strict") == (503, f"not ready\n{told}")


def test_problem_that_a_request_finds_is_logged_at_once(
    tmp_path: Path, readiness: Readiness, scoreboard: Scoreboard, configure: Configure
) -> None:
    """A server that starts has no worker yet, which requests do not log."""
    path = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as sock, path.open("wb") as file:
        problem_log = ProblemLog(Log(descriptor=file.fileno()))
        server = HttpServer(
            sock,
            CollectorRegistry(),
            readiness,
            Config.load(configure()),
            scoreboard,
            problem_log=problem_log,
        )
        scoreboard.post_workers(WorkersStatus(ready=False, workers=0))
        assert server.problems() == {"workers": "no worker serves"}
        assert path.read_text() == ""
        for at in (0.0, 15.0):
            server.history.look(at)
        assert server.problems() == {"workers": "no worker serves"}
        scoreboard.post_workers(WorkersStatus(ready=True, workers=2))
        assert server.problems() == {}
    assert re.findall(r"(error|info) (problem.*)", path.read_text()) == [
        ("error", 'problem problem=workers what="no worker serves"'),
        ("info", "problem over problem=workers"),
    ]


def test_problem_is_logged_when_it_begins_and_when_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        problems = ProblemLog(Log(descriptor=file.fileno()))
        problems.note({})
        problems.note({"disk": "less than free_space is free"})
        problems.note({"disk": "less than free_space is free", "threads": "clerk"})
        problems.note({"threads": "clerk"})
    text = path.read_text()
    assert re.findall(r"(error|warning|info) (problem.*)", text) == [
        ("error", 'problem problem=disk what="less than free_space is free"'),
        ("warning", "problem problem=threads what=clerk"),
        ("info", "problem over problem=disk"),
    ]
