"""Every thread survives unexpected exceptions, which are logged and counted."""

from __future__ import annotations

import ast
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from minismtp.values import threads
from minismtp.values.threads import WriteBehind, start_thread, surviving

if TYPE_CHECKING:
    from conftest import Configure, Running, Start

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = [
    *sorted((ROOT / "minismtp").rglob("*.py")),
    *sorted((ROOT / "plugins").rglob("*.py")),
    *sorted((ROOT / "docs" / "examples").rglob("*.py")),
]
WAYS: Final = {"Thread", "Timer", "start_new_thread", "ThreadPoolExecutor", "ThreadPool"}
#: The threads of a worker and of the process that delivers, which a test makes fail. Those that run
#: once in the life of a process come last.
WORKER: Final = {
    "accept",
    "session",
    "watch",
    "log",
    "metrics",
    "chronicle",
    "control",
    "pulse",
} | {
    *("lifeline", "quarantine", "maildir"),
}
RUNNER: Final = {"clerk", "ledger", "delivery", "signals"}
ENDPOINT: Final = {"endpoint", "history", "lifeline"}
TESTED_APART: Final = {"login", "name", "list", "web", "dns", "updates", "acme"}
PATIENCE: Final = 60.0  # seconds; only a failing test waits this long
FAULTS: Final = '''
"""Has each thread of a process raise once, after a number of calls of minismtp's functions."""

import sys
import threading

from minismtp import ServerInfo, hookimpl, plugin

NOT_HERE = {"threading", "minismtp.values.threads", "contextlib"}


@plugin
class Faults:
    after: int

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        calls = {}

        def trace(frame, event, argument):
            if frame.f_globals.get("__name__") in NOT_HERE:
                return None
            name = threading.current_thread().name.partition(" ")[0].partition("-")[0]
            if name.startswith("Dummy"):
                return None
            calls[name] = calls.get(name, -1) + 1
            if calls[name] == self.after:
                raise MemoryError(f"wanted: {name}")
            return None

        threading.settrace(trace)
'''


PLUGINS: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]

[[plugins]]
use = "quarantine"

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""


@pytest.fixture
def counted() -> Iterator[Counter[str]]:
    """Yield the counts of a test."""
    found: Counter[str] = Counter()
    before, hook = threads.counts.copy(), threading.excepthook

    def count(name: str, times: int) -> None:
        found[name] += times

    threads.count_failures(count)
    yield found
    threads.counts[:], threading.excepthook = before, hook


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], node


def test_only_the_helper_starts_threads() -> None:
    starters = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for name, _ in calls(ast.parse(path.read_bytes()))
        if name in WAYS
    }
    assert starters == {"minismtp/values/threads.py"}


def test_every_thread_is_made_to_fail_by_a_test() -> None:
    started = {
        ast.literal_eval(call.args[0])
        for path in SOURCES
        for name, call in calls(ast.parse(path.read_bytes()))
        # A subclass of WriteBehind passes the name to its constructor.
        if name in {"start_thread", "WriteBehind"} or (name == "__init__" and len(call.args) == 3)
        if isinstance(call.args[0], ast.Constant)
    }
    assert started == WORKER | RUNNER | ENDPOINT | TESTED_APART


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_body_that_raises_is_called_again(
    error: type[BaseException], counted: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([error("wanted"), error("wanted"), None])

    def body() -> None:
        if (outcome := next(outcomes)) is not None:
            raise outcome

    start_thread("trial", body).join(PATIENCE)
    assert next(outcomes, "all taken") == "all taken"
    assert {name: counted[name] for name in ("other", "trial")} == {"other": 0, "trial": 2}
    assert [record.getMessage() for record in caplog.records] == ["thread failed: trial"] * 2
    assert "wanted" in caplog.text


def test_a_thread_counts_from_its_start(counted: Counter[str]) -> None:
    start_thread("trial", lambda: None).join(PATIENCE)
    assert counted["trial"] == 0
    assert "trial" in counted


def test_what_is_wanted_once_ends_with_a_failure(counted: Counter[str]) -> None:
    tried: list[int] = []

    def body() -> None:
        tried.append(1)
        raise RuntimeError("wanted")

    start_thread("trial", body, once=True).join(PATIENCE)
    assert (tried, counted["trial"]) == ([1], 1)


def test_pauses_grow_while_a_thread_goes_on_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    now = [0.0]
    lives = iter([0.0] * 8 + [60.0, 0.0, 0.0])

    sleep_really, monotonic = time.sleep, time.monotonic

    def is_ours() -> bool:
        return threading.current_thread().name == "trial"  # threads of other tests go on

    def sleep(seconds: float) -> None:
        pauses.append(seconds) if is_ours() else sleep_really(seconds)

    def body() -> None:
        lasts = next(lives, None)
        if lasts is None:
            return
        now[0] += lasts
        raise RuntimeError("wanted")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0] if is_ours() else monotonic())
    start_thread("trial", body).join(PATIENCE)
    monkeypatch.undo()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.1, 0.2, 0.4]


