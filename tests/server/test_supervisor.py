"""The processes: their start, replacement, reload and end."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import pytest
from ports import free_port

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.server.generation import workers_of
from minismtp.server.respawn import pause
from minismtp.server.signals import SIGNALS, next_signal

if TYPE_CHECKING:
    from conftest import Client, Configure, Running, Start

# EHLO names the worker and the generation; the options `fail` and `hang` spoil its start or end.
GENERATION = """
import logging, os, threading
from minismtp import ServerInfo, hookimpl, plugin

@plugin
class Generation:
    number: int = 1
    fail: str = ""
    hang: bool = False

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        logging.getLogger("generation").info("begins in slot %d", server.slot)
        if self.fail:
            raise RuntimeError(self.fail)

    @hookimpl
    def on_stop(self) -> None:
        if self.hang:
            threading.Event().wait()

    @hookimpl
    def ehlo_keywords(self) -> list[str]:
        return [f"GENERATION {self.number} {os.getpid()}"]
"""
SCRIPT: Final = Path(sys.executable).with_name("minismtp")
DRAINING = "421 4.3.2 mx.example.org service shutting down"
TWO = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"

[[listeners]]
name = "second"
address = "127.0.0.1:0"
tls = "none"
"""


@pytest.fixture(autouse=True)
def _plugin(tmp_path: Path) -> None:
    (tmp_path / "local_plugins").mkdir()
    (tmp_path / "local_plugins" / "generation.py").write_text(GENERATION)


def generation(number: int = 1, *, fail: str = "", hang: bool = False) -> str:
    options = f'number = {number}\nfail = "{fail}"\nhang = {str(hang).lower()}\n'
    return f'[[plugins]]\nuse = "generation"\n{options}'


def limits(drain: str = "30s", sessions: int = 100) -> str:
    return f'[limits]\ndrain = "{drain}"\nsessions = {sessions}\n'


def one_on(port: int) -> str:
    return f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n'


def who(client: Client) -> tuple[int, int]:
    """Send EHLO. Return the generation and process id of the worker, zeros if it ends."""
    assert client.reply().startswith("220 ")
    greeting = client.command("EHLO client.example")
    found = re.search(r"^250[- ]GENERATION (\d+) (\d+)$", greeting, re.MULTILINE)
    if not found:
        # Cut while it waited, or in reply to EHLO, which has no enhanced code (RFC 2034).
        assert greeting.startswith((DRAINING, DRAINING.replace(" 4.3.2", "")))
        return 0, 0
    return int(found[1]), int(found[2])


def serving(server: Running) -> tuple[int, int]:
    """Return the generation and the process id of the worker that serves a new session."""
    while True:
        with server.connect() as client:
            found = who(client)
        if found != (0, 0):
            return found


def workers(server: Running) -> set[int]:
    """Return the process ids of the workers."""
    return called(server, "minismtp-worker")


def called(server: Running, name: str) -> set[int]:
    return {pid for pid in server.tree()[1:] if name_of(pid) == name}


def name_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def all_workers(server: Running, count: int) -> set[int]:
    """Return the process ids of the workers once all of them serve."""
    server.wait_until(lambda: server.metric("workers") == count)
    return workers(server)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def serve(config: Path) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "minismtp", "serve", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# Workers


@pytest.mark.parametrize(
    ("cores", "asked", "workers"), [(1, 0, 2), (2, 0, 2), (8, 0, 8), (8, 3, 3)]
)
def test_there_are_as_many_workers_as_cores_unless_the_operator_says_how_many(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, cores: int, asked: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(cores)})
    assert workers_of(Config.load(configure(workers=asked))) == workers


def test_workers_begin_together(configure: Configure, start: Start) -> None:
    """A worker that began alone would get all waiting clients, and keep them."""
    server = start(configure(generation(), workers=3))
    before = server.log.partition(" listening ")[0]
    assert {f"slot {number}" for number in range(3)} <= {*re.findall(r"slot \d", before)}


