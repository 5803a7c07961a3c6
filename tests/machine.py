"""A machine for the tests of the service: a file system, with systemd in a container.

It is the one of this machine, a Debian 12 in CI, or a Debian 13 that `.ci/debian13` makes.
systemd-nspawn shows it read-only below a layer in memory, with its own network. So what
a test changes is gone afterwards, and ports 25, 465 and 587 are free.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import smtplib
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import pytest
from source import ROOT, copy_source

DROP_INS: Final = "/etc/systemd/system/minismtp.service.d"
CGROUPS: Final = Path("/sys/fs/cgroup")
DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
_NEWNET: Final = 0x40000000  # CLONE_NEWNET
HERE: Final = Path("/")
PYTHON: Final = "/usr/bin/python3"  # a service cannot use one below root's home
ENVIRONMENT: Final = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
# A container in / itself is refused, one in what is bound to it is not.
_PRELUDE: Final = """
for group in $CONTROL_GROUPS; do echo $$ >"$group/cgroup.procs"; done
mount --bind --options ro "$TREE" "$0"
exec "$@"
"""
# There is no network: what is installed comes from the directory that `build_wheels` fills.
OFFLINE: Final = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}
T = TypeVar("T")


def debian13() -> Path:
    """Return the file system of a Debian 13. CI makes it; elsewhere it may be missing."""
    if os.environ.get("MINISMTP_REQUIRE_SERVICES") != "1":
        found = [*Path("/var/cache/minismtp-tests").glob("debian13-*[0-9a-f]")]
        if not found:
            pytest.skip("no Debian 13 here: .ci/debian13 makes it")
    return Path(subprocess.check_output([ROOT / ".ci" / "debian13"], text=True).strip())


class Machine:
    """A booted systemd, by the process id of its first process.

    `environment` is that of the commands, `host` the server's name inside, and `login` the user who
    sends, with the password `secret`.
    """

    def __init__(
        self,
        leader: int,
        client: ssl.SSLContext,
        *,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        login: str = "alice",
    ) -> None:
        self._leader = leader
        self.client = client
        self._environment = ENVIRONMENT | dict(environment or {})
        self._host, self._login = host, login
        self._inside = ThreadPoolExecutor(1, initializer=self.enter)

    def run(self, *command: str | Path, check: bool = True, say: str = "") -> str:
        """Run a command inside and return its output."""
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", "-m", "-u", "-i", "-p", "-n", "-C", *command],
            cwd="/",
            env=self._environment,
            input=say,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}"
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        """Run a script inside, which ends with its first command that fails."""
        return self.run("sh", "-euc", script)

    def write(self, path: str, text: str) -> None:
        """Write a file inside; one that exists keeps its owner and mode."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path, say=text)

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "minismtp", "--value", f"--property={name}")

    def wait_until(self, condition: Callable[[], T | None]) -> T:
        """Return the first true value of `condition`."""
        deadline = time.monotonic() + DEADLINE
        while not (value := condition()):
            assert time.monotonic() < deadline, self.run("journalctl", "--unit=minismtp")
            time.sleep(0.05)
        return value

    def enter(self) -> None:
        """Move the calling thread into the network inside; it cannot come back."""
        with Path(f"/proc/{self._leader}/ns/net").open() as network:
            status = ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEWNET)
        assert status == 0, os.strerror(ctypes.get_errno())

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that uses the network inside."""
        return self._inside.submit(function).result()

    def send(
        self, recipient: str, port: int = 25, *, sender: str = "alice@example.org", host: str = ""
    ) -> None:
        """Send a message; on 587 and 465 as the user who logs in, inside TLS."""
        host = host or self._host
        text = f"Subject: to {recipient}\r\n\r\ntext\r\n"

        def send() -> None:
            if port == 465:
                smtp: smtplib.SMTP = smtplib.SMTP_SSL(
                    host, port, timeout=DEADLINE, context=self.client
                )
            else:
                smtp = smtplib.SMTP(host, port, timeout=DEADLINE)
            with smtp:
                if port == 587:
                    smtp.starttls(context=self.client)
                if port != 25:
                    smtp.login(self._login, "secret")
                smtp.sendmail(sender, [recipient], text)

        self.inside(send)

    def stored(self, local: str) -> list[str]:
        """Return the files of a user's mailbox, each behind its owner."""
        directory = f"/var/lib/minismtp/mail/{local}/new"
        return self.run("find", directory, "-type", "f", "-printf", "%u %p\n").splitlines()

    def metric(self, name: str) -> float:
        """Return a metric that has no labels."""

        def scrape() -> str:
            with urllib.request.urlopen("http://127.0.0.1:9925/metrics") as response:
                text: str = response.read().decode()
                return text

        found = re.search(rf"^minismtp_{name} (\S+)$", self.inside(scrape), re.MULTILINE)
        assert found
        return float(found[1])

    def processes(self) -> list[dict[str, str]]:
        """Return what /proc knows of the processes of the service, the supervisor first."""
        pids = self.run("sh", "-c", "cat /sys/fs/cgroup/system.slice/minismtp.service/cgroup.procs")
        # One may have ended since.
        texts = [self.run("cat", f"/proc/{pid}/status", check=False) for pid in pids.split()]
        texts = [text for text in texts if text.startswith("Name:")]
        return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]

    def drop_in(self, name: str, text: str) -> None:
        """Add to the unit."""
        self.write(f"{DROP_INS}/{name}.conf", text)
        self.run("systemctl", "daemon-reload")

    def journal(self, *options: str) -> list[str]:
        """Return what the service wrote to the journal."""
        options = ("--unit=minismtp", "--output=cat", *options)
        return self.run("journalctl", *options, check=False).splitlines()

    def install(self, goal: str = "install") -> str:
        """Install the wheel as the README says, or take it away again."""
        return self.run(*make(goal, "/source", "/wheels"))


