"""Storage by an LMTP server: Dovecot, and servers that misbehave."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dovecot import Dovecot
from fakes import FAILURES, Talk, nobody_there, serving
from fakes import envelope as make_envelope
from minismtp_plugins.lmtp import Lmtp
from scripted import Script

from minismtp import Address, Content, Envelope, Message, RemoteError, SocketAddress
from minismtp.testing import Dialogue, Mailroom
from minismtp.values.reply import Verdict

if TYPE_CHECKING:
    from conftest import Launch, Running

ALICE = Address("alice", "example.org")
TEXT = b"Subject: x\r\n\r\n.dot\r\n..two\r\nplain\r\n"
LISTENERS = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"

[[listeners]]
name = "lmtp"
address = "127.0.0.1:0"
kind = "lmtp"
tls = "none"
"""
REFUSING = """
protocol lmtp {
  mail_plugins = quota
}
plugin {
  quota_rule = *:storage=100M
  quota_max_mail_size = 100k
}
"""


@pytest.fixture(scope="module")
def dovecot(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[Dovecot]:
    directory = tmp_path_factory.mktemp("dovecot")
    programs = require_program("dovecot"), require_program("unshare")
    dovecot = Dovecot(*programs, directory, directory / "mail", more=REFUSING)
    yield dovecot
    dovecot.stop()


@pytest.fixture(scope="module", params=["tcp", "unix"])
def running(request: pytest.FixtureRequest, launch: Launch, dovecot: Dovecot) -> Iterator[Running]:
    places = {"tcp": f"127.0.0.1:{dovecot.lmtp_port}", "unix": f"unix:{dovecot.lmtp_socket}"}
    plugin = f'[[plugins]]\nuse = "lmtp"\naddress = "{places[request.param]}"\n'
    route = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\n'
    with launch(listeners=LISTENERS, plugins=route + plugin) as server:
        yield server


def send(server: Running, users: list[str], content: bytes, listener: str = "smtp") -> list[str]:
    """Send a message and return the replies to its content."""
    with server.connect(listener) as client:
        client.reply()
        client.command("LHLO client" if listener == "lmtp" else "EHLO client")
        client.command("MAIL FROM:<bob@client.example> SMTPUTF8 BODY=8BITMIME")
        for user in users:
            assert client.command(f"RCPT TO:<{user}@example.org>").startswith("250")
        assert client.command("DATA").startswith("354")
        client.send(re.sub(rb"(?m)^\.", b"..", content) + b".\r\n")
        return [client.reply() for _ in (users if listener == "lmtp" else users[:1])]


def read(dovecot: Dovecot, user: str) -> list[bytes]:
    """Return a user's messages as IMAP shows them."""
    with dovecot.log_in(user) as client:
        assert client.select()[0] == "OK"
        parts = client.fetch("1:*", "(BODY.PEEK[])")[1]
        return [part[1] for part in parts if isinstance(part, tuple)]


def test_dovecot_stores_what_was_sent_and_imap_shows_it(
    running: Running, dovecot: Dovecot, request: pytest.FixtureRequest
) -> None:
    users = [f"{name}-{request.node.callspec.id}" for name in ("first", "second")]
    [reply] = send(running, users, TEXT + "ä\r\n".encode())
    assert reply.startswith("250 2.0.0 message accepted")
    for user in users:
        [body] = read(dovecot, user)
        assert body.startswith(b"Return-Path: <bob@client.example>\r\n")
        assert f"\r\nDelivered-To: {user}@example.org\r\n".encode() in body
        assert body.endswith(TEXT + "ä\r\n".encode())


def test_long_lines_reach_dovecot_as_they_came(
    running: Running, dovecot: Dovecot, request: pytest.FixtureRequest
) -> None:
    user = f"long-{request.node.callspec.id}"
    text = b"Subject: x\r\n\r\n" + b"x" * 80_000 + b"\r\n" + b"." * 3000 + b"\r\n"
    [reply] = send(running, [user], text)
    assert reply.startswith("250 2.0.0 message accepted")
    [body] = read(dovecot, user)
    assert body.endswith(text)


def test_refusal_of_dovecot_is_passed_on_with_code_and_text(running: Running) -> None:
    [reply] = send(running, ["refused"], TEXT + b"one line of many\r\n" * 20_000)
    assert reply.startswith("451 4.2.0 <refused@example.org> Mail size is larger than the maximum")


def test_each_recipient_of_lmtp_has_the_reply_for_itself(running: Running) -> None:
    replies = send(running, ["one", "two"], TEXT, listener="lmtp")
    assert [reply[:9] for reply in replies] == ["250 2.0.0"] * 2


# Servers that behave as a test wants


def deliver(script: Talk, envelope: Envelope, content: bytes = TEXT) -> str:
    """Send a message to such a server, and return the refusal."""
    with serving(script) as address:
        plugin = Lmtp(address=address, patience=timedelta(seconds=60))
        try:
            assert plugin.deliver(envelope, Message("1a2b.1", Content.of(content)), ALICE) is True
        except Verdict as verdict:
            return f"{type(verdict).__name__} {verdict.reply}"
    return ""


@pytest.mark.parametrize(
    ("step", "said", "verdict"),
    [
        ("mail", "451 4.7.1 wait", "Defer 451 4.7.1 wait"),
        ("rcpt", "550 5.1.1 <alice> unknown", "Reject 550 5.1.1 <alice> unknown"),
        ("rcpt", "452 4.2.2 full", "Defer 452 4.2.2 full"),
        ("rcpt", "550-5.1.1 no\r\n550 5.1.1 such user", "Reject 550 5.1.1 no such user"),
        ("rcpt", "550 no status", "Reject 550 5.0.0 no status"),
        ("rcpt", "450 5.1.1 mixed", "Defer 450 4.0.0 mixed"),
        ("rcpt", "421 4.3.2 going down", "Defer 451 4.3.2 going down"),
        ("data", "554 5.5.1 no", "Reject 554 5.5.1 no"),
        ("end", "552 5.2.2 over quota", "Reject 552 5.2.2 over quota"),
        ("end", "451 4.2.0 busy\x07\xe4", "Defer 451 4.2.0 busy \\xe4"),
        ("end", "550", "Reject 550 5.0.0 no reason given"),
    ],
)
def test_refusal_at_any_step_is_the_reply(step: str, said: str, verdict: str) -> None:
    assert deliver(Script(**{step: said}), make_envelope()) == verdict


def test_content_is_stuffed_and_the_end_is_marked_once() -> None:
    script = Script()
    deliver(script, make_envelope())
    assert script.content == TEXT.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    assert script.heard[1:3] == ["MAIL FROM:<sender@client.example>", "RCPT TO:<alice@example.org>"]


def test_extensions_are_used_where_they_are_announced() -> None:
    script = Script(keywords="SIZE 1000,8BITMIME,SMTPUTF8,PIPELINING")
    envelope = replace(make_envelope(), body="8BITMIME", smtputf8=True, reverse_path=None)
    assert deliver(script, envelope) == ""
    assert script.heard[1] == f"MAIL FROM:<> SIZE={len(TEXT)} BODY=8BITMIME SMTPUTF8"


@pytest.mark.parametrize(
    ("keywords", "changes", "content", "verdict"),
    [
        ("SIZE 20", {}, TEXT, "Reject 552 5.3.4 the next server takes no message of "),
        ("8BITMIME", {"smtputf8": True}, "Subject: ä\r\n\r\n".encode(), "Reject 550 5.6.7 the"),
        (
            "8BITMIME",
            {"smtputf8": True, "reverse_path": Address("jürgen", "example.org")},
            b"",
            "Reject 550 5.6.7 the",
        ),
    ],
)
def test_what_the_server_cannot_take_is_refused_and_not_harmed(
    keywords: str, changes: dict[str, object], content: bytes, verdict: str
) -> None:
    script = Script(keywords=keywords)
    found = deliver(script, replace(make_envelope(), **changes), content)  # type: ignore[arg-type]
    assert found.startswith(verdict)
    assert not any(line.startswith("MAIL") for line in script.heard)


@pytest.mark.parametrize(
    ("keywords", "body", "content", "sent"),
    [
        ("HELP", "8BITMIME", b"Gr\xc3\xbc\xc3\x9fe", b"Gr=C3=BC=C3=9Fe"),
        ("8BITMIME", "BINARYMIME", b"a\0b\nc\xff", b"YQBiCmP/"),
        ("HELP", "BINARYMIME", b"a\0b\nc\xff", b"YQBiCmP/"),
    ],
)
def test_what_the_server_does_not_take_is_encoded(
    keywords: str, body: str, content: bytes, sent: bytes
) -> None:
    script = Script(keywords=keywords)
    message = b"MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n" + content
    assert deliver(script, replace(make_envelope(), body=body), message) == ""
    assert f"\r\n\r\n{sent.decode()}\r\n".encode() in script.content
    with8 = " BODY=8BITMIME" if keywords == "8BITMIME" else ""
    assert script.heard[1] == f"MAIL FROM:<sender@client.example>{with8}"


def test_message_that_needs_no_more_than_ascii_goes_without_extensions() -> None:
    envelope = replace(make_envelope(), body="8BITMIME", smtputf8=True)
    assert deliver(Script(keywords="HELP"), envelope) == ""


FAILING: dict[str, Talk] = {
    **FAILURES,
    "refuses": Script(greeting="554 no service"),
    "no lmtp": Script(lhlo="502 what?"),
    "out of step": Script(data="220 what?"),
    "hangs up after the dot": Script(end=""),
    "no reply": Script(rcpt="25"),
    "reply without end": Script(rcpt="250-a\r\n" * 200),
}


@pytest.mark.parametrize("failing", FAILING)
def test_server_that_fails_is_no_storage(failing: str) -> None:
    with serving(FAILING[failing]) as address:
        plugin = Lmtp(address=address, patience=timedelta(milliseconds=300))
        with pytest.raises(RemoteError):
            plugin.deliver(make_envelope(), Message("x", Content.of(TEXT)), ALICE)


def test_client_is_put_off_while_the_server_is_away() -> None:
    room = Mailroom()
    dialogue = Dialogue(Lmtp(address=nobody_there()), room)
    assert dialogue.mail("Subject: x\n\ntext").startswith("451 4.3.0 ")
    assert room.stored == {}


def test_unix_socket_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    plugin = Lmtp(address=SocketAddress(path=tmp_path / "nobody"))
    with pytest.raises(RemoteError, match="No such file"):
        plugin.deliver(make_envelope(), Message("x", Content.of(TEXT)), ALICE)