def test_several_workers_serve(configure: Configure, start: Start) -> None:
    server = start(configure(generation(), workers=3))
    expected = all_workers(server, 3)
    assert len(expected) == 3

    def seen() -> set[int]:
        """Connect all at once, so that an idle worker accepts what a busy one does not."""
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(server.connect()) for _ in range(60)]
            found.update(who(client)[1] for client in crowd)
        return found

    found: set[int] = set()
    server.wait_until(lambda: seen() == expected)


def test_worker_that_was_killed_is_replaced(configure: Configure, start: Start) -> None:
    server = start(configure(generation(), workers=2))
    before = all_workers(server, 2)
    _, victim = serving(server)
    os.kill(victim, signal.SIGKILL)
    server.wait_for_log(rf"error worker died pid={victim} slot=\d status=-9")
    server.wait_until(lambda: len(workers(server) - before) == 1)
    assert victim not in all_workers(server, 2)


def spread(server: Running, count: int) -> list[int]:
    """Return how many workers are bound to each core, with 0 for those that are not bound."""
    bound = [os.sched_getaffinity(pid) for pid in all_workers(server, count)]
    on = Counter(core for cores in bound if len(cores) == 1 for core in cores)
    return sorted(on[core] for core in os.sched_getaffinity(0))


def even(count: int) -> list[int]:
    cores = len(os.sched_getaffinity(0))
    return sorted(count // cores + (number < count % cores) for number in range(cores))


def test_workers_keep_to_all_cores_alike(configure: Configure, start: Start) -> None:
    server = start(configure(generation(), workers=5))
    assert spread(server, 5) == even(5)


def test_process_that_delivers_keeps_to_one_core(configure: Configure, start: Start) -> None:
    server = start(configure())
    server.wait_until(lambda: called(server, "minismtp-queue"))
    [runner] = called(server, "minismtp-queue")
    assert len(os.sched_getaffinity(runner)) == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is only one core")
def test_thread_that_writes_the_schedule_is_not_kept_to_the_core_of_deliveries(
    configure: Configure, start: Start
) -> None:
    server = start(configure())
    server.wait_until(lambda: called(server, "minismtp-queue"))
    [runner] = called(server, "minismtp-queue")

    def roaming() -> int:
        threads = [int(each.name) for each in Path(f"/proc/{runner}/task").iterdir()]
        return sum(os.sched_getaffinity(thread) == os.sched_getaffinity(0) for thread in threads)

    server.wait_until(lambda: roaming() == 1)


def test_new_worker_keeps_to_the_core_of_the_one_that_died(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(), workers=4))
    for victim in all_workers(server, 4):
        os.kill(victim, signal.SIGKILL)
        server.wait_until(lambda victim=victim: victim not in workers(server))  # type: ignore[misc]
        server.wait_until(lambda: len(workers(server)) == 4)
        assert spread(server, 4) == even(4)


def test_new_generation_keeps_to_all_cores_alike(configure: Configure, start: Start) -> None:
    config = configure(generation(), workers=3)
    server = start(config)
    before = all_workers(server, 3)
    with server.connect() as client:  # one of the old ones continues
        who(client)
        reload(server)
        server.wait_until(lambda: len(workers(server) - before) == 3)
        server.wait_until(lambda: len(workers(server) & before) == 1)
        on = [os.sched_getaffinity(pid) for pid in workers(server) - before]
        assert max(Counter(map(frozenset, on)).values()) == max(even(3))


def test_workers_run_on_any_core_without_affinity(configure: Configure, start: Start) -> None:
    server = start(configure(generation(), top="cpu_affinity = false", workers=2))
    server.wait_until(lambda: called(server, "minismtp-queue"))
    pids = all_workers(server, 2) | called(server, "minismtp-queue")
    assert len(pids) == 3
    assert all(os.sched_getaffinity(pid) == os.sched_getaffinity(0) for pid in pids)


def test_places_of_a_killed_worker_are_free_again(configure: Configure, start: Start) -> None:
    server = start(configure(generation(), limits(sessions=3)))
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(server.connect()) for _ in range(3)]
        [(_, worker)] = {who(client) for client in crowd}
        with server.connect() as client:
            assert client.reply().startswith("421 4.7.0 ")
        os.kill(worker, signal.SIGKILL)
        later = [stack.enter_context(server.connect()) for _ in range(3)]
        assert {who(client) for client in later}.isdisjoint({(1, worker)})
        with server.connect() as client:
            assert client.reply().startswith("421 4.7.0 ")
    server.wait_until(lambda: server.metric("connections_active") == 0)


