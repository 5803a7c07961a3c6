"""How the queue behaves when it is long and some of its destinations are dead.

    make bench-queue
    make bench-queue ARGS="--messages 2000 --domains 20"

Fills the spool with messages for many domains. First all of them are dead: that shows what a start
costs without a schedule and with one, what the runner holds, and how quick `minismtp queue list`
is. Then the healthy domains get their mail, once by themselves and once beside dead ones, of which
some refuse connections, some never answer and some take a connection and say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import peers
import processes
import relays

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.storage import spool as spool_module
from minismtp.storage.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Final = str(Path(sys.executable).with_name("minismtp"))
CONFIG: Final = """
hostname = "sender.example.org"
state_directory = "{directory}/state"

[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"

[limits]
drain = "1s"

[metrics]
address = "127.0.0.1:0"

[outbound]
tls = "none"
"""
ROUTE: Final = '[[outbound.routes]]\ndomain = "{}"\nhost = "{}"\ntls = "none"\n'
BODY: Final = b"Subject: scale\r\n\r\n" + (b"x" * 70 + b"\r\n") * 20
PATIENCE: Final = 600.0


@dataclass
class Dead:
    """Hosts that are no use: each kind is an address with a port."""

    refuses: str = "127.0.0.1:9"
    blackhole: str = ""
    tarpit: str = ""
    _sockets: list[socket.socket] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def hosts(cls) -> Iterator[Dead]:
        """Listen without ever answering."""
        with contextlib.ExitStack() as stack:
            tarpit = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
            hole = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):  # once its backlog is full, the kernel drops new connections
                knocking = stack.enter_context(socket.socket())
                knocking.setblocking(False)
                knocking.connect_ex(hole.getsockname())
            yield cls(blackhole=_address(hole), tarpit=_address(tarpit))

    def some(self, count: int) -> list[str]:
        """Return `count` addresses, all kinds in turn."""
        kinds = (self.refuses, self.blackhole, self.tarpit)
        return [kinds[number % len(kinds)] for number in range(count)]


def main() -> int:
    """Measure, and print one JSON object for each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--dead", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name, Dead.hosts() as dead:
        base = Path(name)
        base.chmod(0o755)
        say(waiting(base / "waiting", options, dead))
        say(delivered(base / "alone", options, dead, with_dead=False))
        say(delivered(base / "beside", options, dead, with_dead=True))
    return 0


def say(found: dict[str, Any]) -> None:
    """Print a step."""
    print(json.dumps(found), flush=True)


def waiting(directory: Path, options: argparse.Namespace, dead: Dead) -> dict[str, Any]:
    """Queue all messages, and measure the waiting queue."""
    hosts = dead.some(options.domains)
    seconds = fill(directory, options, hosts)
    found: dict[str, Any] = {"step": "all dead", "messages": options.messages, "filling": seconds}
    with server(directory) as (_, opened):
        found["start_without_schedule"] = opened
        while listed(directory)[0] < options.messages:
            time.sleep(0.2)
    with server(directory) as (process, opened):
        found["start_with_schedule"] = opened
        runner = runner_of(process.pid)
        found["runner_rss_mb"] = round(processes.resident([runner]) / 1e6, 1)
        cpu = processes.cpu_seconds([runner])
        time.sleep(10)
        found["runner_cpu_percent_at_rest"] = round(processes.cpu_seconds([runner]) - cpu, 2) * 10
        count, found["list"] = listed(directory)
        found["list_json"] = listed(directory, "--json")[1]
        assert count == options.messages
    return found


def delivered(
    directory: Path, options: argparse.Namespace, dead: Dead, *, with_dead: bool
) -> dict[str, Any]:
    """Deliver to the healthy domains, and return how long the last message took."""
    directory.mkdir()
    with relays.sink(directory) as sink:
        hosts = dead.some(options.dead)
        hosts += [f"127.0.0.1:{sink.port}"] * (options.domains - options.dead)
        fill(directory, options, hosts, skip=0 if with_dead else options.dead)
        per_domain = options.messages // options.domains
        wanted = per_domain * (options.domains - options.dead)
        with server(directory) as (process, _):
            begun = time.monotonic()
            while sink.count() < wanted and time.monotonic() - begun < PATIENCE:
                time.sleep(0.05)
            seconds = time.monotonic() - begun
            runner = runner_of(process.pid)
            used = processes.cpu_seconds([runner])
            memory = processes.resident([runner])
            found = {
                "step": "beside dead domains" if with_dead else "healthy domains alone",
                "messages": sink.count(),
                "seconds": round(seconds, 2),
                "rate": round(sink.count() / seconds, 1),
                "runner_cpu_per_1000": round(used / max(sink.count(), 1) * 1000, 3),
                "runner_rss_mb": round(memory / 1e6, 1),
            }
            if with_dead:
                found["still_waiting"] = listed(directory)[0]
            return found


def fill(directory: Path, options: argparse.Namespace, hosts: list[str], skip: int = 0) -> float:
    """Write the configuration and a spool for these hosts but the first `skip`, without syncs."""
    directory.mkdir(exist_ok=True)
    (directory / "state").mkdir()
    text = CONFIG.format(directory=directory)
    text += "".join(ROUTE.format(f"d{number}.test", host) for number, host in enumerate(hosts))
    (directory / "minismtp.toml").write_text(text + '[[plugins]]\nuse = "relay"\n')
    spool = Spool(directory / "state" / "spool")
    spool.prepare()
    spool_module.os.fsync = lambda _: None  # type: ignore[attr-defined]
    begun = time.monotonic()
    for number in range(options.messages // len(hosts) * len(hosts)):
        domain = number % len(hosts)
        if domain >= skip:
            add(spool, f"{number:012x}.1", f"user{number}@d{domain}.test")
    return round(time.monotonic() - begun, 2)


def add(spool: Spool, name: str, address: str) -> None:
    """Queue a message for one recipient."""
    entry = QueueEntry(
        id=name,
        sender="me@example.org",
        listener="smtp",
        peer="127.0.0.1",
        helo="client",
        login=None,
        arrived=time.time(),
        targets=(QueuedRecipient(kind="relay", address=address, recipient=address),),
    )
    spool.add(entry, Message(name, Content.of(BODY)))


@contextlib.contextmanager
def server(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Run a server on that spool, and return how long its queue took to open."""
    log = directory / "log"
    command = [PROGRAM, "serve", "--config", str(directory / "minismtp.toml")]
    with contextlib.suppress(FileNotFoundError):
        log.unlink()
    begun = time.monotonic()
    with peers.running(command, log) as process:
        while b" queue opened " not in log.read_bytes():
            if time.monotonic() - begun > PATIENCE or process.poll() is not None:
                raise RuntimeError(f"the queue does not open: {log.read_text()}")
            time.sleep(0.01)
        yield process, round(time.monotonic() - begun, 2)


def listed(directory: Path, *options: str) -> tuple[int, float]:
    """Run `minismtp queue list`. Return the number of messages that it showed, and the seconds."""
    command = [PROGRAM, "queue", "list", "--config", str(directory / "minismtp.toml"), *options]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = round(time.monotonic() - begun, 2)
    last = done.stdout.rstrip().rpartition("\n")[2].split()
    return int(last[0]) if last[:1] and last[0].isdigit() else 0, seconds


def runner_of(pid: int) -> int:
    """Return the process of the queue."""
    return next(
        each
        for each in processes.tree([pid])
        if Path(f"/proc/{each}/comm").read_text().strip() == "minismtp-queue"
    )


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()
    return f"{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
