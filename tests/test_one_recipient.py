"""A filter with settings for each user, in a real server with real Maildirs and a real queue."""

from __future__ import annotations

import email
import email.policy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Client, Configure, Running, Start

WISHES: Final = '''
"""Refuse a message for those who do not want it."""
from minismtp import Envelope, Reject, hookimpl, plugin

@plugin
class Wishes:
    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        for recipient in envelope.recipients:
            if recipient.address.local.startswith("no"):
                envelope.refuse(recipient.address, Reject("not for me"))
'''
PLUGINS: Final = """
[[plugins]]
use = "wishes"

[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "relay"
networks = {networks}

[[plugins]]
use = "quarantine"

[[plugins]]
use = "maildir"
path = "mail/{{local}}"
"""
LMTP: Final = """
[[listeners]]
name = "lmtp"
address = "127.0.0.1:0"
kind = "lmtp"
tls = "none"
"""
OUT: Final = """
[outbound]
retry = ["1h"]

[[outbound.routes]]
domain = "example.net"
host = "{there}"
"""
STRANGER: Final = '["192.0.2.0/24"]'
TRUSTED: Final = '["127.0.0.0/8"]'


@pytest.fixture
def there(configure_at: Callable[[str], Configure], start: Start) -> Running:
    """Run a server for example.net."""
    plugins = (
        '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.net"]\n'
        '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
    )
    return start(configure_at("there")(plugins=plugins))


@pytest.fixture
def here(configure_at: Callable[[str], Configure], start: Start) -> Callable[..., Running]:
    """Return a function that starts the server with the filter, for trusted networks."""

    def make(networks: str, away: str = "") -> Running:
        path: Path = configure_at("here")(LMTP + away, plugins=PLUGINS.format(networks=networks))
        (path.parent / "local_plugins" / "wishes.py").write_text(WISHES)
        server = start(path)
        server.wait_for_log(" queue opened ")
        return server

    return make


def minismtp(server: Running, *arguments: str) -> str:
    command = [sys.executable, "-m", "minismtp", *arguments, "--config", str(server.config)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def begin(client: Client, *recipients: str) -> None:
    """Begin a message to recipients and send its content."""
    assert client.command("MAIL FROM:<me@example.org>").startswith("250")
    for each in recipients:
        assert client.command(f"RCPT TO:<{each}>").startswith("250")
    assert client.command("DATA").startswith("354")
    client.send("Subject: hello\r\n\r\nx\r\n.\r\n")


def test_others_have_the_message_and_the_sender_is_told_of_each_refusal(
    here: Callable[..., Running], there: Running
) -> None:
    server = here(TRUSTED, OUT.format(there=there.address()))
    with server.connect() as client:
        client.greet()
        begin(client, "no@example.org", "nora@example.net")
        assert client.reply().startswith("550 5.7.1 not for me (id ")  # as nobody wants it
        begin(client, "ann@example.org", "no@example.org", "bob@example.net", "nora@example.net")
        reply = client.reply()
    assert reply.startswith("250 2.0.0 ")
    there.wait_until(lambda: there.mail("bob"))
    server.wait_until(lambda: server.mail("me"))
    assert len(server.mail("ann")) == 1
    assert server.mail("no") == []
    assert there.mail("nora") == []
    [notice] = server.mail("me")
    parsed = email.message_from_bytes(notice, policy=email.policy.default)
    status = [*parsed.iter_parts()][1]
    told = [(each["Final-Recipient"], each["Status"]) for each in [*status.iter_parts()][1:]]
    assert told == [("rfc822; no@example.org", "5.7.1"), ("rfc822; nora@example.net", "5.7.1")]
    identifier = reply.split()[-1]
    text = minismtp(server, "explain", identifier)
    assert "notified=no@example.org,nora@example.net" in text
    assert "refused: 550 5.7.1 not for me, for no@example.org" in text
    assert "no@example.org" in minismtp(server, "explain", "no@example.org")
    server.wait_for_log(" recipient rejected .*recipient=no@example.org outcome=notified ")
    server.wait_until(lambda: server.metric("recipient_verdicts_total", outcome="notified") == 2)


def test_client_of_lmtp_has_the_refusal_and_the_copy_of_a_stranger_is_quarantined(
    here: Callable[..., Running],
) -> None:
    server = here(STRANGER)
    with server.connect("lmtp") as client:
        client.reply()
        client.command("LHLO client.example")
        begin(client, "no@example.org", "bob@example.org", "now@example.org")
        replies = [client.reply() for _ in range(3)]
    assert [reply[:9] for reply in replies] == ["550 5.7.1", "250 2.0.0", "550 5.7.1"]
    assert len(server.mail("bob")) == 1
    with server.connect() as client:
        client.greet()
        begin(client, "ann@example.org", "no@example.org")
        assert client.reply().startswith("250 2.0.0 ")
    assert len(server.mail("ann")) == 1
    [kept] = json.loads(minismtp(server, "quarantine", "list", "--json"))
    assert kept["reason"] == "refused for the recipient: not for me"
    minismtp(server, "quarantine", "release", kept["id"])
    server.wait_until(lambda: server.mail("no"))
    assert len(server.mail("ann")) == 1
    assert server.mail("me") == []
