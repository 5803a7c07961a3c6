"""Dovecot shows the stored messages over IMAP."""

from __future__ import annotations

import imaplib
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest
from dovecot import Dovecot
from minismtp_plugins._maildir_paths import Folder
from minismtp_plugins.maildir import Maildir

from minismtp import Address, ByteSize, Content, Defer, Envelope, Message

if TYPE_CHECKING:
    from conftest import Launch, Running

CONTENTS: Final = (
    b"Subject: short\r\n\r\nIt works.\r\n",
    b"Subject: no body\r\n\r\n",
    b"Subject: hard to carry\r\n\r\n..\r\n8-bit: \xc3\xa4 \xff\r\nFrom here on\r\n\r\n\r\n",
    b"Subject: one line\r\n\r\n" + b"<p>text" * 150_000 + b"\r\n",
    b"References:" + b" <1@client.example>" * 5000 + b"\r\nSubject: one field\r\n\r\ntext\r\n",
    b"Subject: long\r\n\r\n" + b"a line of a long message\r\n" * 20_000,
)


@pytest.fixture(scope="module")
def running(launch: Launch) -> Iterator[Running]:
    with launch() as server:
        yield server


@pytest.fixture(scope="module")
def dovecot(
    running: Running,
    tmp_path_factory: pytest.TempPathFactory,
    require_program: Callable[[str], str],
) -> Iterator[Dovecot]:
    directory = tmp_path_factory.mktemp("dovecot")
    mail = running.directory / "mail"
    dovecot = Dovecot(require_program("dovecot"), require_program("unshare"), directory, mail)
    yield dovecot
    dovecot.stop()


def send(server: Running, user: str, content: bytes) -> None:
    with server.connect() as client:
        client.begin_data(f"{user}@example.org")
        client.send(re.sub(rb"(?m)^\.", b"..", content) + b".\r\n")
        assert client.reply().startswith("250 ")


def fetch(client: imaplib.IMAP4, folder: str = "INBOX") -> list[tuple[list[str], int, bytes]]:
    """Return flags, size and octets of the messages in a folder, in no order."""
    assert client.select(folder)[0] == "OK"
    found = []
    for item in client.fetch("1:*", "(FLAGS RFC822.SIZE BODY.PEEK[])")[1]:
        if isinstance(item, tuple):
            about, body = item
            parts = re.search(rb"FLAGS \((.*?)\) RFC822\.SIZE (\d+) BODY\[\]", about)
            assert parts is not None, about
            found.append((parts[1].decode().split(), int(parts[2]), body))
    return found


def test_messages_are_listed_unseen_with_their_sizes_and_octets(
    running: Running, dovecot: Dovecot
) -> None:
    for content in CONTENTS:
        send(running, "listed", content)
    stored = running.mail("listed")
    with dovecot.log_in("listed") as client:
        assert client.status("INBOX", "(MESSAGES UNSEEN)")[1] == [b"INBOX (MESSAGES 6 UNSEEN 6)"]
        found = fetch(client)
    assert sorted(body for _, _, body in found) == sorted(stored)
    assert [flags for flags, _, _ in found] == [["\\Recent"]] * len(CONTENTS)
    assert [size for _, size, _ in found] == [len(body) for _, _, body in found]
    assert all(any(body.endswith(content) for _, _, body in found) for content in CONTENTS)


def test_session_under_way_is_told_of_new_mail(running: Running, dovecot: Dovecot) -> None:
    send(running, "waiting", CONTENTS[0])
    with dovecot.log_in("waiting") as client:
        assert client.select()[1] == [b"1"]
        send(running, "waiting", CONTENTS[1])
        client.noop()
        assert client.response("EXISTS")[1][-1] == b"2"


def deliver(server: Running, envelope: Envelope, user: str, *, quarantine: str = "") -> None:
    """Store a message as a worker does, with the plugin alone."""
    message = Message(envelope.id, Content.of(CONTENTS[0]), b"Received: by us\r\n")
    if quarantine:
        message.quarantine(quarantine)
    plugin = Maildir(path=server.directory / "mail" / "{local}")
    assert plugin.deliver(envelope, message, Address(user, "example.org"))


@pytest.fixture
def envelope() -> Envelope:
    return Envelope(
        id="1a2b",
        reverse_path=None,
        listener="smtp",
        peer="192.0.2.1",
        helo="client.example",
        login=None,
        arrived=time.time(),
    )


def test_quarantine_is_a_folder(running: Running, dovecot: Dovecot, envelope: Envelope) -> None:
    deliver(running, envelope, "cautious", quarantine="looks odd")
    with dovecot.log_in("cautious") as client:
        [(_, _, body)] = fetch(client, "Quarantine")
        assert client.select()[1] == [b"0"]
    assert body.endswith(CONTENTS[0])


