"""The services that filters ask, inside the namespaces of filters.py."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final

import peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE: Final = 200.0  # seconds: rspamd and clamd compile first

UNBOUND: Final = """
server:
  interface: 127.0.0.1
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  local-zone: "." static
  local-data: ". 300 SOA ns.example. root.example. 1 3600 600 86400 300"
  local-data: "client.example. 300 A 198.18.0.7"
  local-data: "client.example. 300 MX 10 client.example."
  local-data: 'client.example. 300 TXT "v=spf1 ip4:198.18.0.0/24 -all"'
  local-data: 'bench._domainkey.client.example. 300 TXT {key}'
  local-data: '_dmarc.client.example. 300 TXT "v=DMARC1; p=reject"'
  local-data: "7.0.18.198.in-addr.arpa. 300 PTR client.example."
  local-data: "2.0.0.127.one.dnsbl.example. 300 A 127.0.0.2"
  local-data: "2.0.0.127.two.dnsbl.example. 300 A 127.0.0.2"
"""
CLAMD: Final = """
Foreground yes
TCPSocket {port}
TCPAddr 127.0.0.1
DatabaseDirectory {home}
"""
RSPAMD: Final = {
    "logging.inc": 'type = "console"; level = "warning";',
    "worker-controller.inc": "enabled = false;",
    "worker-proxy.inc": "enabled = false;",
    **{
        f"{module}.conf": "enabled = false;"
        for module in ("fuzzy_check", "greylist", "neural", "rbl", "surbl", "asn", "phishing")
    },
}


@contextlib.contextmanager
def running(port: int, log: Path, *command: str | Path) -> Iterator[None]:
    """Run a service until the block ends. Raise RuntimeError if it does not start."""
    with peers.running([str(each) for each in command], log) as process:
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} does not come up: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield


@contextlib.contextmanager
def resolver(directory: Path, key: str) -> Iterator[None]:
    """Run a resolver on port 53, and name it in a private /etc/resolv.conf."""
    pieces = " ".join(f'"{key[start : start + 200]}"' for start in range(0, len(key), 200))
    (directory / "unbound.conf").write_text(UNBOUND.format(key=pieces))
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", directory / "resolv.conf", "/etc/resolv.conf"], check=True)
    command = ("unbound", "-d", "-c", directory / "unbound.conf")
    with running(53, directory / "unbound.log", *command):
        yield


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[None]:
    """Run Redis, in memory only."""
    command = ("redis-server", "--save", "", "--appendonly", "no", "--bind", "127.0.0.1")
    with running(6379, directory / "redis.log", *command):
        yield


@contextlib.contextmanager
def scanners(directory: Path) -> Iterator[str]:
    """Run rspamd, spamd and clamd if installed, and return the tables of their plugins."""
    with contextlib.ExitStack() as stack:
        tables = []
        for name, start in (("rspamd", rspamd), ("spamd", spamd), ("clamd", clamd)):
            if shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin"):
                home = directory / name
                home.mkdir()
                tables.append(stack.enter_context(start(home, peers.free_port())))
            else:
                print(f"{name} is not installed")
        yield "".join(tables)


@contextlib.contextmanager
def rspamd(home: Path, port: int) -> Iterator[str]:
    """Run rspamd without the parts that would ask the network."""
    local = home / "conf" / "local.d"
    local.mkdir(parents=True)
    (home / "suffixes").write_text("com\nexample\norg\n")  # the long list takes half a minute
    files = {
        **RSPAMD,
        "worker-normal.inc": f'bind_socket = "127.0.0.1:{port}"; count = 1;',
        "options.inc": f'disable_hyperscan = true; url_tld = "{home}/suffixes";',
    }
    for name, text in files.items():
        (local / name).write_text(text)
    places = {"DBDIR": home, "RUNDIR": home, "LOGDIR": home, "LOCAL_CONFDIR": home / "conf"}
    options = [f"--var={name}={path}" for name, path in places.items()]
    command = ("rspamd", "--no-fork", "--insecure", *options, "--config=/etc/rspamd/rspamd.conf")
    with running(port, home / "log", *command):
        yield f'[[plugins]]\nuse = "rspamd"\nurl = "http://127.0.0.1:{port}"\n'


@contextlib.contextmanager
def spamd(home: Path, port: int) -> Iterator[str]:
    """Run spamd with the rules of the package."""
    options = "--local --nouser-config --max-children=2 --syslog=stderr --username=nobody"
    where = (f"--port={port}", "--listen=127.0.0.1", f"--helper-home-dir={home}")
    with running(port, home / "log", "spamd", *options.split(), *where):
        yield f'[[plugins]]\nuse = "spamassassin"\naddress = "127.0.0.1:{port}"\n'


@contextlib.contextmanager
def clamd(home: Path, port: int) -> Iterator[str]:
    """Run clamd with a single signature."""
    (home / "one.ndb").write_text(
        "Bench.One:0:*:58354f2150254041505b345c505a58353428505e2937434329\n"
    )
    (home / "clamd.conf").write_text(CLAMD.format(port=port, home=home))
    with running(port, home / "log", "clamd", "-c", home / "clamd.conf"):
        yield f'[[plugins]]\nuse = "clamav"\naddress = "127.0.0.1:{port}"\n'
