"""A DNS for tests: nsd has the zones, and unbound asks it as a resolver.

`Records` is another one, whose records may change while it runs.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from ports import free_port

from minismtp import SocketAddress

#: The part of nsd.conf that every test has; zones follow.
NSD: Final = """
server:
  ip-address: 127.0.0.1@{port}
  username: ""
  database: ""
  pidfile: ""
  xfrdfile: ""
  xfrdir: "{directory}"
  zonelistfile: "{directory}/zones.list"
  zonesdir: "{directory}"
  server-count: 1
remote-control:
  control-enable: no
"""
_NSD_ZONE: Final = """
zone:
  name: "{zone}"
  zonefile: "{zone}.zone"
"""
_UNBOUND: Final = """
server:
  interface: 127.0.0.1
  port: {port}
  do-daemonize: no
  do-not-query-localhost: no
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  use-syslog: no
  num-threads: 1
  module-config: "iterator"
  local-zone: "." static
remote-control:
  control-enable: no
"""
_STUB: Final = """
server:
  local-zone: "{zone}." transparent
stub-zone:
  name: "{zone}"
  stub-addr: 127.0.0.1@{port}
"""
_HEAD: Final = """\
$TTL 60
@ SOA ns.test. hostmaster.test. 1 60 60 60 60
@ NS ns.test.
"""
#: A zone that nsd is configured for but cannot load, so it answers SERVFAIL.
BROKEN: Final = "broken.test"


@contextlib.contextmanager
def serving(
    directory: Path, require_program: Callable[[str], str], zones: Mapping[str, str]
) -> Iterator[SocketAddress]:
    """Yield the address of a resolver that knows these zones, by their records, and `BROKEN`.

    It knows no other names, and asks no server outside.
    """
    programs = require_program("nsd"), require_program("unbound")
    nsd, unbound = free_port(), free_port()
    names = [*zones, BROKEN]
    texts = (
        NSD.format(directory=directory, port=nsd)
        + "".join(_NSD_ZONE.format(zone=name) for name in names),
        _UNBOUND.format(directory=directory, port=unbound)
        + "".join(_STUB.format(zone=name, port=nsd) for name in names),
    )
    for name, records in zones.items():
        (directory / f"{name}.zone").write_text(_HEAD + records)
    with contextlib.ExitStack() as stack, (directory / "log").open("wb") as log:
        for program, text in zip(programs, texts, strict=True):
            path = directory / f"{Path(program).name}.conf"
            path.write_text(text)
            command = [program, "-d", "-c", str(path)]
            process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        _wait_for(unbound, f"{next(iter(zones))}.", directory / "log")
        yield SocketAddress("127.0.0.1", unbound)


def _wait_for(port: int, zone: str, log: Path) -> None:
    question = dns.message.make_query(zone, "SOA")
    for _ in range(600):
        with contextlib.suppress(OSError, dns.exception.Timeout):
            if dns.query.udp(question, "127.0.0.1", 0.1, port).answer:
                return
        time.sleep(0.02)
    pytest.fail(f"no name server answers: {log.read_text(errors='replace')}")


@contextlib.contextmanager
def silent() -> Iterator[SocketAddress]:
    """Yield the address of a resolver that never answers."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield SocketAddress("127.0.0.1", sock.getsockname()[1])


@dataclass
class Records:
    """A server with the records of `known`, by name and type; it may be changed while it runs.

    A name without an entry does not exist. `flags` are those of its answers, and `asked` has the
    questions.
    """

    known: dict[tuple[str, str], list[str]]
    flags: int = dns.flags.AA
    rcode: dns.rcode.Rcode | None = None  # of all answers
    referral: str = ""  # the name server that it refers to, without answers of its own
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: SocketAddress = field(init=False)

    def answer(self, question: dns.message.Message) -> dns.message.Message:
        """Return the answer to a question."""
        [asked] = question.question
        name, kind = asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype)
        self.asked.append((name, kind))
        reply = dns.message.make_response(question)
        reply.flags |= self.flags
        if self.rcode is not None:
            reply.set_rcode(self.rcode)
        elif self.referral:
            reply.authority.append(dns.rrset.from_text(asked.name, 60, "IN", "NS", self.referral))
        elif texts := self.known.get((name, kind)):
            reply.answer.append(dns.rrset.from_text_list(asked.name, 60, "IN", kind, texts))
        elif not any(each == name for each, _ in self.known):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply


@contextlib.contextmanager
def running(records: Records) -> Iterator[Records]:
    """Answer from these records while the block runs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        records.address = SocketAddress("127.0.0.1", sock.getsockname()[1])

        def answer() -> None:
            while (received := sock.recvfrom(4096))[0]:
                reply = records.answer(dns.message.from_wire(received[0]))
                sock.sendto(reply.to_wire(), received[1])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield records
        finally:
            sock.sendto(b"", sock.getsockname())
            thread.join()