def test_delivery_repeated_after_dovecot_has_flagged_the_message_stores_nothing(
    running: Running, dovecot: Dovecot, envelope: Envelope
) -> None:
    deliver(running, envelope, "again")
    with dovecot.log_in("again") as client:
        client.select()
        client.store("1", "+FLAGS", r"(\Seen \Flagged)")
        envelope.queued = True
        deliver(running, envelope, "again")
        [(flags, _, _)] = fetch(client)
    assert {"\\Seen", "\\Flagged"} <= {*flags}


def test_dovecot_and_we_keep_one_count_of_a_mailbox(
    running: Running, dovecot: Dovecot, envelope: Envelope
) -> None:
    path = running.directory / "mail" / "{local}"
    plugin, user = Maildir(path=path, quota=ByteSize(10_240)), Address("counted", "example.org")
    message = Message(envelope.id, Content.of(b"Subject: big\r\n\r\n" + b"x" * 6000))
    assert plugin.deliver(envelope, message, user)
    with dovecot.log_in("counted") as client:
        [size] = [size for _, size, _ in fetch(client)]
        shown = client.getquotaroot("INBOX")[1][1]
        assert shown == [b'"User quota" (STORAGE %d 10)' % -(-size // 1024)]
        with pytest.raises(Defer):
            plugin.deliver(envelope, message, user)
        client.store("1", "+FLAGS", r"(\Deleted)")
        client.expunge()
    assert plugin.deliver(envelope, message, user)


def test_junk_is_a_folder_for_dovecot(
    running: Running, dovecot: Dovecot, envelope: Envelope
) -> None:
    rule = Folder(folder="Junk", header="X-Spam-Flag", value="YES")
    plugin = Maildir(path=running.directory / "mail" / "{local}", folders=[rule])
    message = Message(envelope.id, Content.of(b"X-Spam-Flag: YES\r\n\r\nBuy!\r\n"))
    assert plugin.deliver(envelope, message, Address("annoyed", "example.org"))
    with dovecot.log_in("annoyed") as client:
        [(_, _, body)] = fetch(client, "Junk")
        assert client.select()[1] == [b"0"]
    assert body.endswith(b"Buy!\r\n")


HEADLESS: Final = {  # what came, and the subject and the text of it
    "text": (b"Disk 2 failed.\r\nCall me: 5\r\n", b"", b"Disk 2 failed.\r\nCall me: 5\r\n"),
    "below": (b"Subject: s\r\ntext: of it\r\nand more\r\n", b"s", b"and more\r\n"),
    "blank": (b"Subject :s\r\ntext of\r\n\r\nTo: a\r\n", b"s", b"text of\r\n\r\nTo: a\r\n"),
    "indented": (b" text\r\nSubject: s\r\n\r\nb\r\n", b"", b" text\r\nSubject: s\r\n\r\nb\r\n"),
    "mbox": (b"From a@b Thu\r\nSubject: s\r\n\r\nb\r\n", b"s", b"b\r\n"),
    "mark": (b"\xef\xbb\xbfSubject: s\r\n\r\nb\r\n", b"s", b"b\r\n"),
    "long": (b"x" * 300_000 + b"\r\nSubject: s\r\n", b"", b"x" * 300_000 + b"\r\nSubject: s\r\n"),
}


@pytest.mark.parametrize("name", HEADLESS)
def test_text_without_a_header_is_shown(name: str, running: Running, dovecot: Dovecot) -> None:
    content, subject, text = HEADLESS[name]
    user = f"headless-{name}"
    send(running, user, content)
    with dovecot.log_in(user) as client:
        assert client.select("INBOX")[0] == "OK"
        parts = client.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)] BODY.PEEK[TEXT])")[1]
    header, body = (each[1] for each in parts if isinstance(each, tuple))
    assert header.strip().partition(b":")[2].strip() == subject
    assert body == text


def test_return_path_is_the_one_of_the_envelope(running: Running, dovecot: Dovecot) -> None:
    # RFC 5321 section 4.4
    forged = b"Return-Path: <a@b.example>\r\nRETURN-PATH :\r\n <c@d.example>\r\nreturn-path:\r\n"
    send(running, "returned", forged + b"Subject: x\r\n\r\nReturn-Path: of the text\r\n")
    with dovecot.log_in("returned") as client:
        [(_, _, message)] = fetch(client)
    assert re.findall(rb"(?im)^return-path[ \t]*:.*$", message) == [
        b"Return-Path: <sender@client.example>\r",
        b"Return-Path: of the text\r",
    ]
