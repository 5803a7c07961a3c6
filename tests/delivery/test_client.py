"""The client with hosts of every kind on real sockets, with short time-outs."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minismtp.config import Config
from minismtp.config.outbound_tables import Timeouts
from minismtp.delivery.attempt import Attempt, DeliveryContext
from minismtp.delivery.client import ClientSettings, HostConnection, Original
from minismtp.delivery.mx import Host, HostFinder
from minismtp.delivery.progress import AttemptResult, DeliveryRequest
from minismtp.delivery.result import HostError, RecipientResult, TlsError
from minismtp.delivery.tls_policy import TlsPolicies
from minismtp.delivery.tls_security import Contexts, Security
from minismtp.hooks.loader import PluginSet
from minismtp.mail.content import Content
from minismtp.mail.envelope import Destination
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.services.resolver import Resolver
from minismtp.smtp.client_reply import HostReply

if TYPE_CHECKING:
    from conftest import TlsFiles

    Behaviour = Callable[["Peer"], None]
    Visit = Callable[..., HostConnection]

PATIENCE: Final = 60.0  # seconds; only a failing test waits this long
SHORT: Final = 0.3
DRIP: Final = 0.05
PATIENT: Final = Timeouts(PATIENCE, PATIENCE, PATIENCE, PATIENCE)
PIPELINING: Final = b"250-there\r\n250-8BITMIME\r\n250 PIPELINING\r\n"
ONE_BY_ONE: Final = b"250-there\r\n250 8BITMIME\r\n"
STARTTLS: Final = b"250-there\r\n250 STARTTLS\r\n"


class Peer:
    """The host's side of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.socket = sock
        self.buffer = b""
        self.heard: list[bytes] = []

    def say(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def drip(self, octets: bytes) -> None:
        """Send one octet after the other until the client closes the connection."""
        for octet in octets:
            self.say(bytes([octet]))
            time.sleep(DRIP)

    def hear(self, *, most: int = 65536) -> bytes:
        """Return the next line, or an empty one if the client closed the connection."""
        while b"\n" not in self.buffer:
            data = self.socket.recv(most)
            if not data:
                return b""
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.heard.append(line + b"\n")
        return self.heard[-1]

    def wait(self) -> None:
        """Send nothing until the client closes the connection."""
        while self.hear():
            pass

    def greet(self, hello: bytes = PIPELINING) -> None:
        self.say(b"220 there\r\n")
        self.hear()
        self.say(hello)

    def secure(self, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def serve(self, replies: dict[bytes, list[bytes] | bytes] | None = None) -> None:
        """Accept mail; `replies` are sent instead of 250 and 354, the last one repeatedly.

        Hang up where the reply is empty.
        """
        replies = replies or {}
        while line := self.hear():
            verb = line.split(b":")[0].split()[0]
            reply = self.reply(replies, verb, b"354 go\r\n" if verb == b"DATA" else b"250 ok\r\n")
            if not reply:
                return
            self.say(reply)
            if verb == b"DATA" and reply.startswith(b"354"):
                while (line := self.hear()) != b".\r\n":
                    if not line:
                        return
                if not (reply := self.reply(replies, b".", b"250 taken\r\n")):
                    return
                self.say(reply)

    @staticmethod
    def reply(replies: dict[bytes, list[bytes] | bytes], verb: bytes, usual: bytes) -> bytes:
        found = replies.get(verb, usual)
        if isinstance(found, bytes):
            return found
        return found.pop(0) if len(found) > 1 else found[0]


class Listener:
    """A host that behaves in each connection as a test wants."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.peers: list[Peer] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.host = Host("mx.example.org", "127.0.0.1", self.socket.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        self.peers.append(peer)
        with contextlib.suppress(OSError):
            self._behaviour(peer)
        peer.socket.close()

    @property
    def heard(self) -> list[bytes]:
        """All lines of all connections."""
        return [line for peer in self.peers for line in peer.heard]


@pytest.fixture
def listen() -> Iterator[Callable[[Behaviour], Listener]]:
    made: list[Listener] = []

    def listen(behaviour: Behaviour) -> Listener:
        made.append(Listener(behaviour))
        return made[-1]

    yield listen
    for each in made:
        each.socket.close()


@pytest.fixture
def visit(listen: Callable[[Behaviour], Listener]) -> Iterator[Visit]:
    """Connect to a host, or to a new one that behaves like this, until the test ends."""
    with contextlib.ExitStack() as stack:

        def visit(
            host: Host | Listener | Behaviour,
            timeouts: Timeouts = PATIENT,
            destination: Destination = Destination(""),  # noqa: B008 - a value
        ) -> HostConnection:
            if callable(host):
                host = listen(host)
            if isinstance(host, Listener):
                host = host.host
            setting = ClientSettings("here.example", timeouts, Contexts())
            security = Security(destination.tls)
            connection = HostConnection(host, destination, security, setting)
            stack.callback(connection.close)
            return connection

        yield visit


def short(**phases: float) -> Timeouts:
    """Return time-outs, one of them short."""
    return Timeouts(**{"connect": 60, "command": 60, "data": 60, "end": 60, **phases})


def target(address: str = "bob@example.net", **more: object) -> QueuedRecipient:
    return QueuedRecipient(kind="relay", address=address, recipient=address, **more)  # type: ignore[arg-type]


def entry(*targets: QueuedRecipient, **more: object) -> QueueEntry:
    return QueueEntry(
        **{  # type: ignore[arg-type]
            "id": "m", "sender": "me@example.org", "listener": "", "peer": "", "helo": "",
            "login": None, "arrived": 0.0, "targets": targets or (target(),), **more,
        }
    )  # fmt: skip


def message(content: bytes = b"Subject: hello\r\n\r\nhello\r\n") -> Message:
    return Message("m", Content.of(content))


def send(
    connection: HostConnection, content: Message | None = None, **more: object
) -> RecipientResult:
    """Send a message to one recipient."""
    waiting = entry(**more)
    [answer] = connection.send(waiting, waiting.targets, content or message())
    return answer


def greeted(behaviour: Behaviour, hello: bytes = PIPELINING) -> Behaviour:
    def behave(peer: Peer) -> None:
        peer.greet(hello)
        behaviour(peer)

    return behave


def serving(hello: bytes = PIPELINING, **replies: list[bytes] | bytes) -> Behaviour:
    """Behave correctly except for these replies; DOT is the reply after the content."""
    named = {(b"." if verb == "DOT" else verb.encode()): said for verb, said in replies.items()}
    return greeted(lambda peer: peer.serve(dict(named)), hello)


# Hosts that cannot be reached


def test_a_host_that_refuses_connections_is_told_so(visit: Visit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = Host("mx.example.org", *server.getsockname())
    with pytest.raises(HostError, match=r"451 4\.4\.1 cannot connect to .* refused") as caught:
        visit(host)
    assert not caught.value.final


def test_a_host_that_takes_no_connection_is_given_up(visit: Visit) -> None:
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)  # one connection can wait in its queue, and the kernel drops the others
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        with pytest.raises(HostError, match=r"451 4\.4\.1 cannot connect to .* timed out"):
            visit(Host("mx.example.org", *server.getsockname()), short(connect=SHORT))


# Greetings


@pytest.mark.parametrize(
    ("greeting", "reply", "final"),
    [
        (b"421 4.3.2 not now\r\n", r"421 4\.3\.2 not now", False),
        (b"450 4.3.2 busy\r\n", r"450 4\.3\.2 busy", False),
        (b"554-5.7.1 go\r\n554 5.7.1 away\r\n", r"554 5\.7\.1 go away", True),
        (b"", r"451 4\.4\.2 .* hung up during the greeting", False),
        (b"220 half a li", r"451 4\.4\.2 .* hung up during the greeting", False),
        (b"250 out of place\r\n", "250 out of place", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"451 4\.5\.0 .* no SMTP reply: SSH-2", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"451 4\.5\.0 .* no SMTP reply: HTTP/1\.1", False),
        (b"\x15\x03\x01\x00\x02\x02\x0a", r"451 4\.5\.0 .* no SMTP reply", False),
        (b"2200 there\r\n", r"451 4\.5\.0 .* no SMTP reply: 2200", False),
        (b"260 there\r\n", r"451 4\.5\.0 .* no SMTP reply: 260", False),
        (b"220-one\r\n554 two\r\n", r"451 4\.5\.0 .* no SMTP reply: 554 two", False),
        (b"220 " + b"x" * 20_000, r"451 4\.5\.0 .* does not end a line", False),
        (b"220-more\r\n" * 10_000, r"451 4\.5\.0 .* does not end its reply", False),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, bytes) else "",
)
def test_greetings_have_the_right_outcome(
    visit: Visit, greeting: bytes, reply: str, final: bool
) -> None:
    with pytest.raises(HostError, match=reply) as caught:
        visit(lambda peer: peer.say(greeting))
    assert caught.value.final is final
    assert len(caught.value.reply) < 600


def silent_after(*replies: bytes) -> Behaviour:
    """Send these replies: the greeting, then one for each command. Then wait."""

    def behave(peer: Peer) -> None:
        peer.say(b"220 there\r\n")
        for reply in replies:
            peer.hear()
            peer.say(reply)
        peer.wait()

    return behave


@pytest.mark.parametrize(
    ("behaviour", "phase"),
    [
        (Peer.wait, "the greeting"),
        (lambda peer: peer.drip(b"220 there is " + b"no end " * 100), "the greeting"),
        (lambda peer: peer.drip(b"220-\r\n" * 100), "the greeting"),
        (silent_after(), "the greeting"),
        (silent_after(STARTTLS), "STARTTLS"),
        (silent_after(STARTTLS, b"220 go\r\n"), "the TLS handshake"),
    ],
    ids=["silent", "one line", "many lines", "EHLO", "STARTTLS", "handshake"],
)
def test_who_takes_for_ever_is_given_up(visit: Visit, behaviour: Behaviour, phase: str) -> None:
    with pytest.raises(HostError, match=rf"451 4\.\S+ .* timed out in {phase}"):
        visit(behaviour, short(command=SHORT))


def test_a_host_that_ends_its_side_at_once_has_hung_up(visit: Visit) -> None:
    def half_close(peer: Peer) -> None:
        peer.say(b"220 there\r\n")
        peer.socket.shutdown(socket.SHUT_WR)
        peer.wait()

    with pytest.raises(HostError, match="hung up during the greeting"):
        visit(half_close)


# TLS and AUTH


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"220 go\r\nrubbish\r\n", r"451 4\.7\.5 .* mixes clear text into TLS"),
        (b"220 go\r\n250 SIZE 1\r\n", r"451 4\.7\.5 .* mixes clear text into TLS"),
    ],
)
def test_what_came_in_clear_counts_for_nothing_in_tls(
    visit: Visit, said: bytes, problem: str
) -> None:
    def behave(peer: Peer) -> None:
        peer.hear()
        peer.say(said)
        peer.wait()

    with pytest.raises(TlsError, match=problem):
        visit(greeted(behave, STARTTLS))


def test_a_handshake_that_fails_is_told_apart(visit: Visit) -> None:
    def behave(peer: Peer) -> None:
        peer.hear()
        peer.say(b"220 go\r\n")
        peer.socket.recv(1)
        peer.say(b"no TLS, whatever I said\r\n")
        peer.wait()

    with pytest.raises(TlsError, match=r"451 4\.7\.5 .* failed in the TLS handshake"):
        visit(greeted(behave, STARTTLS))


@pytest.fixture
def tls_host(
    listen: Callable[[Behaviour], Listener], tls_files: TlsFiles
) -> Callable[..., Listener]:
    """Make a host with implicit TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls_files.certificate, tls_files.key)

    def make(behaviour: Behaviour) -> Listener:
        def behave(peer: Peer) -> None:
            peer.secure(context)
            behaviour(peer)

        return listen(behave)

    return make


SECRET: Final = "s\u00e9cret"  # noqa: S105 - of nobody
LOGIN: Final = Destination("", tls="required", implicit=True, username="me", password=SECRET)


def base64(text: str) -> bytes:
    return b64encode(text.encode())


@pytest.mark.parametrize(
    ("mechanisms", "steps"),
    [
        (b"LOGIN PLAIN", [b"AUTH PLAIN " + base64("\0me\0" + SECRET)]),
        (b"cram-md5 login", [b"AUTH LOGIN", base64("me"), base64(SECRET)]),
    ],
)
def test_the_client_logs_in(
    visit: Visit, tls_host: Callable[..., Listener], mechanisms: bytes, steps: list[bytes]
) -> None:
    def behave(peer: Peer) -> None:
        for _ in steps[1:]:
            peer.hear()
            peer.say(b"334 VXNlcm5hbWU6\r\n")
        peer.hear()
        peer.say(b"235 2.7.0 welcome\r\n")
        peer.serve()

    host = tls_host(greeted(behave, b"250-there\r\n250 AUTH " + mechanisms + b"\r\n"))
    connection = visit(host, destination=LOGIN)
    assert connection.tls == "encrypted"
    assert send(connection).state == "delivered"
    assert host.heard[1 : 1 + len(steps)] == [step + b"\r\n" for step in steps]


@pytest.mark.parametrize(
    ("keywords", "said", "problem"),
    [
        (b"AUTH PLAIN", b"535 5.7.8 wrong\r\n", r"4\.7\.8 login refused by .*535 5\.7\.8 wrong"),
        (b"AUTH PLAIN", b"334 what else\r\n", r"4\.7\.8 login refused by .*334 what else"),
        (b"AUTH LOGIN", b"504 5.5.4 what\r\n", r"4\.7\.8 login refused by .*504 5\.5\.4 what"),
        (
            b"AUTH PLAIN",
            b"500 what is " + base64("\0me\0" + SECRET) + b"\r\n",
            r"4\.7\.8 login refused by .*500 what is \.\.\.",
        ),
        (b"AUTH NTLM", b"", r"4\.7\.8 .* offers no AUTH PLAIN or LOGIN"),
        (b"SIZE", b"", r"4\.7\.8 .* offers no AUTH PLAIN or LOGIN"),
    ],
)
def test_a_login_that_fails_keeps_the_mail_waiting(
    visit: Visit, tls_host: Callable[..., Listener], keywords: bytes, said: bytes, problem: str
) -> None:
    behaviour = serving(b"250-there\r\n250 " + keywords + b"\r\n", AUTH=said)
    with pytest.raises(HostError, match=problem) as caught:
        visit(tls_host(behaviour), destination=LOGIN)
    assert not caught.value.final
    assert "cret" not in str(caught.value)
    for secret in (base64(SECRET), base64("\0me\0" + SECRET)):
        assert secret.decode() not in str(caught.value)


def test_no_password_travels_in_clear(visit: Visit, listen: Callable[..., Listener]) -> None:
    host = listen(serving(b"250-there\r\n250 AUTH PLAIN\r\n"))
    with pytest.raises(HostError, match="must not travel in clear"):
        visit(host, destination=Destination("", username="me", password=SECRET))
    assert not any(line.startswith(b"AUTH") for line in host.heard)


# Envelopes


@pytest.mark.parametrize("hello", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
@pytest.mark.parametrize(
    ("replies", "state", "reply"),
    [
        ({}, "delivered", "250 taken"),
        ({"MAIL": b"451 4.7.1 greylisted\r\n"}, "deferred", "451 4.7.1 greylisted"),
        ({"MAIL": b"550 5.7.1 no\r\n"}, "failed", "550 5.7.1 no"),
        ({"RCPT": b"450 4.2.0 busy\r\n"}, "deferred", "450 4.2.0 busy"),
        ({"RCPT": b"550 5.1.1 nobody\r\n"}, "failed", "550 5.1.1 nobody"),
        ({"DATA": b"451 4.3.0 later\r\n"}, "deferred", "451 4.3.0 later"),
        ({"DATA": b"554 5.5.1 no\r\n"}, "failed", "554 5.5.1 no"),
        ({"DOT": b"452 4.3.1 full\r\n"}, "deferred", "452 4.3.1 full"),
        ({"DOT": b"554-5.6.0 spam\r\n554 5.6.0 it is\r\n"}, "failed", "554 5.6.0 spam it is"),
        ({"DOT": b"354 go on\r\n"}, "deferred", "354 go on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_reply_has_its_meaning_and_the_next_message_goes(
    visit: Visit, hello: bytes, replies: dict[str, bytes], state: str, reply: str
) -> None:
    first = {verb: [said, b"354 go\r\n" if verb == "DATA" else b"250 taken\r\n"]
             for verb, said in replies.items()}  # fmt: skip
    connection = visit(serving(hello, **first))
    answer = send(connection)
    assert (answer.state, answer.reply) == (state, reply)
    assert send(connection).state == "delivered"
    connection.quit()
    assert connection.closed


@pytest.mark.parametrize("hello", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
def test_each_recipient_has_its_own_answer(visit: Visit, hello: bytes) -> None:
    said = [b"250 ok\r\n", b"550 5.1.1 nobody\r\n", b"450 4.2.1 busy\r\n", b"251 forwarded\r\n"]
    targets = [target(f"{name}@example.net") for name in "abcd"]
    answers = visit(serving(hello, RCPT=said)).send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == ["delivered", "failed", "deferred", "delivered"]
    assert [answer.reply for answer in answers] == [
        *("250 taken", "550 5.1.1 nobody", "450 4.2.1 busy", "250 taken")
    ]


def test_a_transaction_without_recipients_ends_with_a_lone_dot(
    visit: Visit, listen: Callable[..., Listener]
) -> None:
    """RFC 2920 section 3.1: DATA may be answered 354 though no recipient is valid."""
    host = listen(serving(RCPT=[b"550 5.1.1 nobody\r\n", b"250 ok\r\n"], DOT=b"554 5.5.1 no\r\n"))
    connection = visit(host)
    assert send(connection).reply == "550 5.1.1 nobody"
    assert host.heard[-2:] == [b"DATA\r\n", b".\r\n"]
    assert send(connection).reply == "554 5.5.1 no"


def test_a_host_without_pipelining_gets_one_command_at_a_time(visit: Visit) -> None:
    early: list[bytes] = []

    def behave(peer: Peer) -> None:
        for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            peer.hear()
            early.append(peer.buffer)
            peer.say(reply)
        while peer.hear() != b".\r\n":
            pass
        peer.say(b"250 taken\r\n")

    assert send(visit(greeted(behave, ONE_BY_ONE))).state == "delivered"
    assert early == [b"", b"", b""]


@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
def test_a_refusal_counts_though_the_host_hangs_up_after_it(visit: Visit, verb: str) -> None:
    def behave(peer: Peer) -> None:
        for said in (b"MAIL", b"RCPT", b"DATA"):
            peer.hear()
            if said == verb.encode():
                peer.say(b"554 5.7.1 listed\r\n")
                return
            peer.say(b"250 ok\r\n")

    connection = visit(greeted(behave))
    answer = send(connection)
    assert (answer.state, answer.reply) == ("failed", "554 5.7.1 listed")
    with pytest.raises(HostError):
        send(connection)


@pytest.mark.parametrize("hello", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_421_ends_the_connection_whatever_it_answers(visit: Visit, hello: bytes, verb: str) -> None:
    connection = visit(serving(hello, **{verb: b"421 4.3.2 closing\r\n"}))
    with pytest.raises(HostError, match=r"421 4\.3\.2 closing") as caught:
        send(connection)
    assert not caught.value.final
    assert connection.closed


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_a_host_that_hangs_up_in_the_envelope_may_be_tried_again(visit: Visit, verb: str) -> None:
    with pytest.raises(HostError, match=r"451 4\.4\.2 .* hung up during the envelope"):
        send(visit(serving(ONE_BY_ONE, **{verb: b""})))


def test_a_host_that_takes_for_ever_in_the_envelope_is_given_up(visit: Visit) -> None:
    with pytest.raises(HostError, match=r"451 4\.4\.2 .* timed out in the envelope"):
        send(visit(greeted(Peer.wait), short(command=SHORT)))


def test_a_hundred_recipients_go_at_once(visit: Visit, listen: Callable[..., Listener]) -> None:
    """RFC 5321 section 4.5.3.1.8: every host accepts 100 recipients."""
    host = listen(serving())
    targets = [target(f"u{number}@example.net") for number in range(250)]
    answers = visit(host).send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == ["delivered"] * 250
    assert sum(line.startswith(b"MAIL") for line in host.heard) == 3


def test_what_was_answered_stays_when_the_rest_cannot_be_sent(visit: Visit) -> None:
    connection = visit(serving(MAIL=[b"250 ok\r\n", b"421 enough\r\n"]))
    targets = [target(f"u{number}@example.net") for number in range(150)]
    answers = connection.send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == ["delivered"] * 100 + ["deferred"] * 50
    assert answers[-1].reply == "421 enough"


# Out of step


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"421 4.4.2 idle for too long\r\n", r"421 4\.4\.2 idle"),
        (b"250 ok\r\n", r"451 4\.5\.0 .* speaks before it is asked: 250 ok"),
        (b"", r"451 4\.4\.2 .* hung up during the envelope"),
    ],
)
def test_what_is_said_unasked_is_no_answer(visit: Visit, said: bytes, problem: str) -> None:
    def behave(peer: Peer) -> None:
        if not said:
            peer.socket.shutdown(socket.SHUT_WR)
        peer.wait()

    connection = visit(greeted(behave, PIPELINING + said))
    with pytest.raises(HostError, match=problem):
        send(connection)


@pytest.mark.parametrize("tls", [False, True])
def test_what_is_said_between_two_messages_is_no_answer(
    visit: Visit,
    listen: Callable[[Behaviour], Listener],
    tls_host: Callable[..., Listener],
    tls: bool,
) -> None:
    ready = threading.Event()

    def behave(peer: Peer) -> None:
        ready.wait()
        peer.say(b"250 ok\r\n")
        peer.serve()

    host = (tls_host if tls else listen)(greeted(behave))
    level = Destination("", tls="required", implicit=True) if tls else Destination("", tls="none")
    connection = visit(host, destination=level)
    ready.set()
    sock = connection._client._line._socket  # noqa: SLF001
    select.select([sock], [], [])  # until it is here
    with pytest.raises(HostError, match=r"451 4\.5\.0 .* speaks before it is asked: 250 ok"):
        send(connection)


def test_two_replies_to_one_command_are_never_taken_for_a_delivery(visit: Visit) -> None:
    twice = serving(ONE_BY_ONE, MAIL=b"250 ok\r\n250 ok\r\n")
    with pytest.raises(HostError, match=r"451 4\.5\.0 .* speaks before it is asked"):
        send(visit(twice))


def test_success_before_the_end_of_the_content_is_no_success(visit: Visit) -> None:
    """The reply arrives before the dot is sent, and must not count as the reply to it."""
    connection = visit(serving(DATA=b"354 go\r\n250 taken\r\n"))
    with pytest.raises(HostError, match=r"451 4\.5\.0 .*out of step: 250 taken"):
        send(connection)
    assert connection.closed


RIGHT: Final = (b"220", b"250", b"250", b"250", b"354", b"250")  # from the greeting to the dot
REPLIES: Final = (
    *(b"%s a\r\n" % code for code in (b"250", b"354", b"421", b"450")),
    *(b"%s-a\r\n%s b\r\n" % (code, code) for code in (b"250", b"354")),
    *(b"250-a\r\n450 b\r\n", b"250 a\r\n250 b\r\n", b"2500\r\n", b"250-a\r\n", b"25"),
    *(b"", b"\r\n", b"\0\xff\r\n", b"no SMTP\r\n"),
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 5), st.sampled_from(REPLIES), max_size=2))
def test_a_message_is_delivered_if_and_only_if_each_reply_is_right(
    visit: Visit, wrong: dict[int, bytes]
) -> None:
    replies = [wrong.get(number, b"%s a\r\n" % code) for number, code in enumerate(RIGHT)]
    right = all(
        reply in {b"%s a\r\n" % code, b"%s-a\r\n%s b\r\n" % (code, code)}
        for reply, code in zip(replies, RIGHT, strict=True)
    )

    def behave(peer: Peer) -> None:
        for number, reply in enumerate(replies):
            peer.say(reply)
            if not reply.endswith(b"\r\n") or reply == b"250-a\r\n":
                return  # that was only a part of it
            content = number == 4 and reply.startswith(b"354")
            while (line := peer.hear()) and content and line != b".\r\n":
                pass

    try:
        delivered = send(visit(behave)).state == "delivered"
    except HostError:
        delivered = False
    assert delivered is right or replies[5] == b"250 a\r\n250 b\r\n"  # it was delivered by then


def test_a_positive_reply_to_data_is_out_of_step(visit: Visit) -> None:
    with pytest.raises(HostError, match="out of step: 250 taken"):
        send(visit(serving(DATA=b"250 taken\r\n")))


# Content


LARGE: Final = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 200_000


def test_a_refusal_in_the_middle_of_the_content_counts(visit: Visit) -> None:
    def behave(peer: Peer) -> None:
        for said in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            peer.hear()
            peer.say(said)
        peer.hear()
        peer.say(b"552 5.3.4 too large\r\n")
        peer.socket.shutdown(socket.SHUT_WR)
        peer.socket.recv(65536)

    connection = visit(greeted(behave))
    answer = send(connection, message(LARGE))
    assert (answer.state, answer.reply) == ("failed", "552 5.3.4 too large")
    assert connection.closed


def test_a_host_that_stops_reading_is_given_up(visit: Visit) -> None:
    gone = threading.Event()

    def behave(peer: Peer) -> None:
        for said in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            peer.hear()
            peer.say(said)
        gone.wait(PATIENCE)

    with pytest.raises(HostError, match=r"451 4\.4\.2 .* timed out in the content"):
        send(visit(greeted(behave), short(data=SHORT)), message(LARGE))
    gone.set()


class SlowHost:
    """A host that reads `octets` per second of the client's clock."""

    def __init__(self, octets: int, seconds: float = 1.0) -> None:
        self.now = 1000.0
        self._octets, self._seconds = octets, seconds
        self._read = b""

    def behave(self, peer: Peer) -> None:
        for said in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            peer.hear()
            peer.say(said)
        self._read = peer.buffer
        while not self._read.endswith(b"\r\n.\r\n"):
            octets = peer.socket.recv(self._octets, socket.MSG_WAITALL)
            if not octets:
                return
            self._read = self._read[-4:] + octets
            self.now += self._seconds
        peer.say(b"250 taken\r\n")

    def outcome(self, host: Host, **timeouts: float) -> str:
        """Send 14 MB to it, and return the result."""
        setting = ClientSettings(
            "here.example", Timeouts(**timeouts), Contexts(), clock=lambda: self.now
        )
        connection = HostConnection(host, Destination(""), Security("opportunistic"), setting)
        try:
            return send(connection, message(LARGE)).reply
        except HostError as error:
            return str(error)
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("octets", "limits", "outcome"),
    [
        (8000, {}, "250 taken"),  # half an hour, at 64 kbit a second
        (2000, {}, "250 taken"),
        (2000, {"content": 3600.0}, "timed out in the content"),
        (100, {}, "timed out in the content"),
        (1, {}, "timed out in the content"),
    ],
    ids=["64kbit", "16kbit", "absolute limit", "too slow", "an octet a second"],
)
def test_a_slow_line_takes_a_large_message_and_one_that_trickles_does_not(
    listen: Callable[[Behaviour], Listener], octets: int, limits: dict[str, float], outcome: str
) -> None:
    slow = SlowHost(octets)
    listener = listen(greeted(slow.behave))
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    timeouts = {
        "connect": PATIENCE, "command": 600.0, "data": 900.0, "end": 600.0,
        "content": 10_000.0, "rate": 500.0, **limits,
    }  # fmt: skip
    assert outcome in slow.outcome(listener.host, **timeouts)


