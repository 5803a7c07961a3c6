"""Counts the calls that mail costs, which are the same on every machine of one Python version.

    make calls
    make calls ARGS="--check"        exit status 1 if a budget is exceeded
    make calls ARGS="--functions message"   which functions are called how often
    make calls ARGS="--time 2000"    CPU time, of which only ratios within one minute mean anything

Each row of budget.toml is one scenario: sessions in memory with the real protocol, decisions,
guards, log, metrics and decision log, but without a network. Only the calls of the session's own
thread count for the budget. What the threads that write log and metrics do later is in the column
"later", so that work which only moved there is seen.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import random
import socket
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minismtp.config import Config
from minismtp.delivery.attempt import Attempt, DeliveryContext
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.specs import ServerInfo
from minismtp.mail.content import Content
from minismtp.mail.envelope import Envelope
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.session import Session, TlsInfo
from minismtp.mailqueue.metrics import OutboundMetrics
from minismtp.mailqueue.runner import Runner, RunnerContext
from minismtp.runtime import metrics
from minismtp.runtime.decision_log import DecisionLog
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.runtime.session_limits import Admission
from minismtp.runtime.suspects import Suspects
from minismtp.runtime.thread_activity import Activity
from minismtp.server.listener import Server, Sessions
from minismtp.session.listener_context import ListenerContext, new_id
from minismtp.session.receiver import Receiver
from minismtp.storage.spool import Spool
from minismtp.values.passwords import hash_password
from minismtp.values.threads import WriteBehind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

HERE: Final = Path(__file__).parent
BUDGET: Final = HERE / "budget.toml"
CONFIG: Final = """
hostname = "bench.example.org"
state_directory = "{directory}"
plugin_path = ["{here}/plugins"]

[[listeners]]
name = "smtp"
address = "127.0.0.1:2525"
tls = "none"

[[listeners]]
name = "submission"
address = "127.0.0.1:2587"
kind = "submission"
tls = "none"
{plugins}
"""
DISCARD: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "discard"
"""
STAGES: Final = f'[[plugins]]\nuse = "every_stage"\n{DISCARD}'
RELAY: Final = '[[plugins]]\nuse = "relay"\nnetworks = ["127.0.0.0/8"]\n'
USERS: Final = '[[plugins]]\nuse = "password_file"\npath = "{directory}/users"\n'

GROUP: Final = (
    b"MAIL FROM:<sender@client.example> SIZE=5200\r\nRCPT TO:<user1@example.org>\r\nDATA\r\n"
)
FIELDS: Final = (
    b"From: Sender <sender@client.example>\r\nTo: user1@example.org\r\n"
    b"Date: Mon, 01 Jun 2026 12:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n"
    b"Subject: a message of five thousand octets\r\n\r\n"
)
CONTENT: Final = FIELDS + 64 * (77 * b"x" + b"\r\n") + b".\r\n"
MESSAGES: Final = 20
LOGIN: Final = base64.b64encode(b"\0user1\0secret")


