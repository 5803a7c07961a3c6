"""One message from MAIL to the reply after its content."""

import gc
import re
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from minismtp_plugins.attachments import Attachments
from minismtp_plugins.dkim_verify import DkimVerify
from stub_plugins import Observer, Storage

from minismtp import (
    Address,
    Defer,
    Disconnect,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Relay,
    Reply,
    hookimpl,
    plugin,
)
from minismtp.config import Limits, PluginConfig
from minismtp.config.types import ByteSize
from minismtp.events import MessageDecided, RecipientDecided
from minismtp.mail.headers import FIELD_LIMIT
from minismtp.runtime.decision_log import DecisionLog
from minismtp.runtime.log import Log
from minismtp.smtp.dot_stuffing import fix_newlines
from minismtp.storage.spool import Spool
from minismtp.testing import Dialogue, Mailroom

Kind = Literal["mx", "submission", "lmtp"]
MAIL = "MAIL FROM:<a@client.example>"
RCPT = "RCPT TO:<user@example.org>"
USER = "user@example.org"
BINARY = "BODY=BINARYMIME"
THREE = ("a@example.org", "b@example.org", "c@example.org")


def box(name: str) -> Address:
    return Address(name, "example.org")


def at_mail(dialogue: Dialogue, *parameters: str) -> Dialogue:
    dialogue.send("LHLO client.example" if dialogue.service.lmtp else "EHLO client.example")
    assert dialogue.send(" ".join([MAIL, *parameters])).startswith("250")
    return dialogue


def chunk(dialogue: Dialogue, content: bytes, size: int = 0, body: str = "") -> str:
    """Send a message to one recipient by BDAT, in chunks of a size, and return the last reply."""
    at_mail(dialogue, *body.split()).send(RCPT)
    size = size or len(content) or 1
    for at in range(0, len(content), size):
        piece = content[at : at + size]
        last = b" LAST" if at + size >= len(content) else b""
        reply = dialogue.send_raw(b"BDAT %d%s\r\n%s" % (len(piece), last, piece)).decode()
        if last or not reply.startswith("250"):
            return reply
    return dialogue.send_raw(b"BDAT 0 LAST\r\n").decode()


def data(dialogue: Dialogue, content: bytes) -> str:
    """Send a message to one recipient by DATA, its lines as they are."""
    at_mail(dialogue).send(RCPT)
    dialogue.send("DATA")
    return dialogue.send_raw(content + b"\r\n.\r\n").decode()


def outcome(dialogue: Dialogue, name: str) -> float:
    return dialogue.count("messages_total", listener="test", outcome=name)


def fixing(mailroom: Mailroom, limits: Limits | None = None) -> Dialogue:
    service = Dialogue(mailroom, limits=limits).service
    return Dialogue(service=replace(service, fix_newlines=True))


# Recipients


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (None, "550 5.7.1 relaying denied"),
        (Relay(), "451 4.3.5 mail for other hosts is not taken now"),
        (Local(), "250 2.1.5 recipient ok"),
        (Local(box("other")), "250 2.1.5 recipient ok"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["mx", "submission", "lmtp"])
def test_route_decides_about_the_recipient(
    kind: Kind, answer: Local | Relay | None, reply: str
) -> None:
    dialogue = Dialogue(Storage(routes={USER: answer}), kind=kind, tls=True, login="alice")
    assert at_mail(dialogue).send(RCPT) == reply


def test_recipient_that_is_not_taken_gets_nothing() -> None:
    storage = Storage(routes={"b@example.org": None, "c@example.org": Relay()})
    dialogue = at_mail(Dialogue(storage))
    codes = [dialogue.send(f"RCPT TO:<{address}>")[:3] for address in THREE]
    assert codes == ["250", "550", "451"]
    dialogue.send("DATA")
    assert dialogue.send(".").startswith("250")
    assert storage.asked == ["a@example.org"]


def test_recipients_beyond_the_limit_wait_and_the_others_get_their_mail() -> None:
    # RFC 5321 section 4.5.3.1.10
    storage = Storage()
    dialogue = at_mail(Dialogue(storage, limits=Limits(recipients=2)))
    replies = [dialogue.send(f"RCPT TO:<{address}>") for address in THREE]
    assert [reply[:9] for reply in replies] == ["250 2.1.5", "250 2.1.5", "452 4.5.3"]
    dialogue.send("DATA")
    assert dialogue.send(".").startswith("250")
    assert storage.asked == ["a@example.org", "b@example.org"]


def test_refused_recipients_do_not_count_towards_the_limit() -> None:
    storage = Storage(routes={"a@example.org": None, "b@example.org": None})
    dialogue = at_mail(Dialogue(storage, limits=Limits(recipients=1)))
    codes = [dialogue.send(f"RCPT TO:<{address}>")[:3] for address in THREE]
    assert codes == ["550", "550", "250"]


def test_filters_are_not_asked_about_recipients_beyond_the_limit() -> None:
    asked: list[str] = []

    @plugin
    class Looking:
        @hookimpl
        def on_rcpt(self, recipient: Recipient) -> None:
            asked.append(str(recipient.address))

    dialogue = at_mail(Dialogue(Looking(), Storage(), limits=Limits(recipients=1)))
    for address in THREE:
        dialogue.send(f"RCPT TO:<{address}>")
    assert asked == ["a@example.org"]


@pytest.mark.parametrize("address", ["jörg@example.org", "user@bücher.example"])
def test_recipient_outside_ascii_needs_smtputf8(address: str) -> None:
    # RFC 6531 section 3.5
    dialogue = at_mail(Dialogue(Storage()))
    reply = dialogue.send(f"RCPT TO:<{address}>")
    assert reply == "553 5.6.7 this address needs SMTPUTF8 at MAIL"