def test_a_host_that_reads_an_octet_at_a_time_is_given_up(visit: Visit) -> None:
    def behave(peer: Peer) -> None:
        for said in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            peer.hear()
            peer.say(said)
        while peer.socket.recv(1):
            time.sleep(DRIP)

    with pytest.raises(HostError, match=r"451 4\.4\.2 .* timed out in the content"):
        send(visit(greeted(behave), short(data=SHORT)), message(LARGE))


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (b"", r"451 4\.4\.2 .* hung up during the reply to the content, which it may have taken"),
        (b"25", r"451 4\.4\.2 .* hung up during the reply to the content, .*"),
        (b"taken\r\n", r"451 4\.5\.0 .* no SMTP reply: taken"),
        (b"421 4.3.2 closing\r\n", r"421 4\.3\.2 closing"),
        (None, r"451 4\.4\.2 .* timed out in the reply to the content, which it may have taken"),
    ],
    ids=["hangs up", "half a reply", "no reply", "421", "silence"],
)
def test_without_a_reply_to_the_content_the_message_waits(
    visit: Visit, said: bytes | None, reply: str
) -> None:
    def behave(peer: Peer) -> None:
        for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            peer.hear()
            peer.say(answer)
        while peer.hear() != b".\r\n":
            pass
        if said is None:
            peer.wait()
        else:
            peer.say(said)

    connection = visit(greeted(behave), short(end=SHORT) if said is None else PATIENT)
    answer = send(connection)
    assert answer.state == "deferred"
    assert re.fullmatch(reply, answer.reply)
    assert connection.closed