def test_endpoint_that_was_killed_is_replaced(configure: Configure, start: Start) -> None:
    server = start(configure())
    all_workers(server, 1)
    [endpoint] = called(server, "minismtp-http")
    os.kill(endpoint, signal.SIGKILL)
    server.wait_for_log(rf"error metrics endpoint died pid={endpoint} status=-9")
    assert server.http("/readyz") == (200, "ready\n")
    assert "supervisor failed" not in server.log


def test_endpoint_that_cannot_start_does_not_stop_the_mail(
    configure: Configure, start: Start
) -> None:
    server = start(configure())
    all_workers(server, 1)
    shutil.rmtree(server.directory / "state" / "metrics")
    [endpoint] = called(server, "minismtp-http")
    os.kill(endpoint, signal.SIGKILL)
    server.wait_for_log("error metrics endpoint died", 3)
    with server.connect() as client:
        assert client.reply().startswith("220 ")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_server_without_a_worker_is_healthy_and_not_ready(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation()))
    # From here on no worker can start.
    (server.directory / "local_plugins" / "generation.py").write_text("rubbish(")
    os.kill(serving(server)[1], signal.SIGKILL)
    server.wait_for_log("worker died", 2)
    server.wait_until(lambda: server.http("/readyz")[0] == 503)
    assert server.http("/healthz") == (200, "ok\n")
    assert server.metric("workers") == 0


def test_stacks_of_all_threads_are_dumped_on_usr2(configure: Configure, start: Start) -> None:
    server = start(configure(workers=2))
    all_workers(server, 2)
    server.wait_for_log(" queue opened ")
    with server.connect() as client:
        client.greet()
        server.signal(signal.SIGUSR2)
        # The main thread is last, with the module at its top.
        server.wait_for_log(r"^  File .* in _run_module_as_main$", 4)
        dumps = server.log.partition("Process ")[2].split("Process ")
        runner = next(dump for dump in dumps if "mailqueue/" in dump)
        dumps.remove(runner)
        endpoint = next(dump for dump in dumps if "endpoint.py" in dump)
        dumps.remove(endpoint)
        assert name_of(int(endpoint.split()[0])) == "minismtp-http"
        assert name_of(int(runner.split()[0])) == "minismtp-queue"
        assert {int(dump.split()[0]) for dump in dumps} == workers(server)
        for dump in dumps:
            assert re.search(r'server\.py", line \d+ in serve_forever', dump)
            assert re.search(r'worker\.py", line \d+ in wait', dump)
        assert re.search(r'connection\.py", line \d+ in _turn', "".join(dumps))
        assert re.search(
            r"^Thread 0x[0-9a-f]{16}: session [0-9a-f]{12}$", "".join(dumps), re.MULTILINE
        )
        assert client.command("NOOP") == "250 2.0.0 ok"


def test_death_of_the_supervisor_ends_all_processes(configure: Configure, start: Start) -> None:
    port = free_port()
    server = start(configure(limits(drain="1h"), listeners=one_on(port), workers=2))
    all_workers(server, 2)
    server.wait_for_log(" queue opened ")
    children = server.tree()[1:]
    names = ["minismtp-http", "minismtp-queue", "minismtp-worker", "minismtp-worker"]
    assert sorted(map(name_of, children)) == names
    with server.connect() as client:
        client.begin_data("orphan@example.org")
        server.process.kill()
        client.send("text\r\n.\r\n")
        assert client.reply().startswith("250 2.0.0 ")
        assert client.rest().startswith(f"{DRAINING} (id ")
    server.wait_until(lambda: not any(alive(pid) for pid in children))
    assert refused(port)
    assert len(server.mail("orphan")) == 1


