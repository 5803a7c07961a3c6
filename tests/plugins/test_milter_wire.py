"""The octets of the milter protocol: all output of a filter is a value or a MilterError."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins import _milter as wire
from minismtp_plugins._milter_conversation import Conversation
from minismtp_plugins._milter_message import Changes, MilterMessage

from minismtp import (
    Address,
    Content,
    Defer,
    Disconnect,
    Envelope,
    Line,
    Message,
    Recipient,
    Reject,
    RemoteError,
)

LETTERS = st.binary(min_size=1, max_size=1) | st.sampled_from([*wire.CHANGES, b"c", b"y", b"p"])
TEXTS = st.lists(
    st.binary(max_size=8) | st.sampled_from([b"X-A", b"<a@b.example>", b"<>", b"NOTIFY=NEVER"])
).map(lambda texts: b"".join(text + b"\0" for text in texts))
DATA = st.binary(max_size=64) | TEXTS | TEXTS.map(lambda data: b"\0\0\0\1" + data)
# All replies, and none before the end of the message.
NEGOTIATED = [
    wire.packet(b"O", b"\0\0\0\6" + b"\0\0\1\xff" + steps)
    for steps in (bytes(4), b"\0\x0f\xf0\x80")
]
REPLY = st.builds(wire.packet, LETTERS, DATA)


@given(LETTERS, DATA)
def test_any_change_is_read_or_nonsense(letter: bytes, data: bytes) -> None:
    with contextlib.suppress(wire.MilterError):
        changed(letter, data)


@given(DATA | st.from_regex(rb"[45][0-9]{2}[ -]([245]\.[0-9]+\.[0-9]+ )?.*\Z").map(bytes))
def test_any_reply_is_a_verdict_or_nonsense(data: bytes) -> None:
    with contextlib.suppress(wire.MilterError):
        reply = wire.read_verdict(data).reply
        assert reply.category in {4, 5}


@given(LETTERS, DATA)
def test_any_options_are_read_or_nonsense(letter: bytes, data: bytes) -> None:
    with contextlib.suppress(wire.MilterError):
        options = wire.read_options(letter, data)
        assert 2 <= options.version <= 6


@given(st.binary(min_size=4, max_size=4))
def test_any_length_is_bounded_or_nonsense(head: bytes) -> None:
    with contextlib.suppress(wire.MilterError):
        assert 0 <= wire.length(head) < wire.LARGEST


@given(
    st.sampled_from([b"", *NEGOTIATED]),
    st.binary(max_size=200) | st.lists(REPLY).map(b"".join),
    st.sampled_from([b"", wire.packet(b"c")]),
)
def test_whatever_a_filter_sends_ends_in_a_verdict_or_an_error(
    agreed: bytes, octets: bytes, last: bytes
) -> None:
    """The steps of a whole session, whose answers are invented in advance, then the end."""
    here, there = socket.socketpair()
    with here, there, contextlib.suppress(RemoteError):
        there.sendall(agreed + octets + last)
        there.shutdown(socket.SHUT_WR)
        patience = timedelta(seconds=60)
        conversation = Conversation(Line(here, time.monotonic() + 60, "filter"), patience)
        steps: list[Callable[[], None]] = [
            lambda: conversation.step(wire.CONNECT, wire.connection("localhost", "127.0.0.1", 1)),
            lambda: conversation.helo("client.example"),
            lambda: conversation.mail("<>"),
            lambda: conversation.recipient(Address("a", "b.example")),
            lambda: conversation.step(wire.DATA),
            lambda: conversation.message(iter([(b"A", b"b")]), iter([b"body"])),
            lambda: finish(conversation),
        ]
        for step in steps:
            with contextlib.suppress(Reject, Defer, Disconnect):
                step()


def finish(conversation: Conversation) -> None:
    message = Message("1", Content.of(b"A: b\r\nA: c\r\n\r\nbody"), b"Received: x\r\n")
    changes = Changes(MilterMessage(message, envelope(), keeps_space=False), None)
    for letter, packet in conversation.end():
        changes.take(letter, packet)
    changes.apply()
    with message.open() as reader:
        reader.read()


def envelope() -> Envelope:
    return Envelope(
        id="1a.1", reverse_path=None, listener="", peer="", helo="", login=None, arrived=0
    )


@pytest.mark.parametrize(
    ("data", "kind", "reply"),
    [
        (b"550 5.7.1 no\0", Reject, "550 5.7.1 no"),
        (b"554 no\0", Reject, "554 5.7.1 no"),
        (b"550\0", Reject, "550 5.7.1"),
        (b"550 5.1.1\0", Reject, "550 5.1.1"),
        (b"550 5.07.1 no\0", Reject, "550 5.7.1 no"),
        (b"550 4.7.1 no\0", Reject, "550 5.7.1 no"),
        (b"451 4.3.2 later\0", Defer, "451 4.3.2 later"),
        (b"421 4.7.0 bye\0", Disconnect, "421 4.7.0 bye"),
        (b"550 5.7.1 100%% sure", Reject, "550 5.7.1 100% sure"),
        (b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\0", Reject, "550 5.7.1 one two three"),
        (b"550 5.7.1 gr\xc3\xbcn \x07\0", Reject, "550 5.7.1 gr\u00fcn  "),
    ],
)
def test_reply_of_a_filter_is_a_verdict(data: bytes, kind: type, reply: str) -> None:
    verdict = wire.read_verdict(data)
    assert isinstance(verdict, kind)
    assert str(verdict.reply) == reply


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"250 ok\0", b"55 no\0", b"599 no\0", b"no\0", b"550 a\r\n451 b\0", b"5500 no\0"],
)
def test_reply_that_refuses_nothing_is_nonsense(data: bytes) -> None:
    with pytest.raises(wire.MilterError):
        wire.read_verdict(data)


A_B: Final = Address("a", "b.example")


def changed(letter: bytes, data: bytes) -> tuple[Message, Envelope]:
    """Return a message and its envelope after one change of a filter."""
    message, mail = Message("1", Content.of(b"X-A: 1\r\nX-A: 2\r\n\r\nold")), envelope()
    changes = Changes(MilterMessage(message, mail, keeps_space=False), None)
    changes.take(letter, data)
    changes.apply()
    return message, mail


@pytest.mark.parametrize(
    ("letter", "data", "content"),
    [
        (b"h", b"X-A\0b c\0", b"X-A: 1\r\nX-A: 2\r\nX-A: b c\r\n\r\nold"),
        (b"h", b"X-A\0\0", b"X-A: 1\r\nX-A: 2\r\nX-A: \r\n\r\nold"),
        (b"i", b"\0\0\0\1X-B\0b\0", b"X-A: 1\r\nX-B: b\r\nX-A: 2\r\n\r\nold"),
        (b"m", b"\0\0\0\2X-A\0b\0", b"X-A: 1\r\nX-A: b\r\n\r\nold"),
        (b"m", b"\0\0\0\2X-A\0\0", b"X-A: 1\r\n\r\nold"),
        (b"b", b"body\0\n", b"X-A: 1\r\nX-A: 2\r\n\r\nbody\0\n"),
    ],
)
def test_change_of_the_message_is_made(letter: bytes, data: bytes, content: bytes) -> None:
    with changed(letter, data)[0].open() as reader:
        assert reader.read() == content


@pytest.mark.parametrize(
    ("letter", "data", "recipient"),
    [
        (b"+", b"<a@b.example>\0", Recipient(A_B)),
        (b"2", b"a@b.example\0", Recipient(A_B)),
        (
            *(b"2", b"<a@b.example>\0NOTIFY=never,else\0"),
            Recipient(A_B, notify=frozenset({"NEVER"})),
        ),
    ],
)
def test_recipient_is_added(letter: bytes, data: bytes, recipient: Recipient) -> None:
    assert changed(letter, data)[1].added == (recipient,)


def test_recipient_is_removed() -> None:
    assert changed(b"-", b'<"a b"@b.example>\0')[1].removed == {Address("a b", "b.example")}


@pytest.mark.parametrize(
    ("data", "sender"), [(b"<>\0", None), (b"\0", None), (b"<a@b.example>\0SIZE=1\0", A_B)]
)
def test_sender_is_changed(data: bytes, sender: Address | None) -> None:
    message, mail = Message("1", Content.of(b"")), envelope()
    mail.reverse_path = Address("x", "y.example")
    changes = Changes(MilterMessage(message, mail, keeps_space=False), None)
    changes.take(b"e", data)
    changes.apply()
    assert mail.reverse_path == sender


def test_message_is_quarantined() -> None:
    assert changed(b"q", b"why\0")[0].quarantined == "why"


@pytest.mark.parametrize(
    ("letter", "data"),
    [
        (b"h", b""),
        (b"h", b"X-A\0"),
        (b"h", b"X A\0b\0"),
        (b"h", b"X-A\r\nB\0b\0"),
        (b"h", b"X-A\0b\0c\0"),
        (b"m", b"\0\0\0"),
        (b"+", b"<>\0"),
        (b"+", b"<a@b.example\0"),
        (b"-", b"\xff@b.example\0"),
        (b"z", b""),
    ],
)
def test_change_that_makes_no_sense_is_nonsense(letter: bytes, data: bytes) -> None:
    with pytest.raises(wire.MilterError):
        changed(letter, data)


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"\0\0\0\1\0\0\0\0\0\0\0\0", "version 1"),
        (b"\0\0\0\7\0\0\0\0\0\0\0\0", "version 7"),
        (b"\0\0\0\6\0\0\2\0\0\0\0\0", "what there is not"),
        (b"\0\0\0\6\0\0\0\0\x10\0\0\0", "what there is not"),
        (b"\0\0\0\6", "does not say what it can"),
    ],
)
def test_agreement_that_is_none_is_nonsense(octets: bytes, problem: str) -> None:
    with pytest.raises(wire.MilterError, match=problem):
        wire.read_options(b"O", octets)


def test_macros_that_a_filter_wants_are_read() -> None:
    data = b"\0\0\0\2" + bytes(8) + b"\0\0\0\2i, {auth_type}\0\0\0\0\3\0\0\0"
    assert wire.read_options(b"O", data).macros == {2: ("i", "{auth_type}"), 3: ()}


def test_client_is_told_by_its_kind_of_address() -> None:
    assert wire.connection("h", "192.0.2.1", 25) == b"h\x004\0\x19192.0.2.1\0"
    assert wire.connection("h", "2001:db8::1", 25) == b"h\x006\0\x192001:db8::1\0"
    assert wire.connection("localhost", "unix", 0) == b"localhost\0U"


def test_text_has_no_nul_of_its_own() -> None:
    assert wire.texts("a\0b", b"c") == b"ab\0c\0"


# The message as a filter sees it

LINES = st.sampled_from(
    [
        *(b"A: b\r\n", b"A:c\r\n", b"Subject: x\r\n\ty\r\n", b"A : b\n", b"X: \xff\r\n"),
        *(b"no field\r\n", b":\r\n", b"text", b"\r\n", b" \r\n", b"\n"),
        b"Received: from a by b id 1a.1\r\n",
    ]
)
RECEIVED = b"Received: from a\r\n\tby b with SMTP id 1a.1;\r\n"


@given(st.lists(LINES).map(b"".join))
def test_every_octet_of_a_message_is_sent(content: bytes) -> None:
    prefix = RECEIVED + (b"\r\n" if content[:1] in {b" ", b"\t"} else b"")
    sent = MilterMessage(Message("1", Content.of(content), prefix), envelope(), keeps_space=True)
    fields = [name + b":" + value for name, value in sent.fields()]
    told = b"\n".join([*fields, b"".join(sent.body())])
    assert b"".join(told.split()).replace(b":", b"") == b"".join(content.split()).replace(b":", b"")


@given(st.lists(LINES).map(b"".join), st.booleans(), st.booleans())
def test_changes_leave_all_else_as_it_was(content: bytes, add: bool, body: bool) -> None:
    prefix = RECEIVED + (b"\r\n" if content[:1] in {b" ", b"\t"} else b"")
    message = Message("1", Content.of(content), prefix)
    sent = MilterMessage(message, envelope(), keeps_space=False)
    before, rest = [each.raw for each in sent.header], b"".join(sent.body())
    changes = Changes(sent, None)
    changes.take(b"i", bytes(4) + b"X-First\0001\0")
    if add:
        changes.take(b"h", b"X-Last\0002\0")
    if body:
        changes.take(b"b", b"new\r\n")
        rest = b"new\r\n"
    changes.apply()
    after = MilterMessage(message, envelope(), keeps_space=False)
    raws = [each.raw for each in after.header]
    kept = [raw for raw in raws if not raw.startswith((b"X-First:", b"X-Last:"))]
    assert raws[0] == b"X-First: 1\r\n"
    assert raws.count(b"X-Last: 2\r\n") == add
    assert [each.rstrip() for each in kept] == [each.rstrip() for each in before]
    assert b"".join(after.body()) == rest
