"""Every command of the README and of the guides, on a Debian 12 and a Debian 13 that really boot.

`newcomer` follows the pages once for each Debian. The tests look at what came out, and then use the
server that is left.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pages
import pytest
import trustme
from machine import HERE, OFFLINE, Machine, booted, build_wheels, debian13, repository
from newcomer import IPV4, IPV6, Newcomer
from plugin_page import PAGE, build_wheel, transcript
from source import ROOT

#: Commands that no newcomer runs here, with the reason.
ELSEWHERE: Final = {
    "make test": "`.ci/run` does, with these tests",
    "apt install ./minismtp_1.0.0_amd64.deb dovecot-imapd": "`test_five_minutes` does",
    "minismtp setup": "`test_five_minutes` does, with answers typed",
}
#: Commands in the text of pages, which work without anything else.
INLINE: Final = [
    ("administrator", "apt-get install dovecot-imapd"),
    ("administrator", "apt-get install unbound"),
    ("administrator", "minismtp shadow"),
    ("administrator", "runuser -u minismtp -- minismtp queue list"),
    ("hardening", "runuser -u minismtp -- minismtp check --strict"),
    ("hardening", "minismtp sessions --stack"),
    ("hardening", "systemd-analyze security minismtp"),
    ("insight", "runuser -u minismtp -- minismtp sessions"),
    ("quarantine", "minismtp queue list --state held"),
    ("systemd", "systemctl reset-failed 'minismtp*'"),
]
ADDRESSES: Final = ("127.0.0.1", "::1", IPV4, IPV6)


@pytest.fixture(scope="module", params=["debian12", "debian13"])
def newcomer(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    require_program: Callable[[str], str],
) -> Iterator[Newcomer]:
    """Yield a newcomer who has followed all pages."""
    nspawn = require_program("systemd-nspawn")
    if os.geteuid() != 0:
        refuse = pytest.fail if os.environ.get("MINISMTP_REQUIRE_SERVICES") == "1" else pytest.skip
        refuse("booting systemd needs root")
    tree = HERE
    if request.param == "debian13":
        tree = debian13()
    else:
        for program in ("dovecot", "swaks", "promtool", "certbot", "pebble", "dnsmasq", "dig"):
            require_program(program)
    directory = tmp_path_factory.mktemp("machine")
    build_wheels(directory, "argon2", "dkim", "dmarc", tree=tree)
    source = repository(directory)
    wheels = directory / "wheels"
    with booted(nspawn, directory, wheels, f"--bind-ro={source}:/repository", tree=tree) as leader:
        machine = Machine(
            leader,
            ssl.create_default_context(),
            environment=OFFLINE | {"PIP_FIND_LINKS": "/wheels"},
            host=IPV4,
            login="alice@example.org",
        )
        machine.wait_until(
            lambda: machine.run("systemctl", "is-system-running", check=False) == "running"
        )
        newcomer = Newcomer(machine, source)
        newcomer.walk()
        print(f"{request.param}: seconds {newcomer.seconds}")  # noqa: T201 - shown by `pytest -rP`
        yield newcomer


@pytest.fixture
def machine(newcomer: Newcomer) -> Machine:
    """Return the machine that is set up as the guide says."""
    return newcomer.machine


def test_every_command_of_the_pages_was_run(newcomer: Newcomer) -> None:
    assert pages.all_commands().keys() - newcomer.said.keys() == ELSEWHERE.keys()


def test_other_commands_are_run_elsewhere() -> None:
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()


def test_first_plugin_refuses_as_the_readme_says(newcomer: Newcomer) -> None:
    for command in pages.commands(pages.block("README", "The first plugin", 1)):
        assert "550 5.7.1 message refused as spam" in newcomer.said[command]


def test_installation_says_which_version_it_is_and_which_it_replaced(newcomer: Newcomer) -> None:
    said = newcomer.said["make install EXTRAS=argon2"]
    assert re.search(
        r"^minismtp 1\.0\.1 \(commit \w+\) is installed .* in the place of 1\.0\.0 \(commit \w+\)",
        said,
        re.MULTILINE,
    )
    assert "systemctl restart minismtp" in said
    assert "info starting version=1.0.1 " in "\n".join(newcomer.machine.journal())


def test_password_is_set_and_the_mailbox_named(newcomer: Newcomer) -> None:
    command = "minismtp passwd --scheme argon2id /etc/minismtp/passwords {}@{}"
    for local, domain in (("alice", "example.org"), ("bob", "example.com")):
        assert newcomer.said[command.format(local, domain)].endswith(f"Mailbox: {local}@{domain}")


def test_records_of_the_guide_are_what_others_see(newcomer: Newcomer) -> None:
    seen = {
        "MX example.org": "10 mx.example.org.",
        "A mx.example.org": IPV4,
        "AAAA mx.example.org": IPV6,
        f"-x {IPV4}": "mx.example.org.",
        f"-x {IPV6}": "mx.example.org.",
        "TXT example.org": '"v=spf1 mx -all"',
    }
    assert {what: newcomer.said[f"dig +short {what}"] for what in seen} == seen


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("port", [25, 587, 465])
def test_users_and_strangers_reach_every_port_by_both_families(
    address: str, port: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.client, "check_hostname", False)  # it is for the name
    machine.send("postmaster@example.org", port, host=address)


def test_certificate_of_the_authority_is_served(newcomer: Newcomer) -> None:
    for port in ("25 -starttls smtp", "465"):
        said = newcomer.said[f"openssl s_client -connect mx.example.org:{port} -brief </dev/null"]
        assert re.search(r"CN ?= ?Pebble Intermediate CA", said)


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("", "expected one argument, the name of the mail host"),
        ("www.example.org", "/etc/letsencrypt/live/www.example.org/fullchain.pem does not exist"),
        ("x live", "fullchain.pem is for mx.example.org, not for x; nothing was changed"),
        ("mx.example.org mixed", "privkey.pem is not the key of"),
        ("mx.example.org old", "fullchain.pem has expired; nothing was changed"),
    ],
)
def test_hook_fails_loudly(argument: str, problem: str, machine: Machine) -> None:
    host, _, place = argument.partition(" ")
    live = "/etc/letsencrypt/live/mx.example.org"
    lineage = {"": "", "live": live}.get(place, f"/root/{place}")
    now = datetime.now(tz=UTC)
    old = trustme.CA().issue_cert(
        "mx.example.org", not_before=now - timedelta(days=9), not_after=now - timedelta(days=1)
    )
    for directory in ("mixed", "old"):
        machine.write(f"/root/{directory}/privkey.pem", old.private_key_pem.bytes().decode())
    machine.write("/root/old/fullchain.pem", old.cert_chain_pems[0].bytes().decode())
    machine.run("cp", f"{live}/fullchain.pem", "/root/mixed/")
    settings = f"RENEWED_DOMAINS=mx.example.org RENEWED_LINEAGE={lineage}" if lineage else ""
    script = f"{settings} /opt/minismtp/share/minismtp/certbot-hook {host} || echo status $?"
    said = machine.run("sh", "-c", script)
    assert problem in said
    assert said.endswith("status 1")


def test_renewal_runs_the_hook_again(machine: Machine) -> None:
    kept = "/etc/letsencrypt/renewal/mx.example.org.conf"
    hook = "/opt/minismtp/share/minismtp/certbot-hook mx.example.org"
    assert f"renew_hook = {hook}" in machine.run("cat", kept)


def test_dovecot_shows_what_was_stored_to_who_has_the_password(newcomer: Newcomer) -> None:
    asked = "doveadm auth test alice@example.org"
    assert "alice@example.org auth succeeded" in newcomer.said[asked]
    machine = newcomer.machine
    for user, login in (("alice@example.org", "alice"), ("bob@example.com", "bob@example.com")):
        machine.send(user)
        [local, domain] = user.split("@")
        machine.wait_until(lambda: machine.stored(f"{domain}/{local}"))  # noqa: B023
        folder = "--silent --insecure --url imaps://mx.example.org/INBOX"
        fetch = f"curl {folder} --user {login}:secret -X 'FETCH 1 (BODY.PEEK[HEADER])'"
        # Dovecot may be reloading, because the service has just started.
        machine.wait_until(lambda: "FETCH" in machine.run("sh", "-c", fetch, check=False))  # noqa: B023
        wrong = ("doveadm", "auth", "test", user, "wrong")
        assert "auth failed" in machine.run(*wrong, check=False)


def test_queue_is_steered(machine: Machine) -> None:
    *steps, drop = pages.table_commands("administrator", "Relaying")
    assert [step.split()[2] for step in steps] == [
        *("list", "show", "retry", "hold", "release", "bounce")
    ]
    for told in (steps, [drop]):
        machine.send("somebody@example.net", host="127.0.0.1")
        waiting = machine.wait_until(
            lambda: re.search(r"^\w+\.\d+", do(machine, "minismtp queue list"), re.MULTILINE)
        )
        for command in told:
            do(machine, command.replace("ID", waiting[0]))
        machine.wait_until(lambda: "queue is empty" in do(machine, "minismtp queue list"))


def do(machine: Machine, command: str) -> str:
    return machine.run("sh", "-euc", f"cd /source; {command}")


LOOKS: Final = dict.fromkeys(
    pages.table_commands("administrator", "Troubleshooting")
    + pages.table_commands("monitoring", "Alerts")
)


@pytest.mark.parametrize(
    "command", [look for look in LOOKS if not re.search(r" ID| passwd$", look)]
)
def test_command_for_a_symptom_works(command: str, machine: Machine) -> None:
    """Status 1 is that of grep when there is no such line, 75 of a DNS that does not answer."""
    command = command.replace("ADDRESS", "nobody@example.org")
    status = (
        75 if command == "minismtp dns --check" else 1
    )  # no server answers for other names here
    do(machine, f"( {command} ) || test $? -eq {status}")


@pytest.mark.parametrize(("page", "command"), INLINE)
def test_command_in_the_text_works(page: str, command: str, machine: Machine) -> None:
    assert f"`{command}`" in re.sub(r"\s+", " ", pages.PAGES[page])
    machine.shell(command)


def test_filters_of_the_guide_can_be_put_in(machine: Machine) -> None:
    text = pages.section("administrator", "Filtering")
    [extras] = re.findall(r"`(make install EXTRAS=[^`]*)`", text)
    machine.shell(f"cd /usr/local/src/minismtp; {extras}")
    dns, *filters = re.split(
        r"^(?=\[\[plugins\]\]$)",
        pages.block("administrator", "Filtering", language="toml"),
        flags=re.MULTILINE,
    )
    before, _ = machine.run("cat", "/etc/minismtp/minismtp.toml").split(
        '[[plugins]]\nuse = "maildir"'
    )
    machine.write("/root/filters.toml", "\n".join([before, *filters, dns]))
    machine.run("minismtp", "check", "--config", "/root/filters.toml")


def test_prometheus_takes_the_rules_and_finds_the_server(machine: Machine) -> None:
    query = "curl --silent 'http://127.0.0.1:9090/api/v1/query?query=up%7Bjob=%22minismtp%22%7D'"
    machine.wait_until(lambda: '"1"]' in machine.run("sh", "-c", query, check=False))


def test_quarantined_message_was_explained_and_released(newcomer: Newcomer) -> None:
    assert "quarantine" in newcomer.said["minismtp explain 8a1f0c5d7e21.1"]
    # Dovecot may have moved it from new/ to cur/ since.
    mailbox = "/var/lib/minismtp/mail/example.org/alice"
    find = f"grep -rsF 'Return-Path: <a@spam.example>' {mailbox}/new {mailbox}/cur"
    machine = newcomer.machine
    machine.wait_until(lambda: machine.run("sh", "-c", f"{find} || true"))


def test_backup_was_restored_whole(newcomer: Newcomer) -> None:
    machine = newcomer.machine
    assert "The backup is complete" in newcomer.said["minismtp backup /root/minismtp-backup"]
    for kept in ("mail/example.org/postmaster/new", "spool/queue.db", "secret"):
        machine.run("test", "-e", f"/var/lib/minismtp/{kept}")
    before = "/var/lib/minismtp.before/mail/example.org"
    now = "/var/lib/minismtp/mail/example.org"
    # Dovecot may have renamed them since.
    kept_mail, mail_now = (
        {*machine.shell(f"find {place} -path '*/[nc]*/*' -printf '%f\\n' | cut -d: -f1").split()}
        for place in (before, now)
    )
    assert "postmaster" not in kept_mail
    assert kept_mail <= mail_now
    assert "waits@example.net" in newcomer.restored_queue
    owners = machine.run("sh", "-c", "find /var/lib/minismtp -printf '%u:%g\\n' | sort -u")
    assert owners == "minismtp:minismtp"


def test_sockets_of_systemd_hold_the_ports(machine: Machine) -> None:
    held = machine.run("ss", "-lntp")
    for port in (25, 587, 465):
        assert re.search(rf"\*:{port} .*\"systemd\"", held)
    assert machine.show("CapabilityBoundingSet") == ""


def test_manuals_are_there(machine: Machine) -> None:
    machine.run("man", "--where", "minismtp", "minismtp.toml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of the plugin that an author makes."""
    return build_wheel(tmp_path_factory.mktemp("package"))


