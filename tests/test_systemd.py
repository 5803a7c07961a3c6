"""The service under a systemd that really boots."""

from __future__ import annotations

import os
import re
import shutil
import smtplib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from machine import DEADLINE, DROP_INS, PYTHON, Machine, booted, build_wheels, make
from source import ROOT

if TYPE_CHECKING:
    from conftest import TlsFiles

UNITS: Final = ROOT / "systemd"
SOCKETS: Final = (
    "minismtp-smtp.socket",
    "minismtp-submission.socket",
    "minismtp-submissions.socket",
)
WEB_SOCKETS: Final = ("minismtp-http.socket", "minismtp-https.socket")
WEB: Final = """
[[listeners]]
name = "http"
address = "*:80"
kind = "web"

[[listeners]]
name = "https"
address = "*:443"
kind = "web"
"""
HARDENED: Final = "/opt/minismtp/share/minismtp/sockets-only.conf"
CAP_NET_BIND_SERVICE: Final = 1 << 10
CONFIGURATION: Final = """
hostname = "mx.example.org"
state_directory = "/var/lib/minismtp"
workers = 2

[[listeners]]
name = "smtp"
address = "0.0.0.0:25"

[[listeners]]
name = "submission"
address = "0.0.0.0:587"
kind = "submission"

[[listeners]]
name = "submissions"
address = "0.0.0.0:465"
kind = "submission"
tls = "implicit"

[tls]
certificate = "tls/chain.pem"
key = "tls/key.pem"

[outbound]
smarthost = "127.0.0.1:1"

[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "relay"

[[plugins]]
use = "password_file"
path = "passwords"

[[plugins]]
use = "maildir"
path = "/var/lib/minismtp/mail/{local}"
"""


def refuse(problem: str) -> None:
    """Skip tests that cannot run here, or fail if all tests are required."""
    if os.environ.get("MINISMTP_REQUIRE_SERVICES") == "1":
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with all wheels."""
    if subprocess.run([PYTHON, "-c", "import ensurepip, tomllib"], check=False).returncode != 0:
        refuse(f"{PYTHON} is older than 3.11, or python3-venv is missing")
    directory = tmp_path_factory.mktemp("packages")
    build_wheels(directory)
    return directory / "wheels"


@pytest.fixture(scope="module")
def leader(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str], wheels: Path
) -> Iterator[int]:
    """Yield the first process of a machine that has booted."""
    nspawn = require_program("systemd-nspawn")
    if os.geteuid() != 0:
        refuse("booting systemd needs root")
    with booted(nspawn, tmp_path_factory.mktemp("machine"), wheels) as pid:
        yield pid


@pytest.fixture(scope="module")
def machine(leader: int, tls_files: TlsFiles) -> Machine:
    """Return a machine with minismtp, installed from its wheel, configured and started.

    Each test restores that state. `alice` logs in with the password `secret`.
    """
    machine = Machine(leader, tls_files.client())
    up = {"running", "degraded"}  # degraded if this machine cannot start all units
    machine.wait_until(lambda: machine.run("systemctl", "is-system-running", check=False) in up)
    machine.install()
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)
    machine.write("/etc/minismtp/tls/chain.pem", tls_files.certificate.read_text())
    machine.write("/etc/minismtp/tls/key.pem", tls_files.key.read_text())
    machine.run("chgrp", "minismtp", "/etc/minismtp/tls/key.pem")
    machine.run("chmod", "640", "/etc/minismtp/tls/key.pem")
    machine.run("minismtp", "passwd", "/etc/minismtp/passwords", "alice", say="secret\n")
    machine.run("runuser", "-u", "minismtp", "--", "minismtp", "check")
    machine.run("systemctl", "enable", "--now", "minismtp")
    return machine


@pytest.fixture
def held_sockets(machine: Machine) -> Iterator[None]:
    """Let systemd hold the three ports, and remove the server's capability, for one test."""
    machine.run("systemctl", "stop", "minismtp")
    machine.drop_in("sockets-only", machine.run("cat", HARDENED))
    machine.run("systemctl", "enable", "--now", *SOCKETS)
    yield
    machine.run("systemctl", "disable", "--now", *SOCKETS)
    machine.run("rm", "-r", DROP_INS)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "minismtp")


# The units, as they are


