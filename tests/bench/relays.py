"""Hosts that send mail on to one other host, Postfix's smtp-sink, which counts what it takes.

Each takes mail for anybody at example.org into a queue on the file system under test, and sends it
to the sink in clear. `held` keeps it from sending until `Relay.release`, so that the queue can be
filled first: of minismtp by holding the lock of its spool, of Postfix by leaving qmgr(8) out.

minismtp      the shipped defaults; a smarthost
Postfix       a relayhost, no DNS; limits on processes and destinations raised (20 is its default
              for a destination, here from the beginning); connections are kept by its own rule
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    class Start(Protocol):
        """Starts a host."""

        def __call__(
            self, directory: Path, target: int, *, held: bool
        ) -> contextlib.AbstractContextManager[Relay]:
            """Start it with its queue in `directory`; it sends to the port `target`."""


PATIENCE: Final = 120.0  # seconds for the last message to arrive
_TAIL: Final = 200  # octets of the sink's counters that hold the last of them


@dataclass
class Sink:
    """A running smtp-sink: its port, and the file where it keeps its counters."""

    port: int
    output: Path

    def count(self) -> int:
        """Return how many messages it took."""
        with self.output.open("rb") as file:
            file.seek(max(0, self.output.stat().st_size - _TAIL))
            last = file.read().rpartition(b"mesg=")[2]
        return int(last.split(b"\r")[0] or 0)

    def wait_for(self, messages: int) -> None:
        """Wait for that number of `messages`. Raise TimeoutError."""
        end = time.monotonic() + PATIENCE
        while self.count() < messages:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.count()} of {messages} messages have arrived")
            time.sleep(0.005)


@dataclass
class Relay:
    """A running host: its port, the root of its process tree, and what lets it send."""

    port: int
    pid: int
    release: Callable[[], None]


@contextlib.contextmanager
def sink(directory: Path) -> Iterator[Sink]:
    """Run smtp-sink with its counters on."""
    found = Sink(peers.free_port(), directory / "sink")
    command = ["smtp-sink", "-c", "-u", "nobody", f"127.0.0.1:{found.port}", "1024"]
    with peers.running(command, found.output) as process:
        peers.wait_for(found.port, process)
        yield found


OUTBOUND: Final = """
[outbound]
smarthost = "127.0.0.1:{sink}"
{more}

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""


@contextlib.contextmanager
def minismtp(directory: Path, target: int, *, held: bool, more: str = "") -> Iterator[Relay]:
    """Run minismtp with the port `target` of this machine as its smarthost."""
    port = peers.free_port()
    spool = directory / "state" / "spool"
    spool.mkdir(parents=True)
    listener = f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n'
    text = f'hostname = "bench.example.org"\nstate_directory = "{directory}/state"\n{listener}'
    text += '[limits]\nsessions_per_ip = 2000\n[metrics]\naddress = "127.0.0.1:0"\n'
    (directory / "minismtp.toml").write_text(text + OUTBOUND.format(sink=target, more=more))
    program = str(Path(sys.executable).with_name("minismtp"))
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((spool / "lock").open("w"))
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        command = [program, "serve", "--config", str(directory / "minismtp.toml")]
        process = stack.enter_context(peers.running(command, directory / "log"))
        peers.wait_for(port, process)
        yield Relay(port, process.pid, lock.close)


MAIN_CF: Final = """
compatibility_level = 3.6
queue_directory = {spool}
data_directory = {directory}/data
mail_owner = postfix
myhostname = bench.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [127.0.0.1]:{sink}
smtp_dns_support_level = disabled
smtp_host_lookup = native
default_process_limit = 200
initial_destination_concurrency = 20
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
in_flow_delay = 0
maillog_file = /var/log/postfix-bench.log
"""
QMGR: Final = "qmgr unix n - n 300 1 qmgr\n"


@contextlib.contextmanager
def postfix(directory: Path, target: int, *, held: bool) -> Iterator[Relay]:
    """Run Postfix, which needs root, with the port `target` of this machine as its relayhost."""
    port = peers.free_port()
    etc, spool = directory / "etc", directory / "spool"
    for each in (etc, spool, directory / "data"):
        each.mkdir(parents=True)
    shutil.chown(directory / "data", "postfix")
    (etc / "main.cf").write_text(MAIN_CF.format(directory=directory, spool=spool, sink=target))
    lines = peers.MASTER_CF.format(port=port, submission=peers.free_port()).replace(QMGR, "")
    lines += "smtp unix - - n - - smtp\n"
    (etc / "master.cf").write_text(lines + ("" if held else QMGR))

    def release() -> None:
        if held:
            (etc / "master.cf").write_text(lines + QMGR)
            _run("postfix", "-c", str(etc), "reload")

    _run("postfix", "-c", str(etc), "start")
    try:
        peers.wait_for(port)
        yield Relay(port, int((spool / "pid" / "master.pid").read_text()), release)
    finally:
        subprocess.run(["postfix", "-c", str(etc), "stop"], check=False, capture_output=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
