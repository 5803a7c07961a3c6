"""Dovecot shows over IMAP what we stored."""

from __future__ import annotations

import imaplib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from minismtp_plugins.maildir import Maildir

from minismtp import Address, Content, Envelope, Message

if TYPE_CHECKING:
    from conftest import Launch, Running

DEADLINE: Final = 60.0  # seconds: only a test that fails ever waits so long
CONTENTS: Final = (
    b"Subject: short\r\n\r\nIt works.\r\n",
    b"Subject: no body\r\n\r\n",
    b"Subject: hard to carry\r\n\r\n..\r\n8-bit: \xc3\xa4 \xff\r\nFrom here on\r\n\r\n\r\n",
    b"Subject: long\r\n\r\n" + b"a line of a long message\r\n" * 20_000,
)
CONFIGURATION: Final = """
protocols = imap
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
first_valid_uid = 1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{mail}/%u
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={directory}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""


class Dovecot:
    """A Dovecot for Maildirs below `mail`; every user's password is `secret`.

    In a user namespace we are nobody: Dovecot serves no mail as root, and needs a name to run as.
    """

    def __init__(self, program: str, unshare: str, directory: Path, mail: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._log = directory / "log"
        config = directory / "dovecot.conf"
        config.write_text(CONFIGURATION.format(directory=directory, mail=mail, port=self.port))
        nobody = ("--user", "--map-user=65534", "--map-group=65534")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [unshare, *nobody, program, "-F", "-c", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log_in(self, user: str) -> imaplib.IMAP4:
        """Begin an IMAP session."""
        client = self._connect()
        assert client.login(user, "secret")[0] == "OK"
        return client

    def _connect(self) -> imaplib.IMAP4:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                return imaplib.IMAP4("127.0.0.1", self.port, DEADLINE)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self._log.read_text()
                assert self._process.poll() is None, self._log.read_text()
                time.sleep(0.01)

    def stop(self) -> None:
        """End it with all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(DEADLINE)


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
    """Give flags, size and octets of the messages in a folder, in no order."""
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
        assert client.status("INBOX", "(MESSAGES UNSEEN)")[1] == [b"INBOX (MESSAGES 4 UNSEEN 4)"]
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
    """Store a message as a worker does, where that is a matter of the plugin alone."""
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
        deliver(running, envelope, "again")
        [(flags, _, _)] = fetch(client)
    assert {"\\Seen", "\\Flagged"} <= {*flags}
