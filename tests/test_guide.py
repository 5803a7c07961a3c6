"""The commands of the administrator's guide, on a machine that really boots.

Commands that need the Internet are left out: apt-get, certbot itself, DNS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest
from machine import Machine, booted, build_wheels, make
from source import ROOT

if TYPE_CHECKING:
    from conftest import TlsFiles

GUIDE: Final = (ROOT / "docs" / "administrator.md").read_text()
MONITORING: Final = (ROOT / "docs" / "monitoring.md").read_text()
LIVE: Final = "/etc/letsencrypt/live/mx.example.org"


def section(heading: str, page: str = GUIDE) -> str:
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def block(heading: str, language: str = "sh", number: int = 0, page: str = GUIDE) -> str:
    """Return a block of code, without the commands that need the Internet."""
    found = re.findall(
        rf"^```{language}\n(.*?)```", section(heading, page), re.DOTALL | re.MULTILINE
    )
    return re.sub(r"^(apt-get|certbot) .*\n", "", found[number], flags=re.MULTILINE)


def commands(heading: str, page: str = GUIDE) -> list[str]:
    """Return the commands in the rows of a table."""
    rows = [line for line in section(heading, page).splitlines() if line.startswith("| ")]
    code = [text.replace(r"\|", "|") for row in rows for text in re.findall(r"`([^`]+)`", row)]
    looks = r"(journalctl|minismtp|ss|df|find|systemctl status|curl|doveconf) "
    return [text for text in dict.fromkeys(code) if re.match(looks, text)]


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory,
    require_program: Callable[[str], str],
    tls_files: TlsFiles,
) -> Iterator[Machine]:
    """Yield a machine that is set up as the guide says."""
    for program in ("dovecot", "swaks", "promtool"):
        require_program(program)
    nspawn = require_program("systemd-nspawn")
    if os.geteuid() != 0:
        refuse = pytest.fail if os.environ.get("MINISMTP_REQUIRE_SERVICES") == "1" else pytest.skip
        refuse("booting systemd needs root")
    directory = tmp_path_factory.mktemp("machine")
    build_wheels(directory, "argon2")
    with booted(nspawn, directory, directory / "wheels") as leader:
        machine = Machine(leader, tls_files.client())
        machine.wait_until(
            lambda: machine.run("systemctl", "is-system-running", check=False) == "running"
        )
        set_up(machine, tls_files)
        yield machine


def do(machine: Machine, commands: str, say: str = "") -> str:
    """Run commands as root in the source tree."""
    return machine.run("sh", "-euc", f"cd /source; {commands}", say=say)


def install(machine: Machine) -> None:
    assert block("Install") == "make install EXTRAS=argon2\n"
    machine.run(*make("install", "/source", "/wheels", "EXTRAS=argon2"))


def set_up(machine: Machine, tls_files: TlsFiles) -> None:
    install(machine)
    machine.write(f"{LIVE}/fullchain.pem", tls_files.certificate.read_text())
    machine.write(f"{LIVE}/privkey.pem", tls_files.key.read_text())
    do(machine, "mkdir -p /etc/letsencrypt/renewal-hooks/deploy")  # the package certbot has it
    do(machine, block("TLS"))
    do(machine, block("Users"), say="secret\n")
    do(machine, block("Start"))
    file = "/etc/minismtp/minismtp.toml"
    text, relay = machine.run("cat", file), '[[plugins]]\nuse = "relay"\n'
    assert relay in text
    machine.write(file, text.replace(relay, block("Relaying", "toml")))
    machine.run("systemctl", "reload", "minismtp")
    machine.write("/etc/dovecot/dovecot.conf", block("Reading mail", "dovecot"))


def test_manuals_are_there(machine: Machine) -> None:
    machine.run("man", "--where", "minismtp", "minismtp.toml")


def test_hook_leaves_other_certificates_alone(machine: Machine) -> None:
    hook = "/etc/letsencrypt/renewal-hooks/deploy/minismtp"
    do(machine, f"RENEWED_DOMAINS=www.example.org RENEWED_LINEAGE=/none {hook}")


def test_user_sends_with_a_password(machine: Machine) -> None:
    command = block("Users", number=1).rstrip().replace("mx.example.org:465", "127.0.0.1:465")
    said = do(machine, f"{command} --auth-password secret --to bob@example.org")
    assert " 235 " in said
    assert " 250 2.0.0 message accepted " in said
    assert machine.stored("example.org/bob")


def test_dovecot_shows_what_was_stored_to_who_has_the_password(machine: Machine) -> None:
    machine.send("alice@example.org")
    machine.wait_until(lambda: machine.stored("example.org/alice"))
    said = do(machine, block("Reading mail").replace("test alice", "test alice secret"))
    assert "alice auth succeeded" in said
    assert re.search(r"^INBOX messages=[1-9]", said, re.MULTILINE)
    assert "auth failed" in machine.run("doveadm", "auth", "test", "alice", "wrong", check=False)


def test_queue_is_steered(machine: Machine) -> None:
    *steps, drop = [text for text in commands("Relaying") if " queue " in text]
    assert [step.split()[2] for step in steps] == [
        *("list", "show", "retry", "hold", "release", "bounce")
    ]
    for told in (steps, [drop]):
        machine.send("somebody@example.net")
        waiting = machine.wait_until(
            lambda: re.search(r"^\w+\.\d+", do(machine, "minismtp queue list"), re.MULTILINE)
        )
        for command in told:
            do(machine, command.replace("ID", waiting[0]))
        machine.wait_until(lambda: "queue is empty" in do(machine, "minismtp queue list"))


LOOKS: Final = dict.fromkeys(commands("Troubleshooting") + commands("Alerts", MONITORING))


@pytest.mark.parametrize(
    "command", [look for look in LOOKS if not re.search(r" ID| passwd$", look)]
)
def test_command_for_a_symptom_works(command: str, machine: Machine) -> None:
    """Exit status 1 is that of grep when there is no such line."""
    do(machine, f"( {command.replace('ADDRESS', 'nobody@example.org')} ) || test $? -eq 1")


def test_prometheus_takes_the_rules(machine: Machine) -> None:
    told = block("Prometheus", page=MONITORING)
    do(machine, told.replace("systemctl reload prometheus", ""))


def test_backup_has_configuration_and_mail(machine: Machine) -> None:
    do(machine, block("Backup"))
    kept = machine.run("tar", "--list", "--file", "/root/minismtp.tar.zst")
    assert "etc/minismtp/passwords" in kept
    assert "var/lib/minismtp/mail/example.org/postmaster/new/" in kept
    assert "/spool" not in kept


def test_upgrade_keeps_configuration_and_mail(machine: Machine) -> None:
    look = "sha256sum /etc/minismtp/*.toml /etc/minismtp/passwords; find /var/lib/minismtp/mail"
    before = do(machine, look)
    install(machine)
    do(machine, block("Changes").partition("\n")[2])
    assert do(machine, look) == before
    assert machine.show("ActiveState") == "active"
