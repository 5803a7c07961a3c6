"""Fixtures for all tests: programs, certificates, running servers, clients with a deadline.

In importlib mode no test can import this file at run time: fixtures hand out the instances, and
tests name the classes for mypy below `if TYPE_CHECKING`.
"""

import contextlib
import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

import hypothesis
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families
from schedule import pytest_xdist_make_scheduler  # noqa: F401 - a hook
from snippets import CLEAR, MAILBOXES, MX, SUBMISSION, SUBMISSIONS, listener

from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from authority import Authority

# Below nohup, or in the background of a shell, signals are ignored, and so they would be by each
# process that a test starts. One with a handler is back to its default there.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

# Hundreds of servers and commands are started. Each would compile the whole source again, and take
# twice the time, where Python is told to keep no bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What tests mount is in a namespace of their process, so that the kernel unmounts it when that
# process is killed. Else the next run could not remove its directory, and would end with an error.
if os.geteuid() == 0 and ctypes.CDLL(None).unshare(0x00020000) == 0:  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rslave", "/"], check=True)

DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
_SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_CONFIGURATION: Final = """\
hostname = "mx.example.org"
state_directory = "state"
plugin_path = ["local_plugins"]
workers = {workers}
{top}
"""
_LISTENERS: Final = listener("smtp", CLEAR)
_METRICS: Final = """
[metrics]
address = "127.0.0.1:0"
"""
_WHOLE: Final = (
    MX
    + SUBMISSION
    + SUBMISSIONS
    + listener("ipv6", CLEAR, address="[::1]:0")
    + listener("local", CLEAR, address="unix:smtp.sock")
    + '[[plugins]]\nuse = "password_file"\npath = "passwords"\n'
)
T = TypeVar("T")

# `make test` takes the same examples each time, so that no landing depends on chance; the other
# profiles look for new ones, `thorough` for many: `make fuzz`, `make test-thorough`. An example
# may stall on a busy machine; timings belong to benchmarks.
hypothesis.settings.register_profile("minismtp", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("random", deadline=None, database=None, print_blob=True)
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("random"), max_examples=5000
)
hypothesis.settings.load_profile("minismtp")


