"""Measures what filters cost: beside Haraka with the same ones, and plugin by plugin.

    make bench-filters                 root; knows no network but its own

Everything runs in network and mount namespaces of its own, whose resolver is an unbound that knows
a few names. Clients come from an address that is nobody's, so no filter leaves them alone, with
a message that SPF, DKIM and DMARC find in order. Before a measurement each recipient is put off
once by the greylist, and then known.

minismtp      dnsbl (two lists), spf, dkim_verify, dmarc and greylist
Haraka        its own dns-list (the same two), spf, dkim and greylist, which keeps what it knows in
              Redis. It has no DMARC of its own, so it does without
minismtp all  every filter that minismtp ships; early_talker waits for nothing. rspamd, spamd and
              clamd, where they are installed, judge with little more than their own defaults
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import shutil
import smtplib
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bench
import clients
import filesystem
import peers
import processes
import services
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from minismtp_plugins.dkim_sign import DkimSign
from pauses import Pauses
from prometheus_client.parser import text_string_to_metric_families

from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT: Final = "198.18.0.7"  # in the network for benchmarks, which no filter trusts
USERS: Final = 100
ANSWERS: Final = ("spf=pass", "dkim=pass", "dmarc=pass")
_INSIDE: Final = "MINISMTP_BENCH_INSIDE"

LISTENER: Final = """
hostname = "bench.example.org"
state_directory = "{home}/state"
[dns]
nameservers = ["127.0.0.1:53"]
[[listeners]]
name = "smtp"
address = "0.0.0.0:{port}"
tls = "none"
[limits]
sessions_per_ip = 2000
[metrics]
address = "127.0.0.1:{metrics}"
"""
CHECKS: Final = """
[[plugins]]
use = "dnsbl"
[[plugins.lists]]
zone = "one.dnsbl.example"
[[plugins.lists]]
zone = "two.dnsbl.example"
[[plugins]]
use = "spf"
[[plugins]]
use = "greylist"
delay = "1s"
deliveries = 0
[[plugins]]
use = "dkim_verify"
[[plugins]]
use = "dmarc"
"""
FIRST: Final = """
[[plugins]]
use = "early_talker"
delay = "1ms"
[[plugins]]
use = "rate_limit"
[[plugins.limits]]
by = "network"
messages = "10000000/1h"
[[plugins]]
use = "reverse_dns"
[[plugins]]
use = "helo"
"""
LAST: Final = """
[[plugins]]
use = "arc"
[[plugins]]
use = "attachments"
[[plugins]]
use = "rules"
[[plugins.rules]]
name = "offers"
action = "tag"
all = [{{ header = "Subject", matches = "offer|prize" }}]
[[plugins]]
use = "score"
"""
RESULTS: Final = """
[[plugins]]
use = "authentication_results"
"""
STORE: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
[[plugins]]
use = "maildir"
path = "{home}/mail/{{local}}"
"""