def test_binary_content_goes_by_bdat_as_it_is(visit: Visit) -> None:
    content = b"Subject: x\r\n\r\n\0.\n.\r\n\xff\r"
    taken: list[bytes] = []

    def behave(peer: Peer) -> None:
        for _ in range(2):
            peer.hear()
            peer.say(b"250 ok\r\n")
        peer.hear()
        while len(peer.buffer) < len(content):
            peer.buffer += peer.socket.recv(65536)
        taken.append(peer.buffer)
        peer.say(b"250 taken\r\n")

    hello = b"250-there\r\n250-CHUNKING\r\n250-PIPELINING\r\n250 BINARYMIME\r\n"
    connection = visit(greeted(behave, hello))
    assert send(connection, message(content), body="BINARYMIME").state == "delivered"
    assert taken == [content]


# Replies as they are shown


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([b"5.1.1 no", b"5.1.1 such user"], "5.1.1 no such user"),
        ([b"5.1.1 no", b"such user"], "5.1.1 no such user"),
        ([b"a\0b\x1b[31m\x07\r\nc\x7f\x80"], "a b [31m c \\ufffd"),
        (["niño".encode()], "ni\\xf1o"),
        ([b"x" * 1000], "x" * 500),
        ([b""], ""),
    ],
    ids=["codes", "one code", "controls", "UTF-8", "long", "empty"],
)
def test_a_reply_becomes_one_harmless_line(lines: list[bytes], text: str) -> None:
    reply = HostReply.of(550, lines)
    assert str(reply) == f"550 {text}".rstrip()
    assert str(reply).isprintable()
    assert str(reply).isascii()


