"""Mail that is sent to another server while the client waits: minismtp, smtp-sink, fakes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes import FAILURES, Talk, nobody_there, running_daemon, serving
from fakes import envelope as make_envelope
from minismtp_plugins.forward import Forward
from ports import free_port
from scripted import Script

from minismtp import Address, Content, Envelope, Local, Message, RemoteError, SocketAddress
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom
from minismtp.values.passwords import hash_password
from minismtp.values.reply import Verdict

if TYPE_CHECKING:
    from conftest import Launch, Running, TlsFiles

TEXT = b"Subject: x\r\n\r\n.dot\r\n..two\r\nplain\r\n"
ROUTE = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\nusers = ["a", "b", "c"]\n'
ANYBODY = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\n'
BEHIND = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
kind = "submission"

[[listeners]]
name = "smtps"
address = "127.0.0.1:0"
kind = "submission"
tls = "implicit"
"""
STORE = '[[plugins]]\nuse = "password_file"\npath = "passwords"\n[[plugins]]\nuse = "maildir"\n'


@pytest.fixture(scope="module")
def behind(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    """Run the server that stores mail; it has three users, and requires a login."""
    store = f'{STORE}path = "mail/{{local}}"\n'
    files = {"passwords": f"front:{hash_password('secret')}\n"}
    with launch(tls_files.table, listeners=BEHIND, plugins=ROUTE + store, files=files) as server:
        yield server


@pytest.fixture(scope="module", params=["starttls", "implicit"])
def front(
    request: pytest.FixtureRequest, launch: Launch, behind: Running, tls_files: TlsFiles
) -> Iterator[Running]:
    """Run the server that clients talk to."""
    port = behind.port("smtps" if request.param == "implicit" else "smtp")
    plugin = f"""
[[plugins]]
use = "forward"
address = "localhost:{port}"
tls = "{request.param}"
ca = "{tls_files.authority}"
username = "front"
password_file = "password"
"""
    with launch(plugins=ANYBODY + plugin, files={"password": "secret\n"}) as server:
        yield server


def send(server: Running, *users: str) -> str:
    """Send a message and return the reply to its content."""
    with server.connect() as client:
        client.greet()
        client.command("MAIL FROM:<bob@client.example>")
        for user in users:
            assert client.command(f"RCPT TO:<{user}@example.org>").startswith("250")
        client.command("DATA")
        client.send(TEXT.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        return client.reply()


def test_other_server_has_the_message_when_the_client_hears_250(
    front: Running, behind: Running
) -> None:
    before = {user: len(behind.mail(user)) for user in ("a", "b")}
    assert send(front, "a", "b").startswith("250 2.0.0 message accepted")
    for user, count in before.items():
        messages = behind.mail(user)
        assert len(messages) == count + 1
        assert all(message.endswith(TEXT) for message in messages)
    assert not (front.directory / "mail").exists()
    ids = behind.wait_for_log(r"stored .*to=a@example.org,b@example.org .*stored=(\S+)")
    assert ids[1] == "a@example.org,b@example.org"  # one transaction


def test_refusal_of_the_other_server_is_the_reply(front: Running) -> None:
    assert send(front, "nobody").startswith("550 5.")


@pytest.mark.parametrize(
    "users", [("c", "nobody"), ("nobody", "c"), ("nobody", "c", "nobody-else")], ids=",".join
)
def test_recipient_that_is_refused_is_returned_and_the_others_have_their_mail(
    front: Running, behind: Running, users: tuple[str, ...]
) -> None:
    before = len(behind.mail("c"))
    notices = len(re.findall("notification .*action=failed", front.log))
    assert send(front, *users).startswith("250 ")
    front.wait_until(
        lambda: len(re.findall("notification .*action=failed", front.log)) == notices + 1
    )
    assert len(behind.mail("c")) == before + 1


@pytest.fixture(scope="module")
def sink(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[tuple[int, Path]]:
    """Run the smtp-sink of Postfix. Return its port and the directory of its messages."""
    directory, port = tmp_path_factory.mktemp("sink"), free_port()
    got = directory / "got"
    command = (require_program("smtp-sink"), "-u", "root", "-D", f"{got}.%s", f"127.0.0.1:{port}")
    with running_daemon(*command, "10", port=port, log=directory / "log"):
        yield port, directory


def test_sink_of_postfix_takes_what_was_sent(sink: tuple[int, Path]) -> None:
    port, directory = sink
    plugin = Forward(address=SocketAddress("127.0.0.1", port))
    message = Message("1a2b.1", Content.of(TEXT))
    assert plugin.deliver(make_envelope(), message, Address("u", "example.org")) is True
    [path] = directory.glob("got.*")
    text = path.read_bytes()
    assert TEXT.replace(b"\r\n", b"\n") in text
    assert b"X-Rcpt-Args: <u@example.org>" in text


# Servers that behave as a test wants


def to_three() -> Envelope:
    envelope = make_envelope("a@example.org", "b@example.org", "c@example.org")
    for recipient in envelope.recipients:
        recipient.route = Local()
    return envelope


def deliver_all(script: Talk, envelope: Envelope, *users: str) -> list[str]:
    """Deliver to one mailbox after the other, and return the replies."""
    heard = []
    with serving(script) as address:
        plugin = Forward(address=address, patience=timedelta(seconds=60))
        message = Message("1a2b.1", Content.of(TEXT))
        for user in users:
            try:
                assert plugin.deliver(envelope, message, Address(user, "example.org")) is True
            except Verdict as verdict:
                heard.append(str(verdict.reply))
            else:
                heard.append("stored")
    return heard


def commands(script: Script, verb: str) -> int:
    return sum(line.startswith(verb) for line in script.heard)


def test_one_transaction_is_for_all_mailboxes() -> None:
    script = Script()
    assert deliver_all(script, to_three(), "a", "b", "c") == ["stored"] * 3
    assert (commands(script, "MAIL"), commands(script, "RCPT"), commands(script, "DATA")) == (
        1,
        3,
        1,
    )
    assert script.heard[0] == "EHLO localhost"
    assert "QUIT" in script.heard


def test_mailbox_that_is_refused_first_keeps_nobody_from_the_message() -> None:
    script = Script(**{"a@example.org": "550 5.1.1 who?"})
    assert deliver_all(script, to_three(), "a", "b", "c") == ["550 5.1.1 who?", "stored", "stored"]
    assert commands(script, "DATA") == 1
    assert commands(script, "RCPT TO:<a") == 1


def test_mailbox_that_is_refused_later_hears_it_in_its_turn() -> None:
    script = Script(**{"b@example.org": "452 4.2.2 full"})
    assert deliver_all(script, to_three(), "a", "b", "c") == ["stored", "452 4.2.2 full", "stored"]
    assert (commands(script, "MAIL"), commands(script, "DATA")) == (1, 1)


def test_refusal_of_the_content_is_for_all() -> None:
    script = Script(end="554 5.7.1 spam")
    assert deliver_all(script, to_three(), "a", "b", "c") == ["554 5.7.1 spam"] * 3
    assert commands(script, "DATA") == 1


def test_copy_from_the_queue_goes_by_itself() -> None:
    script = Script()
    assert deliver_all(script, replace(to_three(), queued=True), "b") == ["stored"]
    assert [line for line in script.heard if line.startswith("RCPT")] == ["RCPT TO:<b@example.org>"]


def test_message_that_must_travel_in_tls_does_not_go_in_clear() -> None:
    script = Script(keywords="8BITMIME,REQUIRETLS")
    envelope = replace(to_three(), require_tls=True)
    [heard] = deliver_all(script, envelope, "a")
    assert heard == "550 5.7.30 the next server has no REQUIRETLS"
    assert commands(script, "MAIL") == 0


FAILING: dict[str, Talk] = {
    **FAILURES,
    "refuses": Script(greeting="554 no service"),
    "out of step": Script(data="220 what?"),
    "hangs up after the dot": Script(end=""),
}


@pytest.mark.parametrize("failing", FAILING)
def test_server_that_fails_is_no_storage(failing: str) -> None:
    with serving(FAILING[failing]) as address:
        plugin = Forward(address=address, patience=timedelta(milliseconds=300))
        with pytest.raises(RemoteError):
            plugin.deliver(to_three(), Message("x", Content.of(TEXT)), Address("a", "example.org"))


def test_server_without_starttls_gets_nothing(tls_files: TlsFiles) -> None:
    script = Script()
    with serving(script) as address:
        plugin = Forward(address=address, tls="starttls", ca=tls_files.authority)
        with pytest.raises(RemoteError, match="does not offer STARTTLS"):
            plugin.deliver(to_three(), Message("x", Content.of(TEXT)), Address("a", "example.org"))
    assert commands(script, "MAIL") == 0


def test_server_with_another_certificate_gets_nothing(behind: Running) -> None:
    address = SocketAddress("localhost", behind.port())
    plugin = Forward(address=address, tls="starttls")
    with pytest.raises(RemoteError, match="certificate"):
        plugin.deliver(to_three(), Message("x", Content.of(TEXT)), Address("a", "example.org"))


@pytest.mark.parametrize("text", ["secret\nmore\n", "\ufeffsecret\r\n"], ids=["plain", "marked"])
def test_login_that_is_refused_is_a_failure_and_tells_no_secret(text: str, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_bytes(text.encode())
    coded = base64.b64encode(b"\0me\0secret").decode()
    script = Script(keywords="AUTH PLAIN LOGIN", auth=f"535 5.7.8 no {coded}")
    with serving(script) as address:
        plugin = Forward(address=address, username="me", password_file=password)
        with pytest.raises(RemoteError, match=r"login refused by .*: 535 5\.7\.8 no \.\.\.$"):
            plugin.deliver(to_three(), Message("x", Content.of(TEXT)), Address("a", "example.org"))
    assert f"AUTH PLAIN {coded}" in script.heard


def test_client_is_put_off_while_the_server_is_away() -> None:
    room = Mailroom()
    dialogue = Dialogue(Forward(address=nobody_there()), room)
    assert dialogue.mail("Subject: x\n\ntext").startswith("451 4.3.0 ")
    assert room.stored == {}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"address": "unix:x.sock", "tls": "implicit"}, "tls: expected"),
        ({"username": "me"}, "username: expected it and password_file together"),
        ({"username": "me", "password_file": "missing"}, "password_file: "),
        ({"username": "me", "password_file": "password", "address": "192.0.2.1:25"}, "tls: expec"),
        ({"tls": "starttls", "ca": "missing"}, "ca: "),
    ],
)
def test_wrong_option_is_told(tmp_path: Path, options: dict[str, str], problem: str) -> None:
    (tmp_path / "password").write_text("secret")
    with pytest.raises(ConfigError) as fault:
        build(Forward, {"address": "127.0.0.1:25"} | options, file="", key="", base=tmp_path)
    assert problem in str(fault.value)