@dataclass(frozen=True)
class Mail:
    """The message that is sent, and the record of the key that it is signed with."""

    file: Path
    record: str

    @classmethod
    def make(cls, directory: Path) -> Mail:
        """Sign a message of 5 KB."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        path = directory / "key.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        path.chmod(0o600)
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        head = (
            "From: Sender <sender@client.example>\r\nTo: user0@example.org\r\n"
            f"Subject: Figures of this week\r\nDate: {formatdate()}\r\n"
            "Message-ID: <1@client.example>\r\nMIME-Version: 1.0\r\n"
            "Content-Type: text/plain; charset=us-ascii\r\n\r\n"
        )
        text = "".join(f"{number:05} " + "some words " * 6 + "\r\n" for number in range(66))
        signer = DkimSign(domains=["client.example"], selectors=["bench"], keys=path)
        message, _ = Dialogue(signer, login="sender").leave(head + text)
        with message.open() as reader:
            (directory / "message").write_bytes(reader.read())
        return cls(directory / "message", f"v=DKIM1; p={base64.b64encode(public).decode()}")


def main() -> int:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    enter()
    with filesystem.image("4G", Path(tempfile.gettempdir())) as directory:
        mail = Mail.make(directory)
        with services.resolver(directory, mail.record), services.redis(directory):
            rates: dict[str, list[float]] = {"minismtp": [], "haraka": []}
            for _ in range(options.rounds):
                for name, found in rates.items():
                    found.append(measured(name, directory, mail, options.seconds)["rate"])
                    print(f"{name}: {found[-1]:,.0f} messages/s", flush=True)
            ours, theirs = (sorted(each)[len(each) // 2] for each in rates.values())
            print(f"medians {ours:,.0f} and {theirs:,.0f}: {ours / theirs:.1f} times Haraka\n")
            with services.scanners(directory) as tables:
                measured("all", directory, mail, options.seconds, tables)
    return 0


def enter() -> None:
    """Continue in new namespaces, whose network has one address and no route to others."""
    if os.environ.get(_INSIDE) != "1":
        unshare = ("unshare", "--net", "--mount", sys.executable, *sys.argv)
        os.execvpe(unshare[0], unshare, {**os.environ, _INSIDE: "1"})  # noqa: S606 - ourselves
    for command in (
        "ip link set lo up",
        # A route without an address, because Haraka trusts clients from addresses of its host.
        f"ip route add local {CLIENT}/32 dev lo",
        # No connection may take the port of a server.
        "sysctl -qw net.ipv4.ip_local_port_range=32768\t60999",
    ):
        subprocess.run(command.split(" "), check=True)


def measured(
    name: str, directory: Path, mail: Mail, seconds: float, tables: str = ""
) -> dict[str, Any]:
    """Measure one server with its filters."""
    with bench.scratch(directory) as home:
        start = (
            haraka(home) if name == "haraka" else minismtp(home, tables if name == "all" else None)
        )
        with start as server:
            bench.calm(server.pid)
            introduce(server.port)
            load(server, mail, "-m", 200)  # the first messages load lists, keys and caches
            before = processes.cpu_seconds(processes.tree([server.pid]))
            counted = Counts.read(server.submission) if name == "all" else Counts()
            with Pauses() as pauses:
                found = load(server, mail, "-d", seconds, "-m", 10_000_000)
            used = processes.cpu_seconds(processes.tree([server.pid])) - before
            check(name, server)
            if name == "all":
                print(Counts.read(server.submission).since(counted))
        found |= bench.rates(found["messages"], pauses)
        print(f"{name}: {used / found['messages'] * 1000:.2f} s of CPU for 1,000 messages")
        return found


def load(server: peers.Server, mail: Mail, *end: object) -> dict[str, Any]:
    """Send with 20 sessions until the end. Raise RuntimeError if a message is refused."""
    pipelining = () if server.pipelining else ("-n",)
    found = clients.run(
        *("load", "-a", CLIENT, "-p", server.port, "-s", 20, "-u", USERS, "-f", mail.file),
        *(*end, *pipelining),
    )
    if found["failed"] or found["lost"] or not found["messages"]:
        raise RuntimeError(str(found))
    return found


def introduce(port: int) -> None:
    """Send to each recipient twice, so that the greylist knows the client after that."""
    for wanted in (451, 250):
        for user in range(USERS):  # a session each, because one may not begin 100 mails in vain
            with smtplib.SMTP(CLIENT, port, "client.example", 30) as client:
                client.ehlo()
                client.mail("sender@client.example")
                code, text = client.rcpt(f"user{user}@example.org")
                if code // 100 != wanted // 100:
                    raise RuntimeError(f"{code} {text!r} where {wanted} was expected")
        time.sleep(1.5)


def check(name: str, server: peers.Server) -> None:
    """Raise RuntimeError unless the filters found all that they should find."""
    wanted = ANSWERS[:2] if name == "haraka" else ANSWERS
    boxes = [box for pattern in server.new for box in Path("/").glob(pattern[1:])]
    text = next(file.read_text() for box in boxes for file in box.iterdir())
    head = text.partition("\n\n")[0]
    if missing := [each for each in wanted if each not in head]:
        raise RuntimeError(f"{name} does not say {', '.join(missing)}:\n{head}")


@dataclass
class Counts:
    """Return the figures of the metrics: seconds by plugin, of time and of CPU, and messages."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    messages: float = 0.0

    @classmethod
    def read(cls, port: int) -> Counts:
        """Ask the server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        found = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                plugin = sample.labels.get("plugin", "")
                if sample.name == "minismtp_hook_duration_seconds_sum":
                    found.wall[plugin] = found.wall.get(plugin, 0) + sample.value
                elif sample.name == "minismtp_hook_cpu_seconds_total":
                    found.cpu[plugin] = found.cpu.get(plugin, 0) + sample.value
                elif sample.name == "minismtp_messages_total":
                    found.messages += sample.value
        return found

    def since(self, before: Counts) -> str:
        """Return a table of what each plugin took for a message, in microseconds."""
        messages = self.messages - before.messages
        rows = [
            (self.cpu[name] - before.cpu.get(name, 0), self.wall[name] - before.wall.get(name, 0))
            for name in self.wall
        ]
        lines = [
            f"| {name} | {wall / messages * 1e6:,.0f} | {cpu / messages * 1e6:,.0f} |"
            for (cpu, wall), name in sorted(zip(rows, self.wall, strict=True), reverse=True)
        ]
        head = ["| plugin | us a message | of CPU |", "| --- | ---: | ---: |"]
        return "\n".join([*head, *lines, f"{messages:,.0f} messages"])


@contextlib.contextmanager
def minismtp(home: Path, tables: str | None) -> Iterator[peers.Server]:
    """Run minismtp with the five filters, or all of them and these tables."""
    port, metrics = peers.free_port(), peers.free_port()
    (home / "state").mkdir()
    checks = CHECKS + RESULTS if tables is None else FIRST + CHECKS + tables + LAST + RESULTS
    text = (LISTENER + checks + STORE).format(home=home, port=port, metrics=metrics)
    (home / "minismtp.toml").write_text(text)
    program = str(Path(sys.executable).with_name("minismtp"))
    command = [program, "serve", "--config", str(home / "minismtp.toml")]
    with peers.running(command, home / "log") as process:
        peers.wait_for(port, process)
        yield peers.Server(port, process.pid, [f"{home}/mail/*/new"], metrics)


@contextlib.contextmanager
def haraka(home: Path) -> Iterator[peers.Server]:
    """Run Haraka, whose greylist also accepts after a second."""
    port = peers.free_port()
    config, mail = home / "config", home / "mail"
    for each in (config, home / "plugins", mail / "tmp", mail / "new", mail / "cur"):
        each.mkdir(parents=True)
    shutil.copy(clients.HERE / "haraka" / "bench.js", home / "plugins")
    zones = "zones[]=one.dnsbl.example\nzones[]=two.dnsbl.example\n"
    files = {
        "smtp.ini": f"listen=0.0.0.0:{port}\nnodes={os.cpu_count() or 1}\n",
        "connection.ini": "[max]\n[message]\n[headers]\n[uuid]\n",
        "plugins": "redis\ndns-list\nspf\ndkim\ngreylist\nbench\n",
        "loglevel": "WARN",
        "me": "bench.example.org",
        "host_list": "example.org",
        "dns-list.ini": f"[main]\nperiodic_checks=0\n{zones}search=all\n",
        "dkim.ini": "[sign]\nenabled=false\n[verify]\nenabled=true\n",
        "greylist.ini": "[redis]\ndb=11\n[period]\nblack=1\ngrey=90000\nwhite=3024000\n",
    }
    for name, text in files.items():
        (config / name).write_text(text)
    subprocess.run(["redis-cli", "flushall"], check=True, capture_output=True)
    command = [str(peers.HARAKA), "-c", str(home)]
    with peers.running(command, home / "log", BENCH_MAILDIR=str(mail)) as process:
        peers.wait_for(port, process)
        yield peers.Server(port, process.pid, [f"{mail}/new"], pipelining=False)


if __name__ == "__main__":
    sys.exit(main())
