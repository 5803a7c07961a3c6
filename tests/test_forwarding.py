"""Aliases to other hosts, bounces to senders, and notifications."""

from __future__ import annotations

import email
import email.policy
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Configure, Running, Start

HERE = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
users = ["alice", "me"]
aliases_file = "aliases"
{srs}

[[plugins]]
use = "maildir"
path = "mail/{{local}}"
"""
THERE = """
[[plugins]]
use = "mailboxes"
domains = ["example.net", "sender.example"]
users_file = "users"

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""
TRUST = """
[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""
OUT = """
[[outbound.routes]]
domain = "*"
host = "{address}"
"""
ALIASES = """
alice: alice, bob@example.net
bob: bob@example.net
team: bob@example.net, carol@example.net
gone: nobody@example.net
"""


@pytest.fixture
def there(configure_at: Callable[[str], Configure], start: Start) -> Running:
    """Run a server for example.net and for the senders' domain."""
    path = configure_at("there")(plugins=THERE + TRUST)
    (path.parent / "users").write_text("\n".join(["bob", "carol", "jo", *LONG]))
    return start(path)


@pytest.fixture
def forwarder(
    configure_at: Callable[[str], Configure], start: Start, there: Running
) -> Callable[..., Running]:
    """Return a function that starts a server with aliases to that host."""

    def make(srs: str = "", trust: str = "") -> Running:
        configure = configure_at("here")
        path = configure(OUT.format(address=there.address()), plugins=HERE.format(srs=srs) + trust)
        (path.parent / "aliases").write_text(ALIASES)
        (path.parent / "secret").write_text("a secret of sixteen\n")
        server = start(path)
        server.wait_for_log(" queue opened ")
        return server

    return make


def send(
    server: Running, *recipients: str, sender: str = "jo@sender.example", text: str = "Hello."
) -> None:
    with server.connect() as client:
        client.greet()
        assert client.command(f"MAIL FROM:<{sender}>").startswith("250 ")
        for recipient in recipients:
            assert client.command(f"RCPT TO:{recipient}").startswith("250 ")
        client.command("DATA")
        client.send(f"Subject: hello\r\n\r\n{text}\r\n.\r\n")
        assert client.reply().startswith("250 ")


def return_path(message: bytes) -> str:
    found = re.match(rb"Return-Path: <(.*)>\r\n", message)
    assert found
    return found[1].decode()


def report(message: bytes) -> dict[str, str]:
    """Return the fields about the recipient of a notification."""
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    assert parsed.get_content_type() == "multipart/report"
    _, delivery, _ = parsed.iter_parts()
    *_, fields = delivery.iter_parts()
    return dict(fields.items())


