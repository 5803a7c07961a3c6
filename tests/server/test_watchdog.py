"""Processes that hang or die, and faults of the machine in the supervisor itself."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pytest

from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.server.processes import Child, Role
from minismtp.server.watchdog import Watchdog

if TYPE_CHECKING:
    from conftest import Client, Configure, Running, Start

HANGING: Final = '[limits]\nhang_timeout = "5s"\n'
# Says what the subject of a message asks for. The loop that accepts can be made to hang, too.
TROUBLE: Final = """
import ctypes, os, re, signal, threading
from minismtp import hookimpl, plugin
from minismtp.server.listener import Server

def wedged(server):
    threading.Event().wait()

@plugin
class Trouble:
    wedge: bool = False

    @hookimpl
    def on_start(self, server):
        if self.wedge and server.slot == 1:
            Server._accept = wedged

    @hookimpl
    def on_helo(self, session):
        if session.helo == "keeps.example":
            keep_the_interpreter()
        if session.helo == "waits.example":
            threading.Event().wait()

    @hookimpl
    def on_message(self, message):
        kind = message.headers.get("Subject")
        if kind == "keeps":
            keep_the_interpreter()
        if kind == "exits":
            os._exit(3)
        if kind == "faults":
            ctypes.string_at(0)
        if kind == "waits":
            threading.Event().wait(300)
        if kind == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)

def keep_the_interpreter():
    re.fullmatch(r"(a|a)*b", "a" * 100)
"""
# Fails a call of the supervisor as the file `fault` says: what to call, what it raises.
FAULTS: Final = """
import errno, importlib, os, sys

SUPERVISOR = os.getpid()
ERRORS = {
    "EAGAIN": OSError(errno.EAGAIN, "Resource temporarily unavailable"),
    "EMFILE": OSError(errno.EMFILE, "Too many open files"),
    "EROFS": OSError(errno.EROFS, "Read-only file system"),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError(),
    "KeyError": KeyError("nobody expected this"),
}

def fail(place):
    module, _, name = place.rpartition(".")
    owner = sys.modules.get(module)
    if owner is None:
        above, _, inner = module.rpartition(".")
        owner = getattr(importlib.import_module(above), inner)
    real = getattr(owner, name)

    def failing(*args, **options):
        if os.getpid() == SUPERVISOR:
            try:
                with open("fault") as file:
                    wanted, _, error = file.read().partition(" ")
            except FileNotFoundError:
                wanted = ""
            if wanted == place:
                raise ERRORS[error]
        return real(*args, **options)

    setattr(owner, name, failing)

from minismtp.cli import main
from minismtp.server import supervisor

places, sys.argv[1:] = sys.argv[1], sys.argv[5:]  # after "python -m minismtp"
for place in places.split(","):
    fail(place)
