"""From `apt install` to a running mail host, in the three commands of the README's first screen.

A machine boots without minismtp. Someone installs the package, answers the questions of `minismtp
setup`, gives the DNS the records that it prints, and starts the server. Its certificate comes from
an authority (pebble). Then another host sends mail, receives mail, and reads mail over IMAP.
Commands, files that were edited by hand, and seconds are counted and limited.
"""

from __future__ import annotations

import contextlib
import imaplib
import json
import os
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import packages
import pages
import pytest
from conftest import Run
from machine import ENVIRONMENT, HERE, Machine, booted, debian13
from network import DEADLINE, BootedHost, Host, MailServer, Network, network
from terminal import Terminal
from test_setup_host import OTHER

PHRASE: Final = "correct horse"
MAIL: Final = "From: alice@home.test\r\nTo: {}\r\nSubject: hello\r\n\r\nIt works.\r\n"
MOST_COMMANDS: Final = 3
MOST_SECONDS: Final = 300.0
# What the package ssl-cert brings. Without it Debian's Dovecot fails to start, until it is set up.
DOVECOTS_OWN: Final = """
cd /etc/dovecot/private
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout dovecot.key -out dovecot.pem
"""
_PEBBLE: Final = ("PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")


class Evening:
    """One person at the machine."""

    def __init__(self, machine: Machine, leader: int) -> None:
        self.machine = machine
        self.commands: list[str] = []
        self.said: list[str] = []
        self._enter = f"nsenter --target={leader} -m -u -i -p -n -C".split()
        self._began = time.monotonic()

    def type(self, command: str, *answers: tuple[str, str]) -> str:
        """Type a command, and the answers to its questions. Return what the screen shows."""
        self.commands.append(command)
        script = f"cd /wheels; exec {command}"
        terminal = Terminal(*self._enter, "sh", "-c", script, environment=ENVIRONMENT)
        status = terminal.answer(*answers)
        assert status == 0, terminal.screen
        self.said.append(terminal.screen.replace("\r\n", "\n"))
        return self.said[-1]

    @property
    def seconds(self) -> float:
        """The time since the first command."""
        return time.monotonic() - self._began