def test_recipient_outside_ascii_is_stored_with_smtputf8() -> None:
    mailroom = Mailroom()
    dialogue = at_mail(Dialogue(mailroom), "SMTPUTF8")
    dialogue.send("RCPT TO:<jörg@example.org>")
    dialogue.send("DATA")
    assert dialogue.send(".").startswith("250")
    [stored] = mailroom.stored["jörg@example.org"]
    assert b" with UTF8SMTP id " in stored
    assert b"for <" not in stored  # an added field must not be why the next host needs SMTPUTF8


@pytest.mark.parametrize("name", ["postmaster", "Postmaster", "POSTMASTER"])
def test_postmaster_without_a_domain_is_ours(name: str) -> None:
    # RFC 5321 section 4.5.1
    mailroom = Mailroom()
    assert Dialogue(mailroom).mail("x", to=(name,)).startswith("250")
    [mailbox] = mailroom.stored
    assert mailbox == f"{name}@mx.example.org"


@pytest.mark.parametrize("kind", ["mx", "lmtp"])
@pytest.mark.parametrize("name", ["root", "MAILER-DAEMON", "anna..bob."])
def test_local_part_alone_is_at_our_host(name: str, kind: Literal["mx", "lmtp"]) -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(mailroom, kind=kind)
    dialogue.send("LHLO x" if kind == "lmtp" else "EHLO x")
    for line in (f"MAIL FROM:<{name}>", f"RCPT TO:{name}", "DATA", "Subject: x\r\n\r\n."):
        assert dialogue.send(line)[:1] in {"2", "3"}
    whole = str(Address(name, "mx.example.org"))
    assert list(mailroom.stored) == [whole]
    assert f"for <{whole}>".encode() in mailroom.stored[whole][0]


def test_recipient_carries_its_route_and_its_wishes_for_notices() -> None:
    # RFC 3461 section 4
    seen: list[Recipient] = []

    @plugin
    class Looking:
        @hookimpl
        def on_data(self, envelope: Envelope) -> None:
            assert (envelope.dsn_return, envelope.dsn_id) == ("HDRS", "Q1")
            seen.extend(envelope.recipients)

    storage = Storage(routes={USER: Local(box("other"))})
    dialogue = at_mail(Dialogue(Looking(), storage), "RET=HDRS", "ENVID=Q1")
    dialogue.send(f"{RCPT} NOTIFY=FAILURE,DELAY ORCPT=rfc822;old@example.org")
    assert dialogue.send("DATA").startswith("354")
    assert seen == [
        Recipient(
            Address("user", "example.org"),
            route=Local(box("other")),
            notify=frozenset({"FAILURE", "DELAY"}),
            original="rfc822;old@example.org",
        )
    ]


def test_recipients_are_counted_by_outcome() -> None:
    storage = Storage(routes={"b@example.org": None, "c@example.org": Relay()})
    dialogue = at_mail(Dialogue(storage))
    for address in (*THREE, USER):
        dialogue.send(f"RCPT TO:<{address}>")
    counts = [
        dialogue.count("recipients_total", listener="test", outcome=name)
        for name in ("accepted", "rejected", "deferred")
    ]
    assert counts == [2, 1, 1]


# Storage


def test_failure_is_the_answer_for_all_without_a_queue() -> None:
    storage = Storage(
        refusals={
            "b@example.org": Defer("full", code=452, enhanced="4.2.2"),
            "c@example.org": Reject("gone"),
        }
    )
    dialogue = Dialogue(storage)
    assert dialogue.mail("x", to=THREE) == "452 4.2.2 full"
    assert storage.asked == list(THREE)
    assert outcome(dialogue, "deferred") == 1
    assert outcome(dialogue, "stored") == 0


def test_second_mailbox_of_a_recipient_that_fails_is_the_answer() -> None:
    storage = Storage(
        routes={USER: Local(box("one"), box("two"))}, refusals={"two@example.org": Defer("full")}
    )
    assert Dialogue(storage).mail("x") == "451 4.7.1 full"


def test_mailbox_that_is_reached_twice_is_stored_once() -> None:
    storage = Storage(
        routes={
            "a@example.org": Local(box("user")),
            "b@example.org": Local(box("user"), box("other"), box("user")),
        }
    )
    dialogue = Dialogue(storage)
    assert dialogue.mail("x", to=("a@example.org", "b@example.org", USER)).startswith("250")
    assert storage.asked == ["user@example.org", "other@example.org"]


def test_lmtp_failure_concerns_whom_it_reaches() -> None:
    # RFC 2033 section 4.2
    storage = Storage(
        routes={
            "a@example.org": Local(box("user")),
            "b@example.org": Local(box("other")),
            "c@example.org": Local(box("user"), box("third")),
        },
        refusals={"user@example.org": Defer("full", code=452, enhanced="4.2.2")},
    )
    dialogue = Dialogue(storage, kind="lmtp")
    replies = dialogue.mail("x", to=THREE).splitlines()
    assert [reply[:9] for reply in replies] == ["452 4.2.2", "250 2.0.0", "452 4.2.2"]
    assert storage.asked == ["user@example.org", "other@example.org", "third@example.org"]


@pytest.mark.parametrize(
    ("refusals", "name"),
    [
        ({"a@example.org": Reject("no"), "b@example.org": Reject("no")}, "rejected"),
        ({"a@example.org": Reject("no"), "b@example.org": Defer("full")}, "deferred"),
        ({"a@example.org": Reject("no")}, "stored"),
    ],
    ids=["rejected", "deferred", "stored"],
)
def test_lmtp_outcome_is_the_best_of_all(refusals: dict[str, Exception], name: str) -> None:
    dialogue = Dialogue(Storage(refusals=refusals), kind="lmtp")
    dialogue.mail("x", to=("a@example.org", "b@example.org"))
    assert outcome(dialogue, name) == 1