def test_next_server_starts_while_the_workers_of_a_killed_one_still_drain(
    configure: Configure, start: Start
) -> None:
    config = configure(generation(), limits(drain="1h"))
    server = start(config)
    with server.connect() as client:
        client.begin_data("orphan@example.org")
        server.process.kill()
        server.process.wait()
        another = start(config)
        with another.connect() as other:
            assert who(other)[0] == 1
        client.send("text\r\n.\r\n")
        assert client.reply().startswith("250 2.0.0 ")
    assert len(server.mail("orphan")) == 1


def test_stop_and_continuation_is_no_signal() -> None:
    """Python's `sigtimedwait` returned a random number then, and a worker ended."""
    pid = os.fork()
    if not pid:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while next_signal(0.01) == signal.SIGALRM:
            pass
        os._exit(1)
    for _ in range(50):
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        time.sleep(0.02)  # its time passes
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, os.WCONTINUED)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_worker_goes_on_after_it_was_stopped(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1), limits(drain="1h"), workers=1))
    before = all_workers(server, 1)
    with server.connect() as client:  # after the reload the old worker waits for its end
        who(client)
        configure(generation(2), limits(drain="1h"), workers=1)
        reload(server)
        both = before | all_workers(server, 1)
        for _ in range(4):
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in both:
                    os.kill(pid, number)
                time.sleep(1.1)  # longer than its time-outs
        assert client.command("NOOP").startswith("250 ")
        assert serving(server)[0] == 2
        assert workers(server) == both


# The start


def test_plugin_that_cannot_start_ends_the_server_with_78(configure: Configure) -> None:
    config = configure(generation(fail="the database is away"), workers=2)
    done = serve(config)
    assert done.returncode == 78
    [told] = [line for line in done.stderr.splitlines() if line.startswith("minismtp: ")]
    source = re.escape(str(config.parent / "local_plugins" / "generation.py"))
    place = re.escape(f"minismtp: {config}: plugins[2] generation, line 26")
    problem = "on_start: RuntimeError: the database is away"
    assert re.fullmatch(rf"{place}: {problem} \({source}:\d+\)", told)


def test_option_that_a_plugin_does_not_know_ends_the_server_with_78(configure: Configure) -> None:
    config = configure('[[plugins]]\nuse = "generation"\nnumer = 1\n')
    done = serve(config)
    assert done.returncode == 78
    assert re.search(r"(?m)^minismtp: .*: plugins\[2\] generation, line \d+: numer: ", done.stderr)
    assert "did you mean" in done.stderr