def test_alias_leads_to_a_mailbox_here_and_elsewhere(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder()
    send(here, "<alice@example.org>")
    [forwarded] = there.wait_until(lambda: there.mail("bob"))
    assert return_path(forwarded) == "jo@sender.example"
    assert len(here.mail("alice")) == 1


def test_address_that_several_recipients_lead_to_gets_one_copy(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder()
    send(here, "<bob@example.org>", "<team@example.org>", "<alice@example.org>")
    there.wait_until(lambda: there.mail("bob"))
    there.wait_until(lambda: there.mail("carol"))
    here.wait_until(lambda: here.metric("delivery_attempts_total", result="delivered") == 2)
    assert len(there.mail("bob")) == 1


def test_rewritten_sender_is_each_targets_own_and_bounces_find_back(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder('srs_secret_file = "secret"')
    send(here, "<bob@example.org>")
    [forwarded] = there.wait_until(lambda: there.mail("bob"))
    rewritten = return_path(forwarded)
    assert re.fullmatch(r"SRS0=\w{6}=\w\w=sender\.example=jo@example\.org", rewritten)
    send(here, f"<{rewritten}>", sender="", text="This is a bounce.")
    [bounce] = there.wait_until(lambda: there.mail("jo"))
    assert return_path(bounce) == ""
    assert b"This is a bounce." in bounce


LONG = [
    "bounces+1234567-ab12-name=customer.example.com",
    "SRS0=AbCd=EF=a-domain-that-is-long.example=somebody-with-a-name",
    "IMCEAEX-_o=ExchangeLabs_ou=Administrative+20Group_cn=Recipients_cn=0123456789abcdef0123456789-jo",
]


@pytest.mark.parametrize("local", LONG, ids=lambda text: text[:8])
def test_sender_of_any_length_is_rewritten_and_bounces_find_back(
    forwarder: Callable[..., Running], there: Running, local: str
) -> None:
    """The short name is on disk before the message leaves, and workers know it."""
    here = forwarder('srs_secret_file = "secret"')
    send(here, "<bob@example.org>", sender=f"{local}@sender.example")
    [forwarded] = there.wait_until(lambda: there.mail("bob"))
    rewritten = return_path(forwarded)
    assert re.fullmatch(r"SRS0=\w{6}=\w\w==\w{16}@example\.org", rewritten)
    here.kill()  # the stored data survives the process
    here = forwarder('srs_secret_file = "secret"')
    # Some hosts return addresses in lower case.
    send(here, f"<{rewritten.lower()}>", sender="", text="This is a bounce.")
    found = there.wait_for_log(r' stored .*sender=<> to="?(\S+)@sender\.example')
    assert found[1] == local


def test_short_name_is_no_relay_for_others(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder('srs_secret_file = "secret"')
    send(here, "<bob@example.org>", sender=f"{LONG[0]}@sender.example")
    [forwarded] = there.wait_until(lambda: there.mail("bob"))
    rewritten = return_path(forwarded)
    name = rewritten.partition("==")[2]
    with here.connect() as client:
        client.greet()
        client.command("MAIL FROM:<>")
        guess = rewritten.replace(name[:16], "A" * 16)
        assert client.command(f"RCPT TO:<{guess}>").startswith(
            "550 5.1.1 not an address of this server"
        )
        client.command("RSET")
        client.command("MAIL FROM:<spam@client.example>")
        assert client.command(f"RCPT TO:<{rewritten}>").startswith("550 5.7.1 ")


def test_message_waits_while_its_sender_cannot_be_kept(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder('srs_secret_file = "secret"')
    (here.directory / "state" / "state.db").mkdir()
    send(here, "<bob@example.org>", sender=f"{LONG[0]}@sender.example")
    here.wait_for_log(r" delivery deferred .*to=bob@example.net .*451 4\.3\.0")
    assert there.mail("bob") == []


def test_our_own_bounce_goes_to_the_original_sender(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder('srs_secret_file = "secret"')
    send(here, "<gone@example.org>")
    [bounce] = there.wait_until(lambda: there.mail("jo"))
    fields = report(bounce)
    assert fields["Action"] == "failed"
    assert fields["Original-Recipient"] == "rfc822; gone@example.org"
    assert fields["Final-Recipient"] == "rfc822; nobody@example.net"


def test_one_message_can_leave_with_two_senders(
    forwarder: Callable[..., Running], there: Running
) -> None:
    relay = '[[plugins]]\nuse = "relay"\nnetworks = ["127.0.0.1"]\n'
    here = forwarder(f'srs_secret_file = "secret"\n{relay}')
    send(here, "<bob@example.org>", "<carol@example.net>")
    [forwarded] = there.wait_until(lambda: there.mail("bob"))
    [relayed] = there.wait_until(lambda: there.mail("carol"))
    assert return_path(forwarded).startswith("SRS0=")
    assert return_path(relayed) == "jo@sender.example"


# Success (RFC 3461)


def test_copy_that_was_stored_at_once_is_told_to_a_sender_who_asked(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder(trust=TRUST)
    send(here, "<me@example.org> NOTIFY=SUCCESS", "<me+x@example.org> NOTIFY=FAILURE")
    [notice] = there.wait_until(lambda: there.mail("jo"))
    fields = report(notice)
    assert fields["Action"] == "delivered"
    assert fields["Final-Recipient"] == "rfc822; me@example.org"
    assert fields["Status"] == "2.0.0"


def test_user_of_ours_hears_of_success_in_the_own_mailbox(
    forwarder: Callable[..., Running],
) -> None:
    here = forwarder(trust=TRUST)
    send(here, "<alice@example.org> NOTIFY=SUCCESS,FAILURE", sender="me@example.org")
    [notice] = here.wait_until(lambda: here.mail("me"))
    assert report(notice)["Action"] == "expanded"
    assert return_path(notice) == ""


def test_alias_of_one_target_passes_the_wishes_on(
    forwarder: Callable[..., Running], there: Running
) -> None:
    here = forwarder(trust=TRUST)
    send(here, "<bob@example.org> NOTIFY=SUCCESS ORCPT=rfc822;old@example.org")
    [notice] = there.wait_until(lambda: there.mail("jo"))
    fields = report(notice)
    assert fields["Action"] == "delivered"
    assert fields["Original-Recipient"] == "rfc822; old@example.org"
    assert here.mail("jo") == []
