"""A host as `minismtp setup` leaves it: with the printed records, mail comes in and goes out."""

from __future__ import annotations

import contextlib
import re
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from network import DEADLINE, Host, MailServer, network, send, start_all

if TYPE_CHECKING:
    from conftest import Run

OTHER: Final = """
[[plugins]]
use = "mailboxes"
domains = ["other.test"]

[[plugins]]
use = "spf"
fail = "tag"
networks = []

[[plugins]]
use = "dkim_verify"

[[plugins]]
use = "dmarc"
networks = []

[[plugins]]
use = "authentication_results"
"""
NAMES: Final = ("--domain", "home.test", "--hostname", "mx.test", "--user", "alice")
PHRASE: Final = "correct horse"
MAIL: Final = "From: alice@home.test\r\nTo: {}\r\nSubject: hello\r\n\r\nIt works.\r\n"


def set_up(directory: Path, *words: str, given: str = "") -> str:
    """Run the command, and return what it prints."""
    command = [sys.executable, "-m", "minismtp", "setup", f"--config={directory}/minismtp.toml"]
    done = subprocess.run(
        [*command, *words], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "minismtp.toml: hostname, line " in done.stderr  # the DNS is not there yet
    return done.stdout


def zone(said: str) -> list[str]:
    """Return the records that the command printed."""
    return [line for line in said.splitlines() if re.match(r"\S+\. IN ", line)]


@dataclass(frozen=True)
class Place:
    """A host that was set up, and another one that sends and receives mail."""

    host: Host
    server: MailServer
    other: MailServer

    def submit(self, port: int, recipient: str) -> None:
        """Send mail of alice as a mail program does."""
        context = ssl.create_default_context(cafile=self.server.directory / "tls/fullchain.pem")
        address = self.host.addresses[0]
        smtp = self.other.host.inside(lambda: smtplib.SMTP(address, port, timeout=DEADLINE))
        with smtp:
            smtp._host = "mx.test"  # type: ignore[attr-defined]  # noqa: SLF001 - to be verified
            smtp.starttls(context=context)
            smtp.login("alice@home.test", PHRASE)
            smtp.sendmail("alice@home.test", recipient, MAIL.format(recipient))


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str], run: Run
) -> Iterator[Place]:
    for program in ("nsd", "unbound", "unshare", "ip"):
        require_program(program)
    directory = tmp_path_factory.mktemp("setup")
    with network(directory) as net, contextlib.ExitStack() as stack:
        host, outside = net.host("mx", 20), net.host("other", 21)
        etc = directory / "etc"
        words = ("--yes", "--state-directory", str(etc / "state"), "--password-file", "-")
        said = set_up(etc, *words, *NAMES, given=f"{PHRASE}\n")
        added = set_up(
            etc,
            *words[-2:],
            "--yes",
            "--add-domain",
            "second.test",
            "--user",
            "bob",
            given=f"{PHRASE}\n",
        )
        net.publish("other MX 10 other", *dict.fromkeys(zone(said) + zone(added)))
        servers = MailServer(host, etc, run), net.minismtp(outside, run, OTHER)
        for server in servers:
            stack.callback(server.close)
        start_all(servers)
        yield Place(host, *servers)


def test_user_logs_in_and_sends_mail_that_others_verify(place: Place) -> None:
    place.submit(587, "carol@other.test")
    message = place.other.mail("carol").decode()
    selectors = re.findall(r"\ss=(minismtp-\w+);", message)
    assert sorted(selectors) == ["minismtp-ed25519", "minismtp-rsa"], message
    results, _ = re.findall(r"^Authentication-Results: (.*(?:\n[ \t].*)*)", message, re.MULTILINE)
    assert results.count("dkim=pass") == 2
    assert "spf=pass" in results
    assert "dmarc=pass" in results


def test_mail_of_others_arrives_at_users_and_aliases(place: Place) -> None:
    for recipient in ("alice@home.test", "postmaster@home.test", "abuse@second.test"):
        send(place.other.host, place.host, recipient, sender="carol@other.test")
    mail = place.server.directory / "state" / "mail"
    stored = {str(path.parent.parent.relative_to(mail)) for path in mail.glob("*/*/new/*")}
    assert stored == {"home.test/alice", "second.test/bob"}
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(place.other.host, place.host, "bob@home.test", sender="carol@other.test")


def test_stranger_cannot_relay(place: Place) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(place.other.host, place.host, "carol@other.test", sender="carol@other.test")
