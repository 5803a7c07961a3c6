"""The servers that are measured, each on its best fair settings.

Every server takes mail for userN@example.org, stores it in Maildirs on the file system under test
and answers 250 when it is durable. A submission port offers STARTTLS and AUTH PLAIN. None looks up
the client's name, none limits the rate of one client.

minismtp      the shipped plugins and defaults; metrics and a line of log for each message
Postfix       queue and Maildirs on the same file system; virtual(8) delivers; limits on clients and
              processes raised, in_flow_delay off; SASL by Dovecot. Its 250 says: queued
Haraka        as many processes as cores; a plugin of its own, haraka/bench.js, stores with fsync
aiosmtpd      one process, the handler Mailbox of its documentation
smtp-sink     Postfix's own test server, which stores nothing
bare sink     the least that a threaded server in Python can do: as many processes as minismtp
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clients import BUILD, HERE, PASSWORD, USER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HARAKA: Final = BUILD / "haraka" / "node_modules" / ".bin" / "haraka"
PATIENCE: Final = 30.0  # seconds for a server to start or stop
_LIMIT: Final = 64 * 1024 * 1024  # octets of a message


@dataclass
class Server:
    """A running server: its ports, the root of its process tree, where its mail appears."""

    port: int
    pid: int
    new: list[str] = field(default_factory=list)  # patterns of the directories new/
    submission: int = 0
    pipelining: bool = True

    def stored(self) -> int:
        """Return how many messages are in the Maildirs."""
        boxes = [box for pattern in self.new for box in Path("/").glob(pattern[1:])]
        return sum(1 for box in boxes for _ in box.iterdir())


@dataclass(frozen=True)
class Certificate:
    """A certificate for localhost and its key, PEM files."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        """Make a key on P-256 and sign it by itself."""
        found = cls(directory / "bench.pem", directory / "bench.key")
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ),
                *("-nodes", "-subj", "/CN=localhost", "-days", "2"),
                *("-keyout", str(found.key), "-out", str(found.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        return found


if TYPE_CHECKING:
    Start = Callable[[Path, Certificate], contextlib.AbstractContextManager["Server"]]


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return when a server greets. Raise RuntimeError if it ends or takes too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended with exit status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
            if peer.recv(512).startswith(b"220"):
                return
        time.sleep(0.05)
    raise RuntimeError(f"no server greets on port {port}")


@contextlib.contextmanager
def running(command: list[str], log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends; its output goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **settings}
        )
        try:
            yield process
        except RuntimeError:
            sys.stderr.writelines(log.read_text(errors="replace").splitlines(keepends=True)[-20:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


MINISMTP: Final = """
hostname = "bench.example.org"
state_directory = "{directory}/state"
plugin_path = ["{here}/plugins"]

[[listeners]]
name = "smtp"
address = "127.0.0.1:{port}"
tls = "none"

[[listeners]]
name = "submission"
address = "127.0.0.1:{submission}"
kind = "submission"

[tls]
certificate = "{tls.certificate}"
key = "{tls.key}"

[limits]
sessions = 20000
sessions_per_ip = 20000
message_size = "64 MiB"

[metrics]
address = "127.0.0.1:0"
"""
STORE: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "password_file"
path = "{directory}/passwords"

[[plugins]]
use = "maildir"
path = "{directory}/mail/{{local}}"
sync = "{sync}"
"""