def test_a_failure_that_cannot_be_told_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    bodies = iter([False, True])

    def body() -> None:
        if not next(bodies):
            raise RuntimeError("wanted")
        done.set()

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(threads, "counts", [lambda _, times: fails() if times else None])
    monkeypatch.setattr(logging.getLogger("minismtp.values.threads"), "error", fails)
    start_thread("trial", body).join(PATIENCE)
    assert done.is_set()


def test_threads_of_others_are_counted_too(
    counted: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    def body() -> None:
        raise RuntimeError("wanted")

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(PATIENCE)
    assert counted == {"other": 1}
    assert "wanted" in caplog.text


def test_one_item_that_fails_keeps_no_other_from_its_turn(counted: Counter[str]) -> None:
    done = []
    for item in range(3):
        with surviving("trial") as attempt:
            assert item != 1, "wanted"
            done.append(item)
        assert attempt.failed == (item == 1)
    assert done == [0, 2]
    assert counted["trial"] == 1


def stored(server: Running, recipient: str) -> bool:
    """Send a message. Return False if that fails, so that the caller tries again."""
    try:
        with server.connect() as client:
            client.socket.settimeout(3.0)  # a descriptor can be lost in the midst of `accept`
            client.begin_data(recipient, "me@example.org")
            client.send("Subject: hello\r\n\r\n.\r\n")
            return client.reply().startswith("250")
    except (AssertionError, OSError):
        return False


@pytest.mark.parametrize("after", [0, 2, 8])
def test_every_thread_of_a_server_goes_on_after_it_has_raised(
    after: int, configure: Configure, configure_at: Callable[[str], Configure], start: Start
) -> None:
    other = start(
        configure_at("other")(
            plugins='[[plugins]]\nuse = "mailboxes"\ndomains = ["example.net"]\n'
            '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
        )
    )
    config = configure(
        '[outbound]\nretry = ["1s"]\nthreads = 2\nwarn_after = "10s"',
        f'[[outbound.routes]]\ndomain = "example.net"\nhost = "127.0.0.1:{other.port()}"',
        '[[outbound.routes]]\ndomain = "example.com"\nhost = "127.0.0.1:1"',
        plugins=f'[[plugins]]\nuse = "faults"\nafter = {after}\n{PLUGINS}',
    )
    (config.parent / "local_plugins" / "faults.py").write_text(FAULTS)
    server = start(config)

    server.wait_until(lambda: stored(server, "you@example.org"))
    assert server.mail("you")
    server.wait_until(lambda: stored(server, "bob@example.net"))
    server.wait_until(lambda: other.mail("bob"))
    server.wait_until(lambda: stored(server, "nobody@example.com"))
    server.wait_until(lambda: "nobody@example.com" in command(server, "queue", "list"))
    command(server, "queue", "bounce", "--state", "deferred")
    server.wait_until(lambda: server.mail("me"))  # returned by the housekeeper, then delivered
    with server.connect() as client:
        client.greet()
        server.wait_until(lambda: "127.0.0.1" in command(server, "sessions"))
    server.wait_until(lambda: stored(server, "them@example.org"))
    found = server.wait_for_log(r" stored .*id=(\S+) .* stored=them@")
    server.wait_until(lambda: "them@example.org" in command(server, "explain", found[1]))
    if not after:  # later on some have ended before, or wait
        server.wait_until(lambda: not (WORKER | RUNNER) - failed(server))
    server.process.terminate()
    assert server.wait() == 0


def failed(server: Running) -> set[str]:
    """Return the names of the threads that failed."""
    found = server.http("/metrics")[1]
    pattern = r'^minismtp_thread_failures_total{thread="(\w+)"} [1-9]'
    return set(re.findall(pattern, found, re.MULTILINE))


def command(server: Running, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "minismtp", *arguments, "--config", str(server.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


ENDPOINT_ALONE: Final = """
import os, signal, socket, sys, threading
from pathlib import Path
from minismtp.server import http_endpoint
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.config import Config

directory = Path(sys.argv[1])
(directory / "metrics").mkdir()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
failed = set()

def trace(frame, event, argument):
    name = threading.current_thread().name.partition("-")[0]
    here = frame.f_globals.get("__name__")
    if name in failed or here in {"threading", "minismtp.values.threads", "contextlib"}:
        return None
    failed.add(name)
    raise MemoryError(f"wanted: {name}")

threading.settrace(trace)
lifeline, ready = os.pipe()
http_endpoint.run(sock, Scoreboard(), directory / "metrics", lifeline, ready=os.dup(ready),
             limit=1, config=Config.load())
"""


def test_every_thread_of_the_endpoint_goes_on_after_it_has_raised(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDPOINT_ALONE, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline())
        try:
            wanted = ENDPOINT | {"other"}  # which answers requests
            while wanted:
                line = process.stderr.readline()
                assert line, wanted
                wanted -= set(re.findall(r"thread failed: (\w+)", line))
                if wanted == {"other"}:
                    asked = socket.create_connection(("127.0.0.1", port))
                    asked.close()
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                text = answer.read().decode()
        finally:
            process.terminate()
    for name in ENDPOINT | {"other"}:
        assert f'minismtp_thread_failures_total{{thread="{name}"}} 1.0' in text


def test_write_behind_is_called_again_for_what_it_could_not_write() -> None:
    """An item from before a failure is handled without waiting for another item."""
    written: list[int] = []
    waiting, failures = [1, 2], [MemoryError("wanted")]

    def write() -> None:
        while waiting:
            if failures:
                raise failures.pop()
            written.append(waiting.pop())

    writer = WriteBehind("writes", write, 0.0)
    writer.start()
    writer.announce()
    end = time.monotonic() + PATIENCE
    while len(written) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert written == [2, 1]


def test_write_behind_writes_at_once_when_hurried_and_can_be_waited_for() -> None:
    written: list[float] = []
    writer = WriteBehind("writes", lambda: written.append(time.monotonic()), 3600.0)
    writer.start()
    writer.announce()
    writer.wait(0.05)
    assert written == []
    writer.hurry()
    writer.wait(PATIENCE)
    assert len(written) == 1


# Threads that cannot begin


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_TO_BEGIN", 0.01)
    monkeypatch.setattr("minismtp.values.threads._Started.none_before", 0.0)


class Silent(threading.Thread):
    """A thread that ends before its first step, as one does when there is no memory left."""

    def _bootstrap(self) -> None:
        raise SystemExit


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_a_thread_that_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without_memory:
        without_memory.setattr(threading, "Thread", Silent)
        with pytest.raises(RuntimeError, match=r"^the new thread did not begin"):
            start_thread("test", lambda: None)
    called = threading.Event()
    with pytest.raises(RuntimeError, match=r"^the last new thread did not begin"):
        start_thread("test", called.set, once=True)
    monkeypatch.setattr("minismtp.values.threads._Started.none_before", time.monotonic())
    start_thread("test", called.set, once=True)
    assert called.wait(PATIENCE)


class Late(threading.Thread):
    """A thread that takes its first step when it is told to."""

    may_begin = threading.Event()
    ended = threading.Event()

    def _bootstrap(self) -> None:
        self.may_begin.wait(PATIENCE)
        super()._bootstrap()  # type: ignore[misc]
        self.ended.set()


@pytest.mark.usefixtures("impatient")
def test_a_thread_that_begins_too_late_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", Late)
    called = threading.Event()
    with pytest.raises(RuntimeError, match="did not begin"):
        start_thread("test", called.set, once=True)
    Late.may_begin.set()
    assert Late.ended.wait(PATIENCE)
    assert not called.is_set()