def exposure(directory: Path, unit: str, *, drop_in: str = "") -> float:
    """Let systemd check a unit, and return its exposure."""
    shutil.copy(UNITS / unit, directory)
    if drop_in:
        (directory / f"{unit}.d").mkdir()
        shutil.copy(UNITS / drop_in, directory / f"{unit}.d")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", directory / unit],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+) ", done.stdout)
    assert found, done.stdout
    return float(found[1])


@pytest.mark.parametrize(("drop_in", "most"), [("", 1.5), ("sockets-only.conf", 1.2)])
def test_exposure_of_the_service_is_small(
    drop_in: str,
    most: float,
    tmp_path: Path,
    require_program: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_program("systemd-analyze")
    found = exposure(tmp_path, "minismtp.service", drop_in=drop_in)
    with capsys.disabled():
        sys.stdout.write(f"\nexposure of minismtp.service {drop_in}: {found} ")
    assert found <= most


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    others = ("minismtp-dovecot.path", "minismtp-dovecot.service")
    for unit in ("minismtp.service", *SOCKETS, *WEB_SOCKETS, *others):
        assert machine.run("systemd-analyze", "verify", "--recursive-errors=yes", unit) == ""


# A running system


def test_service_is_active_when_it_serves(machine: Machine) -> None:
    machine.run("systemctl", "restart", "minismtp")
    machine.send("prompt@example.org")  # at once: the restart has waited for READY=1
    assert machine.show("Type") == "notify"
    assert machine.show("ActiveState") == "active"
    machine.wait_until(
        lambda: re.match(
            r"Serving: workers 2/2, sessions \d+, queue \d+$", machine.show("StatusText")
        )
    )


def test_processes_have_a_user_of_their_own_and_one_capability(machine: Machine) -> None:
    [user] = machine.run("id", "-u", "minismtp").split()
    processes = machine.processes()
    assert len(processes) == 5  # supervisor, two workers, queue, endpoint
    for process in processes:
        assert set(process["Uid"].split()) == {user} != {"0"}
        assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == CAP_NET_BIND_SERVICE


@pytest.mark.parametrize("port", [25, 587, 465])
def test_mail_is_taken_on_every_port_and_stored(machine: Machine, port: int) -> None:
    machine.send(f"port{port}@example.org", port)
    [stored] = machine.stored(f"port{port}")
    assert stored.startswith("minismtp /var/lib/minismtp/mail/")


def test_journal_has_priorities_and_the_ids_of_session_and_message(machine: Machine) -> None:
    machine.send("journal@example.org")
    [stored] = machine.stored("journal")
    found = re.search(r"\bid ([0-9a-f]{12})\.1\b", machine.run("cat", stored.split()[1]))
    assert found, machine.run("cat", stored.split()[1])
    session = rf"\bsession={found[1]} .*id={found[1]}\.1\b"
    [line] = machine.wait_until(
        lambda: [each for each in machine.journal() if re.search(session, each)]
    )
    assert line.startswith("info ")
    assert line not in machine.journal("--priority=warning")


def test_reload_takes_on_a_new_configuration(machine: Machine) -> None:
    new = CONFIGURATION.replace("mx.example.org", "mx2.example.org")
    machine.write("/etc/minismtp/minismtp.toml", new)
    before = machine.show("MainPID")
    machine.run("systemctl", "reload", "minismtp")
    assert machine.show("MainPID") == before

    def banner() -> bytes:
        with smtplib.SMTP("127.0.0.1", 25, timeout=DEADLINE) as smtp:
            return smtp.ehlo()[1]

    machine.wait_until(lambda: b"mx2.example.org" in machine.inside(banner))
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)
    machine.run("systemctl", "reload", "minismtp")


def test_reload_of_a_wrong_configuration_says_so_and_changes_nothing(machine: Machine) -> None:
    machine.write("/etc/minismtp/minismtp.toml", f"rubbish = 1\n{CONFIGURATION}")
    assert "failed" in machine.run("systemctl", "reload", "minismtp", check=False)
    assert machine.show("ActiveState") == "active"
    assert machine.metric("config_last_reload_successful") == 0
    machine.send("unchanged@example.org")
    told = "\n".join(machine.journal("--priority=err"))
    assert re.search(r"rubbish, line \d+: unknown key", told)
    machine.wait_until(lambda: "; the last reload failed" in machine.show("StatusText"))
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)
    machine.run("systemctl", "reload", "minismtp")
    assert machine.metric("config_last_reload_successful") == 1