# Extensions


def test_a_message_that_cannot_travel_is_not_begun(
    visit: Visit, listen: Callable[..., Listener]
) -> None:
    host = listen(serving(b"250-there\r\n250 SIZE 1000\r\n"))
    answer = send(visit(host), message(b"Subject: x\r\n\r\n" + b"x\r\n" * 500))
    assert (answer.state, answer.reply[:9]) == ("failed", "552 5.3.4")
    assert len(host.heard) == 1


# Content that a host cannot take as it is

LONG: Final = b"Subject: x\r\n\r\n" + b"word " * 600 + b"\r\n"
SEALED: Final = b"DKIM-Signature: v=1\r\n" + LONG
CHUNKING: Final = b"250-there\r\n250-8BITMIME\r\n250-PIPELINING\r\n250 CHUNKING\r\n"


class Chunks:
    """A host that accepts BDAT and DATA, or sends given replies; `taken` has the contents."""

    def __init__(self, *, bdat: bytes = b"250 ok\r\n", hello: bytes = CHUNKING) -> None:
        self.taken: list[bytes] = []
        self._bdat = bdat
        self._hello = hello

    def __call__(self, peer: Peer) -> None:
        peer.greet(self._hello)
        while line := peer.hear():
            verb, *arguments = line.split()
            if verb == b"BDAT":
                while len(peer.buffer) < int(arguments[0]):
                    peer.buffer += peer.socket.recv(65536)
                size = int(arguments[0])
                self.taken.append(peer.buffer[:size])
                peer.buffer = peer.buffer[size:]
                peer.say(self._bdat)
            elif verb == b"DATA":
                peer.say(b"354 go\r\n")
                start = len(peer.heard)
                while peer.hear() != b".\r\n":
                    pass
                self.taken.append(b"".join(peer.heard[start:-1]))
                peer.say(b"250 taken\r\n")
            else:
                peer.say(b"250 ok\r\n")


