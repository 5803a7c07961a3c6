"""Delivery status notifications, read back by the standard library and by flufl.bounce."""

from __future__ import annotations

import email
import email.message
import email.policy
from email.message import EmailMessage
from typing import Any, Final

import pytest
from flufl.bounce import all_failures
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from minismtp import Address, Local, Message, Recipient, Relay, Several
from minismtp.mail.content import Content
from minismtp.mail.dsn import Action, Report, notification, status
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.session.storage import success_notices

CONTENT = b"Received: from x\r\nSubject: x\r\nTo: b@example.net\r\n\r\nbody\r\n"
SENDER = "a@example.org"
REFUSED = "550 5.1.1 no such user"


def target(address: str = "b@example.net", **wishes: Any) -> QueuedRecipient:  # noqa: ANN401 - any field
    wishes.setdefault("recipient", address)
    return QueuedRecipient(kind=wishes.pop("kind", "relay"), address=address, **wishes)


def entry(**values: Any) -> QueueEntry:  # noqa: ANN401 - any field
    ordinary = QueueEntry(
        id="m", sender=SENDER, listener="smtp", peer="192.0.2.1", helo="x", login=None,
        arrived=0.0, targets=(), trusted=True,
    )  # fmt: skip
    return replace(ordinary, **values)


def made(
    *reports: Report, action: Action = "failed", content: bytes = CONTENT, **values: object
) -> tuple[QueueEntry, bytes]:
    """Return the entry and the octets of a notification."""
    found = notification(
        entry(**values),
        Message("m", Content.of(content)),
        action,
        reports,
        hostname="mx.example.org",
        now=1.0,
        until=90_000.0,
    )
    assert found is not None
    notice, message = found
    with message.open() as reader:
        return notice, reader.read()


def parsed(octets: bytes) -> tuple[EmailMessage, list[EmailMessage]]:
    """Return a notification and its three parts, whose only defects are in the returned message."""
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message["Content-Type"].params["report-type"] == "delivery-status"
    parts = [part for part in message.iter_parts() if isinstance(part, EmailMessage)]
    assert len(parts) == 3
    assert not any(part.defects for part in [message, *parts, *parts[1].walk()])
    return message, parts


def fields(octets: bytes) -> list[dict[str, str]]:
    """Return the fields about the message, then those about each recipient."""
    _, (_, delivery, _) = parsed(octets)
    return [dict(block.items()) for block in delivery.iter_parts()]


def test_notification_has_the_form_of_the_rfcs() -> None:
    """RFC 3464 section 2, RFC 6522 section 3, RFC 3834 section 5."""
    notice, octets = made(Report(target(), REFUSED, "mx.example.net"))
    message, parts = parsed(octets)
    assert message.get_content_type() == "multipart/report"
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@mx.example.org>"
    assert message["To"] == SENDER
    assert message["Auto-Submitted"] == "auto-replied"
    assert {"Date", "Message-ID", "Subject", "MIME-Version"} <= set(message.keys())
    assert [part.get_content_type() for part in parts] == [
        *("text/plain", "message/delivery-status", "message/rfc822"),
    ]
    assert (notice.sender, notice.body, notice.smtputf8) == ("", "7BIT", False)
    assert notice.targets == (QueuedRecipient(kind="relay", address=SENDER, recipient=SENDER),)
    assert octets.isascii()
    assert octets.count(b"\r\n") == octets.count(b"\n")


def test_fields_say_what_happened_to_whom() -> None:
    about, first, second = fields(
        made(
            Report(target(original="rfc822;B+2Bx@example.net"), REFUSED, "mx.example.net"),
            Report(target("c@example.net"), "451 4.4.1 cannot connect"),
            dsn_id="QQ314",
        )[1]
    )
    assert about == {
        "Reporting-MTA": "dns; mx.example.org",
        "Original-Envelope-Id": "QQ314",
        "Arrival-Date": "Thu, 01 Jan 1970 00:00:00 +0000",
    }
    assert first == {
        "Original-Recipient": "rfc822; B+x@example.net",
        "Final-Recipient": "rfc822; b@example.net",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.example.net",
        "Diagnostic-Code": f"smtp; {REFUSED}",
        "Last-Attempt-Date": "Thu, 01 Jan 1970 00:00:01 +0000",
    }
    assert (second["Status"], second["Diagnostic-Code"]) == (
        "5.0.0",
        "X-minismtp; 451 4.4.1 cannot connect",
    )