@pytest.mark.parametrize(
    "verdict", [Disconnect("bye"), Disconnect("bye", code=554, enhanced="5.7.1")], ids=str
)
def test_lmtp_storage_that_disconnects_answers_for_all_and_closes(verdict: Disconnect) -> None:
    storage = Storage(refusals={"a@example.org": verdict, "b@example.org": Defer("full")})
    dialogue = Dialogue(storage, kind="lmtp")
    replies = dialogue.mail("x", to=THREE).splitlines()
    assert [reply[:3] for reply in replies] == [str(verdict.reply.code), "451", "250"]
    assert dialogue.receiver.closing


@pytest.mark.parametrize("answer", [None, False])
def test_mail_that_no_plugin_stores_is_deferred(answer: bool | None) -> None:
    @plugin
    class Elsewhere:
        @hookimpl
        def deliver(self) -> bool | None:
            return answer

    @plugin
    class Routing:
        @hookimpl
        def route(self) -> Local:
            return Local()

    dialogue = Dialogue(Routing(), Elsewhere())
    assert dialogue.mail("x") == "451 4.3.5 no storage takes this mailbox"
    assert outcome(dialogue, "deferred") == 1


def test_mail_without_any_storage_is_deferred() -> None:
    @plugin
    class Routing:
        @hookimpl
        def route(self) -> Local:
            return Local()

    assert Dialogue(Routing()).mail("x").startswith("451 4.3.5")


@plugin
class Deciding:
    """Handles each message as its field says."""

    act: Literal["discard", "quarantine"]

    @hookimpl
    def on_message(self, message: Message) -> None:
        if self.act == "discard":
            message.discard("looks odd")
        else:
            message.quarantine("looks odd")


def test_discarded_mail_is_accepted_logged_and_stored_nowhere(
    capfd: pytest.CaptureFixture[str],
) -> None:
    storage = Storage()
    dialogue = Dialogue(Deciding(act="discard"), storage, kind="lmtp", log=Log())
    reply = dialogue.mail("x", to=THREE)
    identifier = f"{dialogue.session.id}.1"
    assert reply.splitlines() == [f"250 2.0.0 message accepted as {identifier}"] * 3
    assert storage.asked == []
    line = f'discarded session={dialogue.session.id} id={identifier} reason="looks odd"'
    assert line in capfd.readouterr().err
    assert outcome(dialogue, "discarded") == 1


@pytest.mark.parametrize(
    ("refusals", "name"), [({}, "quarantined"), ({USER: Defer("full")}, "deferred")], ids=str
)
def test_quarantined_mail_counts_as_such_only_when_stored(
    refusals: dict[str, Exception], name: str
) -> None:
    dialogue = Dialogue(Deciding(act="quarantine"), Storage(refusals=refusals))
    dialogue.mail("x")
    assert outcome(dialogue, name) == 1


def test_storage_gets_what_filters_have_made_of_the_message() -> None:
    @plugin
    class Filter:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.replace(b"Subject: other\r\n\r\nbody\r\n")
            message.prepend("X-Filter", "yes")

    mailroom = Mailroom()
    dialogue = Dialogue(Filter(), mailroom)
    dialogue.mail("Subject: x", to=("a@example.org", "b@example.org"))
    [first], [second] = mailroom.stored.values()
    assert first == second
    assert re.fullmatch(
        rb"X-Filter: yes\r\nReceived: .*\+0000\r\nSubject: other\r\n\r\nbody\r\n", first, re.DOTALL
    )


# The trace field


def test_trace_field_stands_on_top_of_what_was_sent() -> None:
    # RFC 5321 section 4.4
    mailroom = Mailroom()
    service = replace(Dialogue(mailroom).service, wall=lambda: 1_000_000_000.5)
    dialogue = Dialogue(service=service, tls=True, peer="2001:db8::7")
    dialogue.mail("Subject: x\n\nbody")
    assert mailroom.stored[USER] == [
        (
            "Received: from client.example ([IPv6:2001:db8::7])\r\n"
            f"\tby mx.example.org with ESMTPS id {dialogue.session.id}.1\r\n"
            "\t(TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
            "\tfor <user@example.org>;\r\n"
            "\tSun, 09 Sep 2001 01:46:40 +0000\r\n"
            "Subject: x\r\n\r\nbody\r\n"
        ).encode()
    ]


@pytest.mark.parametrize("content", [b" x: y\r\n", b"\tx\r\n", b"x"], ids=repr)
def test_body_without_a_header_does_not_continue_the_trace_field(content: bytes) -> None:
    mailroom = Mailroom()
    chunk(Dialogue(mailroom), content)
    assert mailroom.stored[USER][0].endswith(b" +0000\r\n\r\n" + content)


@pytest.mark.parametrize("content", [b"\r\n x\r\n", b"x:", b""], ids=repr)
def test_other_content_follows_the_trace_field_at_once(content: bytes) -> None:
    mailroom = Mailroom()
    chunk(Dialogue(mailroom), content)
    assert mailroom.stored[USER][0].endswith(b" +0000\r\n" + content)


# Limits of a message