@dataclass
class Calls:
    """How often functions were called: of Python, of C, and later, by the threads that write."""

    python: Counter[str] = field(default_factory=Counter)
    c: Counter[str] = field(default_factory=Counter)
    later: Counter[str] = field(default_factory=Counter)

    def counting(self, *, later: bool = False) -> Callable[[FrameType, str, object], None]:
        """Return a function for `sys.setprofile` that counts."""
        python, c = (self.later, self.later) if later else (self.python, self.c)

        def count(frame: FrameType, event: str, function: object) -> None:
            if event == "call":
                code = frame.f_code
                python[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1
            elif event == "c_call":
                module = getattr(function, "__module__", None) or ""
                c[f"{module}.{getattr(function, '__qualname__', repr(function))}"] += 1

        return count


class Place:
    """A worker's parts in one process, without processes, ports and threads that write."""

    def __init__(self, directory: Path, plugins: str) -> None:
        self.directory = directory
        plugins = plugins.replace("{directory}", str(directory))
        text = CONFIG.format(directory=directory, here=HERE, plugins=plugins)
        self.config = Config.parse(text, directory / "minismtp.toml")
        (directory / "users").write_text(f"user1:{hash_password('secret')}\n")
        self.log = Log(descriptor=os.open(os.devnull, os.O_WRONLY))
        self.log._thread = WriteBehind("log", self.log._write_at_once, 0.05)  # noqa: SLF001 - is never started
        self.metrics = Metrics([each.name for each in self.config.listeners])
        self.decisions = DecisionLog(directory, self.config.log.chronicle, self.log)
        self.plugins = PluginSet.load(self.config, self.metrics, self.log)
        self.queue = Spool(directory / "spool", 0)
        self.queue.prepare()
        self.plugins.hooks().on_start(ServerInfo.of(self.config, "worker"))

    def context(self, listener: str = "smtp") -> ListenerContext:
        """Return what the sessions of a listener share."""
        found = next(each for each in self.config.listeners if each.name == listener)
        context = ListenerContext.of(self.config, found, self.plugins, self.metrics, self.log)
        return replace(context, queue=self.queue, decision_log=self.decisions)

    def write(self) -> None:
        """Do what the threads that write do."""
        self.metrics.buffer.flush()
        self.decisions.flush()
        self.log._write_at_once()  # noqa: SLF001 - as its thread calls it


@contextlib.contextmanager
def place(plugins: str = DISCARD) -> Iterator[Place]:
    """Yield a worker's parts in an empty directory."""
    with tempfile.TemporaryDirectory() as name:
        built = Place(Path(name), plugins)
        try:
            yield built
        finally:
            built.plugins.hooks().on_stop()


class Client:
    """The client's side of a session in memory."""

    def __init__(self, context: ListenerContext) -> None:
        session = Session(
            id=new_id(),
            listener=context.listener,
            kind=context.kind,
            hostname=context.hostname,
            peer="127.0.0.1",
            peer_port=40000,
            started=context.wall(),
        )
        if context.kind == "submission":
            session.tls = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
        self.receiver = Receiver(context, session, Activity())
        self.receiver.greet()
        self.send(b"EHLO client.example\r\n", b"250")

    def send(self, data: bytes, expected: bytes) -> None:
        """Send octets; the reply has to begin as expected."""
        reply = self.receiver.receive(data)
        if not reply.startswith(expected):
            raise RuntimeError(f"{data[:30]!r} was answered {reply!r}")

    def mail(self, group: bytes = GROUP) -> None:
        """Send a message."""
        self.send(group, b"250")
        self.send(CONTENT, b"250")

    def quit(self) -> None:
        """End the session."""
        self.send(b"QUIT\r\n", b"221")
        self.receiver.finished()


def _nothing() -> None:
    pass


@contextlib.contextmanager
def messages(plugins: str = DISCARD, group: bytes = GROUP) -> Iterator[Step]:
    """Yield what sends a message in a session that goes on."""
    with place(plugins) as here, Activity():
        client = Client(here.context())
        yield Step(partial(client.mail, group), here.write)


@contextlib.contextmanager
def sessions(listener: str = "smtp", plugins: str = DISCARD, login: bytes = b"") -> Iterator[Step]:
    """Yield what runs a whole session with one message."""
    with place(plugins) as here, Activity():
        context = here.context(listener)

        def once() -> None:
            client = Client(context)
            if login:
                client.send(b"AUTH PLAIN " + login + b"\r\n", b"235")
            client.mail()
            client.quit()

        yield Step(once, here.write)


@contextlib.contextmanager
def connections() -> Iterator[Step]:
    """Yield what makes a connection that only quits, and waits until its thread waits again."""
    with place() as here, socket.create_server(("127.0.0.1", 0)) as listening:
        running = Sessions(time.monotonic)
        listener = here.config.listeners[0]
        server = Server(listener, listening, here.context(), running, Admission(10, 10))
        listening.setblocking(False)

        clients = []

        def prepare() -> None:
            clients.append(socket.create_connection(listening.getsockname()))
            clients[-1].sendall(b"QUIT\r\n")

        def settle() -> None:
            with clients.pop() as client:
                while client.recv(512):
                    pass
            while len(running) or not running._idle:  # noqa: SLF001 - until the thread waits
                time.sleep(0)

        accept = server._accept  # noqa: SLF001 - as the thread that accepts calls it
        yield Step(accept, here.write, prepare, settle)


def queued(name: str) -> QueueEntry:
    """Return the envelope of a message for another host."""
    address = "user1@far.example"
    return QueueEntry(
        id=name,
        sender="sender@client.example",
        listener="smtp",
        peer="127.0.0.1",
        helo="client.example",
        login=None,
        arrived=time.time(),
        targets=(QueuedRecipient(kind="relay", address=address, recipient=address),),
        is_7bit=True,
    )


def sink(listening: socket.socket) -> None:
    """Take messages, over one connection after the other."""
    sys.setprofile(None)
    with contextlib.suppress(OSError):  # of `accept`, because the scenario ended
        while True:
            take(listening.accept()[0])


def take(sock: socket.socket) -> None:
    """Take the messages of a connection, and answer each group of commands at once."""
    with sock as connection, connection.makefile("rb") as lines:
        connection.sendall(b"220 sink.example\r\n")
        replies = b""
        for line in lines:
            replies += b"354 go on\r\n" if line == b"DATA\r\n" else b"250 2.0.0 Ok\r\n"
            if line.startswith(b"EHLO"):
                replies = b"250-sink.example\r\n250-8BITMIME\r\n250 PIPELINING\r\n"
            if line[:4] in {b"EHLO", b"DATA", b"QUIT"}:
                connection.sendall(replies)
                replies = b""
            if line == b"DATA\r\n":
                while lines.readline() != b".\r\n":
                    pass
                connection.sendall(b"250 2.0.0 Ok\r\n")


@contextlib.contextmanager
def deliveries() -> Iterator[Step]:
    """Yield what reads a message of the spool and sends it over a connection that stays open."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listening.getsockname()[1]
        threading.Thread(target=sink, args=(listening,), daemon=True).start()
        here = stack.enter_context(place(f'[outbound]\nsmarthost = "127.0.0.1:{port}"\n{RELAY}'))
        delivery = DeliveryContext.of(here.config, here.plugins, here.log)
        runner = Runner(
            *(here.config, here.queue, delivery, OutboundMetrics(here.metrics), here.log),
            context=RunnerContext(
                slot=0,
                metrics_directory=here.directory,
                ready=-1,
                lifeline=-1,
                scoreboard=Scoreboard(),
                suspects=Suspects(),
                packages=(),
                begin=lambda *_: None,
            ),
        )
        loader, index, pool = runner._loader, runner._index, runner._pool  # noqa: SLF001
        attempt = stack.enter_context(contextlib.closing(Attempt(delivery, "via 127.0.0.1")))
        names = []

        def prepare() -> None:
            names.append(new_id())
            here.queue.add(queued(names[-1]), Message(names[-1], Content.of(CONTENT[:-3])))

        def once() -> None:
            loader.load([names.pop()])
            if (job := index.take()) is None:
                raise RuntimeError("the message was not planned")
            pool._do(attempt, job)  # noqa: SLF001 - as a thread that delivers calls it
            if len(index):
                raise RuntimeError("the message was not delivered")

        yield Step(once, here.write, prepare)


@contextlib.contextmanager
def hooks() -> Iterator[Step]:
    """Yield what calls a guarded hook whose plugin does nothing."""
    with place('[[plugins]]\nuse = "empty"\n' + DISCARD) as here, Activity():
        context = here.context()
        session = Client(context).receiver.session
        envelope = Envelope(
            id="1",
            reverse_path=None,
            listener="smtp",
            peer="127.0.0.1",
            helo="client.example",
            login=None,
            arrived=0.0,
        )
        yield Step(partial(context.hooks.on_mail, session, envelope), here.write)


@dataclass(frozen=True)
class Step:
    """What is counted: `once` for a message or the like, `write` for what is written later.

    `prepare` and `settle` run before and after `once`; only the calls of other threads count then.
    """

    once: Callable[[], object]
    write: Callable[[], None]
    prepare: Callable[[], None] = _nothing
    settle: Callable[[], None] = _nothing

    def run(self) -> None:
        """Run it once without counting."""
        self.prepare()
        self.once()
        self.settle()


SCENARIOS: Final[dict[str, Callable[[], contextlib.AbstractContextManager[Step]]]] = {
    "message": messages,
    "session": sessions,
    "connection": connections,
    "submission": lambda: sessions("submission", USERS + DISCARD, LOGIN),
    "relayed": lambda: messages(RELAY, GROUP.replace(b"user1@example.org", b"user1@far.example")),
    "delivered": deliveries,
    "every_stage": lambda: messages(STAGES),
    "hook": hooks,
}


def counted(name: str) -> Calls:
    """Return the calls of `MESSAGES` times a scenario."""
    calls = Calls()
    # The sampling of CPU time is to depend on no clock.
    metrics._PAUSE = inf  # type: ignore[misc]  # noqa: SLF001
    random.seed(1)
    here, counts = threading.get_ident(), False

    def switched(frame: FrameType, event: str, function: object) -> None:
        if counts or threading.get_ident() != here:
            profile(frame, event, function)

    profile = Calls().counting()
    threading.setprofile(switched)  # the thread of a connection starts with the first one
    with SCENARIOS[name]() as step:
        step.run()
        threading.setprofile(None)
        step.write()
        profile = calls.counting()
        sys.setprofile(switched)
        for _ in range(MESSAGES):
            step.prepare()
            counts = True
            step.once()
            counts = False
            step.settle()
        profile = calls.counting(later=True)
        counts = True
        step.write()
        counts = False
        sys.setprofile(None)
    return calls


def timed(name: str, times: int) -> float:
    """Return the microseconds of CPU time that this process takes for a scenario, once."""
    with SCENARIOS[name]() as step:
        for _ in range(times // 10 + 1):
            step.run()
        step.write()
        begun = time.process_time()
        for number in range(times):
            step.run()
            if number % MESSAGES == 0:
                step.write()
        step.write()
        return (time.process_time() - begun) / times * 1e6


def main() -> int:
    """Print every scenario beside its budget; 1 if `--check` finds one exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="fail if a budget is exceeded")
    parser.add_argument("--functions", choices=SCENARIOS, help="show the functions of a scenario")
    parser.add_argument("--time", type=int, metavar="N", help="measure the CPU time of N times")
    options = parser.parse_args()
    if options.functions:
        return functions(counted(options.functions))
    if options.time:
        for name in SCENARIOS:
            print(f"{name:12} {timed(name, options.time):7.1f} us")
        return 0
    budgets = tomllib.loads(BUDGET.read_text())
    exceeded = []
    print(f"{'':12} {'python':>7} {'budget':>7} {'c':>7} {'budget':>7} {'later':>7}")
    for name in SCENARIOS:
        found, budget = counted(name), budgets[name]
        # Rounded down, because something happens once a second, such as formatting the date.
        python, c, later = (
            count.total() // MESSAGES for count in (found.python, found.c, found.later)
        )
        print(f"{name:12} {python:7} {budget['python']:7} {c:7} {budget['c']:7} {later:7}")
        if python > budget["python"] or c > budget["c"]:
            exceeded.append(name)
    if exceeded:
        print(f"over the budget of {BUDGET.name}: {', '.join(exceeded)}", file=sys.stderr)
    return 1 if exceeded and options.check else 0


def functions(calls: Calls) -> int:
    """Print how often each function is called for one message, session or hook."""
    for title, count in (("python", calls.python), ("c", calls.c), ("later", calls.later)):
        print(title)
        for name, times in count.most_common():
            print(f"  {times / MESSAGES:7.2f} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