@pytest.mark.parametrize(
    ("action", "temporary", "permanent"),
    [("failed", [], [b"b@example.net"]), ("delayed", [b"b@example.net"], []), ("relayed", [], [])],
)
def test_mailing_list_software_understands_it(
    action: Action, temporary: list[bytes], permanent: list[bytes]
) -> None:
    wishes = ("DELAY", "FAILURE", "SUCCESS")
    _, octets = made(Report(target(notify=wishes), REFUSED, "mx"), action=action)
    found = all_failures(email.message_from_bytes(octets))
    assert found == (frozenset(temporary), frozenset(permanent))


def test_delay_says_until_when() -> None:
    _, octets = made(Report(target(), "451 4.2.0 busy", "mx"), action="delayed")
    _, recipient = fields(octets)
    assert recipient["Action"] == "delayed"
    assert recipient["Status"] == "4.2.0"
    assert recipient["Will-Retry-Until"] == "Fri, 02 Jan 1970 01:00:00 +0000"
    assert b"tried again until Fri, 02 Jan 1970 01:00:00 +0000." in octets


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        ((), {"failed", "delayed"}),
        (("NEVER",), set()),
        (("FAILURE",), {"failed"}),
        (("DELAY",), {"delayed"}),
        (("SUCCESS",), {"delivered", "relayed", "expanded"}),
    ],
)
def test_only_what_was_asked_for_is_told(notify: tuple[str, ...], told: set[str]) -> None:
    """RFC 3461 section 4.1."""
    actions: tuple[Action, ...] = ("failed", "delayed", "delivered", "relayed", "expanded")
    message = Message("m", Content.of(CONTENT))
    assert told == {
        action
        for action in actions
        if notification(
            *(entry(), message, action, [Report(target(notify=notify), "")]),
            hostname="h",
            now=1.0,
            until=2.0,
        )
    }


def test_null_reverse_path_is_told_nothing() -> None:
    """RFC 5321 section 6.1."""
    report = Report(target(), REFUSED)
    message = Message("m", Content.of(CONTENT))
    assert not notification(
        entry(sender=""), message, "failed", [report], hostname="h", now=1.0, until=2.0
    )


LARGE = CONTENT + (b"x" * 78 + b"\r\n") * 1000
HUGE = LARGE * 30


@pytest.mark.parametrize(
    ("action", "values", "content", "kind"),
    [
        ("failed", {}, CONTENT, "message/rfc822"),
        ("failed", {"dsn_return": "HDRS"}, CONTENT, "text/rfc822-headers"),
        ("failed", {}, LARGE, "text/rfc822-headers"),
        ("failed", {"dsn_return": "FULL"}, LARGE, "message/rfc822"),
        ("failed", {"dsn_return": "FULL"}, HUGE, "text/rfc822-headers"),
        ("failed", {"body": "BINARYMIME"}, CONTENT, "message/rfc822"),
        ("delayed", {"dsn_return": "FULL"}, CONTENT, "text/rfc822-headers"),
    ],
)
def test_message_comes_back_as_asked_for_but_bounded(
    action: Action, values: dict[str, str], content: bytes, kind: str
) -> None:
    """RFC 3461 section 4.3: RET is for failures."""
    _, octets = made(Report(target(), REFUSED), action=action, content=content, **values)
    _, (_, _, returned) = parsed(octets)
    assert returned.get_content_type() == kind
    assert (b"\r\nbody\r\n" in octets) == (kind == "message/rfc822")
    assert b"\r\nSubject: x\r\nTo: b@example.net\r\n" in octets


@pytest.mark.parametrize("action", ["failed", "delayed"])
def test_no_word_of_a_stranger_reaches_whom_he_names_as_the_sender(action: Action) -> None:
    content = (
        b"Message-ID: <1.a@example.org>\r\nSubject: Buy\r\nX-Buy: Buy\r\n"
        b"From: Buy <Buy@example.org>\r\n\r\nBuy\r\n"
    )
    notice, octets = made(
        Report(target(), REFUSED), action=action, content=content, trusted=False, dsn_return="FULL"
    )
    assert not notice.trusted
    assert b"Buy" not in octets
    _, (_, _, returned) = parsed(octets)
    assert returned.get_content_type() == "text/rfc822-headers"
    assert returned.as_bytes().partition(b"\n\n")[2].strip() == b"Message-ID: <1.a@example.org>"


@pytest.mark.parametrize("identifier", [b"", b"<a@b> (Buy)", b"Buy", b"<%s@b>" % (b"Buy" * 100)])
def test_identifier_of_a_stranger_is_one_or_nothing(identifier: bytes) -> None:
    content = b"Message-ID: %s\r\n\r\n" % identifier
    _, octets = made(Report(target(), REFUSED), content=content, trusted=False)
    assert parsed(octets)[1][2].get_payload() == ""
    assert b"Buy" not in octets


