"""Measures minismtp and its peers side by side: rates, latency, CPU time and memory.

    make bench                         everything; root gives it a file system with a journal
    make bench ARGS="--rounds 1 --workloads b20 --servers minismtp,postfix"

In each round every workload runs against every server in turn, each on empty directories, so that a
slow minute of the machine meets all of them. Writes bench.json, and with --report the table and the
plot of docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import clients
import filesystem
import peers
import processes
import relays
import report
from pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DISCARD: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "discard"
"""
STAGES: Final = f'[[plugins]]\nuse = "every_stage"\n{peers.STORE}'

SERVERS: Final[dict[str, Any]] = {
    "minismtp": peers.minismtp(),
    "minismtp sync=group": peers.minismtp(sync="group"),
    "minismtp + plugin": peers.minismtp(STAGES),
    "minismtp spool": peers.minismtp(peers.SPOOL, stores=False),
    "minismtp discard": peers.minismtp(DISCARD, stores=False),
    "postfix": peers.postfix,
    "haraka": peers.haraka,
    "aiosmtpd": peers.aiosmtpd,
    "smtp-sink": peers.smtp_sink,
    "bare sink": peers.bare_sink,
}
VARIANTS: Final = ("minismtp + plugin", "minismtp spool")
SENDING: Final = ("minismtp", "postfix")
DROPPING: Final = ("minismtp discard", "bare sink", "smtp-sink")
STORING: Final = ("minismtp", "minismtp sync=group", "postfix", "haraka", "aiosmtpd")


@dataclass(frozen=True)
class Workload:
    """What the clients do, and against which servers."""

    title: str
    servers: tuple[str, ...]
    sessions: int = 20
    per_connection: int = 0
    octets: int = 5000
    client: str = "load"


_DRAINED: Final = 5000
_QUIET: Final = 0.5  # seconds of quiet after which a server is ready
_ALL: Final = "names with commas between them; default: all"
_IDLE: Final = 0.05  # of a core, what a server may use that does nothing

WORKLOADS: Final = {
    "a20": Workload("durable, one message per connection, 20 sessions", STORING, 20, 1),
    "a100": Workload("durable, one message per connection, 100 sessions", STORING, 100, 1),
    "b1": Workload("durable, persistent, 1 session", STORING, 1),
    "b20": Workload("durable, persistent, 20 sessions", (*STORING, *VARIANTS), 20),
    "b100": Workload("durable, persistent, 100 sessions", STORING, 100),
    "c": Workload("discarded, persistent, 20 sessions", DROPPING),
    "c1": Workload(
        "discarded, one message per connection, 20 sessions",
        DROPPING,
        per_connection=1,
    ),
    "d": Workload("25 MB, 4 sessions, durable", STORING, 4, octets=25_000_000),
    "e": Workload(
        "STARTTLS, AUTH PLAIN, one durable message", (*STORING, "bare sink"), 20, client="tls"
    ),
    "drain": Workload("5,000 queued messages sent to one host", SENDING, client="drain"),
    "relay": Workload("taken and sent on, persistent, 20 sessions", SENDING, client="relay"),
    "f": Workload("idle sessions, 20 messages a second beside them", ("minismtp",), client="idle"),
}