def test_plugin_of_an_author_works_in_the_service(machine: Machine, wheel: Path) -> None:
    """Its wheel is installed, enabled and loaded as the page says, and counts in /metrics."""
    encoded = base64.b64encode(wheel.read_bytes()).decode()
    store = 'mkdir -p /root/dist; base64 -d >"/root/dist/$0"'
    machine.run("sh", "-c", store, wheel.name, say=encoded)
    for command, shown in transcript("bin/pip install"):
        assert machine.shell(f"cd /root; {command}") == shown.strip()
    before = machine.run("cat", "/etc/minismtp/minismtp.toml") + "\n"
    [table] = re.findall(r'^```toml\n([^`]*use = "new_links"\n)```', PAGE, re.MULTILINE)
    head, first, rest = before.partition("[[plugins]]\n")
    enabled = f"{table}\n{first}{rest}"
    machine.write("/etc/minismtp/minismtp.toml", head + enabled)
    [(check, problem)] = transcript("minismtp check")
    said = machine.run("sh", "-c", f"{check} || test $? -eq 78")
    assert masked(problem) in masked(said)
    machine.write(
        "/etc/minismtp/minismtp.toml", f'{head}[[plugins]]\nuse = "dkim_verify"\n\n{enabled}'
    )
    *commands, (metrics, shown) = transcript("plugin_new_links_total")
    for command, _ in commands:
        machine.shell(command)
    wanted = {*shown.strip().splitlines()}  # in any order
    machine.wait_until(lambda: {*machine.shell(f"{metrics} || true").splitlines()} == wanted)
    machine.write("/etc/minismtp/minismtp.toml", before)
    machine.run("systemctl", "reload", "minismtp")


def masked(text: str) -> str:
    """Return a message without the number and the line of a table."""
    return re.sub(r"(plugins)\[\d+\]( \w+, line) \d+", r"\1[]\2", text).strip()