def test_long_header_is_cut_between_fields() -> None:
    content = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 900) for number in range(1000)) + b"\r\n"
    _, octets = made(Report(target(), REFUSED), content=content)
    assert len(octets) < 70_000
    _, (_, _, returned) = parsed(octets)
    assert returned.get_content().splitlines()[-1].endswith("x" * 900)


HARM: Final = [b"\xff\xe9", "\u00fc".encode(), b"x" * 999, b"\0", b"a\rb", b"a\nb"]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("body", ["7BIT", "8BITMIME", "BINARYMIME"])
def test_what_not_every_host_takes_comes_back_converted(harm: bytes, body: str) -> None:
    """A host without 8BITMIME takes the notification too."""
    mime = b"MIME-Version: 1.0\r\nContent-Type: text/html\r\n"
    notice, octets = made(Report(target(), REFUSED), content=mime + CONTENT + harm, body=body)
    _, (_, _, returned) = parsed(octets)
    assert returned.get_content_type() == "message/rfc822"
    [original] = returned.iter_parts()
    assert original["Subject"] == "x"
    assert original.get_payload(decode=True) == b"body\r\n" + harm
    assert octets.isascii()
    assert lines_are_short(octets)
    assert (notice.body, notice.smtputf8) == ("7BIT", False)


@pytest.mark.parametrize(
    ("subject", "read"),
    [
        ("Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe"),
        (b"word " * 300 + b"end", "word " * 300 + "end"),
    ],
)
def test_fields_that_not_every_host_takes_come_back_to_be_read(subject: bytes, read: str) -> None:
    content = CONTENT.replace(b"Subject: x", b"Subject: " + subject)
    _, octets = made(Report(target(), REFUSED), content=content)
    _, (_, _, returned) = parsed(octets)
    [original] = returned.iter_parts()
    assert original["Subject"] == read
    assert original.get_payload() == "body\r\n"
    assert octets.isascii()
    assert lines_are_short(octets)


@pytest.mark.parametrize("harm", HARM[3:])
def test_a_header_that_no_host_should_take_comes_back_quoted(harm: bytes) -> None:
    """RFC 6522 section 4."""
    header = b"X: %s\r\n" % harm
    _, octets = made(Report(target(), REFUSED), content=header + CONTENT)
    _, (_, _, returned) = parsed(octets)
    assert returned.get_content_type() == "text/rfc822-headers"
    assert returned.get_payload(decode=True) == header + CONTENT.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert octets.isascii()


def test_sender_in_utf8_gets_an_international_notification() -> None:
    """RFC 6533 section 4."""
    content = CONTENT.replace(b"Subject: x", "Subject: é".encode())
    notice, octets = made(
        Report(target("bücher@example.net", original="utf-8;bücher@example.com"), REFUSED),
        content=content,
        sender="é@example.org",
        smtputf8=True,
    )
    message, parts = parsed(octets)
    assert [part.get_content_type() for part in parts] == [
        *("text/plain", "message/global-delivery-status", "message/global"),
    ]
    assert (notice.smtputf8, notice.body) == (True, "8BITMIME")
    assert "Final-Recipient: utf-8; bücher@example.net".encode() in octets
    assert "Original-Recipient: utf-8; bücher@example.com".encode() in octets
    assert content in octets
    assert message["To"] == notice.targets[0].address == "é@example.org"


@pytest.mark.parametrize(
    ("address", "final"),
    [
        ("bücher@example.net", r"utf-8; b\x{FC}cher@example.net"),
        ("b@bücher.example", "rfc822; b@xn--bcher-kva.example"),
        ("ü+x@bücher.example", r"utf-8; \x{FC}\x{2B}x@xn--bcher-kva.example"),
    ],
)
def test_sender_in_ascii_hears_over_any_host_of_recipients_in_utf8(
    address: str, final: str
) -> None:
    """RFC 6533 section 3: utf-8-addr-xtext. People read the address as it is."""
    content = CONTENT.replace(b"Subject: x", "Subject: é".encode())
    notice, octets = made(Report(target(address), REFUSED), content=content, smtputf8=True)
    _, (people, _, returned) = parsed(octets)
    assert f"Final-Recipient: {final}\r\n".encode() in octets
    assert f"<{address}>" in people.get_content()
    [original] = returned.iter_parts()
    assert original["Subject"] == "\u00e9"
    assert octets.isascii()
    assert (notice.body, notice.smtputf8) == ("7BIT", False)


