"""clamd finds viruses, and an unclear answer of clamd defers mail."""

from __future__ import annotations

import base64
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import pytest
from fakes import envelope, running_daemon, saying, serving
from minismtp_plugins.clamav import CLAMAV, Clamav, ClamavResult
from ports import free_port

from minismtp import (
    ByteSize,
    Content,
    Envelope,
    Message,
    RemoteError,
    SocketAddress,
    hookimpl,
    plugin,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom

# The test file of EICAR, in halves, because a scanner could remove this file.
EICAR: Final = "X5O!P%@AP[4\\PZX54(P^)7CC)7}" + "$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
PLAIN: Final = f"Subject: plain\n\n{EICAR}\n"
MIME: Final = f"""\
Subject: attached
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/plain

See the file.
--b
Content-Type: application/octet-stream; name=a.com
Content-Transfer-Encoding: base64

{base64.b64encode(EICAR.encode()).decode()}
--b--
"""
CLEAN: Final = "Subject: clean\n\nNothing to see here.\n"
FOUND: Final = "550 5.7.1 the message contains a virus: "
DEFERRED: Final = "451 4.3.0 temporary failure, try again later"
STREAM_LIMIT: Final = 1024 * 1024
CONFIGURATION: Final = """
Foreground yes
TCPSocket {port}
TCPAddr 127.0.0.1
LocalSocket {directory}/clamd.sock
DatabaseDirectory {directory}/signatures
StreamMaxLength {limit}
"""


@pytest.fixture(scope="module")
def clamd(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, SocketAddress]]:
    """Run clamd with a signature of our own, and return its address."""
    program, sigtool = require_program("clamd"), require_program("sigtool")
    directory = tmp_path_factory.mktemp("clamd")
    (directory / "signatures").mkdir()
    sample = directory / "eicar.com"
    sample.write_text(EICAR)
    signature = subprocess.run([sigtool, "--md5", sample], capture_output=True, check=True)
    (directory / "signatures" / "eicar.hdb").write_bytes(signature.stdout)
    pattern = EICAR.encode().hex()
    (directory / "signatures" / "eicar.ndb").write_text(f"Eicar-Anywhere:0:*:{pattern}\n")
    port = free_port()
    configuration = directory / "clamd.conf"
    configuration.write_text(
        CONFIGURATION.format(port=port, directory=directory, limit=STREAM_LIMIT)
    )
    with running_daemon(program, "-c", configuration, port=port, log=directory / "log"):
        yield {
            "TCP": SocketAddress("127.0.0.1", port),
            "unix": SocketAddress(path=directory / "clamd.sock"),
        }