@pytest.mark.parametrize(
    "taken", ["listeners[0] smtp, line {}: address", "metrics.address, line {}"]
)
def test_port_in_use_ends_the_server_with_1_and_one_line(configure: Configure, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        if taken.startswith("metrics"):
            config = configure(metrics=f'[metrics]\naddress = "127.0.0.1:{port}"\n')
        else:
            config = configure(listeners=one_on(port))
        done = serve(config)
    assert done.returncode == 1
    written = f'address = "127.0.0.1:{port}"'
    line = 1 + config.read_text().splitlines().index(written)
    place = f"minismtp: {config}: {taken.format(line)}: cannot listen on 127.0.0.1:{port}"
    assert done.stderr.startswith(f"{place}: Address already in use by ")
    assert done.stderr.endswith(f"(process {os.getpid()}); stop it, or choose another port\n")


@pytest.mark.parametrize("port", [0, 1])
def test_second_server_on_the_same_state_directory_leaves_the_first_one_its_files(
    configure: Configure, start: Start, port: int
) -> None:
    server = start(configure(listeners=one_on(port and free_port())))
    serving_before = server.metric("connections_total", result="accepted")
    done = serve(server.config)
    assert done.returncode == 78
    assert done.stderr == (
        f"minismtp: {server.config}: state_directory: {server.directory}/state is in use by another"
        f" server, process {server.process.pid}\n"
    )
    with server.connect() as client:
        client.reply()
    accepted = serving_before + 1
    server.wait_until(lambda: server.metric("connections_total", result="accepted") == accepted)


def test_state_directory_that_cannot_be_made_ends_the_server_with_one_line(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    (tmp_path / "state").write_text("a file")
    done = serve(config)
    assert done.returncode == 1
    assert done.stderr == f"minismtp: {tmp_path}/state: File exists\n"


def test_more_workers_than_there_are_places_for_are_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"workers, line 4: expected integer <= 64"):
        Config.load(configure(workers=65))


# Sends itself HUP as soon as that is blocked, so long before anything listens.
EAGER: Final = """
import os, signal, sys

if not os.fork():
    server = os.getppid()
    while True:
        with open(f"/proc/{server}/status") as file:
            blocked = next(line for line in file if line.startswith("SigBlk"))
        if int(blocked.split()[1], 16) & 1:
            break
    for _ in range(3):
        os.kill(server, signal.SIGHUP)
    os._exit(0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_reload_that_is_asked_for_during_the_start_comes_after_it(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(1), workers=2), command=(sys.executable, "-c", EAGER))
    server.wait_for_log(r" info reloaded$")
    assert serving(server)[0] == 1
    assert len(all_workers(server, 2)) >= 2


# Python imports it first: then a signal arrives with each import of the command and what it needs.
SIGNALLING: Final = """
import os, signal, sys

NUMBER = int(os.environ["SIGNAL"])

class Signalling:
    began = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.began = cls.began or name == "minismtp.cli"
        if cls.began:
            os.kill(os.getpid(), NUMBER)

sys.meta_path.insert(0, Signalling)
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("command", ["module", "script"])
def test_signal_at_any_import_of_the_start_ends_nothing(
    configure: Configure,
    tmp_path: Path,
    number: signal.Signals,
    command: str,
) -> None:
    (site := tmp_path / "site").mkdir()
    (site / "sitecustomize.py").write_text(SIGNALLING)
    port = free_port()
    config = configure(generation(), listeners=one_on(port))
    arguments = [sys.executable, "-m", "minismtp"] if command == "module" else [str(SCRIPT)]
    server = subprocess.Popen(
        [*arguments, "serve", "--config", config],
        env={**os.environ, "PYTHONPATH": str(site), "SIGNAL": str(int(number))},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stderr is not None
        wanted = " reloaded" if number == signal.SIGHUP else " listening "
        for line in server.stderr:
            if wanted in line:
                server.terminate()
        assert server.wait() == 0


def test_hup_before_python_itself_has_started_is_kept_where_it_was_blocked(
    configure: Configure, tmp_path: Path
) -> None:
    """As by `env --block-signal=HUP`, which is what a script can do that sends HUP so early."""
    config = configure(generation(), listeners=one_on(free_port()))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        server = subprocess.Popen(
            [sys.executable, "-m", "minismtp", "serve", "--config", config],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    server.send_signal(signal.SIGHUP)
    with server:
        assert server.stderr is not None
        for line in server.stderr:
            if " reloaded" in line:
                server.terminate()
        assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_that_is_asked_for_during_the_imports_comes_at_once_without_a_traceback(
    configure: Configure, tmp_path: Path, number: signal.Signals
) -> None:
    (site := tmp_path / "site").mkdir()
    (site / "sitecustomize.py").write_text(SIGNALLING)
    done = subprocess.run(
        [sys.executable, "-m", "minismtp", "serve", "--config", configure(generation())],
        env={**os.environ, "PYTHONPATH": str(site), "SIGNAL": str(int(number))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [
        (["-m", "minismtp", "serve", "--config", "/nowhere"], True),
        ([str(SCRIPT), "serve", "--config", "/nowhere"], True),
        (["-m", "minismtp", "check", "--config", "/nowhere"], False),
        (["-c", "import minismtp", "serve"], False),
        (["-m", "other", "serve"], False),
        (["other.py", "serve"], False),
    ],
    ids=["module", "script", "another command", "no command", "another module", "another script"],
)
def test_signals_are_blocked_from_the_first_import_on_but_for_a_library(
    tmp_path: Path, arguments: list[str], *, blocks: bool
) -> None:
    (tmp_path / "other.py").write_text("import minismtp")
    report = "import atexit, signal\natexit.register(lambda: print(signal.SIGHUP in signal."
    (tmp_path / "sitecustomize.py").write_text(report + "pthread_sigmask(signal.SIG_BLOCK, [])))")
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith(f"{blocks}\n"), done.stderr


def test_standard_streams_that_are_closed_become_dev_null(configure: Configure) -> None:
    """Otherwise the log is written to the socket or file that gets descriptor 2."""
    port = free_port()
    config = configure(generation(), listeners=one_on(port))
    command = [sys.executable, "-m", "minismtp", "serve", "--config", str(config)]
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    process = subprocess.Popen([*closing, *command], start_new_session=True)
    try:
        while refused(port):
            time.sleep(0.05)
            assert process.poll() is None
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            assert sock.recv(4) == b"220 "
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [process.pid, *children]:
            streams = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)}
            assert streams == {"/dev/null"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# A new configuration


def reload(server: Running, count: int = 1) -> None:
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" info reloaded$", count)


def test_reload_brings_a_new_generation(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1), workers=2))
    before = all_workers(server, 2)
    at_start = server.metric("config_last_reload_success_timestamp_seconds")
    configure(generation(2), workers=2)
    reload(server)
    server.wait_until(lambda: serving(server)[0] == 2)
    server.wait_until(lambda: not any(alive(pid) for pid in before))
    assert len(all_workers(server, 2)) == 2
    assert server.metric("config_last_reload_successful") == 1
    assert server.metric("config_last_reload_success_timestamp_seconds") > at_start
    assert "worker died" not in server.log