def test_sender_of_an_international_domain_hears_over_any_host() -> None:
    notice, octets = made(Report(target(), REFUSED), sender="a@bücher.example")
    assert parsed(octets)[0]["To"] == "a@xn--bcher-kva.example"
    assert octets.isascii()
    assert not notice.smtputf8
    assert notice.targets[0].address == "a@bücher.example"


@pytest.mark.parametrize(
    ("original", "field"),
    [
        ("utf-8;" + "😀" * 10, "utf-8; " + r"\x{1F600}" * 10),
        ("utf-8;" + "😀" * 123, None),
        ("utf-8;" + "a" * 494, "utf-8; " + "a" * 494),
    ],
    ids=["fits", "too long", "longest in ASCII"],
)
def test_original_recipient_is_said_whole_or_not_at_all(original: str, field: str | None) -> None:
    """RFC 3461 section 4.2 allows 500 octets, which in ASCII may be more than a line."""
    _, octets = made(Report(target(original=original), REFUSED), smtputf8=True)
    assert fields(octets)[1].get("Original-Recipient") == field
    assert lines_are_short(octets)


def lines_are_short(octets: bytes) -> bool:
    """Return whether every host must accept each line (RFC 5321 section 4.5.3.1.6)."""
    return all(
        len(line) <= 998 and not set(line) & set(b"\r\n\0") for line in octets.split(b"\r\n")
    )


# Text of strangers: of all characters, and of those that once made lines too long.
ANY_TEXT = st.text(max_size=400) | st.builds(
    lambda unit, count, rest: unit * count + rest,
    st.sampled_from(["a", " ", "\u00a0", "é", "\U0001f600", "\ud800", "\\", "=", "\t ", "0\x85"]),
    st.integers(1, 1200),
    st.text(max_size=300),
)
ANY_TARGET = st.builds(
    QueuedRecipient,
    kind=st.sampled_from(["local", "relay"]),
    address=ANY_TEXT,
    recipient=ANY_TEXT,
    original=ANY_TEXT | ANY_TEXT.map("utf-8;{}".format) | ANY_TEXT.map("rfc822;{}".format),
)
ANY_ENTRY = st.builds(
    entry,
    sender=ANY_TEXT.filter(bool),
    dsn_id=ANY_TEXT,
    dsn_return=ANY_TEXT | st.sampled_from(["FULL", "HDRS"]),
    body=st.sampled_from(["7BIT", "8BITMIME", "BINARYMIME"]),
    smtputf8=st.booleans(),
    arrived=st.floats(allow_nan=False, allow_infinity=False),
)


@given(
    st.sampled_from(["failed", "delayed"]),
    ANY_ENTRY,
    st.lists(st.builds(Report, ANY_TARGET, ANY_TEXT, ANY_TEXT), min_size=1, max_size=3),
    st.binary(max_size=300) | ANY_TEXT.map(lambda text: text.encode("utf-8", "replace")),
    ANY_TEXT,
)
def test_a_notification_can_be_made_of_anything_and_can_be_sent(
    action: Action, entry: QueueEntry, reports: list[Report], content: bytes, hostname: str
) -> None:
    found = notification(
        *(entry, Message("m", Content.of(content)), action, reports),
        hostname=hostname,
        now=1.0,
        until=entry.arrived,
    )
    assert found is not None
    notice, message = found
    with message.open() as reader:
        octets = reader.read()
    assert lines_are_short(octets)
    assert octets.isascii() or (notice.smtputf8 and notice.body == "8BITMIME")
    assert octets.isascii() or not entry.sender.rpartition("@")[0].isascii()
    parsed(octets)
    for name in (b"Reporting-MTA", b"Final-Recipient", b"Action", b"Status", b"Last-Attempt-Date"):
        assert b"\r\n%s: " % name in octets


@given(st.text(max_size=300), st.sampled_from(["", "mx.example.net"]), st.text(max_size=60))
def test_nothing_a_host_says_makes_a_field_or_a_part(reply: str, host: str, envid: str) -> None:
    reply = f"550 5.1.1 {reply}"
    _, octets = made(Report(target(), reply, host), dsn_id=envid)
    _, recipient = fields(octets)
    expected = {"Final-Recipient", "Action", "Status", "Diagnostic-Code", "Last-Attempt-Date"}
    assert set(recipient) == expected | ({"Remote-MTA"} if host else set())
    assert octets.isascii()
    assert lines_are_short(octets)