@contextlib.contextmanager
def booted(
    nspawn: str, directory: Path, wheels: Path, *binds: str, tree: Path = HERE
) -> Iterator[int]:
    """Boot and return the first process inside, which uses `directory`.

    `binds` are options of systemd-nspawn, for more than /source and /wheels.
    """
    (directory / "root").mkdir()
    log = directory / "boot.log"
    command: list[str | Path] = [
        *("unshare", "--mount", "sh", "-euc", _PRELUDE, directory / "root"),
        *(nspawn, "--quiet", f"--directory={directory}/root", "--volatile=overlay", "--boot"),
        *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
        *(f"--machine=minismtp-{os.getpid()}", f"--bind-ro={wheels}:/wheels"),
        # Not the services of this machine, which the default target would start, and no questions.
        *(*binds, f"--bind-ro={ROOT}:/source"),
        *("systemd.unit=basic.target", "systemd.firstboot=no"),
    ]
    with _control_groups() as groups, log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=os.environ
            | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "CONTROL_GROUPS": groups}
            | {"TREE": str(tree)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        leader = 0
        try:
            deadline = time.monotonic() + DEADLINE
            while not (leader := _systemd_below(process.pid)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield leader
        finally:
            os.kill(leader or process.pid, signal.SIGKILL)  # with it goes all that runs inside
            process.wait()


@contextlib.contextmanager
def _control_groups() -> Iterator[str]:
    """Make control groups of this machine alone, and return their paths."""
    roots = [CGROUPS, CGROUPS / "unified", CGROUPS / "systemd"]
    groups = [
        root / f"minismtp-{os.getpid()}" for root in roots if (root / "cgroup.procs").exists()
    ]

    for group in groups:
        group.mkdir()
    try:
        yield " ".join(map(str, groups))
    finally:
        for group in groups:
            inner = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
            for path in [*inner, group]:
                path.rmdir()


def _systemd_below(pid: int) -> int:
    """Return the child in which systemd runs, 0 when there is none yet."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
    return 0


def build_wheels(directory: Path, *extras: str, tree: Path = HERE) -> None:
    """Put the wheels of the project and of its dependencies into `directory`/wheels.

    They are for the Python of the file system `tree`.
    """
    source, wheels = directory / "source", directory / "wheels"
    copy_source(source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", source],
        check=True,
    )
    inside = () if tree == HERE else ("chroot", str(tree))
    version = subprocess.check_output([*inside, PYTHON, "--version"], text=True).split()[1]
    target = (f"--python-version={version}", "--only-binary=:all:", f"--dest={wheels}")
    parts = [constraints()[part] for part in ("build", "core", *extras)]
    pinned = [line.split()[0] for lines in parts for line in lines]
    subprocess.run([*pip, "download", "--no-deps", *target, *pinned], check=True)


def repository(directory: Path) -> Path:
    """Return a repository with the source as its only commit."""
    source = directory / "repository"
    copy_source(source)
    for command in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    commit(source, "the source")
    return source


def commit(source: Path, message: str) -> None:
    """Commit all changes in a repository."""
    git = ("git", "-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    subprocess.run([*git, "commit", "--quiet", "--all", "-m", message], cwd=source, check=True)


def constraints() -> dict[str, list[str]]:
    """Return the lines of the parts of systemd/constraints.txt."""
    text = (ROOT / "systemd" / "constraints.txt").read_text()
    _, *parts = text.split("\n# [")
    return {part.partition("]")[0]: part.splitlines()[1:] for part in map(str.strip, parts)}


def make(goal: str, source: Path | str, wheels: Path | str, *variables: str) -> list[str]:
    """Return the command that installs the wheel as the README says, or takes it away again."""
    environment = [f"{name}={value}" for name, value in OFFLINE.items()]
    package = f'PACKAGE="$(ls {wheels}/minismtp-*.whl)"'
    call = f'exec env --unset=PYTHON "$@" PIP_FIND_LINKS={wheels} {package} make -C {source} {goal}'
    return ["sh", "-c", call, "sh", *environment, *variables]
