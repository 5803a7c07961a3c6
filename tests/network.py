"""Machines with addresses of their own, on one link with a DNS server: Linux namespaces, for root.

A host is a network and a mount namespace, held by a process that waits on our pipe; commands enter
it by nsenter. Nothing of it has a name outside, so runs side by side do not clash, and once no
process of the tests runs there, the kernel takes namespaces, links and mounts away.
"""

from __future__ import annotations

import contextlib
import ctypes
import email
import email.policy
import functools
import os
import re
import signal
import smtplib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trustme
from nameserver import NSD

from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Run, Running

DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
_NEWNET: Final = 0x40000000  # CLONE_NEWNET
_DNS: Final = 53  # the number of the host that is the resolver of all others
_HOLD: Final = "ip link set lo up && echo up && exec cat"
#: Addresses that are public, and of no host (RFC 7535).
PUBLIC: Final = ("192.31.196.20", "2620:4f:8000::20")
T = TypeVar("T")

_NSD: Final = NSD.replace("{port}", "5353") + "zone:\n  name: test\n  zonefile: test.zone\n"
_UNBOUND: Final = """
server:
  interface: 0.0.0.0
  interface: ::0
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  do-daemonize: no
  do-not-query-localhost: no
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  use-syslog: no
  num-threads: 1
  module-config: "iterator"
  cache-max-ttl: 0
  cache-max-negative-ttl: 0
  local-zone: "test." nodefault
remote-control:
  control-enable: no
stub-zone:
  name: test
  stub-addr: 127.0.0.1@5353
"""
_MINISMTP: Final = """
hostname = "{host.name}.test"
state_directory = "state"
plugin_path = ["local_plugins"]
workers = 1

[[listeners]]
name = "smtp"
address = "0.0.0.0:25"

[[listeners]]
name = "smtp6"
address = "[::]:25"

[[listeners]]
name = "submission"
address = "0.0.0.0:587"
kind = "submission"

[tls]
certificate = "{tls}/{host.name}.pem"
key = "{tls}/{host.name}.pem"

[metrics]
address = ""

[outbound]
retry = ["1s"]

[[plugins]]
use = "password_file"
path = "passwords"

{tables}

[[plugins]]
use = "maildir"
path = "mail/{{local}}"
"""
_ZONE: Final = """
$ORIGIN test.
$TTL 60
@ SOA dns hostmaster 1 60 60 60 60
@ NS dns
dns A 192.0.2.53
"""


class Namespace:
    """A network and a mount namespace of its own, for as long as it is not closed."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._holder.pid
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command that runs here. The process keeps its number."""
        return ("nsenter", f"--target={self.pid}", "--net", "--mount", "--")

    def run(self, *command: str | Path, given: str = "", check: bool = True) -> str:
        """Run a command here and return its output."""
        done = subprocess.run(
            [*self.prefix, *command],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode} {done.stdout}"
        return done.stdout

    def inside(self, call: Callable[[], T]) -> T:
        """Call a function so that its sockets belong to this network, also later."""
        results: list[T] = []

        def enter() -> None:
            with Path(f"/proc/{self.pid}/ns/net").open("rb") as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), _NEWNET) == 0
            results.append(call())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        [result] = results
        return result

    def cover(self, path: str, source: Path) -> None:
        """Replace a file or directory, for programs that run here."""
        self.run("mount", "--bind", source, Path(path).resolve())

    def close(self) -> None:
        """Let the kernel remove it when no process runs here any more."""
        self._holder.communicate()