def main() -> int:
    """Run the benchmarks. Return 1 if a client met an error."""
    options = arguments()
    with place(options) as directory:
        where = filesystem.FileSystem.of(directory)
        print(f"mail is written to {where}")
        if not where.journal:
            print(
                "WARNING: no journal; syncs behave otherwise than on a mail host", file=sys.stderr
            )
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "file_system": str(where),
            "cores": os.cpu_count(),
            "machine": f"Linux {platform.release()}, Python {platform.python_version()}",
            "seconds": options.seconds,
            "rounds": options.rounds,
            "measured": list(measured(options, directory)),
        }
    titles = {name: each.title for name, each in WORKLOADS.items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.report:
        report.write(result, titles, options.report)
    print(report.targets(result), report.table(result, titles), sep="\n\n")
    return any(found.get("failed") for found in result["measured"])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--workloads", type=some_of(WORKLOADS), default=[*WORKLOADS], help=_ALL)
    parser.add_argument("--servers", type=some_of(SERVERS), default=[*SERVERS], help=_ALL)
    parser.add_argument("--idle", type=int, default=10_000, help="idle sessions of workload f")
    parser.add_argument("--directory", type=Path, help="default: an image made for the run")
    parser.add_argument("--image-size", default="6G")
    parser.add_argument("--output", type=Path, default=Path("build/bench/bench.json"))
    parser.add_argument("--report", type=Path, help="directory for the table and the plot")
    return parser.parse_args()


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a reader of names with commas between them, which refuses those that are not known."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return read


@contextlib.contextmanager
def place(options: argparse.Namespace) -> Iterator[Path]:
    """Yield the directory for the mail: the given one, or a new file system."""
    if options.directory is not None:
        yield options.directory
    elif os.geteuid() == 0:
        with filesystem.image(options.image_size, Path(tempfile.gettempdir())) as directory:
            yield directory
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def measured(options: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    """Yield one measurement after the other, and print each."""
    tls = peers.Certificate.make(directory)
    for name in options.servers:
        if reason := peers.missing(name):
            print(f"{name} is not measured: it takes {reason}", file=sys.stderr)
    wanted = [name for name in options.servers if not peers.missing(name)]
    for number in range(options.rounds):
        for rate in disk(directory, options.seconds):
            yield {"round": number, "workload": "disk", **rate}
        for key in options.workloads:
            workload = WORKLOADS[key]
            for name in (each for each in workload.servers if each in wanted):
                found = {"round": number, "workload": key, "server": name}
                with scratch(directory) as home:
                    if workload.client in {"drain", "relay"}:
                        found |= sent_on(workload, getattr(relays, name), home, options)
                    else:
                        with SERVERS[name](home, tls) as server:
                            found |= once(workload, server, options)
                        if found["failed"]:
                            found["log"] = complaints(home / "log")
                print(json.dumps(found), flush=True)
                yield found


def complaints(log: Path) -> list[str]:
    """Return the last lines of a server's log that report an error."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if re.search(r"(?i)\b(?:error|warning)\b", line)][-5:]


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Yield an empty directory, and remove it at the end."""
    home = Path(tempfile.mkdtemp(dir=directory))
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home)
        os.sync()  # otherwise the next server would write out the data of this one


def disk(directory: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure the file system itself with 20 writers."""
    with scratch(directory) as home, Pauses() as pauses:
        found = clients.run("disk", "-d", home, "-t", 20, "-s", seconds)
    yield {"server": "disk", **rates(found["files"], pauses)}


def rates(count: int, pauses: Pauses) -> dict[str, Any]:
    """Return the rate of a run without the pauses of the machine, and the share of the pauses."""
    return {
        "messages": count,
        "seconds": round(pauses.elapsed, 3),
        "paused": round(pauses.paused, 3),
        "rate": round(count / (pauses.elapsed - pauses.paused), 1),
    }


def once(workload: Workload, server: peers.Server, options: argparse.Namespace) -> dict[str, Any]:
    """Run one workload against one server."""
    run: dict[str, Callable[..., dict[str, Any]]] = {"load": load, "tls": submit, "idle": idle}
    before = 0
    calm(server.pid)
    if server.new:
        # Each mailbox's first message makes its directories, and a process's first login hashes
        # the password: neither is part of the rate.
        clients.run("load", "-p", server.port, "-s", 20, "-k", 0, "-u", 100, "-m", 100)
        before = 100
        if workload.client == "tls":
            before += submit(workload, server, argparse.Namespace(seconds=1))["messages"]
        settle(server, before)
    cpu = processes.cpu_seconds(processes.tree([server.pid]))
    idle_memory = processes.resident(processes.tree([server.pid]))
    with processes.Sampler([server.pid]) as sampler, Pauses() as pauses:
        found = run[workload.client](workload, server, options)
    used = processes.cpu_seconds(processes.tree([server.pid])) - cpu
    messages = found["messages"]
    found |= rates(messages, pauses)
    if server.new and messages:
        late = settle(server, messages + before)
        found["delivered"] = server.stored() - before
        found["delivered_rate"] = round(
            found["delivered"] / (pauses.elapsed - pauses.paused + late), 1
        )
    found["cpu_per_1000"] = round(used / max(messages, 1) * 1000, 3)
    found["idle_rss_mb"] = round(idle_memory / 1e6, 1)
    found["rss_mb"] = round(sampler.resident / 1e6, 1)
    growth = (sampler.resident - idle_memory) / workload.sessions
    found["growth_mb_per_session"] = round(growth / 1e6, 2)
    found["pss_mb"] = round(sampler.proportional / 1e6, 1)
    return found


def sent_on(
    workload: Workload, relay: relays.Start, home: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure until the last message has arrived at the sink: a full queue, or a stream."""
    drain = workload.client == "drain"
    with relays.sink(home) as sink, relay(home, sink.port, held=drain) as server:
        ends = ("-m", _DRAINED) if drain else ("-m", 10_000_000, "-d", options.seconds)
        client = ("load", "-p", server.port, "-s", workload.sessions, "-b", workload.octets, *ends)
        found = clients.run(*client) if drain else {}
        cpu = processes.cpu_seconds(processes.tree([server.pid]))
        with processes.Sampler([server.pid]) as sampler, Pauses() as pauses:
            if drain:
                server.release()
            else:
                found = clients.run(*client)
            sink.wait_for(found["messages"])
        used = processes.cpu_seconds(processes.tree([server.pid])) - cpu
    messages = found["messages"]
    return {
        **({"failed": found["failed"]} if drain else found),
        **rates(messages, pauses),
        "accepted_rate": found["rate"],
        "cpu_per_1000": round(used / max(messages, 1) * 1000, 3),
        "rss_mb": round(sampler.resident / 1e6, 1),
        "pss_mb": round(sampler.proportional / 1e6, 1),
    }


def calm(pid: int) -> None:
    """Wait until a server has nothing more to do than to wait: who greets first may be alone yet.

    The sessions of a load that begins earlier stay with the first of several processes.
    """
    end = time.monotonic() + peers.PATIENCE
    while time.monotonic() < end:
        before = processes.cpu_seconds(processes.tree([pid]))
        time.sleep(_QUIET)
        if processes.cpu_seconds(processes.tree([pid])) - before <= _QUIET * _IDLE:
            return


def settle(server: peers.Server, messages: int) -> float:
    """Wait until messages are in their Maildirs, and return the seconds that it took."""
    start = time.monotonic()
    while server.stored() < messages and time.monotonic() - start < peers.PATIENCE:
        time.sleep(0.01)
    return time.monotonic() - start


def load(workload: Workload, server: peers.Server, options: argparse.Namespace) -> dict[str, Any]:
    """Send in clear."""
    pipelining = [] if server.pipelining else ["-n"]
    return clients.run(
        *("load", "-p", server.port, "-s", workload.sessions, "-k", workload.per_connection),
        *("-b", workload.octets, "-m", 10_000_000, "-d", options.seconds, *pipelining),
    )


def submit(workload: Workload, server: peers.Server, options: argparse.Namespace) -> dict[str, Any]:
    """Submit over TLS."""
    return clients.run(
        *("tls", "-p", server.submission, "-s", workload.sessions, "-d", options.seconds),
        *("-b", workload.octets, "-w", clients.plain_response()),
    )


def idle(workload: Workload, server: peers.Server, options: argparse.Namespace) -> dict[str, Any]:
    """Hold idle sessions, send a light flow beside them, then ask them all."""
    del workload
    before = processes.resident(processes.tree([server.pid]))
    held = clients.IdleSessions(server.port, options.idle)
    try:
        memory = processes.resident(processes.tree([server.pid])) - before
        found = clients.run(
            *("load", "-p", server.port, "-s", 1, "-k", 1, "-i", 0.05, "-m", 10_000_000),
            *("-d", options.seconds),
        )
        asked = held.ask()
    finally:
        held.close()
    found |= vars(asked)
    found["failed"] += asked.wanted - asked.answered
    found["kb_per_session"] = round(memory / max(asked.opened, 1) / 1000, 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
