"""RFC 2033: LMTP, with a reply for each recipient."""

from __future__ import annotations

import pytest
from client_script import (
    DATA,
    HI,
    MAIL,
    NOBODY,
    NOOP,
    OK,
    RCPT,
    RECIPIENT,
    SENDER,
    THREE,
    code,
    said,
)
from stub_plugins import Judge, OnlyUser, Storage

from minismtp import (
    Defer,
    Reject,
)
from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.testing import Dialogue, Mailroom

TWO = MAIL + RCPT + b"RCPT TO:<user2@example.org>\r\n"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(b"EHLO c.example\r\nHELO c.example\r\n", ["500", "500"], id="ehlo-is-500"),
        pytest.param(MAIL + DATA, [SENDER, "503 5.5.1"], id="data-without-rcpt-is-503"),
        pytest.param(
            MAIL + NOBODY + DATA, [SENDER, "550 5.1.1", "503 5.5.1"], id="no-valid-recipient-is-503"
        ),
        pytest.param(
            TWO + DATA + HI + b".\r\n" + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, "354", OK, OK, OK],
            id="a-reply-for-each-recipient",
        ),
        pytest.param(
            TWO + NOBODY + DATA + HI + b".\r\n" + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, "550 5.1.1", "354", OK, OK, OK],
            id="no-reply-for-a-refused-recipient",
        ),
        pytest.param(
            MAIL + RCPT + RCPT + DATA + HI + b".\r\n" + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, "354", OK, OK, OK],
            id="one-for-each-rcpt-even-of-one-mailbox",
        ),
        pytest.param(
            TWO + b"BDAT 0\r\nBDAT 2 LAST\r\nhi" + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, OK, OK, OK, OK],
            id="for-the-last-chunk-too",
        ),
        pytest.param(
            TWO + b"BDAT 1001\r\n" + b"x" * 1001 + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, "552 5.3.4", OK],
            id="one-for-a-refused-chunk",
        ),
        pytest.param(
            TWO + DATA + b"a\nb\r\n.\r\n" + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, "354", "550 5.6.0", "550 5.6.0", OK],
            id="for-a-refused-message-too",
        ),
    ],
)
def test_lmtp_speaks_as_its_rfc_says(script: bytes, expected: list[str]) -> None:
    # RFC 2033 sections 4.1 and 4.2
    assert (
        said(script, OnlyUser(), kind="lmtp", limits=Limits(message_size=ByteSize(1000)))
        == expected
    )


def test_lhlo_is_for_lmtp_only() -> None:
    # RFC 2033 section 4.1
    assert said(b"LHLO c.example\r\n") == ["500"]


def test_lmtp_answers_for_each_recipient_in_order() -> None:
    # RFC 2033 section 4.2
    storage = Storage(refusals={"b@example.org": Defer("full", code=452, enhanced="4.2.2")})
    dialogue = Dialogue(storage, Mailroom(), kind="lmtp")
    replies = dialogue.mail("x", to=THREE).splitlines()
    assert [code(reply) for reply in replies] == ["250 2.0.0", "452 4.2.2", "250 2.0.0"]
    assert storage.asked == [*THREE]
    assert dialogue.count("messages_total", listener="test", outcome="stored") == 1


def test_lmtp_refusal_of_the_whole_message_is_said_for_each_recipient() -> None:
    judge = Judge(hook="on_message", verdict=Reject("spam"))
    reply = Dialogue(judge, Mailroom(), kind="lmtp").mail("x", to=THREE)
    assert reply.splitlines() == ["550 5.7.1 spam"] * 3