def test_reload_changes_the_number_of_workers(configure: Configure, start: Start) -> None:
    server = start(configure(workers=1))
    configure(workers=3)
    reload(server)
    server.wait_until(lambda: len(workers(server)) == 3)
    assert server.metric("workers") == 3


def test_message_in_transfer_is_taken_by_the_old_generation(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(1), limits(drain="1h"), workers=2))
    with server.connect() as client, server.connect() as idle:
        _, old = who(client)
        client.command("MAIL FROM:<>")
        client.command("RCPT TO:<moving@example.org>")
        client.command("DATA")
        idle.greet()
        configure(generation(2), workers=2)
        reload(server)
        server.wait_until(lambda: serving(server)[0] == 2)
        assert alive(old)
        client.send("Subject: moving\r\n\r\ntext\r\n.\r\n")
        assert client.reply().startswith("250 2.0.0 ")
        idle.command("QUIT")
        assert alive(old)
    server.wait_until(lambda: not alive(old))
    assert server.stored("moving") == b"Subject: moving\r\n\r\ntext\r\n"


def test_sessions_go_on_after_a_reload(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1), limits(drain="1h")))
    with server.connect() as client:
        _, old = who(client)
        reload(server)
        for _ in range(2):
            client.command("MAIL FROM:<>")
            client.command("RCPT TO:<after@example.org>")
            client.command("DATA")
            client.send("text\r\n.\r\n")
            assert client.reply().startswith("250 2.0.0 ")
        assert client.command("QUIT").startswith("221 ")
    server.wait_until(lambda: not alive(old))
    assert len(server.mail("after")) == 2


def test_sessions_are_hurried_when_the_drain_time_has_passed(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(1), limits(drain="2s")))
    with server.connect() as client:
        client.greet()
        reload(server)
        assert client.command("NOOP").startswith("250 ")
        assert client.rest().startswith(f"{DRAINING} (id ")


def test_the_next_reload_hurries_the_generation_before(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1), limits(drain="1h")))
    with server.connect() as client:
        client.greet()
        reload(server, 1)
        assert client.command("NOOP").startswith("250 ")
        reload(server, 2)
        assert client.rest().startswith(f"{DRAINING} (id ")


def test_stop_after_a_reload_lets_the_old_generation_finish_too(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(1), limits(drain="1h")))
    with server.connect() as client, server.connect() as idle:
        client.begin_data("twice@example.org")
        idle.greet()
        reload(server)
        server.signal(signal.SIGTERM)
        assert idle.rest().startswith(f"{DRAINING} (id ")
        server.wait_until(lambda: len(workers(server)) == 1)
        client.send("text\r\n.\r\n")
        assert client.reply().startswith("250 2.0.0 ")
    assert server.wait() == 0