sys.exit(main.main())
"""


@pytest.fixture(autouse=True)
def _plugin(tmp_path: Path) -> None:
    (tmp_path / "local_plugins").mkdir()
    (tmp_path / "local_plugins" / "trouble.py").write_text(TROUBLE)


def trouble(*, wedge: bool = False) -> str:
    return f'[[plugins]]\nuse = "trouble"\nwedge = {str(wedge).lower()}\n'


def called(server: Running, name: str) -> list[int]:
    """Return the processes of a server that are called so."""
    return [pid for pid in server.tree()[1:] if name_of(pid) == f"minismtp-{name}"]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def serves(server: Running) -> bool:
    with server.connect() as client:
        return client.reply().startswith("220 ")


def whole(server: Running, workers: int) -> bool:
    """Return whether every process runs and serves."""
    names = (("worker", workers), ("queue", 1), ("http", 1))
    running = all(len(called(server, name)) == count for name, count in names)
    log = server.log
    opened = log.count(" info queue opened ") > log.count(" error outbound runner died ")
    return running and opened and server.metric("workers") == workers


# A process that shows no activity


@pytest.mark.parametrize(
    ("name", "kind", "label"),
    [
        ("worker", "worker", "worker"),
        ("queue", "outbound runner", "runner"),
        ("http", "metrics endpoint", "endpoint"),
    ],
)
def test_process_that_is_stopped_is_killed_and_replaced(
    configure: Configure, start: Start, name: str, kind: str, label: str
) -> None:
    server = start(configure(HANGING, workers=2))
    server.wait_until(lambda: whole(server, 2))
    [victim, *_] = called(server, name)
    os.kill(victim, signal.SIGSTOP)
    server.wait_for_log(rf" error {kind} does not answer pid={victim} state=T$")
    server.wait_for_log(rf" error {kind} died pid={victim} .*status=-9$")
    server.wait_until(lambda: whole(server, 2))
    assert victim not in called(server, name)
    assert server.metric("process_replacements_total", process=label, reason="hung") == 1
    assert server.metric("process_replacements_total") == 1


def test_worker_whose_interpreter_is_kept_is_dumped_and_replaced_while_the_others_serve(
    configure: Configure, start: Start
) -> None:
    server = start(configure(trouble(), HANGING, workers=2))
    server.wait_until(lambda: server.metric("workers") == 2)
    before = called(server, "worker")
    with server.connect() as client:
        client.reply()
        client.send("EHLO keeps.example\r\n")
        found = server.wait_for_log(r" error worker does not answer pid=(\d+)")
        assert int(found[1]) in before
        # Python cannot run in it any more: the stack comes from a handler in C.
        server.wait_for_log(r"^  File .*trouble\.py\", line \d+ in keep_the_interpreter$")
        # The kernel wakes the hanging worker for one of them; another worker finds it.
        assert all(serves(server) for _ in range(4))
        server.wait_for_log(rf" error worker is killed pid={found[1]} reason=.silent for")
        server.wait_until(lambda: set(called(server, "worker")) - set(before))
        assert rest(client) == ""
    server.wait_until(lambda: server.metric("workers") == 2)
    assert server.metric("process_replacements_total", process="worker", reason="hung") == 1


def test_worker_whose_loop_hangs_is_replaced_and_one_whose_sessions_wait_is_alive(
    configure: Configure, start: Start
) -> None:
    server = start(configure(trouble(wedge=True), HANGING, workers=2))
    server.wait_until(lambda: server.metric("workers") == 2)
    clients = [server.connect() for _ in range(60)]
    for client in clients:
        client.send("EHLO waits.example\r\n")
    server.wait_for_log(r"^  File .* in wedged$")
    found = server.wait_for_log(r" error worker is killed pid=(\d+)")
    assert server.log.count("worker does not answer") == 1
    server.wait_for_log(rf" error worker died pid={found[1]} slot=1 status=-9")
    for client in clients:
        client.socket.close()


def test_hanging_process_is_left_alone_where_the_time_is_0(
    configure: Configure, start: Start
) -> None:
    server = start(configure('[limits]\nhang_timeout = "0s"\n', workers=2))
    server.wait_until(lambda: server.metric("workers") == 2)
    [victim, *_] = called(server, "worker")
    os.kill(victim, signal.SIGSTOP)
    server.wait_for_log(rf" error worker does not answer pid={victim}")
    server.wait_until(lambda: server.metric("workers") == 1)
    assert serves(server)
    os.kill(victim, signal.SIGCONT)
    server.wait_until(lambda: server.metric("workers") == 2)
    assert "is killed" not in server.log


def test_server_whose_only_worker_hangs_is_not_ready(configure: Configure, start: Start) -> None:
    server = start(configure('[limits]\nhang_timeout = "0s"\n', workers=1))
    server.wait_until(lambda: server.metric("workers") == 1)
    os.kill(called(server, "worker")[0], signal.SIGSTOP)
    server.wait_until(lambda: server.http("/readyz")[0] == 503)
    assert server.http("/healthz")[0] == 200


# A message on which workers die

QUARANTINE: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "quarantine"

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""


def send(server: Running, subject: str, sender: str = "sender@client.example") -> str:
    """Send a message and return the reply, "" if the connection ends without one."""
    with server.connect() as client:
        client.begin_data("alice@example.org", sender)
        client.send(f"Subject: {subject}\r\n\r\ntext\r\n.\r\n")
        client.send("QUIT\r\n")
        return rest(client)


def rest(client: Client) -> str:
    """Return what comes before the connection ends, or is reset with the process."""
    try:
        return client.rest()
    except ConnectionResetError:
        return ""


DEATHS: Final = {"keeps": "hung", "exits": "died", "faults": "died"}


@pytest.mark.parametrize("kind", DEATHS)
def test_message_that_two_workers_died_on_is_set_aside(
    configure: Configure, start: Start, kind: str
) -> None:
    server = start(configure(trouble(), HANGING, plugins=QUARANTINE, workers=2))
    for deaths in (1, 2):
        server.wait_until(lambda: whole(server, 2))
        assert send(server, kind) == ""
        server.wait_for_log(
            r" error message was under way when a worker died id=(\S+) peer=127\.0\.0\.1"
            rf" sender=<sender@client\.example> deaths={deaths} "
        )
    server.wait_until(lambda: whole(server, 2))
    assert send(server, kind).startswith("250 ")
    server.wait_for_log(r" error message that workers died on is set aside .*id=\S+")
    assert server.mail("alice") == []
    [kept] = (server.directory / "state" / "quarantine" / "new").iterdir()
    assert f"Subject: {kind}".encode() in kept.read_bytes()
    assert server.metric("process_replacements_total", reason=DEATHS[kind]) == 2


def test_message_that_workers_died_on_is_deferred_where_there_is_no_quarantine(
    configure: Configure, start: Start
) -> None:
    server = start(configure(trouble(), workers=2))
    for _ in range(2):
        server.wait_until(lambda: whole(server, 2))
        assert send(server, "exits") == ""
    server.wait_for_log(r" error message was under way when a worker died .* deaths=2 next=")
    assert send(server, "exits").startswith("451 4.3.0 this message cannot be processed now")
    # After a reload it is tried again.
    server.config.write_text(server.config.read_text().replace('use = "trouble"', 'use = "score"'))
    server.config.write_text(server.config.read_text().replace("wedge = false", ""))
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" info reloaded$")
    server.wait_until(lambda: send(server, "exits").startswith("250 "))


def test_messages_that_wait_while_another_one_keeps_the_interpreter_are_not_blamed(
    configure: Configure, start: Start
) -> None:
    server = start(configure(trouble(), HANGING, workers=1))
    server.wait_until(lambda: whole(server, 1))
    with server.connect() as innocent:
        innocent.begin_data("alice@example.org", "innocent@client.example")
        innocent.send("Subject: waits\r\n\r\ntext\r\n.\r\n")
        assert send(server, "keeps") == ""
        assert rest(innocent) == ""
    server.wait_for_log(r" error message was under way when a worker died .* deaths=1 ")
    named = re.findall(r"message was under way when a worker died .*sender=(\S+)", server.log)
    assert named == ["<sender@client.example>"]


def test_messages_of_a_worker_that_somebody_has_stopped_are_not_blamed(
    configure: Configure, start: Start
) -> None:
    server = start(configure(trouble(), HANGING, workers=1))
    server.wait_until(lambda: whole(server, 1))
    [worker] = called(server, "worker")
    with server.connect() as innocent:
        innocent.begin_data("alice@example.org")
        innocent.send("Subject: stops\r\n\r\ntext\r\n.\r\n")
        assert rest(innocent) == ""  # the plugin has stopped its own process
    server.wait_for_log(rf" error worker died pid={worker} ")
    server.wait_until(lambda: whole(server, 1))
    assert "was under way" not in server.log


class Quiet:
    """Children that only the watchdog knows, and that report only when a test wants it."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.signals: list[tuple[int, int]] = []
        self.scoreboard = Scoreboard()
        monkeypatch.setattr("minismtp.server.watchdog.time.monotonic", lambda: self.now)
        monkeypatch.setattr(
            "minismtp.server.watchdog.os.kill", lambda *what: self.signals.append(what)
        )
        self.children = [
            (100 + slot, Child(slot, -1, 0.0, Role.RUNNER, -1, serving=True))
            for slot in range(count)
        ]
        self.watchdog = Watchdog(Log(), self.scoreboard)
        for slot in range(count):
            self.scoreboard.beat(slot)

    def look(self, seconds: float) -> list[tuple[int, int]]:
        """Check once after some seconds, and return the signals that were sent."""
        self.now += seconds
        self.signals.clear()
        self.watchdog.look(self.children, patience=30.0)
        return self.signals