class Host(Namespace):
    """A machine on the network: `number` makes its addresses."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__()
        self.name = name
        self.addresses = addresses(number)

    def join(self, link: Namespace) -> None:
        """Connect it."""
        veth = ["type", "veth", "peer", "name", "eth0", "netns", str(self.pid)]
        link.run("ip", "link", "add", "name", self.name, *veth)
        link.run("ip", "link", "set", "dev", self.name, "master", "bridge", "up")
        self.run("ip", "link", "set", "eth0", "up")
        for address in self.addresses:
            self.add(address)

    def add(self, address: str) -> None:
        """Set its address."""
        length = ("/64", "nodad") if ":" in address else ("/24",)
        self.run("ip", "address", "add", address + length[0], *length[1:], "dev", "eth0")

    def connect(self, address: str, port: int = 25) -> socket.socket:
        """Connect from here."""
        return self.inside(lambda: socket.create_connection((address, port), DEADLINE))


class BootedHost(Host):
    """A machine that systemd has booted, by its first process. Its addresses count as public."""

    def __init__(self, name: str, leader: int) -> None:
        self.pid, self.name, self.addresses = leader, name, PUBLIC

    def close(self) -> None:
        """Do nothing: `booted` ends it."""


def addresses(number: int) -> tuple[str, str]:
    """Return the IPv4 and the IPv6 address of the host of a number."""
    return f"192.0.2.{number}", f"fd00:25::{number}"


class Network:
    """Hosts on one link, each knowing the resolver, whose zone `test` has all their names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._hosts: list[Host] = []
        self._programs = contextlib.ExitStack()  # of the DNS
        self._zone = _ZONE
        self._authority = trustme.CA()
        self.authority = directory / "authority.pem"
        self._authority.cert_pem.write_to_path(self.authority)
        (directory / "resolv.conf").write_text(f"nameserver {self.resolver}\n")
        self._link = Namespace()
        self._stack.callback(self._link.close)
        self._link.run("ip", "link", "add", "name", "bridge", "up", "type", "bridge")
        self._dns = self.host("dns", _DNS)

    def host(self, name: str, number: int) -> Host:
        """Make a host called `name`.test."""
        host = Host(name, number)
        self._stack.callback(host.close)
        host.join(self._link)
        self._hosts.append(host)
        host.cover("/etc/resolv.conf", self._directory / "resolv.conf")
        four, six = host.addresses
        self._zone += f"{name} A {four}\n{name} AAAA {six}\n"
        issued = self._authority.issue_cert(f"{name}.test")
        issued.private_key_and_cert_chain_pem.write_to_path(self.certificate(host))
        return host

    def attach(self, host: Host) -> None:
        """Connect a machine. It has no name until `publish` gives it one."""
        host.join(self._link)
        for each in (host, *self._hosts):
            for family in ("-4", "-6"):
                each.run("ip", family, "route", "add", "default", "dev", "eth0")

    @property
    def resolver(self) -> str:
        """The address of the resolver."""
        return addresses(_DNS)[0]

    def certificate(self, host: Host) -> Path:
        """Return the file with the key and the certificate of a host."""
        return self._directory / f"{host.name}.pem"

    def minismtp(self, host: Host, run: Run, *tables: str) -> MailServer:
        """Configure a server for a host; `alice` logs in with the password `secret`."""
        directory = self._directory / host.name
        (directory / "local_plugins").mkdir(parents=True)
        (directory / "passwords").write_text(f"alice:{hash_password('secret')}\n")
        text = _MINISMTP.format(host=host, tls=self._directory, tables="\n".join(tables))
        (directory / "minismtp.toml").write_text(text)
        return MailServer(host, directory, run)

    def publish(self, *records: str) -> None:
        """Start the DNS with the names of the hosts and these records of the zone `test`.

        Called again, it starts again, with other records.
        """
        self._programs.close()
        (self._directory / "test.zone").write_text("\n".join([self._zone, *records, ""]))
        for name, configuration, begun in (
            ("nsd", _NSD, "nsd started"),
            ("unbound", _UNBOUND, "start of service"),
        ):
            config = self._directory / f"{name}.conf"
            config.write_text(configuration.format(directory=self._directory))
            stop = self.serve(self._dns, begun, name, "-d", "-c", str(config))
            self._programs.callback(stop)

    def serve(self, host: Host, begun: str, *command: str) -> Callable[[], None]:
        """Run a program on a host, and return what ends it, once its log says `begun`."""
        path = self._directory / f"{command[0]}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [*host.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def stop() -> None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        self._stack.callback(stop)
        wait_for(lambda: begun in path.read_text(), path)
        return stop

    def close(self) -> None:
        """End the DNS and all hosts."""
        self._stack.close()


def start_all(servers: Sequence[MailServer]) -> None:
    """Start servers at the same time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(MailServer.start, servers))


class MailServer:
    """A minismtp on a host, in a directory of its own; it can be stopped and started."""

    def __init__(self, host: Host, directory: Path, run: Run) -> None:
        self.host = host
        self.directory = directory
        self.config = directory / "minismtp.toml"
        self._run = run
        self._stack = contextlib.ExitStack()

    def start(self) -> Running:
        """Start it and return what runs."""
        (self.directory / "log").unlink(missing_ok=True)
        running = self._run(self.config, command=self.host.prefix)
        self.running = self._stack.enter_context(running)
        self.running.wait_for_log(" queue opened ")
        return self.running

    def stop(self) -> None:
        """End it as `systemctl stop` does."""
        self.running.signal(signal.SIGTERM)
        assert self.running.wait() == 0
        self._stack.close()

    def close(self) -> None:
        """End it at once."""
        self._stack.close()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it while the block runs."""
        self.stop()
        yield
        self.start()

    def mail(self, local: str) -> bytes:
        """Return the only message of a mailbox, once it is there."""
        [message] = self.running.wait_until(functools.partial(self.running.mail, local))
        return message


def client(origin: Host, server: Host) -> smtplib.SMTP:
    """Connect from one host to the port 25 of another."""
    address, name = server.addresses[0], f"{origin.name}.test"
    return origin.inside(lambda: smtplib.SMTP(address, local_hostname=name, timeout=DEADLINE))


def send(
    origin: Host,
    server: Host,
    recipient: str,
    *,
    sender: str = "me@here.test",
    content: str | bytes = "Subject: hello\r\n\r\nIt works.\r\n",
    mail: Sequence[str] = (),
    rcpt: Sequence[str] = (),
) -> None:
    """Send a message, with parameters for MAIL and RCPT. Raise SMTPException if it is refused."""
    with client(origin, server) as smtp:
        smtp.sendmail(sender, recipient, content, mail, rcpt)


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    """Wait until a program that writes this log is ready."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.01)


def hops(message: bytes) -> list[str]:
    """Return the Received fields of a message, each on one line, the latest first."""
    fields = re.findall(rb"^Received: (.*(?:\n[ \t].*)*)", message, re.MULTILINE)
    return [" ".join(field.decode().split()) for field in fields]


def report(message: bytes) -> tuple[EmailMessage, dict[str, str]]:
    """Return a delivery status notification, and the fields of its status."""
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    assert parsed.get_content_type() == "multipart/report"
    assert parsed["Return-Path"] == "<>"
    fields: dict[str, str] = {}
    for part in parsed.iter_parts():
        if part.get_content_type().endswith("delivery-status"):
            for block in part.iter_parts():
                fields |= dict(block.items())
    return parsed, fields


@contextlib.contextmanager
def network(directory: Path) -> Iterator[Network]:
    """Yield a network while the block runs."""
    made = Network(directory)
    try:
        yield made
    finally:
        made.close()
