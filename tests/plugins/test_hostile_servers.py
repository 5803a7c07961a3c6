"""`forward` and `lmtp` never believe that a misbehaving server has a message."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import pytest
from examples import examples
from fakes import Wire, serving
from fakes import envelope as make_envelope
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins.forward import Forward
from minismtp_plugins.lmtp import Lmtp

from minismtp import Address, Content, Message, RemoteError
from minismtp.values.reply import Verdict

TEXT: Final = b"Subject: x\r\n\r\nplain\r\n"
LARGE: Final = TEXT + b"one line of many\r\n" * 400_000
RIGHT: Final = ("220", "250", "250", "250", "354", "250")  # from the greeting to the dot
GREETING, HELLO, MAIL, RCPT, DATA, DOT = range(6)
both = pytest.mark.parametrize("plugin", [Forward, Lmtp])


class Server:
    """A server that sends these replies, one for each step, and ignores its input."""

    def __init__(self, **replies: str) -> None:
        steps = ("greeting", "hello", "mail", "rcpt", "data", "dot")
        self.replies = [
            f"{replies.get(step, f'{code} a')}\r\n".encode()
            for step, code in zip(steps, RIGHT, strict=True)
        ]

    def __call__(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        for number, reply in enumerate(self.replies):
            sock.sendall(reply)
            content = number == DATA and reply.startswith(b"354")
            if not wire.read_until(b"\r\n.\r\n" if content else b"\r\n"):
                return


def outcome(
    plugin: type[Forward | Lmtp], server: Server, content: bytes = TEXT, *, patience: float = 60.0
) -> str:
    """Pass on a message, and return the reply to the client."""
    with serving(server) as address:
        instance = plugin(address=address, patience=timedelta(seconds=patience))
        message = Message("1a2b.1", Content.of(content))
        try:
            stored = instance.deliver(make_envelope(), message, Address("u", "example.org"))
        except Verdict as verdict:
            return str(verdict.reply)
        except RemoteError as error:
            return str(error)
        return "stored" if stored else "not stored"


@both
@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ({"greeting": "220 a\r\n250 b"}, "speaks before it is asked: 250 b"),
        ({"hello": "250 a\r\n250 b"}, "speaks before it is asked: 250 b"),
        ({"mail": "250 a\r\n250 b"}, "speaks before it is asked: 250 b"),
        ({"rcpt": "250 a\r\n354 b"}, "speaks before it is asked: 354 b"),
        ({"data": "354 a\r\n250 b"}, "out of step: 250 b"),
        ({"data": "250 a"}, "out of step: 250 a"),
        ({"rcpt": "250-a\r\n550 b"}, "gives no SMTP reply: 550 b"),
        ({"dot": "250-a\r\n550 b"}, "gives no SMTP reply: 550 b"),
        ({"rcpt": "260 a"}, "gives no SMTP reply: 260 a"),
        ({"rcpt": f"250 {'x' * 20_000}"}, "does not end a line of its reply"),
        ({"rcpt": "250-a\r\n" * 20_000}, "does not end its reply"),
        ({"greeting": "220-a\r\n" * 20_000}, "does not end its reply"),
        ({"hello": "250-a\r\n" * 20_000}, "does not end its reply"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_reply_that_makes_no_sense_ends_the_session(
    plugin: type[Forward | Lmtp], replies: dict[str, str], problem: str
) -> None:
    assert problem in outcome(plugin, Server(**replies))


@both
def test_line_without_an_end_is_not_collected(plugin: type[Forward | Lmtp]) -> None:
    server = Server()
    server.replies[MAIL] = b"250 " + b"x" * 1_000_000
    assert "does not end a line of its reply" in outcome(plugin, server)


class Dripping(Server):
    """A server whose reply to one step comes an octet at a time."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def __call__(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        for reply in self.replies[: self._step]:
            sock.sendall(reply)
            wire.read_until(b"\r\n")
        for octet in b"250-slow\r\n" * 100:
            sock.sendall(bytes([octet]))
            time.sleep(0.02)


@both
@pytest.mark.parametrize("step", [GREETING, HELLO, RCPT])
def test_server_that_trickles_gains_no_time(plugin: type[Forward | Lmtp], step: int) -> None:
    begun = time.monotonic()
    found = outcome(plugin, Dripping(step), patience=0.3)
    assert "timed out in " in found or "gives no SMTP reply" in found
    assert time.monotonic() - begun < 10


@both
@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "dot"])
def test_server_that_closes_puts_the_client_off(plugin: type[Forward | Lmtp], step: str) -> None:
    assert outcome(plugin, Server(**{step: "421 4.3.2 closing"})) == "451 4.3.2 closing"


@both
@pytest.mark.parametrize("step", ["rcpt", "data", "dot"])
def test_text_of_a_refusal_is_printable_and_short(plugin: type[Forward | Lmtp], step: str) -> None:
    said = "550-5.7.1 \x1b[31mn\u00f6\x07\r\n" + "550-5.7.1 more\r\n" * 200 + "550 5.7.1 end"
    found = outcome(plugin, Server(**{step: said}))
    assert found.startswith("550 5.7.1 [31mn\\xf6 more more")
    assert found.isprintable()
    assert found.isascii()
    assert len(found) < 600


class Impatient(Server):
    """A server that refuses in the middle of the content, and reads no more."""

    def __call__(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        for reply in self.replies[:DOT]:
            sock.sendall(reply)
            wire.read_until(b"\r\n")
        sock.sendall(b"552 5.3.4 too large\r\n")
        sock.shutdown(socket.SHUT_WR)
        wire.read_until(b"\r\n")


@both
def test_refusal_in_the_middle_of_the_content_counts(plugin: type[Forward | Lmtp]) -> None:
    assert outcome(plugin, Impatient(), LARGE) == "552 5.3.4 too large"


REPLIES: Final = (
    *(b"%s a\r\n" % code for code in (b"250", b"354", b"421", b"450")),
    *(b"%s-a\r\n%s b\r\n" % (code, code) for code in (b"250", b"354")),
    *(b"250-a\r\n450 b\r\n", b"250 a\r\n250 b\r\n", b"2500\r\n"),
    *(b"\r\n", b"\0\xff\r\n", b"no SMTP\r\n"),
)


def _is_right(replies: Sequence[bytes]) -> bool:
    pairs = zip(replies, RIGHT, strict=True)
    fits = [
        reply in {b"%s a\r\n" % code, b"%s-a\r\n%s b\r\n" % (code, code)}
        for reply, code in ((reply, code.encode()) for reply, code in pairs)
    ]
    fits[DOT] |= replies[DOT] == b"250 a\r\n250 b\r\n"  # it was delivered by then
    return all(fits)


@settings(max_examples=examples(40))
@given(
    st.sampled_from([Forward, Lmtp]),
    st.dictionaries(st.integers(GREETING, DOT), st.sampled_from(REPLIES), max_size=2),
)
def test_message_is_stored_if_and_only_if_each_reply_is_right(
    plugin: type[Forward | Lmtp], wrong: dict[int, bytes]
) -> None:
    server = Server()
    server.replies = [wrong.get(number, reply) for number, reply in enumerate(server.replies)]
    assert (outcome(plugin, server, patience=5.0) == "stored") is _is_right(server.replies)