def start_authority(net: Network, host: Host, directory: Path) -> ssl.SSLContext:
    """Start pebble on a host, and return what trusts its certificates."""
    pair = str(net.certificate(host))
    settings = {
        "listenAddress": "0.0.0.0:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": pair,
        "privateKey": pair,
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    config = directory / "pebble.json"
    config.write_text(json.dumps({"pebble": settings}))
    resolver = f"{net.resolver}:53"
    command = ("pebble", "-config", str(config), "-dnsserver", resolver)
    net.serve(host, "ACME directory available", "env", *_PEBBLE, *command)
    root = host.run("curl", "--silent", "--insecure", "https://127.0.0.1:15000/roots/0")
    return ssl.create_default_context(cadata=root)


def submission(origin: Host, host: Host, client: ssl.SSLContext, port: int) -> smtplib.SMTP:
    """Connect as a mail program does, which verifies the certificate."""
    address = host.addresses[0]
    smtp = origin.inside(lambda: smtplib.SMTP(timeout=DEADLINE))
    origin.inside(lambda: smtp.connect(address, port))
    smtp._host = "mx.test"  # type: ignore[attr-defined]  # noqa: SLF001 - to be verified
    try:
        assert smtp.starttls(context=client)[0] == 220
    except ssl.SSLError:
        smtp.close()
        raise
    return smtp


def is_certified(origin: Host, host: Host, client: ssl.SSLContext) -> bool:
    """Return whether each worker serves the certificate, which takes a moment."""
    with contextlib.suppress(ssl.SSLError):
        for _ in range(20):
            submission(origin, host, client, 25).close()
        return True
    return False


def mail_comes_in(origin: Host, host: Host, client: ssl.SSLContext) -> None:
    """Send mail of a stranger inside TLS, with a certificate of the authority."""
    with submission(origin, host, client, 25) as smtp:
        smtp.sendmail(
            "carol@other.test", "alice@home.test", "Subject: to alice\r\n\r\nWelcome.\r\n"
        )


def mail_goes_out(origin: Host, host: Host, client: ssl.SSLContext, other: MailServer) -> None:
    """Send mail of alice to the other host, which finds it signed and authorized."""
    with submission(origin, host, client, 587) as smtp:
        smtp.login("alice@home.test", PHRASE)
        smtp.sendmail("alice@home.test", "carol@other.test", MAIL.format("carol@other.test"))
    message = other.mail("carol").decode()
    results, _ = re.findall(r"^Authentication-Results: (.*(?:\n[ \t].*)*)", message, re.MULTILINE)
    assert results.count("dkim=pass") == 2, message
    assert "spf=pass" in results
    assert "dmarc=pass" in results


def mail_is_read(origin: Host, host: Host, client: ssl.SSLContext, machine: Machine) -> None:
    """Read the mail of alice over IMAP, with the same certificate and password."""
    machine.wait_until(lambda: machine.stored("home.test/alice"))
    [address, _] = host.addresses

    class Verified(imaplib.IMAP4_SSL):
        def _create_socket(self, timeout: float | None) -> ssl.SSLSocket:
            sock = socket.create_connection((address, 993), timeout)
            return client.wrap_socket(sock, server_hostname="mx.test")

    def logged_in() -> imaplib.IMAP4 | None:
        # Dovecot has not read the new certificate yet, or ends sessions while it does.
        with contextlib.suppress(OSError, imaplib.IMAP4.error):
            imap = Verified("mx.test", timeout=DEADLINE)
            imap.login("alice@home.test", PHRASE)
            return imap
        return None

    imap = machine.wait_until(lambda: origin.inside(logged_in))
    imap.select("INBOX")
    found = imap.fetch("1", "(BODY.PEEK[HEADER])")[1]
    assert "Subject: to alice" in repr(found)
    imap.logout()


@pytest.fixture(scope="module", params=["debian12", "debian13"])
def tree(request: pytest.FixtureRequest) -> Path:
    return debian13() if request.param == "debian13" else HERE


@pytest.fixture
def evening(
    tree: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> Iterator[tuple[Evening, BootedHost]]:
    """Yield a person at a machine that has Debian's Dovecot but not minismtp."""
    nspawn = require_program("systemd-nspawn")
    if os.geteuid() != 0:
        pytest.skip("booting systemd needs root")
    debs = tmp_path / "debs"
    debs.mkdir()
    deb = packages.built().file("*.deb")
    (debs / deb.name).write_bytes(deb.read_bytes())
    with booted(nspawn, tmp_path, debs, tree=tree) as leader:
        machine = Machine(leader, ssl.create_default_context())
        machine.wait_until(
            lambda: machine.run("systemctl", "is-system-running", check=False) == "running"
        )
        if tree == HERE:
            machine.shell(DOVECOTS_OWN)
        machine.run("systemctl", "start", "dovecot", check=False)  # as its package does
        yield Evening(machine, leader), BootedHost("mx", leader)


def test_three_commands_make_a_mail_host(
    tree: Path,
    evening: tuple[Evening, BootedHost],
    tmp_path: Path,
    require_program: Callable[[str], str],
    run: Run,
) -> None:
    for program in ("nsd", "unbound", "pebble", "curl", "ip"):
        require_program(program)
    person, host = evening
    (tmp_path / "net").mkdir()
    with network(tmp_path / "net") as net, contextlib.ExitStack() as stack:
        outside, authority = net.host("other", 21), net.host("ca", 22)
        net.attach(host)
        other = net.minismtp(outside, run, OTHER)
        stack.callback(other.close)
        net.publish()
        client = start_authority(net, authority, tmp_path)
        person.machine.write("/etc/resolv.conf", f"nameserver {net.resolver}\n")
        person.machine.write("/etc/ssl/ca.pem", net.authority.read_text())

        install, setup, start = pages.commands(pages.block("README", ""))
        person.type(install, ("[Y/n] ", "\n"))
        said = person.type(
            f"{setup} --acme-directory https://ca.test:14000/dir --acme-ca /etc/ssl/ca.pem",
            ("domain of your mail addresses: ", "home.test\n"),
            ("The name of this host", "mx.test\n"),
            ("The first user at home.test: ", "alice\n"),
            ("Password: ", f"{PHRASE}\n"),
            ("The same again: ", f"{PHRASE}\n"),
            ("Write them? [Y/n]: ", "\n"),
        )
        net.publish("other MX 10 other", *re.findall(r"^\S+\. IN .*", said, re.MULTILINE))
        other.start()
        person.type(start)

        person.machine.wait_until(
            lambda: "Pebble" in person.machine.run("minismtp", "certificate", check=False)
        )
        person.machine.wait_until(lambda: is_certified(outside, host, client))
        mail_comes_in(outside, host, client)
        mail_goes_out(outside, host, client, other)
        mail_is_read(outside, host, client, person.machine)
        seconds = person.seconds
    told = f"{tree}: {len(person.commands)} commands, no file edited, {seconds:.0f} seconds"
    print(told)  # noqa: T201 - shown by `pytest -rP`
    assert len(person.commands) <= MOST_COMMANDS
    assert seconds < MOST_SECONDS