@pytest.mark.parametrize("hello", [PIPELINING, CHUNKING])
def test_long_lines_are_broken(visit: Visit, hello: bytes) -> None:
    host = Chunks(hello=hello)
    assert send(visit(host), message(LONG)).state == "delivered"
    [taken] = host.taken
    assert max(map(len, taken.split(b"\r\n"))) == 998
    assert taken.replace(b"\r\n ", b"") == LONG


def test_what_others_have_signed_goes_unbroken_by_bdat(
    visit: Visit, listen: Callable[..., Listener]
) -> None:
    host = Chunks()
    listener = listen(host)
    assert send(visit(listener), message(SEALED)).state == "delivered"
    assert host.taken == [SEALED]
    assert b"MAIL FROM:<me@example.org>\r\n" in listener.heard


@pytest.mark.parametrize(
    ("hello", "content"),
    [
        (PIPELINING, SEALED),  # no CHUNKING
        (b"250-there\r\n250 CHUNKING\r\n", SEALED + "\u00fc\r\n".encode()),  # no 8BITMIME
        (CHUNKING, SEALED + b"a\nb\r\n"),  # by DATA its lines get their ends
    ],
)
def test_signed_content_is_broken_where_it_cannot_go_unbroken(
    visit: Visit, hello: bytes, content: bytes
) -> None:
    host = Chunks(hello=hello)
    assert send(visit(host), message(content)).state == "delivered"
    [taken] = host.taken
    assert max(map(len, taken.split(b"\r\n"))) <= 998