def test_processes_that_hang_are_killed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may only wait for a lock that the first one holds."""
    quiet = Quiet(2, monkeypatch)
    assert quiet.look(11.0) == [(100, signal.SIGQUIT), (101, signal.SIGQUIT)]
    assert quiet.look(10.0) == []
    assert quiet.look(11.0) == [(100, signal.SIGKILL)]
    assert quiet.look(1.0) == []
    quiet.scoreboard.beat(1)
    assert quiet.look(0.1) == []
    assert quiet.watchdog.forget(100) is not None
    del quiet.children[0]
    assert quiet.look(60.0) == [(101, signal.SIGQUIT)]


def test_process_that_was_stopped_together_with_the_supervisor_gets_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet = Quiet(1, monkeypatch)
    assert quiet.look(3600.0) == [(100, signal.SIGQUIT)]
    assert quiet.look(0.1) == []
    quiet.scoreboard.beat(0)
    assert quiet.look(0.1) == []
    assert quiet.watchdog.silent == set()


# Faults in the supervisor


@pytest.mark.parametrize(
    "fault",
    [
        "os.fork EAGAIN",
        "os.fork MemoryError",
        "os.pipe EMFILE",
        "os.waitpid MemoryError",
        "os.read EMFILE",
        "os.kill MemoryError",
        "minismtp.server.supervisor.time.monotonic MemoryError",
        "minismtp.server.status.StatusReporter.tell KeyError",
        "minismtp.server.processes.Children.reap KeyError",
        "minismtp.server.watchdog.Watchdog.look RecursionError",
        "minismtp.runtime.session_limits.Admission.forget MemoryError",
        "pathlib.Path.unlink EROFS",
        "minismtp.runtime.log.Log.error MemoryError",
        "minismtp.runtime.log.Log.exception MemoryError",
    ],
)
def test_fault_of_the_supervisor_ends_nothing_and_is_over_when_it_is_over(
    configure: Configure, start: Start, tmp_path: Path, fault: str
) -> None:
    place, _, error = fault.partition(" ")
    (tmp_path / "faulty.py").write_text(FAULTS)
    server = start(
        configure(workers=2), command=(sys.executable, str(tmp_path / "faulty.py"), place)
    )
    server.wait_until(lambda: whole(server, 2))
    [victim, survivor] = called(server, "worker")
    (tmp_path / "fault").write_text(f"{place} {error}")
    os.kill(victim, signal.SIGKILL)
    server.signal(signal.SIGUSR2)
    server.wait_until(lambda: serves(server))
    (tmp_path / "fault").unlink()
    server.wait_until(lambda: whole(server, 2))
    assert survivor in called(server, "worker")
    assert server.process.poll() is None
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("mistake", ["pipe", "directory", "device", "endless", "nested"])
def test_what_is_no_configuration_leaves_the_old_one_in_force(
    configure: Configure, start: Start, mistake: str
) -> None:
    server = start(configure(workers=1))
    server.wait_until(lambda: server.metric("workers") == 1)
    before = called(server, "worker")
    server.config.unlink()
    match mistake:
        case "pipe":
            os.mkfifo(server.config)
        case "directory":
            server.config.mkdir()
        case "device":
            server.config.symlink_to("/dev/zero")
        case "endless":
            with server.config.open("wb") as file:
                file.truncate(1 << 40)
        case _:
            server.config.write_text(f"deep = {'[' * 100_000}")
    server.signal(signal.SIGHUP)
    found = server.wait_for_log(r" error reload failed, .* reason=(.*)")
    assert str(server.config) in found[1]
    assert server.metric("config_last_reload_successful") == 0
    assert called(server, "worker") == before
    assert serves(server)


@pytest.mark.parametrize("error", ["MemoryError", "RecursionError", "KeyError", "EMFILE"])
@pytest.mark.parametrize(
    "place",
    ["minismtp.config.Config.load", "minismtp.server.generation.Generation.sockets_for", "os.pipe"],
)
def test_any_fault_of_a_reload_leaves_the_old_configuration_in_force(
    configure: Configure, start: Start, tmp_path: Path, place: str, error: str
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTS)
    server = start(
        configure(workers=1), command=(sys.executable, str(tmp_path / "faulty.py"), place)
    )
    server.wait_until(lambda: server.metric("workers") == 1)
    before = called(server, "worker")
    (tmp_path / "fault").write_text(f"{place} {error}")
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" error reload failed, the old configuration goes on reason=\S")
    assert called(server, "worker") == before
    (tmp_path / "fault").unlink()
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" info reloaded$")
    assert re.search(r"Traceback", server.log) is None
    assert serves(server)


# Under load


class Load:
    """Clients that send one message after the other, each again until it is acknowledged."""

    def __init__(self, server: Running, clients: int = 4) -> None:
        self.server = server
        self.acknowledged: list[str] = []
        self.cut = 0
        self.waits: list[float] = []  # seconds, of messages that were accepted at the first try
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[n]) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Wait until more messages were acknowledged."""
        enough = len(self.acknowledged) + 20
        self.server.wait_until(lambda: len(self.acknowledged) >= enough)

    def _run(self, client: int) -> None:
        for number in itertools.count():
            name = f"{client}-{number}"
            begun = time.monotonic()
            while not self._sent(name):
                self.cut += 1
                begun = inf
            self.acknowledged.append(name)
            if begun < inf:
                self.waits.append(time.monotonic() - begun)
            if self._ended.is_set():
                return

    def _sent(self, name: str) -> bool:
        try:
            return send(self.server, name).startswith("250 ")
        except (OSError, AssertionError):  # the connection ends, where a reply is expected
            return False


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_every_process_is_stopped_or_killed_under_load_and_nothing_is_lost(
    configure: Configure,
    start: Start,
    number: signal.Signals,
    record_property: Callable[[str, object], None],
) -> None:
    server = start(configure(HANGING, workers=2))
    server.wait_until(lambda: whole(server, 2))
    victims = [pid for name in ("worker", "queue", "http") for pid in called(server, name)]
    with Load(server) as load:
        load.goes_on()
        for victim in victims:
            os.kill(victim, number)
            load.goes_on()  # before it is replaced, if it was stopped
            server.wait_for_log(rf" died pid={victim} ")
            server.wait_until(lambda: whole(server, 2))
        load.goes_on()
    found = re.findall(rb"^Subject: (\S+)\r$", b"".join(server.mail("alice")), re.MULTILINE)
    assert {*load.acknowledged} <= {name.decode() for name in found}
    assert "set aside" not in server.log
    record_property("others waited at most", f"{max(load.waits):.2f} s")