@pytest.mark.parametrize(
    ("size", "reply"), [(1000, "250 2.0.0"), (1001, "552 5.3.4"), (300_000, "552 5.3.4")]
)
@pytest.mark.parametrize("by", ["DATA", "BDAT"])
def test_size_is_held_while_receiving(by: str, size: int, reply: str) -> None:
    # RFC 1870 section 6.3
    storage = Storage()
    dialogue = Dialogue(storage, limits=Limits(message_size=ByteSize(1000), line_length=0))
    send = data if by == "DATA" else chunk
    content = b"x" * (size - 2 * (by == "DATA"))
    assert send(dialogue, content).startswith(reply)
    assert bool(storage.asked) == reply.startswith("250")
    assert outcome(dialogue, "stored" if storage.asked else "rejected") == 1
    assert dialogue.mail("x").startswith("250")


def test_size_counts_over_all_chunks() -> None:
    storage = Storage()
    limits = Limits(message_size=ByteSize(1000), line_length=0)
    dialogue = at_mail(Dialogue(storage, limits=limits))
    dialogue.send(RCPT)
    first = dialogue.send_raw(b"BDAT 999\r\n" + b"x" * 999)
    assert first.startswith(b"250")
    assert dialogue.send_raw(b"BDAT 2 LAST\r\nxx").startswith(b"552 5.3.4")
    assert storage.asked == []


@pytest.mark.parametrize("content", [b"a\nb", b"a\rb", b"\na", b"a\r\r\nb", b"a\n.\nb"], ids=repr)
def test_bare_newlines_are_refused(content: bytes) -> None:
    # RFC 5321 section 2.3.8
    storage = Storage()
    reply = data(Dialogue(storage), content)
    assert reply.startswith("550 5.6.0 message has a bare CR or LF (id ")
    assert storage.asked == []


BARE = [
    b"a\nb",
    b"a\rb",
    b"\na",
    b"a\r",
    b"a\r\r\nb",
    b"a\r\n\n",
    b"F: x\rFrom: ceo@example.org\r\n\r\n",
]
BODIES = ["", "BODY=7BIT", "BODY=8BITMIME"]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("content", BARE, ids=repr)
def test_bare_newlines_are_refused_by_bdat_too(content: bytes, size: int, body: str) -> None:
    storage = Storage()
    reply = chunk(Dialogue(storage), content, size, body)
    assert reply.startswith("550 5.6.0 message has a bare CR or LF (id ")
    assert storage.asked == []


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_line_ends_may_be_cut_in_two_by_chunks(size: int, body: str) -> None:
    mailroom = Mailroom()
    content = b"\r\na\r\n\r\n.\r\n\0\xff\r\n"
    assert chunk(Dialogue(mailroom), content, size, body).startswith("250 2.0.0 message")
    assert mailroom.stored[USER][0].endswith(b"+0000\r\n" + content)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_bare_newlines_pass_in_a_binary_body(size: int) -> None:
    # RFC 3030 section 3: octets as they are
    mailroom = Mailroom()
    content = b"S: x\r\n\r\na\nb\rc\r\r\nd\0\r"
    assert chunk(Dialogue(mailroom), content, size, BINARY).startswith("250 2.0.0 message")
    assert mailroom.stored[USER][0].endswith(content)


@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "header",
    [
        *(b"S: x\nF: y\r\n\r\n", b"S: x\rF: y\r\n\r\n", b"S: x\n\n", b"S: x\r\n\n"),
        *(b"S: x\n\r\n", b"\n", b"S: x\r\r\n\r\n", b"S: x\r"),
    ],
    ids=repr,
)
def test_bare_newlines_are_refused_in_the_header_of_a_binary_message(
    header: bytes, size: int, fix: bool
) -> None:
    mailroom = Mailroom()
    dialogue = fixing(mailroom) if fix else Dialogue(mailroom)
    assert chunk(dialogue, header, size, BINARY).startswith("550 5.6.0 message has a bare CR")
    assert not mailroom.stored


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        (b"a\nb", b"a\r\nb\r\n"),
        (b"a\rb", b"a\r\nb\r\n"),
        (b"a\r\r\nb", b"a\r\n\r\nb\r\n"),
        (b"a\n.\nb", b"a\r\n.\r\nb\r\n"),
    ],
    ids=repr,
)
def test_bare_newlines_are_fixed_where_configured(content: bytes, stored: bytes) -> None:
    mailroom = Mailroom()
    assert data(fixing(mailroom), content).startswith("250")
    assert mailroom.stored[USER][0].endswith(b"+0000\r\n\r\n" + stored)


def test_fixed_newlines_end_lines_for_the_limit_too() -> None:
    mailroom = Mailroom()
    content = b"\n".join([b"x" * 70] * 100)
    assert data(fixing(mailroom), content).startswith("250")
    assert mailroom.stored[USER][0].endswith(content.replace(b"\n", b"\r\n") + b"\r\n")


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("content", BARE, ids=repr)
def test_bare_newlines_in_chunks_are_fixed_where_configured(
    content: bytes, size: int, body: str
) -> None:
    mailroom = Mailroom()
    content = b"\r\n" + content
    assert chunk(fixing(mailroom), content, size, body).startswith("250 2.0.0 message")
    assert mailroom.stored[USER][0].endswith(b"+0000\r\n" + fix_newlines(content))


def test_binary_chunks_are_byte_exact_where_newlines_are_fixed() -> None:
    mailroom = Mailroom()
    content = b"\r\na\nb\rc"
    assert chunk(fixing(mailroom), content, 2, BINARY).startswith("250 2.0.0 message")
    assert mailroom.stored[USER][0].endswith(content)


def test_size_of_fixed_content_counts() -> None:
    mailroom = Mailroom()
    dialogue = fixing(mailroom, Limits(message_size=ByteSize(100)))
    assert data(dialogue, b"\n" * 60).startswith("552 5.3.4")
    assert not mailroom.stored