def test_wrong_configuration_is_not_tried_again_and_again(machine: Machine) -> None:
    machine.write("/etc/minismtp/minismtp.toml", f"rubbish = 1\n{CONFIGURATION}")
    machine.run("systemctl", "restart", "minismtp", check=False)
    assert machine.show("ActiveState") == "failed"
    assert machine.show("ExecMainStatus") == "78"
    last = machine.journal("--priority=err", "--lines=5")
    assert any(line.startswith("minismtp: /etc/minismtp/minismtp.toml: rubbish") for line in last)
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)
    machine.run("systemctl", "start", "minismtp")


def test_queue_survives_a_restart(machine: Machine) -> None:
    machine.send("somebody@example.net", 587)

    def waiting() -> bool:
        status = machine.show("StatusText")
        return status.startswith("Serving: ") and "queue 0" not in status

    machine.wait_until(waiting)
    machine.run("systemctl", "restart", "minismtp")
    machine.wait_until(waiting)
    assert "somebody@example.net" in machine.run("minismtp", "queue", "list")
    machine.run("runuser", "-u", "minismtp", "--", "minismtp", "queue", "remove", "--all")


def test_watchdog_restarts_a_server_whose_workers_do_not_answer(machine: Machine) -> None:
    machine.drop_in("watchdog", "[Service]\nWatchdogSec=4s\n")
    machine.run("systemctl", "restart", "minismtp")
    machine.wait_until(lambda: machine.metric("workers") == 2)
    main = machine.show("MainPID")
    machine.run("pkill", "-STOP", "-P", main, "^minismtp-worker")
    machine.wait_until(lambda: machine.show("NRestarts") == "1")
    machine.wait_until(lambda: machine.show("ActiveState") == "active")
    assert machine.show("MainPID") != main
    machine.send("restarted@example.org")
    assert any("worker does not answer" in line for line in machine.journal("--priority=err"))
    machine.run("rm", "-r", DROP_INS)
    machine.run("systemctl", "daemon-reload")


# Sockets of systemd


@pytest.mark.usefixtures("held_sockets")
def test_first_connection_starts_the_server_without_any_capability(machine: Machine) -> None:
    assert machine.show("ActiveState") == "inactive"
    machine.send("first@example.org", 465)
    assert len(machine.stored("first")) == 1
    for process in machine.processes():
        assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0


@pytest.mark.usefixtures("held_sockets")
def test_sockets_are_of_both_families_whatever_the_kernel_prefers(machine: Machine) -> None:
    machine.shell("echo 1 >/proc/sys/net/ipv6/bindv6only")
    machine.run("systemctl", "restart", *SOCKETS)
    machine.shell("echo 0 >/proc/sys/net/ipv6/bindv6only")
    for host in ("127.0.0.1", "::1"):
        machine.send("families@example.org", host=host)
    assert len(machine.stored("families")) == 2


@pytest.mark.usefixtures("held_sockets")
def test_web_listeners_need_no_capability_with_sockets_of_systemd(machine: Machine) -> None:
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION + WEB)
    machine.run("systemctl", "enable", "--now", *WEB_SOCKETS)

    def ask() -> list[int]:
        host, context = "127.0.0.1", machine.client
        clients = [HTTPConnection(host), HTTPSConnection(host, context=context)]
        for client in clients:
            client.timeout = DEADLINE
            client.request("GET", "/none")
        return [client.getresponse().status for client in clients]

    assert machine.inside(ask) == [404, 404]
    for process in machine.processes():
        assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0
    machine.run("systemctl", "disable", "--now", *WEB_SOCKETS)
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)


def test_every_host_is_that_of_ipv4_in_a_service_without_ipv6(machine: Machine) -> None:
    families = "RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK"
    machine.drop_in("ipv4", f"[Service]\nRestrictAddressFamilies=\n{families}\n")
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION.replace("0.0.0.0:25", "*:25"))
    machine.run("systemctl", "restart", "minismtp")
    machine.send("ipv4@example.org")
    assert "0.0.0.0:25 " in machine.run("ss", "-lnt4")
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)
    machine.run("rm", "-r", DROP_INS)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "minismtp")


