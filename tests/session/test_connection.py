"""One connection: absolute deadlines, TLS, and clients that disappear."""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from snippets import CLEAR, MX, SUBMISSIONS, listener

from minismtp import hookimpl, plugin
from minismtp.config import Limits
from minismtp.runtime.log import Log
from minismtp.session.connection import Connection
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Client, Configure, Launch, Running, Start, TlsFiles

TIMEOUT = "421 4.4.2 mx.example.org timeout"
LISTENERS = MX + SUBMISSIONS
LIMITS = """
[limits]
command_timeout = "1s"
data_timeout = "1500ms"
min_data_rate = "10MB"
session_timeout = "5s"
junk_commands = 1_000_000
errors = 100
"""


@pytest.fixture(scope="module")
def hasty(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    """Run a server with short timeouts."""
    with launch(tls_files.table, LIMITS, listeners=LISTENERS) as server:
        yield server


def trickle(client: Client, data: bytes) -> None:
    """Send `data` slowly and repeatedly, until the server replies."""
    while True:
        for octet in data:
            if select.select([client.socket], [], [], 0.2)[0]:
                return
            client.send(bytes([octet]))


def test_silent_client_hears_421(hasty: Running) -> None:
    with hasty.connect() as client:
        client.greet()
        assert client.rest().startswith(f"{TIMEOUT} (id ")


def test_command_that_trickles_in_does_not_buy_time(hasty: Running) -> None:
    with hasty.connect() as client:
        client.reply()
        trickle(client, b"N" * 100)
        assert client.rest().startswith(f"{TIMEOUT} (id ")


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("begin", ["DATA", "BDAT 100000 LAST"])
def test_content_that_trickles_in_does_not_buy_time(
    hasty: Running, tls_files: TlsFiles, begin: str, *, tls: bool
) -> None:
    with hasty.connect() as client:
        client.greet()
        if tls:
            client.command("STARTTLS")
            client.secure(tls_files.client())
            client.command("EHLO client.example")
        client.command("MAIL FROM:<>")
        client.command("RCPT TO:<trickle@example.org>")
        client.send(f"{begin}\r\n")
        if begin == "DATA":
            client.reply()
        trickle(client, b"line\r\n")
        assert client.rest().startswith(f"{TIMEOUT} (id ")
    assert hasty.mail("trickle") == []


def test_many_chunks_do_not_buy_time(hasty: Running) -> None:
    with hasty.connect() as client:
        client.greet()
        client.command("MAIL FROM:<>")
        client.command("RCPT TO:<chunks@example.org>")
        reply = "250"
        while reply.startswith("250"):
            client.send("BDAT 2\r\n\r\n")
            reply = client.reply()
        assert reply.startswith(TIMEOUT)
    assert hasty.mail("chunks") == []


def test_session_ends_however_busy_it_is(hasty: Running) -> None:
    with hasty.connect() as client:
        client.greet()
        reply = "250"
        while reply.startswith("250"):
            reply = client.command("NOOP")
        assert reply.startswith(TIMEOUT)


def test_handshake_that_never_starts_ends_the_session(hasty: Running) -> None:
    with hasty.connect() as client:
        client.greet()
        assert client.command("STARTTLS").startswith("220 ")
        # No reply would be right here: the client waits for TLS.
        assert client.rest() == ""


def test_implicit_handshake_that_never_starts_ends_the_session(hasty: Running) -> None:
    with hasty.connect("submissions") as client:
        assert client.rest() == ""


def test_handshake_that_trickles_in_does_not_buy_time(hasty: Running) -> None:
    with hasty.connect("submissions") as client:
        # The beginning of a TLS record that holds a ClientHello of 16 KiB.
        trickle(client, b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(1000))
        assert client.rest() == ""


BALANCER: Final = 'proxy_protocol = ["127.0.0.0/8"]'
SILENT: Final = (
    LISTENERS
    + listener("balanced", CLEAR, BALANCER)
    + listener("balanced-tls", 'tls = "implicit"', BALANCER)
)
BRIEF: Final = '[limits]\nhandshake_timeout = "300ms"\n'


@pytest.fixture(scope="module")
def impatient(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    """Run a server that waits for handshakes only a short time, and for commands as usual."""
    with launch(tls_files.table, BRIEF, listeners=SILENT) as server:
        yield server


@pytest.mark.parametrize(
    "said", [b"", b"PROXY TCP4 192.0.2.1 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"]
)
@pytest.mark.parametrize("listener", ["submissions", "balanced", "balanced-tls"])
def test_silent_handshake_is_not_waited_for_like_a_command(
    impatient: Running, listener: str, said: bytes
) -> None:
    with impatient.connect(listener) as client:
        client.send(b"" if listener == "submissions" else said)
        assert client.rest() == ""
        impatient.wait_for_log(rf"session closed .*listener={listener} reason=timeout ")


def test_silence_behind_the_proxy_header_or_starttls_is_not_waited_for(impatient: Running) -> None:
    with impatient.connect("balanced-tls") as client:
        client.send("PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n")
        assert client.rest() == ""
    with impatient.connect() as client:
        client.greet()
        assert client.command("STARTTLS").startswith("220 ")
        assert client.rest() == ""


def test_commands_have_their_own_time_after_the_handshake(
    impatient: Running, tls_files: TlsFiles
) -> None:
    with impatient.connect() as client, impatient.connect("submissions") as other:
        other.secure(tls_files.client())
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        # Three silent handshakes have timed out by now.
        for _ in range(3):
            with impatient.connect("submissions") as silent:
                assert silent.rest() == ""
        assert client.command("EHLO client.example").startswith("250")
        assert other.reply().startswith("220 ")


def test_timeout_inside_tls_is_told_inside_tls(hasty: Running, tls_files: TlsFiles) -> None:
    with hasty.connect() as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        client.command("EHLO client.example")
        assert client.rest().startswith(f"{TIMEOUT} (id ")


def test_client_that_never_reads_is_cut(hasty: Running) -> None:
    with hasty.connect() as client:
        client.reply()
        client.command("EHLO never-reads.example")
        while select.select([], [client.socket], [], 0.5)[1]:
            client.socket.send(b"HELP\r\n" * 1000)
        hasty.wait_for_log(r"session closed .* reason=timeout .*helo=never-reads\.example")


def connected(port: int) -> bool:
    """Whether a TCP connection from this port is still open on the server's side."""
    established = "01"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        line.split()[2].endswith(f":{port:04X}") and line.split()[3] == established
        for line in lines
    )


@pytest.mark.parametrize("unfinished", [b"", b"half a li", b"line\r\n.", b"line\r\n.\r"])
def test_client_that_vanishes_in_data_leaves_nothing(server: Running, unfinished: bytes) -> None:
    with server.connect() as client:
        client.begin_data("vanished@example.org")
        client.send(b"Subject: x\r\n\r\n" + unfinished)
        port = client.socket.getsockname()[1]
    server.wait_until(lambda: not connected(port))
    assert server.mail("vanished") == []


def test_client_that_resets_the_connection_in_data_leaves_nothing(server: Running) -> None:
    with server.connect() as client:
        client.begin_data("reset@example.org")
        client.send(b"Subject: x\r\n\r\n")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        port = client.socket.getsockname()[1]
    server.wait_until(lambda: not connected(port))
    assert server.mail("reset") == []


def test_client_that_only_stops_sending_hears_its_replies(server: Running) -> None:
    with server.connect() as client:
        client.reply()
        client.send("NOOP\r\nNOOP\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == "250 2.0.0 ok\r\n250 2.0.0 ok\r\n"


def test_last_reply_arrives_though_more_was_sent(server: Running) -> None:
    with server.connect() as client:
        client.greet()
        # Input that the server did not read when it closes must not cause a reset.
        client.send(b"STARTTLS\r\n" + b"x" * 100_000)
        assert client.rest().startswith("421 4.7.0 ")


def test_reply_to_quit_arrives_though_more_was_sent(server: Running) -> None:
    with server.connect() as client:
        client.greet()
        client.send(b"QUIT\r\n" + b"NOOP\r\n" * 20_000)
        assert client.rest() == "221 2.0.0 mx.example.org closing connection\r\n"


def test_end_of_a_session_inside_tls_is_told_to_tls(server: Running, tls_files: TlsFiles) -> None:
    # RFC 8446 section 6.1: without close_notify the client cannot tell the end from an attack.
    with server.connect("submissions") as client:
        client.secure(tls_files.client(), ragged=False)
        client.greet()
        client.send("QUIT\r\n")
        assert client.rest() == "221 2.0.0 mx.example.org closing connection\r\n"


def test_plain_text_on_the_port_of_tls_is_refused_and_logged(server: Running) -> None:
    with server.connect("submissions") as client:
        client.send("EHLO client.example\r\n")
        port = client.socket.getsockname()[1]
        server.wait_until(lambda: not connected(port))
    server.wait_for_log(r"TLS handshake failed session=\w+ peer=127\.0\.0\.1")


def test_client_that_does_not_trust_us_ends_its_session_only(
    server: Running, tls_files: TlsFiles
) -> None:
    with server.connect("submissions") as client, pytest.raises(ssl.SSLCertVerificationError):
        client.secure(ssl.create_default_context())
    with server.connect("submissions") as client:
        client.secure(tls_files.client())
        assert client.reply().startswith("220 ")


def test_what_was_said_in_clear_is_forgotten_inside_tls(
    server: Running, tls_files: TlsFiles
) -> None:
    with server.connect() as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        # RFC 3207 section 4.2: the client must greet again.
        assert client.command("MAIL FROM:<>").startswith("503 5.5.1 ")
        assert "STARTTLS" not in client.command("EHLO client.example")


def test_each_session_leaves_one_line_that_says_how_it_ended(server: Running) -> None:
    with server.connect() as client:
        client.reply()
        client.command("EHLO told-apart.example")
        client.command("QUIT")
        assert client.rest() == ""
    line = server.wait_for_log(r"session closed .*helo=told-apart\.example.*")[0]
    assert re.search(r"peer=127\.0\.0\.1 listener=smtp reason=quit .* commands=2 ", line)
    assert " transactions=0 " in line


class Recorder(socket.socket):
    """A socket that records the pieces to be sent, and takes at most `room` octets of each."""

    def __init__(self, of: socket.socket, room: int = 1 << 20) -> None:
        super().__init__(of.family, of.type, fileno=of.detach())
        self.pieces: list[bytes] = []
        self.room = room

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        self.pieces.append(data)
        return super().send(data[: self.room], flags)


GROUP = b"".join(b"RCPT TO:<user%d@example.org>\r\n" % number for number in range(90))


def test_long_group_of_commands_is_answered_in_one_piece() -> None:
    # RFC 2920 section 3.2; the group is longer than what is asked for at once.
    dialogue = Dialogue(limits=Limits(errors=100))
    ours, theirs = socket.socketpair()
    sock = Recorder(ours)
    with theirs:
        theirs.sendall(b"EHLO client.example\r\nMAIL FROM:<>\r\n" + GROUP + b"QUIT\r\n")
        Connection(sock, dialogue.service, dialogue.session, None, implicit_tls=False).run()
    assert len(sock.pieces) == 2
    assert sock.pieces[1].count(b"\r\n550 5.7.1 ") == 90
    assert sock.pieces[1].endswith(b"\r\n221 2.0.0 mx.example.org closing connection\r\n")


def test_replies_that_the_socket_takes_in_part_arrive_whole() -> None:
    dialogue = Dialogue()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"EHLO client.example\r\nQUIT\r\n")
        sock = Recorder(ours, room=7)
        Connection(sock, dialogue.service, dialogue.session, None, implicit_tls=False).run()
        heard = b"".join(iter(lambda: theirs.recv(4096), b""))
    assert heard == b"".join(sock.pieces)
    assert heard.endswith(b"\r\n221 2.0.0 mx.example.org closing connection\r\n")


def test_long_group_of_commands_inside_tls_is_answered_whole(
    hasty: Running, tls_files: TlsFiles
) -> None:
    with hasty.connect() as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        client.send(b"EHLO client.example\r\nMAIL FROM:<>\r\n" + GROUP + b"QUIT\r\n")
        assert client.rest().count("\r\n250 2.1.5 ") == 90


BROKEN: Final = '''
from minismtp import hookimpl, plugin
from minismtp.session.conversation import Conversation


@plugin
class Broken:
    """Has the server make a mistake of its own at HELP."""

    @hookimpl
    def on_start(self):
        decide = Conversation.decide

        def wrong(conversation, event, line):
            if type(event).__name__ == "Other" and event.verb == "HELP":
                raise ValueError("made by a test")
            return decide(conversation, event, line)

        Conversation.decide = wrong
'''


def test_fault_of_ours_ends_one_session_with_421_and_all_replies_before(
    configure: Configure, start: Start
) -> None:
    config = configure('[[plugins]]\nuse = "broken"\n')
    (config.parent / "local_plugins" / "broken.py").write_text(BROKEN)
    server = start(config)
    with server.connect() as client:
        client.begin_data("dave@example.org")
        client.send(b"x\r\n.\r\nNOOP\r\nHELP\r\nNOOP\r\n")
        replies = client.rest().splitlines()
    assert [reply[:3] for reply in replies] == ["250", "250", "421"]
    assert replies[0].startswith("250 2.0.0 message accepted")
    assert replies[2].startswith("421 4.3.0 mx.example.org local error in processing (id ")
    assert len(server.mail("dave")) == 1
    server.wait_for_log(" session closed .*reason=fault")
    server.wait_until(lambda: server.metric("thread_failures_total", thread="session") == 1)
    with server.connect() as client:
        assert client.greet().startswith("250")


@plugin
class Closing:
    """Closes the socket of its session, as by a second close, and another takes its number."""

    ours: int
    other: int

    @hookimpl
    def deliver(self) -> bool:
        os.dup2(self.other, self.ours)
        return True


def test_reply_to_a_message_never_goes_to_another_session(tmp_path: Path) -> None:
    ours, client = socket.socketpair()
    others, elsewhere = socket.socketpair()
    ours_number = ours.fileno()
    with client, others, elsewhere, (tmp_path / "log").open("wb") as file:
        dialogue = Dialogue(
            Closing(ours=ours_number, other=others.fileno()),
            Mailroom(),
            log=Log(descriptor=file.fileno()),
        )
        connection = Connection(ours, dialogue.service, dialogue.session, None, implicit_tls=False)
        client.sendall(
            b"EHLO client.example\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\n"
            b"DATA\r\n"
        )
        client.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
        connection.run()
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.recv(1000)
        os.close(ours_number)  # which belongs to another owner, and stays open
    assert b"the socket was closed by somebody else" in (tmp_path / "log").read_bytes()