def test_a_reply_of_zeros_and_letters_has_short_lines() -> None:
    """Found by chance: this one had a line of 999 octets."""
    _, octets = made(
        Report(target(), "550 5.1.1 " + "0" * 37 + "\u00a0" + "\U00010100" * 100, "mx")
    )
    assert lines_are_short(octets)


@given(st.binary(max_size=300))
def test_whatever_is_returned_stays_in_its_part(content: bytes) -> None:
    _, octets = made(Report(target(), REFUSED), content=content)
    boundary = octets.split(b'boundary="')[1].split(b'"')[0]
    assert octets.count(b"\r\n--" + boundary) == 4
    returned = email.message_from_bytes(octets).get_payload(2)
    assert isinstance(returned, email.message.Message)
    if returned.get_content_type() != "message/rfc822":
        header = b"".join(Message("m", Content.of(content)).headers.raw_all())
        assert returned.get_payload(decode=True) == header


@given(st.binary(max_size=300))
def test_whatever_is_returned_reads_as_before(content: bytes) -> None:
    whole = b"MIME-Version: 1.0\r\n\r\n" + content
    _, octets = made(Report(target(), REFUSED), content=whole)
    [original] = parsed(octets)[1][2].iter_parts()
    assert original.get_payload(decode=True) == content


@pytest.mark.parametrize(
    ("reply", "action", "code"),
    [
        ("550 5.1.1 no such user", "failed", "5.1.1"),
        ("451 4.4.1 cannot connect", "failed", "5.0.0"),
        ("550 no", "failed", "5.0.0"),
        ("451 4.4.1 cannot connect", "delayed", "4.4.1"),
        ("250 ok", "relayed", "2.0.0"),
        ("", "expanded", "2.0.0"),
    ],
)
def test_status_fits_the_action(reply: str, action: Action, code: str) -> None:
    assert status(reply, action) == code


# What is told at once


HERE = Address("b", "example.org")
THERE = Address("b", "example.net")


def told(recipient: Recipient, *stored: Address) -> dict[str, str]:
    """Return action and final recipient of the notification of an accepted message."""
    message = Message("m", Content.of(CONTENT))
    notices = success_notices(entry(), message, [recipient], stored, "mx.example.org")
    found = {}
    for _, notice in notices:
        with notice.open() as reader:
            _, block = fields(reader.read())
        found[block["Action"]] = block["Final-Recipient"]
    return found


SUCCESS = frozenset({"SUCCESS", "FAILURE"})


@pytest.mark.parametrize(
    ("recipient", "stored", "expected"),
    [
        (Recipient(HERE, Local(), SUCCESS), (HERE,), {"delivered": "rfc822; b@example.org"}),
        (Recipient(HERE, Local(), SUCCESS), (), {}),
        (Recipient(THERE, Relay(), SUCCESS), (), {}),
        (
            Recipient(HERE, Several(Local(), Relay(THERE)), SUCCESS),
            (HERE,),
            {"expanded": "rfc822; b@example.org"},
        ),
        (Recipient(HERE, Local(), frozenset({"FAILURE"})), (HERE,), {}),
    ],
    ids=["stored", "waits", "relayed", "alias", "not asked for"],
)
def test_success_is_told_as_soon_as_it_is_certain(
    recipient: Recipient, stored: tuple[Address, ...], expected: dict[str, str]
) -> None:
    assert told(recipient, *stored) == expected


def test_targets_of_an_alias_tell_of_failures_and_name_the_alias() -> None:
    """RFC 3461 sections 4.2 and 5.2.7."""
    several = Recipient(HERE, Relay(THERE, Address("c", "example.net")), SUCCESS)
    assert [(each.notify, each.original) for each in QueuedRecipient.relays(several)] == [
        (("FAILURE",), "rfc822;b@example.org")
    ] * 2
    only = Recipient(HERE, Relay(THERE, HERE), frozenset({"SUCCESS"}))
    assert [each.notify for each in QueuedRecipient.relays(only)] == [("NEVER",)] * 2
    single = Recipient(HERE, Relay(THERE), SUCCESS, original="rfc822;x@example.com")
    assert [(each.notify, each.original) for each in QueuedRecipient.relays(single)] == [
        (("FAILURE", "SUCCESS"), "rfc822;x@example.com")
    ]


def test_rewritten_sender_is_the_targets_own_and_never_that_of_a_bounce() -> None:
    recipient = Recipient(HERE, Relay(THERE, sender=Address("srs", "example.org")))
    assert [each.sender for each in QueuedRecipient.relays(recipient)] == ["srs@example.org"]
    assert [each.sender for each in QueuedRecipient.relays(recipient, rewritable=False)] == [""]