def test_old_worker_that_hangs_at_its_end_is_killed(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1, hang=True), limits(drain="0s")))
    _, old = serving(server)
    configure(generation(2))
    reload(server)
    server.wait_until(lambda: not alive(old))
    assert serving(server)[0] == 2


def test_no_connection_is_refused_during_reloads(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1), workers=2))
    for number in range(2, 5):
        configure(generation(number), workers=2)
        server.signal(signal.SIGHUP)
        # An old worker that is ending may accept the connection: it greets, then replies 421.
        while serving(server)[0] != number:
            pass
        server.wait_for_log(r" info reloaded$", number - 1)


def test_reload_asked_for_during_a_reload_is_not_forgotten(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(1), workers=2))
    configure(generation(2), workers=2)
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" info reloading$")
    configure(generation(3), workers=2)
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" info reloaded$", 2)
    server.wait_until(lambda: serving(server)[0] == 3)


def test_reload_moves_a_listener_and_closes_the_old_port(
    configure: Configure, start: Start
) -> None:
    port = free_port()
    server = start(configure(generation(1)))
    before = server.port()
    configure(generation(2), listeners=one_on(port))
    reload(server)
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        assert sock.recv(4) == b"220 "
    # If no process accepts there, no process may keep the socket open and queue connections.
    server.wait_until(lambda: refused(before))


def test_reload_says_that_another_address_of_its_port_needs_a_restart(
    configure: Configure, start: Start
) -> None:
    port = free_port()
    server = start(configure(listeners=one_on(port)))
    configure(listeners=one_on(port).replace("127.0.0.1", "*"))
    server.signal(signal.SIGHUP)
    server.wait_for_log(
        rf"cannot listen on \*:{port}: .* moves to .* at a restart, not at a reload"
    )
    with server.connect() as client:
        assert client.reply().startswith("220 ")


def test_listeners_keep_their_sockets_over_a_reload(configure: Configure, start: Start) -> None:
    server = start(configure(generation(1), listeners=TWO))
    configure(generation(2), listeners=TWO)
    reload(server)
    server.wait_until(lambda: serving(server)[0] == 2)
    for name in ("smtp", "second"):
        with server.connect(name) as client:
            client.reply()
            client.command(f"EHLO to-{name}.example")
        server.wait_for_log(rf"session closed .* listener={name} .*helo=to-{name}\.example")


Mistake = Literal["syntax", "key", "port", "plugin"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Yield a port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        ("syntax", r"{config}: line \d+: expected "),
        ("key", r"{config}: plugins\[2\] generation, line \d+: numer: .*did you mean 'number'"),
        ("port", r"{config}: listeners\[0\] smtp, line \d+: address: cannot listen on .* in use"),
    ],
)
def test_mistake_in_the_new_configuration_leaves_the_old_one_in_force(
    configure: Configure, start: Start, taken_port: int, mistake: Mistake, reason: str
) -> None:
    server = start(configure(generation(1), workers=2))
    before = all_workers(server, 2)
    match mistake:
        case "syntax":
            server.config.write_text("[[listeners")
        case "key":
            configure('[[plugins]]\nuse = "generation"\nnumer = 2\n')
        case _:
            configure(listeners=one_on(taken_port))
    server.signal(signal.SIGHUP)
    server.wait_until(lambda: server.metric("config_last_reload_successful") == 0)
    found = [line for line in server.log.splitlines() if str(server.config) in line]
    assert len(found) == 1, found
    assert re.search(reason.format(config=re.escape(str(server.config))), found[0])
    assert serving(server)[0] == 1
    assert all_workers(server, 2) == before
    assert server.http("/readyz") == (200, "ready\n")


def test_plugin_that_cannot_start_leaves_the_old_generation_in_service(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(1), workers=2))
    before = all_workers(server, 2)
    with server.connect() as client:
        client.greet()
        configure(generation(2, fail="the database is away"), workers=2)
        server.signal(signal.SIGHUP)
        server.wait_until(lambda: server.metric("config_last_reload_successful") == 0)
        server.wait_for_log(r"^minismtp: .*plugins\[2\] generation, .*the database is away")
        assert client.command("NOOP") == "250 2.0.0 ok"
    assert serving(server)[0] == 1
    server.wait_until(lambda: workers(server) == before)
    # The corrected configuration is used, and the gauge shows it.
    configure(generation(3), workers=2)
    reload(server)
    server.wait_until(lambda: serving(server)[0] == 3)
    assert server.metric("config_last_reload_successful") == 1