SPOOL: Final = """
[outbound]
smarthost = "127.0.0.1:9"

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""


def minismtp(plugins: str = STORE, sync: str = "file", *, stores: bool = True) -> Start:
    """Return the function that starts minismtp with these plugins."""

    @contextlib.contextmanager
    def start(directory: Path, tls: Certificate) -> Iterator[Server]:
        port, submission = free_port(), free_port()
        program = str(Path(sys.executable).with_name("minismtp"))
        subprocess.run(
            [program, "passwd", str(directory / "passwords"), USER],
            input=PASSWORD,
            text=True,
            check=True,
        )
        (directory / "state").mkdir()
        text = (MINISMTP + plugins).format(
            directory=directory, here=HERE, port=port, submission=submission, tls=tls, sync=sync
        )
        (directory / "minismtp.toml").write_text(text)
        command = [program, "serve", "--config", str(directory / "minismtp.toml")]
        with running(command, directory / "log") as process:
            wait_for(port, process)
            new = [f"{directory}/mail/*/new"] if stores else []
            yield Server(port, process.pid, new, submission)

    return start


@contextlib.contextmanager
def aiosmtpd(directory: Path, tls: Certificate) -> Iterator[Server]:
    """Run aiosmtpd. Not pipelined, because Nagle would delay its single replies."""
    port, submission = free_port(), free_port()
    command = [sys.executable, str(HERE / "aiosmtpd_server.py"), str(directory / "mail")]
    command += [str(port), str(submission), str(tls.certificate), str(tls.key)]
    with running(command, directory / "log") as process:
        wait_for(port, process)
        new = [f"{directory}/mail/new"]
        yield Server(port, process.pid, new, submission, pipelining=False)


@contextlib.contextmanager
def haraka(directory: Path, tls: Certificate) -> Iterator[Server]:
    """Run Haraka. Not pipelined, for the same reason as aiosmtpd."""
    port, submission = free_port(), free_port()
    config, mail = directory / "config", directory / "mail"
    for each in (config, directory / "plugins", mail / "tmp", mail / "new", mail / "cur"):
        each.mkdir(parents=True)
    shutil.copy(HERE / "haraka" / "bench.js", directory / "plugins")
    cores = os.cpu_count() or 1
    files = {
        "smtp.ini": f"listen=127.0.0.1:{port},127.0.0.1:{submission}\nnodes={cores}\n",
        "connection.ini": f"[max]\nbytes={_LIMIT}\n[message]\n[headers]\n[uuid]\n",
        "databytes": str(_LIMIT),
        "plugins": "tls\nauth/flat_file\nbench\n",
        "loglevel": "WARN",
        "me": "bench.example.org",
        "host_list": "example.org",
        "tls.ini": f"key={tls.key}\ncert={tls.certificate}\n",
        "auth_flat_file.ini": f"[core]\nmethods=PLAIN\n[users]\n{USER}={PASSWORD}\n",
    }
    for name, text in files.items():
        (config / name).write_text(text)
    command = [str(HARAKA), "-c", str(directory)]
    with running(command, directory / "log", BENCH_MAILDIR=str(mail)) as process:
        wait_for(port, process)
        yield Server(port, process.pid, [f"{mail}/new"], submission, pipelining=False)


MAIN_CF: Final = """
compatibility_level = 3.6
queue_directory = {spool}
data_directory = {directory}/data
mail_owner = postfix
myhostname = bench.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
virtual_mailbox_domains = example.org
virtual_mailbox_base = {directory}/mail
virtual_mailbox_maps = texthash:{directory}/etc/mailboxes
virtual_uid_maps = static:{user.pw_uid}
virtual_gid_maps = static:{user.pw_gid}
virtual_minimum_uid = 1
virtual_transport = virtual
virtual_mailbox_limit = 0
message_size_limit = {limit}
default_process_limit = 200
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
in_flow_delay = 0
maillog_file = /var/log/postfix-bench.log
smtpd_tls_cert_file = {tls.certificate}
smtpd_tls_key_file = {tls.key}
smtpd_sasl_type = dovecot
smtpd_sasl_path = {directory}/dovecot/auth
"""
MASTER_CF: Final = """
{port} inet n - n - - smtpd
{submission} inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
"""
DOVECOT: Final = """
base_dir = {directory}/dovecot
state_dir = {directory}/dovecot
log_path = {directory}/dovecot.log
protocols =
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
default_internal_user = {owner}
default_login_user = {owner}
passdb {{
  driver = passwd-file
  args = {directory}/etc/passwords
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home=/
}}
service auth {{
  unix_listener {directory}/dovecot/auth {{
    mode = 0666
  }}
}}
service anvil {{
  chroot =
}}
"""


@contextlib.contextmanager
def postfix(directory: Path, tls: Certificate) -> Iterator[Server]:
    """Run Postfix, which needs root, from a directory of its own."""
    port, submission = free_port(), free_port()
    etc, spool, mail = directory / "etc", directory / "spool", directory / "mail"
    for each in (etc, spool, mail, directory / "data", directory / "dovecot"):
        each.mkdir(parents=True)
    user = pwd.getpwnam("nobody")
    os.chown(mail, user.pw_uid, user.pw_gid)
    shutil.chown(directory / "data", "postfix")
    values = {"directory": directory, "spool": spool, "port": port, "submission": submission}
    main = MAIN_CF.format(**values, tls=tls, user=user, limit=_LIMIT)
    (etc / "main.cf").write_text(main)
    (etc / "master.cf").write_text(MASTER_CF.format(**values))
    users = [f"user{number}" for number in range(100)]
    (etc / "mailboxes").write_text("".join(f"{name}@example.org {name}/\n" for name in users))
    (etc / "passwords").write_text(f"{USER}:{{PLAIN}}{PASSWORD}::::::\n")
    (etc / "dovecot.conf").write_text(DOVECOT.format(**values, owner="dovenull"))
    with running(["dovecot", "-F", "-c", str(etc / "dovecot.conf")], directory / "log"):
        subprocess.run(["postfix", "-c", str(etc), "start"], check=True, capture_output=True)
        try:
            wait_for(port)
            pid = int((spool / "pid" / "master.pid").read_text())
            yield Server(port, pid, [f"{mail}/*/new"], submission)
        finally:
            subprocess.run(["postfix", "-c", str(etc), "stop"], check=False, capture_output=True)


@contextlib.contextmanager
def smtp_sink(directory: Path, tls: Certificate) -> Iterator[Server]:
    """Run smtp-sink."""
    del tls
    port = free_port()
    command = ["smtp-sink", "-u", "nobody", f"127.0.0.1:{port}", "1024"]
    with running(command, directory / "log") as process:
        wait_for(port, process)
        yield Server(port, process.pid)


@contextlib.contextmanager
def bare_sink(directory: Path, tls: Certificate) -> Iterator[Server]:
    """Run as many processes of bare_sink.py as minismtp has workers by default."""
    port = free_port()
    processes = max(2, os.cpu_count() or 1)
    command = [sys.executable, str(HERE / "bare_sink.py"), str(port), str(processes)]
    command += [str(tls.certificate), str(tls.key)]
    with running(command, directory / "log") as process:
        wait_for(port, process)
        yield Server(port, process.pid, submission=port)


def missing(name: str) -> str:
    """Return why a peer cannot run here, or an empty text if it can."""
    if name == "aiosmtpd":
        with contextlib.suppress(ImportError):
            import aiosmtpd  # noqa: F401, PLC0415

            return ""
        return "pip install aiosmtpd"
    if name == "haraka":
        return "" if HARAKA.exists() else "make peers"
    wanted = {"postfix": "postfix", "smtp-sink": "smtp-sink"}.get(name)
    if wanted and not shutil.which(wanted, path=os.environ.get("PATH", "") + ":/usr/sbin"):
        return "make peers"
    if name == "postfix" and os.geteuid() != 0:
        return "root"
    return ""
