"""A DNS for tests: nsd has the zones, and unbound asks it as a resolver."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import dns.exception
import dns.message
import dns.query
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