@pytest.mark.parametrize(
    ("line_length", "reply"), [(20, "500 5.6.0"), (21, "250 2.0.0"), (0, "250 2.0.0")]
)
@pytest.mark.parametrize("by", ["DATA", "BDAT", "many BDAT"])
def test_lines_that_are_too_long_are_refused(by: str, line_length: int, reply: str) -> None:
    # RFC 5321 section 4.5.3.1.6
    storage = Storage()
    dialogue = Dialogue(storage, limits=Limits(line_length=line_length))
    content = b"x\r\n" + b"y" * 19
    match by:
        case "DATA":
            said = data(dialogue, content)
        case "BDAT":
            said = chunk(dialogue, content + b"\r\n")
        case _:
            said = chunk(dialogue, content + b"\r\n", 7)
    assert said.startswith(reply)
    assert bool(storage.asked) == reply.startswith("250")


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (b"Subject: x\r\n\r\n" + b"y" * 5000, "250 2.0.0"),
        (b"Subject: " + b"x" * 5000 + b"\r\n\r\ny", "500 5.6.0"),
    ],
    ids=["body", "header"],
)
def test_lines_may_be_long_in_a_binary_body_only(content: bytes, reply: str) -> None:
    # RFC 3030 section 3
    dialogue = Dialogue(Storage(), limits=Limits(line_length=1000))
    assert chunk(dialogue, content, body="BODY=BINARYMIME").startswith(reply)


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
@pytest.mark.parametrize("head", [b"Subject: x\r\n\r\n", b""], ids=["header", "no-header"])
def test_line_as_long_as_a_message_is_never_held_whole(
    head: bytes, how: str, tmp_path: Path
) -> None:
    dialogue = at_mail(Dialogue(Attachments(), DkimVerify(), Storage(), spool=tmp_path))
    dialogue.send(RCPT)
    count, piece = 300, b"<p>text" * 9000
    start = b"DATA\r\n" if how == "DATA" else b"BDAT %d LAST\r\n" % (len(head) + count * 63_000)
    dialogue.send_raw(start + (b"" if how == "DATA" else head))
    gc.collect()
    tracemalloc.start()
    try:
        replies = [dialogue.send_raw(head)] if how == "DATA" else []
        replies += [dialogue.send_raw(piece) for _ in range(count)]
        replies += [dialogue.send_raw(b"\r\n.\r\n")] if how == "DATA" else []
        assert tracemalloc.get_traced_memory()[1] < 2 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert replies[-1].startswith(b"250 2.0.0 message accepted")


RECEIVED = b"Received: from a by b\r\n"


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (RECEIVED * 2 + b"\r\nbody", "250 2.0.0"),
        (RECEIVED * 3 + b"\r\nbody", "554 5.4.6"),
        (b"Subject: x\r\n" + RECEIVED.upper() * 3, "554 5.4.6"),
        (RECEIVED * 2 + b"\r\n" + RECEIVED, "250 2.0.0"),
        (b"\r\n" + RECEIVED * 3, "250 2.0.0"),
        (b"X-Received: a\r\n Received: b\r\n" * 3, "250 2.0.0"),
    ],
    ids=["two", "three", "upper-case", "body", "no-header", "others"],
)
def test_mail_that_goes_in_circles_is_refused(content: bytes, reply: str) -> None:
    # RFC 5321 section 6.3
    storage = Storage()
    dialogue = Dialogue(storage, limits=Limits(hops=2))
    assert chunk(dialogue, content).startswith(reply)
    assert bool(storage.asked) == reply.startswith("250")


FIELD = b"X: " + b"y" * 95 + b"\r\n"  # 100 octets


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (FIELD * 9 + b"\r\n" + b"body\r\n" * 1000, "250 2.0.0"),
        (FIELD * 10 + b"\r\n" + b"body", "552 5.3.4"),
        (FIELD * 10 + b"X:", "552 5.3.4"),
        (FIELD * 10 + b"X", "250 2.0.0"),
        (FIELD * 10, "250 2.0.0"),
        (b"\r\n" + FIELD * 20, "250 2.0.0"),
    ],
    ids=["fits", "longer", "endless", "text", "all", "none"],
)
def test_header_section_has_a_limit(content: bytes, reply: str) -> None:
    storage = Storage()
    dialogue = Dialogue(storage, limits=Limits(headers=ByteSize(1000)))
    assert chunk(dialogue, content).startswith(reply)
    assert bool(storage.asked) == reply.startswith("250")


@pytest.mark.parametrize("field", [b"A:\r\n", b"A: b\r\n\tc\r\n", b"A :\r\n"], ids=repr)
def test_header_of_more_fields_than_filters_read_is_refused(field: bytes) -> None:
    seen: list[Message] = []

    @plugin
    class Looking:
        @hookimpl
        def on_message(self, message: Message) -> None:
            seen.append(message)

    dialogue = Dialogue(Looking(), Storage())
    fits = b"From: a@example.org\r\n" + field * (FIELD_LIMIT - 2) + b"Z: last\r\n\r\nbody"
    assert chunk(dialogue, fits).startswith("250 2.0.0")
    assert chunk(dialogue, field + fits).startswith("552 5.3.4 header section has too many fields")
    assert len(seen) == 1
    assert (seen[0].headers.get("Z"), seen[0].headers.truncated) == ("last", False)