@plugin
class Notes:
    """Keep the result of the scanner on the last envelope."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        self.result = envelope.stash.get(CLAMAV, None)


@pytest.mark.parametrize("way", ["TCP", "unix"])
@pytest.mark.parametrize(
    "content",
    [PLAIN, MIME, f"Subject: x\n\n{'x' * 5000}{EICAR}"],
    ids=["plain", "base64", "long-line"],
)
def test_virus_is_refused_by_its_name(
    clamd: dict[str, SocketAddress], way: str, content: str
) -> None:
    mailroom = Mailroom()
    reply = Dialogue(Clamav(address=clamd[way]), mailroom).mail(content)
    assert reply.startswith((f"{FOUND}eicar.com", f"{FOUND}Eicar-Anywhere"))
    assert mailroom.stored == {}


def test_clean_message_is_taken_as_it_is(clamd: dict[str, SocketAddress]) -> None:
    mailroom, notes = Mailroom(), Notes()
    dialogue = Dialogue(Clamav(address=clamd["TCP"]), notes, mailroom)
    assert dialogue.mail(CLEAN).startswith("250 ")
    assert notes.result == ClamavResult("")
    assert mailroom.stored["user@example.org"][0].endswith(b"\r\nNothing to see here.\r\n")


def test_virus_of_a_user_who_has_logged_in_is_refused_too(clamd: dict[str, SocketAddress]) -> None:
    dialogue = Dialogue(Clamav(address=clamd["TCP"]), Mailroom(), login="alice", tls=True)
    assert dialogue.mail(PLAIN).startswith(FOUND)


@pytest.mark.parametrize(
    ("action", "outcome"), [("quarantine", "quarantined"), ("discard", "discarded")]
)
def test_virus_is_taken_aside_where_that_is_wanted(
    clamd: dict[str, SocketAddress], action: Literal["quarantine", "discard"], outcome: str
) -> None:
    notes = Notes()
    dialogue = Dialogue(Clamav(address=clamd["TCP"], action=action), notes, Mailroom())
    assert dialogue.mail(PLAIN).startswith("250 ")
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1
    assert notes.result is not None
    assert notes.result.virus


def test_message_above_the_limit_of_clamd_is_an_error_that_says_so(
    clamd: dict[str, SocketAddress],
) -> None:
    message = Message("1", Content.of(b"Subject: large\r\n\r\n" + b"x" * 20 * STREAM_LIMIT))
    with pytest.raises(RemoteError, match="INSTREAM size limit exceeded"):
        Clamav(address=clamd["unix"]).on_message(envelope(), message)


def test_message_larger_than_the_largest_passes_without_a_scan() -> None:
    notes = Notes()
    nobody = SocketAddress("127.0.0.1", free_port())
    scanner = Clamav(address=nobody, largest=ByteSize(1000))
    assert Dialogue(scanner, notes, Mailroom()).mail(PLAIN + "x\n" * 500).startswith("250 ")
    assert notes.result is None


def test_limit_counts_what_is_sent() -> None:
    heard: list[int] = []

    def talk(sock: socket.socket) -> None:
        data = b""
        while not data.endswith(bytes(4)):
            data += sock.recv(65536)
        heard.append(int.from_bytes(data[10:14], "big"))
        sock.sendall(b"stream: OK\0")

    def scan(largest: int) -> int:
        with serving(talk) as address:
            scanner = Clamav(address=address, largest=ByteSize(largest))
            assert Dialogue(scanner, Mailroom()).mail(PLAIN).startswith("250 ")
        return len(heard)

    assert scan(10_000) == 1
    assert heard[0] > len(PLAIN)  # our fields are above it
    assert scan(heard[0]) == 2
    nobody = SocketAddress("127.0.0.1", free_port())
    scanner = Clamav(address=nobody, largest=ByteSize(heard[0] - 1))
    assert Dialogue(scanner, Mailroom()).mail(PLAIN).startswith("250 ")


@pytest.mark.parametrize(
    "answer",
    [
        b"stream: lstat() failed: No such file or directory. ERROR\0",
        b"INSTREAM size limit exceeded. ERROR\0",
        b"stream: OK",
        b"stream:  FOUND\0",
        b"UNKNOWN COMMAND\0",
        b"\xff\xfe\0",
        b"\0",
    ],
)
def test_answer_that_is_no_verdict_defers(answer: bytes) -> None:
    with serving(saying(answer)) as address:
        assert Dialogue(Clamav(address=address), Mailroom()).mail(CLEAN) == DEFERRED


def test_ok_for_half_a_message_is_no_verdict() -> None:
    """A scanner that hangs up in the middle did not scan the whole message."""
    message = Message("1", Content.of(b"Subject: long\r\n\r\n" + bytes(20_000_000)))

    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"stream: OK\0")
        sock.close()  # at once, with octets unread

    with serving(talk) as address, pytest.raises(RemoteError):
        Clamav(address=address).on_message(envelope(), message)


def test_options_that_make_no_sense_are_mistakes() -> None:
    with pytest.raises(ConfigError, match='patience: expected more than "0s"'):
        build(Clamav, {"patience": "0s"}, file="c.toml", key="plugins[0]", base=Path())