def wait_until(condition: Callable[[], T | None], state: Callable[[], str] = str) -> T:
    """Return the first true value of `condition`; fail with the `state` if it takes too long."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"in vain: {condition}\n{state()}"
        time.sleep(0.01)
    return value


class Client:
    """A client that sends exactly what a test wants. Every read has a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE)
        self.socket = sock
        self.buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, text: str | bytes) -> None:
        """Send octets as they are."""
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def command(self, line: str) -> str:
        """Send a line and return the reply."""
        self.send(f"{line}\r\n")
        return self.reply()

    def reply(self) -> str:
        """Return the next whole reply, its lines separated by line feeds."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            while b"\r\n" not in self.buffer:
                data = self.socket.recv(65536)
                assert data, f"connection closed after {lines} {self.buffer!r}"
                self.buffer += data
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            lines.append(line.decode())
        return "\n".join(lines)

    def greet(self) -> str:
        """Read the banner, send EHLO, and return the reply."""
        self.reply()
        return self.command("EHLO client.example")

    def begin_data(self, recipient: str, sender: str = "sender@client.example") -> None:
        """Send commands until the 354 reply to DATA."""
        self.greet()
        self.command(f"MAIL FROM:<{sender}>")
        self.command(f"RCPT TO:<{recipient}>")
        assert self.command("DATA").startswith("354")

    def secure(self, context: ssl.SSLContext, *, ragged: bool = True) -> None:
        """Make the TLS handshake; with `ragged` the server may end TLS without close_notify."""
        self.socket = context.wrap_socket(
            self.socket, server_hostname="mx.example.org", suppress_ragged_eofs=ragged
        )

    def rest(self, *, reset: bool = False) -> str:
        """Return all input until the server closes the connection, or resets it if `reset`."""
        with contextlib.suppress(ConnectionResetError) if reset else contextlib.nullcontext():
            while data := self.socket.recv(65536):
                self.buffer += data
        rest, self.buffer = self.buffer, b""
        return rest.decode(errors="replace")


class Running:
    """A server that a test started in `directory`, with the configuration in `config`."""

    def __init__(self, config: Path, command: tuple[str, ...], descriptors: list[int]) -> None:
        self.config = config
        self.directory = config.parent
        self._log = self.directory / "log"
        self._addresses: dict[str, str] = {}
        with self._log.open("ab") as log:
            self._begin = log.tell()  # another server may have run here before
            self.process = subprocess.Popen(
                [*command, sys.executable, "-m", "minismtp", "serve", "--config", config],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=descriptors,
            )

    @property
    def log(self) -> str:
        """What the server wrote so far, in whole lines."""
        return self._log.read_bytes()[self._begin :].decode().rpartition("\n")[0]

    def wait_for_log(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Return the `count`th match of a regular expression in the log."""

        def find() -> re.Match[str] | None:
            over = self.process.poll() is not None
            found = list(re.finditer(pattern, self.log, re.MULTILINE))
            assert len(found) >= count or not over, f"server ended, no {pattern!r} in:\n{self.log}"
            return found[count - 1] if len(found) >= count else None

        return wait_until(find, lambda: f"{pattern} in:\n{self._log_with_stacks()}")

    def wait_until(self, condition: Callable[[], T]) -> T:
        """Return the first true value of `condition`."""
        return wait_until(condition, self._log_with_stacks)

    def _log_with_stacks(self) -> str:
        """Return the log of a server that does not do what a test waits for.

        SIGQUIT makes each process write the stacks of its threads.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGQUIT)
        time.sleep(1)
        return self.log

    def address(self, listener: str = "smtp") -> str:
        """Return where a listener is: host:port, [host]:port or unix:path."""
        if listener not in self._addresses:  # the log may have become long
            found = self.wait_for_log(rf" listening listener={listener} address=(\S+)")
            self._addresses[listener] = found[1]
        return self._addresses[listener]

    def port(self, listener: str = "smtp") -> int:
        """Return the port of a listener."""
        return int(self.address(listener).rpartition(":")[2])

    def connect(self, listener: str = "smtp", *, source: str = "") -> Client:
        """Connect; the banner is not read yet."""
        address = self.address(listener)
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address.removeprefix("unix:"))
            return Client(sock)
        target = ("::1" if address.startswith("[") else "127.0.0.1", self.port(listener))
        origin = (source, 0) if source else None
        return Client(socket.create_connection(target, DEADLINE, origin))

    def mail(self, local: str) -> list[bytes]:
        """Return the messages stored for a user, in no order."""
        return [path.read_bytes() for path in (self.directory / "mail" / local).glob("new/*")]

    def stored(self, local: str) -> bytes:
        """Return a user's only message as the client sent it, without the trace fields."""
        [message] = self.mail(local)
        return content_of(message)

    def http(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Ask the metrics endpoint, and return the status and the body."""
        port = int(self.wait_for_log(r" serving metrics address=127\.0\.0\.1:(\d+)")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of the metric `minismtp_` + `name` with these labels."""
        wanted = labels.items()
        families = text_string_to_metric_families(self.http("/metrics")[1])
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"minismtp_{name}" and wanted <= sample.labels.items()
        )

    def tree(self) -> list[int]:
        """Return the processes of the server, the supervisor first."""
        return [self.process.pid, *_children(self.process.pid)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the server, and return its exit status."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found.append(int(status.parent.name))
    return found


def content_of(message: bytes) -> bytes:
    """Return a stored message without the fields that the server put above it."""
    end = re.search(
        rb"\AReturn-Path:.*\r\nDelivered-To:.*\r\nReceived:.*\r\n(?:\t.*\r\n)*", message
    )
    assert end is not None, message[:500]
    return message[end.end() :]


@dataclass(frozen=True)
class TlsFiles:
    """A certificate for mx.example.org with its key, and the authority that clients trust."""

    certificate: Path
    key: Path
    authority: Path

    @property
    def table(self) -> str:
        """The table for the configuration."""
        return f'[tls]\ncertificate = "{self.certificate}"\nkey = "{self.key}"\n'

    def client(self) -> ssl.SSLContext:
        """Make the context of a client that trusts the authority."""
        return ssl.create_default_context(cafile=self.authority)


class Configure(Protocol):
    """Writes a configuration file and returns its path."""

    def __call__(
        self,
        *tables: str,
        listeners: str = _LISTENERS,
        plugins: str = MAILBOXES,
        metrics: str = _METRICS,
        top: str = "",
        workers: int = 1,
    ) -> Path:
        """Write it; `tables` come after all others."""


def configure_in(directory: Path) -> Configure:
    """Return the function that writes the configuration of the servers in a directory."""

    def configure(
        *tables: str,
        listeners: str = _LISTENERS,
        plugins: str = MAILBOXES,
        metrics: str = _METRICS,
        top: str = "",
        workers: int = 1,
    ) -> Path:
        (directory / "local_plugins").mkdir(exist_ok=True)
        path = directory / "minismtp.toml"
        text = _CONFIGURATION.format(workers=workers, top=top)
        path.write_text("\n".join([text, metrics, listeners, plugins, *tables]))
        return path

    return configure


@contextlib.contextmanager
def running(
    config: Path, *, command: tuple[str, ...] = (), keep: Iterable[socket.socket] = ()
) -> Iterator[Running]:
    """Run a server that listens when the block begins and ends with it.

    `command` is put before its own; it inherits the sockets in `keep`.
    """
    server = Running(config, command, [sock.fileno() for sock in keep])
    try:
        server.wait_for_log(" listening ")
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _signal_mask() -> Iterator[None]:
    """Restore the mask of signals that `minismtp serve` changes in the process of a test."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def _no_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the watched files of other tests, whose plugins may still be in memory."""
    monkeypatch.setattr("minismtp.values.durable_files._watched", weakref.WeakSet())


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Make a certificate and its authority."""
    directory = tmp_path_factory.mktemp("tls")
    files = TlsFiles(directory / "chain.pem", directory / "key.pem", directory / "ca.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("mx.example.org", "localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(files.authority)
    issued.private_key_pem.write_to_path(files.key)
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(files.certificate, append=number > 0)
    return files


class Run(Protocol):
    """Runs a server while the block runs."""

    def __call__(
        self, config: Path, *, command: tuple[str, ...] = ()
    ) -> AbstractContextManager[Running]:
        """Run it; `command` is put before its own."""


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a function that runs a server, for modules that use one for all their tests."""
    return running


class Launch(Protocol):
    """Runs a server for a module's tests."""

    def __call__(
        self,
        *tables: str,
        listeners: str = _LISTENERS,
        plugins: str = MAILBOXES,
        top: str = "",
        workers: int = 1,
        files: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[Running]:
        """Run it, in a directory of its own that has these files, until the block ends."""


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Return a function that runs a server while a block runs."""

    @contextlib.contextmanager
    def launch(
        *tables: str,
        listeners: str = _LISTENERS,
        plugins: str = MAILBOXES,
        top: str = "",
        workers: int = 1,
        files: Mapping[str, str] | None = None,
    ) -> Iterator[Running]:
        directory = tmp_path_factory.mktemp("server")
        configure = configure_in(directory)
        config = configure(*tables, listeners=listeners, plugins=plugins, top=top, workers=workers)
        for name, text in (files or {}).items():
            (directory / name).write_text(text)
        with running(config) as server:
            yield server

    return launch


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tls_files: TlsFiles) -> Iterator[Running]:
    """Run one server with every kind of listener, for all tests that do not change it.

    Each test uses its own mailboxes. `alice` logs in with the password `secret`.
    """
    directory = tmp_path_factory.mktemp("server")
    (directory / "passwords").write_text(f"alice:{hash_password('secret')}\n")
    configure = configure_in(directory)
    limits = '[limits]\nlogin_backoff = "0s"\n'
    with running(configure(tls_files.table, limits, listeners=_WHOLE, workers=2)) as server:
        yield server


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Return a function that writes a configuration into the test's own directory."""
    return configure_in(tmp_path)


@pytest.fixture
def configure_at(tmp_path: Path) -> Callable[[str], Configure]:
    """Return a function that makes such a function for a named directory in `tmp_path`."""

    def configure_at(name: str) -> Configure:
        (tmp_path / name).mkdir(exist_ok=True)
        return configure_in(tmp_path / name)

    return configure_at


class Start(Protocol):
    """Starts a server."""

    def __call__(
        self, config: Path, *, command: tuple[str, ...] = (), keep: Iterable[socket.socket] = ()
    ) -> Running:
        """Start it as `running` does; it ends with the test."""


@pytest.fixture
def start() -> Iterator[Start]:
    """Yield a function that starts servers; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(
            config: Path, *, command: tuple[str, ...] = (), keep: Iterable[socket.socket] = ()
        ) -> Running:
            return stack.enter_context(running(config, command=command, keep=keep))

        yield start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "require_program" in item.fixturenames:
            item.add_marker("service")


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """Return a function that finds a program's path.

    A test whose program is missing is skipped; it fails where $MINISMTP_REQUIRE_SERVICES is 1.
    """

    def require(program: str) -> str:
        path = shutil.which(program, path=_SYSTEM_PATH)
        if path is not None:
            return path
        problem = f"{program} is not installed; `make services` installs it"
        if os.environ.get("MINISMTP_REQUIRE_SERVICES") == "1":
            pytest.fail(problem)
        pytest.skip(problem)

    return require


@pytest.fixture(scope="module")
def authority(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> "Iterator[Authority]":
    """Run a certificate authority (pebble)."""
    from authority import running_authority  # noqa: PLC0415 - it imports this file

    with running_authority(tmp_path_factory.mktemp("pebble"), require_program) as running:
        yield running