def test_largest_header_is_read_whole_with_what_is_put_above_it() -> None:
    seen: list[Message] = []

    @plugin
    class Adding:
        @hookimpl
        def on_message(self, message: Message) -> None:
            for number in range(500):
                message.prepend(f"X-{number}", "y" * 100)
            seen.append(message)

    largest = b"S: x\r\nZ:" + b"z" * (1024 * 1024 - 100) + b"\r\nLast: z\r\n\r\n"
    assert chunk(Dialogue(Adding(), Storage()), largest).startswith("250 2.0.0")
    assert (seen[0].headers.get("Last"), seen[0].headers.truncated) == ("z", False)


def test_header_section_beyond_the_first_look_is_found() -> None:
    dialogue = Dialogue(Storage(), limits=Limits(hops=700))
    assert chunk(dialogue, FIELD * 700 + b"\r\n" + RECEIVED * 701).startswith("250")
    assert chunk(dialogue, FIELD * 700 + RECEIVED * 701 + b"\r\n").startswith("554 5.4.6")


# The disk


def test_content_that_cannot_be_written_is_deferred_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = Storage()
    dialogue = Dialogue(storage, spool=tmp_path / "missing")
    assert dialogue.mail("x\n" * 200_000) == "452 4.3.1 no space to receive the message"
    assert storage.asked == []
    assert outcome(dialogue, "deferred") == 1
    [line] = capfd.readouterr().err.splitlines()
    assert " error content not written " in line
    assert f" id={dialogue.session.id}.1 " in line
    assert "missing" in line
    assert dialogue.mail("x").startswith("250")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` octets, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("capfd")
def test_end_of_content_that_cannot_be_written_is_deferred(tmp_path: Path) -> None:
    storage = Storage()
    dialogue = at_mail(Dialogue(storage, spool=tmp_path, kind="lmtp"))
    dialogue.send(RCPT)
    dialogue.send(RCPT)
    dialogue.send_raw(b"BDAT 270000\r\n" + b"x" * 998 + b"\r\n" * 134_501)
    with files_up_to(300_000):
        reply = dialogue.send_raw(b"BDAT 100000 LAST\r\n" + b"xx\r\n" * 25_000)
    refusal = f"452 4.3.1 no space to receive the message (id {dialogue.session.id}.1)\r\n"
    assert reply.decode() == refusal * 2
    assert storage.asked == []
    assert outcome(dialogue, "deferred") == 1


def test_large_content_arrives_whole(tmp_path: Path) -> None:
    mailroom = Mailroom()
    content = b"".join(b"line %d\r\n" % number for number in range(60_000))
    assert data(Dialogue(mailroom, spool=tmp_path), content[:-2]).startswith("250")
    assert mailroom.stored[USER][0].endswith(b"+0000\r\n\r\n" + content)


# Events and notifications


def test_observers_learn_about_each_recipient_and_the_message() -> None:
    observer, storage = Observer(), Storage(routes={"b@example.org": None})
    dialogue = at_mail(Dialogue(observer, storage, limits=Limits(recipients=1)))
    for address in ("b@example.org", "a@example.org", "jörg@example.org", "c@example.org"):
        dialogue.send(f"RCPT TO:<{address}>")
    dialogue.send_raw(b"BDAT 0 LAST\r\n")
    session = dialogue.session.id
    envelope = f"{session}.1"
    assert observer.recipients == [
        RecipientDecided(session, envelope, box("b"), Reply(550, "relaying denied", "5.7.1")),
        RecipientDecided(session, envelope, box("a"), Reply(250, "recipient ok", "2.1.5")),
        RecipientDecided(
            session, envelope, box("jörg"), Reply(452, "too many recipients", "4.5.3")
        ),
        RecipientDecided(session, envelope, box("c"), Reply(452, "too many recipients", "4.5.3")),
    ]
    reply = Reply(250, f"message accepted as {envelope}", "2.0.0")
    assert observer.messages == [MessageDecided(session, envelope, 0, "stored", reply)]


def test_observers_learn_about_a_filtered_recipient() -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_rcpt(self) -> None:
            raise Disconnect("bye")

    observer = Observer()
    dialogue = at_mail(Dialogue(Refusing(), observer, Storage()))
    dialogue.send(RCPT)
    assert [event.reply for event in observer.recipients] == [Reply(421, "bye", "4.7.0")]
    assert dialogue.count("recipients_total", listener="test", outcome="deferred") == 1


def test_observers_learn_the_answer_for_each_recipient_of_lmtp() -> None:
    observer, storage = Observer(), Storage(refusals={"b@example.org": Defer("full")})
    dialogue = Dialogue(observer, storage, kind="lmtp")
    dialogue.mail("x", to=THREE)
    assert [event.reply.code for event in observer.messages] == [250, 451, 250]
    assert {(event.size, event.outcome) for event in observer.messages} == {(3, "stored")}
    assert outcome(dialogue, "stored") == 1


def test_size_of_messages_is_measured() -> None:
    dialogue = Dialogue(Storage())
    dialogue.mail("x" * 98)
    dialogue.mail("x" * 198)
    assert dialogue.count("message_size_bytes_count", listener="test") == 2
    assert dialogue.count("message_size_bytes_sum", listener="test") == 300


def last_line(text: str) -> str:
    return text.splitlines()[-1].partition(" ")[2]


def test_log_has_one_line_of_each_message(capfd: pytest.CaptureFixture[str]) -> None:
    clock = iter([1000.0, 1000.0, *[1000.25] * 100])
    service = Dialogue(Storage(), kind="submission", log=Log()).service
    dialogue = Dialogue(
        service=replace(service, clock=lambda: next(clock)), login="alice", tls=True
    )
    dialogue.mail("x", to=("a@example.org", "b@example.org"))
    identifier = f"{dialogue.session.id}.1"
    line = last_line(capfd.readouterr().err)
    seconds = re.search(r" seconds=(\d+\.\d{4}) ", line)
    assert seconds is not None
    assert line == (
        f"info stored session={dialogue.session.id} id={identifier} peer=192.0.2.1 login=alice"
        " sender=<sender@client.example> to=a@example.org,b@example.org"
        f' size=3{seconds[0]}reply="250 2.0.0 message accepted as {identifier}"'
        " stored=a@example.org,b@example.org receive=0.0000"
        f" hooks={line.rpartition('=')[2]}"
    )
    hooks = line.rpartition("=")[2].split(",")
    assert [hook.rpartition(":")[0] for hook in hooks] == [
        *["storage.route:answer"] * 2,
        *["storage.deliver:answer"] * 2,
    ]


def test_log_says_how_long_the_transaction_took(capfd: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    service = Dialogue(Storage(), log=Log()).service
    dialogue = at_mail(Dialogue(service=replace(service, clock=lambda: now[0])))
    now[0] = 1000.25
    dialogue.send(RCPT)
    dialogue.send_raw(b"BDAT 0 LAST\r\n")
    assert " seconds=0.2500 " in last_line(capfd.readouterr().err)


def test_log_line_of_a_bounce_from_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    # RFC 5321 section 4.5.5
    dialogue = Dialogue(Storage(refusals={USER: Reject("gone", enhanced="5.2.1")}), log=Log())
    dialogue.mail("x", sender="")
    line = last_line(capfd.readouterr().err)
    assert line.startswith("info rejected ")
    assert " peer=192.0.2.1 sender=<> to=user@example.org size=3 " in line
    assert ' reply="550 5.2.1 gone"' in line


def test_log_has_a_line_of_each_refused_recipient(capfd: pytest.CaptureFixture[str]) -> None:
    dialogue = at_mail(Dialogue(Storage(routes={USER: None}), log=Log()))
    dialogue.send(RCPT)
    [line] = capfd.readouterr().err.splitlines()
    session = dialogue.session.id
    assert line.partition(" ")[2] == (
        f"info recipient rejected session={session} id={session}.1 peer=192.0.2.1"
        ' sender=a@client.example recipient=user@example.org reply="550 5.7.1 relaying denied"'
        " helo=client.example"
    )


@plugin
class Emptying:
    """Changes the list of recipients itself, which a plugin must not do."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        envelope.recipients.clear()


@pytest.mark.parametrize("kind", ["mx", "lmtp"])
def test_accepted_recipients_stay_whatever_a_plugin_does_to_the_list(
    kind: Literal["mx", "lmtp"],
) -> None:
    storage = Storage()
    reply = Dialogue(Emptying(), storage, kind=kind).mail("Subject: x\n\nx", to=THREE)
    assert storage.asked == list(THREE)
    assert reply.count("250 2.0.0 ") == (3 if kind == "lmtp" else 1)


@plugin
class Readdressing:
    """Adds and removes recipients of the whole message."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    sender: str | None = None

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        for address in self.remove:
            envelope.remove(Address.parse(address))
        for address in self.add:
            envelope.add(Address.parse(address))
        if self.sender is not None:
            envelope.reverse_path = Address.parse(self.sender)


def test_plugin_changes_who_gets_the_message() -> None:
    storage, observer = Storage(), Observer()
    changing = Readdressing(add=("new@example.org", "b@example.org"), remove=("a@example.org",))
    dialogue = Dialogue(changing, storage, observer)
    assert dialogue.mail("Subject: x\n\nx", to=THREE).startswith("250 2.0.0 ")
    assert storage.asked == ["b@example.org", "c@example.org", "new@example.org"]
    decided = [(str(event.recipient), event.reply.code) for event in observer.recipients]
    assert decided[3:] == [("new@example.org", 250)]


def test_recipient_that_is_replaced_and_put_back_gets_the_message_once() -> None:
    storage = Storage()
    changing = Readdressing(add=(USER,), remove=(USER,))
    assert Dialogue(changing, storage).mail("Subject: x\n\nx").startswith("250 ")
    assert storage.asked == [USER]


def test_message_that_no_recipient_is_left_of_is_discarded() -> None:
    storage = Storage()
    dialogue = Dialogue(Readdressing(remove=(USER,)), storage)
    assert dialogue.mail("Subject: x\n\nx").startswith("250 ")
    assert storage.asked == []
    assert outcome(dialogue, "discarded") == 1


@pytest.mark.parametrize(
    "route", [None, Relay(), Reject("no such mailbox"), Defer("away")], ids=repr
)
def test_message_waits_when_an_added_recipient_has_no_route(
    route: Relay | Exception | None,
) -> None:
    """It may replace removed recipients, so nothing is stored without it."""

    @plugin
    class Refusing:
        @hookimpl
        def route(self, recipient: Recipient) -> None:
            if recipient.address.local == "new" and isinstance(route, Exception):
                raise route

    answer = None if isinstance(route, Exception) else route
    storage, observer = Storage(routes={"new@elsewhere.example": answer}), Observer()
    changing = Readdressing(add=("new@elsewhere.example",), remove=(USER,))
    dialogue = Dialogue(changing, Refusing(), storage, observer)
    reply = dialogue.mail("Subject: x\n\nx")
    assert reply == "451 4.3.5 a recipient that was added cannot be reached"
    assert storage.asked == []
    assert observer.recipients[-1].reply.category in {4, 5}


def test_lmtp_answers_for_those_that_the_client_has_named() -> None:
    storage = Storage(refusals={"c@example.org": Reject("full", code=552, enhanced="5.2.2")})
    changing = Readdressing(add=("new@example.org",), remove=("a@example.org",))
    reply = Dialogue(changing, storage, kind="lmtp").mail("Subject: x\n\nx", to=THREE)
    assert [line[:9] for line in reply.splitlines()] == ["250 2.0.0", "250 2.0.0", "552 5.2.2"]
    assert storage.asked == ["b@example.org", "c@example.org", "new@example.org"]


def test_lmtp_refusal_of_a_recipient_that_took_all_places_is_for_all() -> None:
    storage = Storage(refusals={"new@example.org": Defer("full", code=452, enhanced="4.2.2")})
    changing = Readdressing(add=("new@example.org",), remove=THREE)
    reply = Dialogue(changing, storage, kind="lmtp").mail("Subject: x\n\nx", to=THREE)
    assert [line[:9] for line in reply.splitlines()] == ["452 4.2.2"] * 3


def test_plugin_in_shadow_mode_readdresses_nothing() -> None:
    storage = Storage()
    changing = Readdressing(add=("new@example.org",), remove=(USER,), sender="x@example.org")
    table = PluginConfig(use="x", mode="shadow")
    assert Dialogue((table, changing), storage).mail("Subject: x\n\nx").startswith("250 ")
    assert storage.asked == [USER]


def test_reverse_path_that_a_plugin_changes_is_what_storage_sees() -> None:
    seen: list[str] = []

    @plugin
    class Looking:
        @hookimpl
        def deliver(self, envelope: Envelope) -> bool:
            seen.append(envelope.sender)
            return True

    changing = Readdressing(sender="new@client.example")
    Dialogue(changing, Looking(), Storage()).mail("Subject: x\n\nx")
    assert seen == ["new@client.example"]


# What fails after the message was stored


class BrokenAfterwards:
    """Works until a message is stored, and fails at every use after that."""

    def __init__(self, real: object, mailroom: Mailroom) -> None:
        self._real, self._mailroom = real, mailroom

    def __getattr__(self, name: str) -> object:
        if self._mailroom.stored:
            raise MemoryError(f"made by a test: {name}")
        return getattr(self._real, name)


@pytest.mark.parametrize("part", ["log", "metrics", "decision_log", "queue", "hooks", "tracing"])
@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_what_is_stored_is_acknowledged_whatever_fails_then(
    part: str, how: str, mailroom: Mailroom, tmp_path: Path
) -> None:
    queue = Spool(tmp_path / "spool")
    queue.prepare()
    with (tmp_path / "log").open("wb") as file:
        log = Log(descriptor=file.fileno())
        chronicle = DecisionLog(tmp_path, 1_000_000, log)
        service = Dialogue(mailroom, Observer(), log=log).service
        service = replace(service, queue=queue, decision_log=chronicle)
        broken: Any = BrokenAfterwards(getattr(service, part), mailroom)
        dialogue = Dialogue(service=replace(service, **{part: broken}))
        dialogue.session.login = "a"
        at_mail(dialogue).send(f"{RCPT} NOTIFY=SUCCESS")
        if how == "DATA":
            dialogue.send("DATA")
            content = b"Subject: x\r\n\r\nx\r\n.\r\n"
        else:
            content = b"BDAT 3 LAST\r\nx\r\n"
        try:
            reply = dialogue.send_raw(content)
        except MemoryError:  # from the wait for the next command
            reply = dialogue.receiver.take()
        assert reply.startswith(b"250 2.0.0 message accepted")
        assert len(mailroom.stored[USER]) == 1


@pytest.mark.parametrize("kind", ["mx", "lmtp"])
def test_notice_that_cannot_be_made_changes_no_reply(
    kind: Kind, mailroom: Mailroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("made by a test")

    monkeypatch.setattr("minismtp.session.storage.success_notices", fails)
    queue = Spool(tmp_path / "spool")
    queue.prepare()
    service = replace(Dialogue(mailroom, kind=kind).service, queue=queue)
    dialogue = Dialogue(service=service)
    dialogue.session.login = "a"
    at_mail(dialogue).send(f"{RCPT} NOTIFY=SUCCESS")
    dialogue.send("DATA")
    assert dialogue.send_raw(b"x\r\n.\r\n").startswith(b"250 2.0.0 message accepted")


def test_copy_that_nobody_expected_to_fail_waits_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage()
    queue = Spool(tmp_path / "spool")
    queue.prepare()
    service = replace(Dialogue(storage).service, queue=queue)
    deliver = service.hooks.deliver

    def fails(envelope: Envelope, message: Message, mailbox: Address) -> bool | None:
        if mailbox.local == "b":
            raise ValueError("made by a test")
        return deliver(envelope, message, mailbox)

    monkeypatch.setattr(service.hooks, "deliver", fails)
    dialogue = Dialogue(service=service)
    assert dialogue.mail("Subject: x\n\nx", to=THREE).startswith("250")
    assert storage.asked == ["a@example.org", "c@example.org"]
    [name] = queue.names()
    assert [target.address for target in queue.open(name)[0].targets] == ["b@example.org"]


@pytest.mark.parametrize("error", [ValueError, MemoryError])
def test_fault_before_anything_is_stored_defers(
    error: type[Exception], mailroom: Mailroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error("made by a test")

    monkeypatch.setattr("minismtp.session.transaction.received", fails)
    dialogue = Dialogue(mailroom)
    reply = dialogue.mail("Subject: x\n\nx")
    assert reply == "451 4.3.0 local error in processing, try again later"
    assert not mailroom.stored
    assert outcome(dialogue, "deferred") == 1
    monkeypatch.undo()
    assert dialogue.mail("Subject: x\n\nx").startswith("250")