def test_a_host_that_refuses_long_lines_gets_short_ones_at_once(visit: Visit) -> None:
    host = Chunks(bdat=b"550 maximum allowed line length is 998 octets, got 3000\r\n")
    connection = visit(host)
    for _ in range(2):
        assert send(connection, message(SEALED)).state == "delivered"
    assert len(host.taken) == 3  # the second message is not tried unbroken
    assert host.taken[0] == SEALED
    for taken in host.taken[1:]:
        assert max(map(len, taken.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    ("reply", "state", "times"),
    [
        (b"550 5.7.1 spam\r\n", "failed", 1),
        (b"552 5.3.4 too big\r\n", "failed", 1),
        (b"451 4.7.1 later\r\n", "deferred", 1),
        (b"554 5.6.0 lines\r\n", "delivered", 2),
    ],
)
def test_only_what_may_be_about_lines_is_sent_again(
    visit: Visit, reply: bytes, state: str, times: int
) -> None:
    host = Chunks(bdat=reply)
    assert send(visit(host), message(SEALED)).state == state
    assert len(host.taken) == times


def test_a_host_that_hangs_up_on_long_lines_gets_short_ones_next_time(
    visit: Visit, listen: Callable[..., Listener]
) -> None:
    def behave(peer: Peer) -> None:
        peer.greet(CHUNKING)
        for _ in range(2):
            peer.hear()
            peer.say(b"250 ok\r\n")
        peer.hear()
        peer.say(b"500 5.6.0 line too long\r\n")
        select.select([peer.socket], [], [], PATIENCE)

    large = SEALED + b"x" * 20_000_000 + b"\r\n"
    connection = visit(listen(behave))
    answer = send(connection, message(large))
    assert (answer.state, answer.reply[:9]) == ("deferred", "451 4.6.0")
    assert connection.closed


def test_binary_content_is_converted_where_it_must_be(visit: Visit) -> None:
    content = b"MIME-Version: 1.0\r\nContent-Type: a/b\r\n\r\n\0\n\xff\r"
    host = Chunks()
    assert send(visit(host), message(content), body="BINARYMIME").state == "delivered"
    [taken] = host.taken
    assert taken.endswith(b"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAr/DQ==\r\n")


def test_fields_outside_ascii_go_to_any_host_as_they_are(visit: Visit) -> None:
    """Postfix does so too if the client did not ask for SMTPUTF8."""
    content = b"Subject: Gr\xfc\xdfe, \xe4\xbd\xa0\r\n\r\nhello\r\n"
    host = Chunks(hello=b"250 there\r\n")
    assert send(visit(host), message(content)).state == "delivered"
    assert host.taken == [content]


def test_plugins_edit_a_conversion_too(visit: Visit) -> None:
    def edit(entry: QueueEntry, converted: Message) -> None:
        assert entry.body == "7BIT"
        converted.prepend("X-Signature", str(converted.size))

    host = Chunks(hello=ONE_BY_ONE)
    original = message(LONG)
    edited = original.copy()
    edited.prepend("X-Signature", str(original.size))
    waiting = entry()
    connection = visit(host)
    connection.send(waiting, waiting.targets, edited, Original(original, edit))
    [taken] = host.taken
    field, _, rest = taken.partition(b"\r\n")
    assert field == b"X-Signature: %d" % len(rest)


def test_what_plugins_add_is_converted_too(visit: Visit) -> None:
    def edit(_: QueueEntry, converted: Message) -> None:
        converted.prepend("X-List", ", ".join(["word"] * 9))
        with converted.open() as reader:
            converted.replace(reader.read() + b"x" * 2000 + b"\r\n")

    host = Chunks(hello=ONE_BY_ONE)
    waiting = entry()
    connection = visit(host)
    connection.send(waiting, waiting.targets, message(LONG), Original(message(LONG), edit))
    [taken] = host.taken
    assert max(map(len, taken.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    ("offered", "level", "taken"),
    [
        (b"REQUIRETLS", "dane", True),
        (b"REQUIRETLS", "mta-sts", True),
        (b"REQUIRETLS", "verified", True),
        (b"REQUIRETLS", "encrypted", False),
        (b"SIZE", "verified", False),
    ],
)
def test_requiretls_has_another_host_tried(
    visit: Visit, offered: bytes, level: str, taken: bool
) -> None:
    """RFC 8689 section 4.2.1."""
    connection = visit(serving(b"250-there\r\n250 " + offered + b"\r\n"))
    connection.tls = level
    if taken:
        assert send(connection, require_tls=True).state == "delivered"
        return
    with pytest.raises(HostError, match=r"550 5\.7\.30 .*REQUIRETLS") as caught:
        send(connection, require_tls=True)
    assert caught.value.final


# Hosts that take a few recipients at a time


def limited(
    most: int, refusal: bytes, hello: bytes = PIPELINING, taken: list[list[bytes]] | None = None
) -> Behaviour:
    """Accept `most` recipients in a transaction, and append those of each to `taken`."""

    def behave(peer: Peer) -> None:
        recipients: list[bytes] = []
        while line := peer.hear():
            verb = line.split(b":")[0].split()[0]
            if verb == b"RCPT" and len(recipients) >= most:
                peer.say(refusal)
            elif verb == b"RCPT":
                recipients.append(line[line.index(b"<") + 1 : line.index(b"@")])
                peer.say(b"250 ok\r\n")
            elif verb == b"DATA":
                peer.say(b"354 go\r\n")
                while peer.hear() != b".\r\n":
                    pass
                if taken is not None:
                    taken.append(recipients)
                recipients = []
                peer.say(b"250 taken\r\n")
            else:
                recipients = []
                peer.say(b"250 ok\r\n")

    return greeted(behave, hello)


REFUSALS: Final = [
    b"452 4.5.3 Error: too many recipients\r\n",
    b"452 Too many recipients\r\n",
    b"452 4.5.3 Recipients belong to multiple regions ATTR38\r\n",
    b"452-4.5.3 Domain policy size exceeded\r\n452 4.5.3 try a separate transaction.\r\n",
    b"452 enough\r\n",
    b"452 4.3.1 enough\r\n",
    b"451 4.3.0 Multiple destination domains per transaction is unsupported.\r\n",
    b"451 4.7.1 Recipient limit exceeded\r\n",
    b"451 maximum number of recipients reached\r\n",
    b"450 4.5.3 try less\r\n",
    b"552 Too many recipients\r\n",
    b"552 5.5.3 no more\r\n",
    b"552 storage\r\n",
    b"550 5.5.3 too many recipients\r\n",
]


@pytest.mark.parametrize("hello", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
@pytest.mark.parametrize("most", [1, 2, 50])
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda said: said[:20].decode().strip())
def test_too_many_recipients_go_in_several_transactions_at_once(
    visit: Visit, listen: Callable[..., Listener], refusal: bytes, most: int, hello: bytes
) -> None:
    """RFC 5321 section 4.5.3.1.10."""
    taken: list[list[bytes]] = []
    host = listen(limited(most, refusal, hello, taken))
    targets = [target(f"u{number}@example.net") for number in range(2 * most + 3)]
    answers = visit(host).send(entry(*targets), targets, message())
    assert {answer.state for answer in answers} == {"delivered"}
    assert sorted(name for part in taken for name in part) == sorted(
        each.address.partition("@")[0].encode() for each in targets
    )
    assert max(map(len, taken)) == most
    assert len(taken) == -(-len(targets) // most)
    assert len(host.peers) == 1
    # The client learns how many recipients the host accepts, so it repeats none of them.
    assert sum(line.startswith(b"RCPT") for line in host.heard) < 2 * len(targets)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_recipient_outside_ascii_holds_up_no_other(
    visit: Visit, listen: Callable[..., Listener], *, first: bool
) -> None:
    host = listen(limited(9, b"", PIPELINING))
    targets = [target("b\u00f6b@example.net"), target()][:: 1 if first else -1]
    answers = visit(host).send(entry(*targets, smtputf8=True), targets, message())
    assert sorted(answer.reply[:9] for answer in answers)[1] == "550 5.6.7"
    assert [answer.state for answer in answers] == ["failed", "delivered"][:: 1 if first else -1]
    assert [line for line in host.heard if line.startswith(b"RCPT")] == [
        b"RCPT TO:<bob@example.net>\r\n"
    ]


def test_limit_that_the_host_announces_is_kept(
    visit: Visit, listen: Callable[..., Listener]
) -> None:
    """RFC 9422."""
    hello = b"250-there\r\n250-LIMITS MAILMAX=9 RCPTMAX=2\r\n250 PIPELINING\r\n"
    host = listen(limited(2, b"554 5.7.1 never more\r\n", hello))
    targets = [target(f"u{number}@example.net") for number in range(5)]
    answers = visit(host).send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == ["delivered"] * 5


@pytest.mark.parametrize(
    ("refusal", "state"),
    [
        (b"452 4.5.3 too many recipients\r\n", "deferred"),
        (b"452 4.2.2 mailbox full\r\n", "deferred"),
        (b"552 5.5.3 too many recipients\r\n", "deferred"),
        (b"552 mailbox full\r\n", "failed"),
        (b"552 5.2.2 mailbox full\r\n", "failed"),
    ],
)
def test_host_that_takes_nobody_is_not_asked_for_ever(
    visit: Visit, listen: Callable[..., Listener], refusal: bytes, state: str
) -> None:
    host = listen(serving(RCPT=refusal))
    targets = [target(f"u{number}@example.net") for number in range(9)]
    answers = visit(host).send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == [state] * 9
    assert sum(line.startswith(b"MAIL") for line in host.heard) == 1


@pytest.mark.parametrize(
    ("refusal", "state", "transactions"),
    [
        (b"452 mailbox full\r\n", "deferred", 2),
        (b"452 4.2.2 mailbox full\r\n", "deferred", 1),
        (b"552 mailbox full\r\n", "failed", 2),
        (b"552 5.2.2 mailbox full\r\n", "failed", 1),
        (b"450 4.7.1 greylisted\r\n", "deferred", 1),
        (b"550 5.1.1 nobody\r\n", "failed", 1),
    ],
)
def test_mailbox_that_is_full_among_others_has_the_answer_of_its_own(
    visit: Visit, listen: Callable[..., Listener], refusal: bytes, state: str, transactions: int
) -> None:
    said = [b"250 ok\r\n", refusal, b"250 ok\r\n", refusal]
    host = listen(serving(RCPT=said))
    targets = [target(f"u{number}@example.net") for number in range(3)]
    answers = visit(host).send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == ["delivered", state, "delivered"]
    assert sum(line.startswith(b"MAIL") for line in host.heard) == transactions


def test_recipients_for_another_transaction_wait_when_the_connection_ends(visit: Visit) -> None:
    refusal = b"552 enough\r\n"
    connection = visit(serving(MAIL=[b"250 ok\r\n", b"421 bye\r\n"], RCPT=[b"250 ok\r\n", refusal]))
    targets = [target(f"u{number}@example.net") for number in range(3)]
    answers = connection.send(entry(*targets), targets, message())
    assert [answer.state for answer in answers] == ["delivered", "deferred", "deferred"]
    assert {answer.reply for answer in answers[1:]} == {"552 enough"}


# One host after the other


class Found(HostFinder):
    """Returns these hosts for every domain, in this order."""

    def __init__(self, hosts: list[Host]) -> None:
        self._hosts_found = hosts

    def by_mx(self, domain: str) -> Iterator[Host]:
        del domain
        yield from self._hosts_found


@pytest.fixture
def attempt() -> Iterator[Callable[..., Attempt]]:
    """Make an attempt to deliver to a domain that has these hosts."""
    with contextlib.ExitStack() as stack:

        def make(*hosts: Host | Listener) -> Attempt:
            found = [each.host if isinstance(each, Listener) else each for each in hosts]
            config, plugins = Config.embedded(), PluginSet(Metrics(), Log())
            plugins.close()
            tls_policies = TlsPolicies(Resolver([]), None, Log(), dane=False)
            setting = ClientSettings("here.example", PATIENT, Contexts())
            delivery_context = DeliveryContext(config, plugins, Found(found), tls_policies, setting)
            made = Attempt(delivery_context, "example.net")
            stack.callback(made.close)
            return made

        yield make


def deliver(attempt: Attempt, *names: str) -> AttemptResult:
    targets = [target(f"{name}@example.net") for name in names or ("bob",)]
    return attempt.deliver(DeliveryRequest(entry(*targets), message(), targets, 0))


def named(listener: Listener, name: str) -> Host:
    return Host(name, listener.host.address, listener.host.port)


def mails(host: Listener) -> int:
    return sum(line.startswith(b"MAIL") for line in host.heard)


@pytest.mark.parametrize("hello", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
@pytest.mark.parametrize(
    "first",
    [
        lambda _: lambda peer: peer.say(b"450 4.3.2 busy\r\n"),
        lambda _: lambda peer: peer.say(b"554 5.3.2 no mail here\r\n"),
        lambda _: greeted(Peer.wait, b"451 4.3.0 not now\r\n"),
        lambda _: greeted(Peer.wait, b"421 4.3.0 not now\r\n"),
        lambda hello: serving(hello, MAIL=b"451 4.7.1 greylisted\r\n"),
        lambda hello: serving(hello, MAIL=b"421 4.7.0 too many\r\n"),
        lambda hello: serving(hello, RCPT=b"450 4.2.0 busy\r\n"),
        lambda hello: serving(hello, RCPT=b"452 4.2.2 full\r\n"),
        lambda hello: serving(hello, RCPT=b"421 4.2.0 busy\r\n"),
        lambda hello: serving(hello, DATA=b"451 4.3.0 later\r\n"),
        lambda hello: serving(hello, DATA=b"421 4.3.0 later\r\n"),
        lambda hello: serving(hello, DOT=b"452 4.3.1 no space\r\n"),
        lambda hello: serving(hello, DOT=b"421 4.3.2 closing\r\n"),
        lambda hello: serving(hello, MAIL=b""),
        lambda hello: serving(hello, RCPT=b""),
        lambda hello: serving(hello, DATA=b""),
    ],
    ids=[
        *("450 greeting", "554 greeting", "451 EHLO", "421 EHLO", "451 MAIL", "421 MAIL"),
        *("450 RCPT", "452 RCPT", "421 RCPT", "451 DATA", "421 DATA", "452 dot", "421 dot"),
        *("lost at MAIL", "lost at RCPT", "lost at DATA"),
    ],
)
def test_next_host_is_tried_after_what_may_change(
    attempt: Callable[..., Attempt],
    listen: Callable[..., Listener],
    first: Callable[[bytes], Behaviour],
    hello: bytes,
) -> None:
    one, two = listen(first(hello)), listen(serving(hello))
    done = deliver(attempt(named(one, "one"), named(two, "two")))
    assert [(each.state, each.host) for each in done.results] == [("delivered", "two")]
    assert mails(two) == 1
    [passed] = done.passed
    assert passed.host.startswith("one")
    assert passed.recipients == 1


@pytest.mark.parametrize(
    "replies",
    [
        {"MAIL": b"550 no\r\n"},
        {"RCPT": b"550 no\r\n"},
        {"DATA": b"554 no\r\n"},
        {"DOT": b"550\r\n"},
    ],
    ids=str,
)
def test_what_a_host_refuses_for_good_no_other_is_asked(
    attempt: Callable[..., Attempt], listen: Callable[..., Listener], replies: dict[str, bytes]
) -> None:
    one, two = listen(serving(**replies)), listen(serving())
    assert [each.state for each in deliver(attempt(one, two)).results] == ["failed"]
    assert not two.peers


@pytest.mark.parametrize(
    "hello",
    [
        b"250-here.example\r\n250 PIPELINING\r\n",
        b"250-HERE.Example. greets you\r\n250 PIPELINING\r\n",
        b"250 here.example\r\n",
    ],
)
def test_host_with_our_name_is_ourselves_and_those_behind_it_are_not_asked(
    attempt: Callable[..., Attempt],
    listen: Callable[..., Listener],
    hello: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a router with an unknown address; Postfix compares the name too."""
    before, ourselves = listen(serving(RCPT=b"450 4.2.0 busy\r\n")), listen(serving(hello))
    backup = listen(serving())
    assert deliver(attempt(ourselves)).results[0].state == "delivered"  # a server at another port
    monkeypatch.setattr("minismtp.delivery.client._SMTP", ourselves.host.port)
    [answer] = deliver(attempt(ourselves, backup)).results
    assert answer.state == "failed"
    assert answer.reply.startswith("550 5.4.6 ")
    assert answer.reply.endswith(" is here.example: mail loops back to this host")
    [answer] = deliver(attempt(before, ourselves, backup)).results
    assert (answer.state, answer.reply) == ("deferred", "450 4.2.0 busy")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = Host("closed", *server.getsockname())
    [answer] = deliver(attempt(closed, ourselves, backup)).results
    assert answer.state == "deferred"
    assert (mails(ourselves), mails(backup)) == (1, 0)


def test_host_that_is_configured_may_have_our_name(
    visit: Visit, listen: Callable[..., Listener]
) -> None:
    host = listen(serving(b"250-here.example\r\n250 PIPELINING\r\n"))
    assert send(visit(host, destination=Destination("next.example"))).state == "delivered"


def test_message_that_a_host_may_have_taken_is_given_to_no_other(
    attempt: Callable[..., Attempt], listen: Callable[..., Listener]
) -> None:
    one, two = listen(serving(DOT=b"")), listen(serving())
    [answer] = deliver(attempt(one, two)).results
    assert answer.state == "deferred"
    assert not two.peers


def test_only_those_that_were_put_off_go_to_the_next_host(
    attempt: Callable[..., Attempt], listen: Callable[..., Listener]
) -> None:
    said = [b"250 ok\r\n", b"450 4.2.0 busy\r\n", b"550 5.1.1 nobody\r\n", b"450 4.2.0 busy\r\n"]
    one = listen(serving(RCPT=said))
    two = listen(serving(RCPT=[b"250 ok\r\n", b"451 4.7.1 later\r\n"]))
    done = deliver(attempt(named(one, "one"), named(two, "two")), *"abcd")
    assert [(each.state, each.host, each.reply) for each in done.results] == [
        ("delivered", "one", "250 taken"),
        ("delivered", "two", "250 taken"),
        ("failed", "one", "550 5.1.1 nobody"),
        ("deferred", "one", "450 4.2.0 busy"),
    ]
    assert [line for line in two.heard if line.startswith(b"RCPT")] == [
        b"RCPT TO:<b@example.net>\r\n",
        b"RCPT TO:<d@example.net>\r\n",
    ]
    assert [(each.host, each.reply) for each in done.passed] == [("two", "451 4.7.1 later")]


def test_reply_of_the_best_host_is_kept_when_all_put_off(
    attempt: Callable[..., Attempt], listen: Callable[..., Listener]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = Host("closed", *server.getsockname())
    one = listen(serving(RCPT=b"452 4.2.2 mailbox full\r\n"))
    two = listen(serving(MAIL=b"451 4.3.0 ask the other\r\n"))
    done = deliver(attempt(closed, named(one, "one"), named(two, "two")))
    [answer] = done.results
    assert (answer.state, answer.host, answer.reply) == (
        "deferred",
        "one",
        "452 4.2.2 mailbox full",
    )
    assert done.reached is True
    assert [each.host.partition("[")[0] for each in done.passed] == ["closed", "two"]


def test_two_hosts_are_asked_in_one_attempt(
    attempt: Callable[..., Attempt], listen: Callable[..., Listener]
) -> None:
    busy = [listen(serving(RCPT=b"450 4.2.0 busy\r\n")) for _ in range(2)]
    unused = listen(serving())
    away = listen(lambda peer: peer.say(b"421 4.3.2 not now\r\n"))
    assert deliver(attempt(away, *busy, unused)).results[0].state == "deferred"
    assert [mails(host) for host in busy] == [1, 1]
    assert not unused.peers


def test_host_that_has_put_off_over_an_open_connection_is_not_asked_twice(
    attempt: Callable[..., Attempt], listen: Callable[..., Listener]
) -> None:
    one = listen(serving(RCPT=[b"250 ok\r\n", b"450 4.2.0 busy\r\n"]))
    two = listen(serving())
    delivering = attempt(named(one, "one"), named(two, "two"))
    assert deliver(delivering).results[0].host == "one"
    assert deliver(delivering).results[0].host == "two"
    assert len(one.peers) == 1
    assert mails(one) == 2
