"""The offers of a host decide how a message is sent, or why it cannot be."""

from __future__ import annotations

from typing import Any, Final

import pytest

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.services.smtp_extensions import Extensions


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


def extensions(*keywords: str) -> Extensions:
    return Extensions("mx", dict(keyword.upper().partition(" ")[::2] for keyword in keywords))


EVERY: Final = extensions(
    *("size 1000", "8bitmime", "smtputf8", "dsn", "chunking", "binarymime", "requiretls"),
)


@pytest.mark.parametrize(
    ("offered", "content", "values", "command"),
    [
        (extensions(), b"x\r\n", {"body": "8BITMIME"}, ""),
        (extensions(), b"x\r\n", {"smtputf8": True, "dsn_return": "HDRS", "dsn_id": "a"}, ""),
        (EVERY, b"x\r\n", {}, " SIZE=3"),
        (EVERY, b"\xff\r\n", {}, " SIZE=3 BODY=8BITMIME"),
        (EVERY, b"x\r\n", {"body": "8BITMIME"}, " SIZE=3 BODY=8BITMIME"),
        (EVERY, b"x\r\n", {"body": "BINARYMIME"}, " SIZE=3 BODY=BINARYMIME"),
        (EVERY, b"x\r\n", {"smtputf8": True}, " SIZE=3 SMTPUTF8"),
        (EVERY, b"x\r\n", {"require_tls": True}, " SIZE=3 REQUIRETLS"),
        (EVERY, b"x\r\n", {"dsn_return": "FULL"}, " SIZE=3 RET=FULL"),
        (EVERY, b"x\r\n", {"dsn_id": "a+b="}, " SIZE=3 ENVID=a+2Bb+3D"),
    ],
)
def test_mail_has_what_the_host_offers_and_the_message_needs(
    offered: Extensions, content: bytes, values: dict[str, object], command: str
) -> None:
    said = offered.mail(entry(**values), message(content), wide=not content.isascii())
    assert said == f"MAIL FROM:<me@example.org>{command}"


def test_the_null_reverse_path_is_empty() -> None:
    assert extensions().mail(entry(sender=""), message()) == "MAIL FROM:<>"


@pytest.mark.parametrize(
    ("offered", "values", "parameters"),
    [
        (EVERY, {}, ""),
        (EVERY, {"notify": ("SUCCESS", "DELAY")}, " NOTIFY=DELAY,SUCCESS"),
        (EVERY, {"original": "rfc822;a+2Bb@y.org"}, " ORCPT=rfc822;a+2Bb@y.org"),
        (EVERY, {"original": "utf-8;\u00e9@y.org"}, " ORCPT=utf-8;\u00e9@y.org"),
        (extensions("dsn"), {"original": "utf-8;\u00e9@y.org"}, " ORCPT=utf-8;\\x{E9}@y.org"),
        (extensions(), {"notify": ("NEVER",), "original": "rfc822;a@y.org"}, ""),
    ],
)
def test_rcpt_passes_on_what_the_sender_wants_to_hear(
    offered: Extensions, values: dict[str, Any], parameters: str
) -> None:
    assert offered.rcpt("bob@example.net", **values) == f"RCPT TO:<bob@example.net>{parameters}"


def test_an_international_domain_travels_as_a_labels() -> None:
    assert EVERY.rcpt("b\u00f6b@b\u00fccher.example") == (
        "RCPT TO:<b\u00f6b@xn--bcher-kva.example>"
    )


EIGHT_BIT: Final = b"Subject: x\r\n\r\n\xc3\xa9\r\n"
WIDE_HEADER: Final = b"Subject: \xc3\xa9\r\n\r\nx\r\n"


@pytest.mark.parametrize(
    ("offered", "content", "values", "code"),
    [
        (EVERY, WIDE_HEADER, {"smtputf8": True, "require_tls": True}, ""),
        (EVERY, b"x" * 1001, {}, "552 5.3.4 "),
        (extensions("size"), b"x" * 1001, {}, ""),
        (extensions("size 0"), b"x" * 1001, {}, ""),
        (extensions("size " + "9" * 5000), b"x" * 1001, {}, ""),
        (extensions(), EIGHT_BIT, {}, ""),
        (extensions("8bitmime"), WIDE_HEADER, {"smtputf8": True}, "550 5.6.7 "),
        (extensions("8bitmime"), b"x\r\n", {"smtputf8": True}, ""),
        (extensions(), b"x\r\n", {"sender": "\u00e9@example.org", "smtputf8": True}, "550 5.6.7 "),
        (extensions(), b"x\r\n", {"sender": "a@b\u00fccher.example", "smtputf8": True}, ""),
    ],
)
def test_a_message_that_would_be_damaged_goes_back(
    offered: Extensions, content: bytes, values: dict[str, object], code: str
) -> None:
    waiting = entry(**values)
    assert str(offered.obstacle(waiting, message(content)) or "")[: len(code) or None] == code


@pytest.mark.parametrize(
    ("offered", "address", "code"),
    [
        (EVERY, "\u00e9@example.net", ""),
        (extensions(), "e@b\u00fccher.example", ""),
        (extensions(), "\u00e9@example.net", "550 5.6.7 "),
    ],
)
def test_a_recipient_whom_the_host_cannot_be_told_of_hears_so(
    offered: Extensions, address: str, code: str
) -> None:
    assert str(offered.obstacle_to(address) or "")[: len(code) or None] == code


LONG: Final = b"Subject: x\r\n\r\n" + b"x" * 999 + b"\r\n"


@pytest.mark.parametrize(
    ("offered", "content", "body", "takes"),
    [
        (extensions(), b"x\r\n", "7BIT", True),
        (extensions(), b"x\r\n", "8BITMIME", True),
        (extensions(), EIGHT_BIT, "7BIT", False),
        (extensions(), EIGHT_BIT, "8BITMIME", False),
        (extensions("8bitmime"), EIGHT_BIT, "7BIT", True),
        (extensions("8bitmime", "chunking"), LONG, "7BIT", False),
        (extensions("8bitmime"), LONG.replace(b"x\r\n", b"\r\n"), "7BIT", True),
        (extensions("8bitmime"), b"x\r\n", "BINARYMIME", False),
        (extensions("8bitmime", "binarymime"), b"x\r\n", "BINARYMIME", False),
        (extensions("chunking", "binarymime"), LONG, "BINARYMIME", True),
    ],
)
def test_a_message_goes_as_it_is_or_is_converted(
    offered: Extensions, content: bytes, body: str, takes: bool
) -> None:
    assert offered.takes(entry(body=body), Form.of(message(content))) is takes