def test_port_in_use_is_named_in_the_journal_and_tried_again(machine: Machine) -> None:
    """Another program has the port, so systemd starts the server again later."""
    machine.run("systemctl", "stop", "minismtp")
    machine.run("systemd-run", "--unit=taker", "nc", "-lk", "587")
    machine.wait_until(lambda: ":587 " in machine.run("ss", "-lnt"))
    machine.run("systemctl", "start", "minismtp", check=False)
    line = CONFIGURATION.splitlines().index('address = "0.0.0.0:587"') + 1
    said = "\n".join(machine.journal("--priority=err", "--lines=9"))
    where = f"listeners[1] submission, line {line}: address: cannot listen on 0.0.0.0:587"
    assert re.search(re.escape(where) + r": Address already in use by .*; stop it, or", said)
    assert machine.show("ExecMainStatus") == "1"
    names = ("StartLimitBurst", "StartLimitIntervalUSec", "RestartUSec")
    burst, interval, pause = (int(machine.show(name).rstrip("s")) for name in names)
    assert (burst - 1) * pause > interval  # so that systemd never gives up
    machine.run("systemctl", "stop", "taker")
    machine.wait_until(lambda: machine.show("ActiveState") == "active")


def test_server_does_not_start_without_the_disk_of_the_mail(machine: Machine) -> None:
    """Mail stored below the mount point would be hidden when the disk comes."""
    machine.run("systemctl", "stop", "minismtp")
    mount = "/etc/systemd/system/var-lib-minismtp-mail.mount"
    machine.write(mount, "[Mount]\nWhat=/nowhere\nWhere=/var/lib/minismtp/mail\nType=ext4\n")
    machine.run("systemctl", "daemon-reload")
    said = machine.run("systemctl", "start", "minismtp", check=False)
    assert "A dependency job for minismtp.service failed" in said
    assert machine.show("ActiveState") == "inactive"
    machine.run("rm", mount)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "minismtp")


@pytest.mark.usefixtures("held_sockets")
def test_restart_under_load_refuses_no_connection_and_loses_no_mail(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.send("load@example.org")
    fates: Counter[str] = Counter({"stored": 1})
    over = threading.Event()

    def load() -> None:
        machine.enter()
        while not over.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", 25, timeout=DEADLINE) as smtp:
                    smtp.sendmail("a@example.com", ["load@example.org"], "text\r\n")
                    fates["stored"] += 1
            except ConnectionRefusedError:
                fates["refused"] += 1
            except (smtplib.SMTPException, ConnectionError):
                fates["told to come again"] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = fates["stored"]
        machine.run("systemctl", "restart", "minismtp")
        machine.wait_until(lambda before=before: fates["stored"] > before + 20)  # type: ignore[misc]
    over.set()
    for thread in threads:
        thread.join()
    with capsys.disabled():
        sys.stdout.write(f"\n3 restarts under load: {dict(fates)} ")
    assert fates["refused"] == 0
    assert len(machine.stored("load")) >= fates["stored"]


# Installing


def test_upgrade_and_removal_keep_configuration_and_mail(machine: Machine) -> None:
    machine.send("kept@example.org")
    passwords = machine.run("cat", "/etc/minismtp/passwords")
    machine.install()
    assert machine.show("ActiveState") == "active"
    assert "Kept: /etc/minismtp" in machine.install("uninstall")
    assert machine.show("LoadState") == "not-found"
    assert (
        machine.run("sh", "-c", "ls -d /opt/minismtp /usr/local/bin/minismtp 2>&1 || true").count(
            "No such file"
        )
        == 2
    )
    machine.install()
    machine.run("systemctl", "enable", "--now", "minismtp")
    machine.send("kept@example.org")
    assert len(machine.stored("kept")) == 2
    assert machine.run("cat", "/etc/minismtp/passwords") == passwords
    assert machine.run("cat", "/etc/minismtp/minismtp.toml") == CONFIGURATION.strip()


def test_packagers_install_below_a_root_of_their_own(wheels: Path, tmp_path: Path) -> None:
    subprocess.run(
        make("install", ROOT, wheels, f"DESTDIR={tmp_path}", "PREFIX=/usr/lib/mini"), check=True
    )
    assert oct((tmp_path / "etc/minismtp/passwords").stat().st_mode) == "0o100640"
    unit = (tmp_path / "usr/local/lib/systemd/system/minismtp.service").read_text()
    assert "ExecStart=/usr/lib/mini/bin/minismtp serve" in unit
    program = tmp_path / "usr/lib/mini/bin/minismtp"
    assert program.read_text().startswith("#!/usr/lib/mini/bin/python")
    link = tmp_path / "usr/local/bin/minismtp"
    assert link.readlink() == Path("/usr/lib/mini/bin/minismtp")
    purge = make(
        "uninstall", ROOT, wheels, f"DESTDIR={tmp_path}", "PREFIX=/usr/lib/mini", "PURGE=yes"
    )
    subprocess.run(purge, check=True)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