MEASURED: Final = """
from minismtp import Instrumented, ServerInfo, hookimpl, plugin

@plugin
class Measured(Instrumented):
    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._greetings = self.counter("greetings", "EHLO.", kind=("esmtp", "smtp"))
        self.gauge("processes", "Processes.").set(1)
        self.gauge("slots", "Slots.", across="max").set(server.slot)
        self._length = self.histogram("names", "Lengths of names.", buckets=(5, 50))

    @hookimpl
    def on_helo(self, session) -> None:
        self._greetings.add(kind="esmtp" if session.esmtp else "smtp")
        self._length.observe(len(session.helo))
"""


def test_metrics_of_a_plugin_are_right_in_all_processes_and_over_reloads(
    configure: Configure, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "local_plugins" / "measured.py").write_text(MEASURED)
    table = '[[plugins]]\nuse = "measured"\n'
    server = start(configure(generation(1), table, workers=2))

    def greetings() -> float:
        return server.metric("plugin_greetings_total")

    before = all_workers(server, 2)
    seen = {serving(server)[1] for _ in range(30)}
    server.wait_until(lambda: server.metric("plugin_greetings_total", kind="esmtp") == 30)
    assert seen <= before
    assert server.metric("plugin_processes") == 3  # with the process that delivers
    configure(generation(2), table, workers=2)
    reload(server)
    server.wait_until(lambda: serving(server)[0] == 2)
    server.wait_until(lambda: not any(alive(pid) for pid in before))
    server.wait_until(lambda: server.metric("plugin_greetings_total", plugin="measured") > 30)
    server.wait_until(lambda: server.metric("plugin_processes") == 3)
    server.wait_until(lambda: server.metric("plugin_names_count") == greetings())
    count = greetings()
    assert server.metric("plugin_slots") > 0
    assert server.metric("plugin_greetings_total", kind="smtp") == 0
    configure(generation(3), workers=2)
    reload(server, 2)
    server.wait_until(lambda: server.metric("plugin_processes") == 0)
    assert greetings() >= count


def test_files_of_the_metrics_do_not_grow_with_reloads_and_deaths(
    configure: Configure, start: Start
) -> None:
    server = start(configure(generation(), limits(drain="1s"), workers=2))

    all_workers(server, 2)
    for number in range(1, 6):
        old = workers(server)
        reload(server, number)
        server.wait_until(lambda old=old: not any(alive(pid) for pid in old))  # type: ignore[misc]
        all_workers(server, 2)

    def counted(number: int) -> bool:
        return server.metric("connections_total", result="accepted") == number

    for number in range(1, 4):
        _, victim = serving(server)
        server.wait_until(lambda number=number: counted(number))  # type: ignore[misc]
        os.kill(victim, signal.SIGKILL)
        server.wait_until(lambda victim=victim: victim not in workers(server))  # type: ignore[misc]
        all_workers(server, 2)
    names = {path.name for path in (server.directory / "state" / "metrics").iterdir()}
    kinds = {name.rpartition("_")[0] for name in names}
    assert {"counter", "histogram", "gauge_livesum"} <= kinds
    # Two generations at once, with a runner each, have used six slots, and no others; the endpoint
    # counts as -1.
    assert names <= {f"{kind}_{slot}.db" for kind in kinds for slot in range(-1, 6)}
    # What was counted in a slot stays counted when another worker takes it.
    assert counted(3)


def test_pause_before_a_new_worker_grows_with_short_lives_and_stays_short() -> None:
    found = list(itertools.accumulate([0.1] * 6, pause, initial=0.0))
    assert found[:4] == [0.0, 1.0, 2.0, 4.0]
    assert set(found[4:]) == {5.0}
    assert pause(5.0, lived=10.0) == 0.0
