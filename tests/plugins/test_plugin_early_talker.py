"""A client that talks before the greeting is noticed; one that waited need not wait again."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from minismtp_plugins.early_talker import EarlyTalker

from minismtp import Finding, ServerInfo, findings_of
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.mail.session import Session
from minismtp.services.shared_state import State
from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from conftest import Configure, Launch, Running, Start, TlsFiles

REFUSED: Final = "554 mx.example.org you talk before the greeting"
GREETED: Final = "220 mx.example.org ESMTP"
LISTENERS: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"

[[listeners]]
name = "implicit"
address = "127.0.0.1:0"
kind = "submission"
tls = "implicit"
"""
# A client that is not recognized waits until the test fails.
TABLE: Final = """
[[plugins]]
use = "early_talker"
delay = "10m"
networks = ["127.0.0.3/32"]
"""
SCORING: Final = """
[[plugins]]
use = "early_talker"
delay = "300ms"
points = 3
networks = []

[[plugins]]
use = "score"
"""


@pytest.fixture(scope="module")
def patient(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    """Run a server that waits for ten minutes."""
    with launch(tls_files.table, TABLE, listeners=LISTENERS) as server:
        yield server


@pytest.fixture(scope="module")
def scoring(launch: Launch) -> Iterator[Running]:
    """Run a server that waits for a short time, and counts the clients that talk."""
    with launch(SCORING) as server:
        yield server


# In the plugin's own terms


class Peer:
    """A peer that talks, or does not, when a plugin waits for it; it records the waiting time."""

    def __init__(self, address: str = "192.0.2.1", *, speaks: bool = False) -> None:
        self.waited: list[float] = []
        self.session = Session(
            id="1a2b", listener="smtp", kind="mx", hostname="mx.example.org", peer=address
        )
        self._speaks = speaks
        self.session.speaks_within = self._hear

    def _hear(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return self._speaks


def started(**options: object) -> EarlyTalker:
    found = build(EarlyTalker, options, file="c.toml", key="plugins[0]", base=Path())
    found.on_start(ServerInfo("mx.example.org", Path(), "worker", 0, state=State.in_memory()))
    return found


def test_peer_that_has_waited_and_gone_on_need_not_wait_again() -> None:
    talker = started(delay="5s")
    first, second, other = Peer(), Peer(), Peer("192.0.2.2")
    talker.on_connect(first.session)
    talker.on_helo(first.session)
    talker.on_connect(second.session)
    talker.on_connect(other.session)
    assert (first.waited, second.waited, other.waited) == ([5.0], [0], [5.0])


def test_peer_that_left_while_it_was_waited_for_has_to_wait_again() -> None:
    talker = started(delay="5s")
    for _ in range(2):
        peer = Peer()
        talker.on_connect(peer.session)
        assert peer.waited == [5.0]


def test_each_session_waits_where_nobody_is_remembered() -> None:
    talker = started(delay="5s", remember="0s")
    for _ in range(2):
        peer = Peer()
        talker.on_connect(peer.session)
        talker.on_helo(peer.session)
        assert peer.waited == [5.0]


def test_peer_that_is_known_is_listened_to_all_the_same() -> None:
    talker = started(points=2.0)
    first, second = Peer(), Peer(speaks=True)
    talker.on_connect(first.session)
    talker.on_helo(first.session)
    talker.on_connect(second.session)
    found = [Finding("early_talker", "early", 2.0, "talked before the greeting")]
    assert findings_of(second.session) == found


def test_peer_that_talked_early_is_not_remembered_as_patient() -> None:
    talker = started(points=2.0, delay="5s")
    for _ in range(2):
        peer = Peer(speaks=True)
        talker.on_connect(peer.session)
        talker.on_helo(peer.session)
        assert peer.waited == [5.0]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "fe80::1", "::ffff:10.0.0.1", "unix"])
def test_peer_of_our_own_does_not_wait(address: str) -> None:
    peer = Peer(address, speaks=True)
    started().on_connect(peer.session)
    assert peer.waited == []


def test_session_without_a_socket_does_not_wait() -> None:
    assert Dialogue(EarlyTalker()).banner.startswith(GREETED)


def test_delay_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match='delay: expected more than "0s"'):
        started(delay="0s")


# On sockets


def test_peer_that_talks_before_the_greeting_is_refused_at_once(patient: Running) -> None:
    with patient.connect() as client:
        client.send("EHLO client.example\r\n")
        assert client.reply().startswith(REFUSED)


def test_early_peer_gets_no_further_than_the_refusal(patient: Running) -> None:
    with patient.connect() as client:
        client.send("EHLO client.example\r\n")
        client.reply()
        assert client.reply().startswith("503 ")
        assert client.command("QUIT").startswith("221 ")


def test_peer_that_talks_inside_tls_before_the_greeting_is_refused(
    patient: Running, tls_files: TlsFiles
) -> None:
    with patient.connect("implicit") as client:
        client.secure(tls_files.client())
        client.send("EHLO client.example\r\n")
        assert client.reply().startswith(REFUSED)


def test_peer_of_an_exempt_network_is_greeted_at_once(patient: Running) -> None:
    with patient.connect(source="127.0.0.3") as client:
        client.send("EHLO client.example\r\n")
        assert client.reply().startswith(GREETED)


@pytest.mark.parametrize("abrupt", [False, True], ids=["closes", "resets"])
def test_peer_that_leaves_while_it_waits_has_not_talked(patient: Running, abrupt: bool) -> None:
    refused = patient.metric("connections_total", result="refused")
    accepted = patient.metric("connections_total", result="accepted")
    with patient.connect() as client:
        if abrupt:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    patient.wait_until(
        lambda: patient.metric("connections_total", result="accepted") == accepted + 1
    )
    assert patient.metric("connections_total", result="refused") == refused
    assert patient.metric("hook_errors_total") == 0


def test_peer_that_waits_is_told_at_once_that_the_server_stops(
    configure: Configure, start: Start
) -> None:
    server = start(configure(TABLE))
    with server.connect() as client:
        port = client.socket.getsockname()[1]
        server.wait_until(lambda: _has_taken(port))
        server.signal(signal.SIGTERM)
        assert client.rest().startswith("421 4.3.2 mx.example.org service shutting down")
    assert server.wait() == 0


def _has_taken(port: int) -> bool:
    """Return whether a server accepted the connection from this port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].endswith(f":{port:04X}") and row[9] != "0" for row in rows)


def test_early_talk_counts_for_every_message_of_the_session(scoring: Running) -> None:
    with scoring.connect(source="127.0.0.2") as client:
        client.send("EHLO client.example\r\n")
        assert client.reply().startswith(GREETED)
        client.reply()
        for _ in range(2):
            client.command("MAIL FROM:<sender@client.example>")
            client.command("RCPT TO:<early@example.org>")
            client.command("DATA")
            assert client.command("Subject: x\r\n\r\n.").startswith("250 ")
    messages = scoring.mail("early")
    assert len(messages) == 2
    assert all(b"X-Spam-Status: No, score=3.0" in message for message in messages)


def test_silent_peer_is_greeted_after_the_delay(scoring: Running) -> None:
    begun = time.monotonic()
    with scoring.connect(source="127.0.0.4") as client:
        assert client.reply().startswith(GREETED)
        assert time.monotonic() - begun >= 0.3
