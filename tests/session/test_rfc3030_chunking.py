"""RFC 3030: BDAT and BINARYMIME."""

from __future__ import annotations

import tracemalloc

import pytest
from client_script import (
    DATA,
    EMPTY,
    MAIL,
    MAIL_FROM,
    MESSAGE,
    NOOP,
    OK,
    RCPT,
    RCPT_TO,
    RECIPIENT,
    SENDER,
    TAKEN,
    at_data,
    code,
    greeted,
    hear,
    said,
)

from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.smtp.dot_stuffing import fix_newlines
from minismtp.testing import Dialogue, Mailroom

ANY = bytes(range(256)) + b"\r\n.\r\nQUIT\r\n.\n.\r\n..\r\n\r\r\n"
SMALL = Limits(message_size=ByteSize(100))


@pytest.mark.parametrize("body", [b"", b" BODY=8BITMIME", b" BODY=BINARYMIME"])
def test_chunks_are_stored_octet_for_octet(body: bytes) -> None:
    # RFC 3030 section 2: no dots; section 3: bare CR and LF, and any lines, in BINARYMIME only
    binary = b"BINARY" in body
    content = EMPTY + (ANY if binary else fix_newlines(ANY)) + b"x" * (5000 if binary else 998)
    script = MAIL.replace(b"\r\n", body + b"\r\n") + RCPT
    for at in range(0, len(content), 999):
        piece = content[at : at + 999]
        script += b"BDAT %d\r\n" % len(piece) + piece
    heard = hear(script + b"BDAT 0 LAST\r\n")
    assert set(heard.codes[2:]) == {OK}
    assert heard.content == content


def test_chunks_are_answered_one_by_one_and_the_last_with_the_message() -> None:
    # RFC 3030 section 2
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    assert dialogue.send_raw(b"BDAT 5\r\na\r\nb\r") == b"250 2.0.0 chunk received\r\n"
    assert dialogue.send_raw(b"BDAT 4 LAST\r\n\n.\r\n") == (
        f"250 2.0.0 message accepted as {dialogue.session.id}.1\r\n".encode()
    )
    assert mailroom.stored["user@example.org"][0].endswith(b"+0000\r\n\r\na\r\nb\r\n.\r\n")


def test_chunk_may_come_octet_by_octet() -> None:
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    wire = b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"
    replies = b"".join(dialogue.send_raw(bytes([octet])) for octet in wire).splitlines()
    assert [reply[:9] for reply in replies] == [b"250 2.0.0", b"250 2.0.0"]
    assert mailroom.stored["user@example.org"][0].endswith(b"+0000\r\n\r\nQUIT\r\n")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(b"BDAT 6 LAST\r\nQUIT\r\n" + NOOP, ["503 5.5.1", OK], id="without-mail"),
        pytest.param(
            MAIL + b"BDAT 6\r\nQUIT\r\n" + NOOP, [SENDER, "503 5.5.1", OK], id="without-rcpt"
        ),
        pytest.param(
            MAIL + RCPT + b"BDAT 2\r\nhi" + DATA + b"BDAT 0 LAST\r\n",
            [SENDER, RECIPIENT, OK, "503 5.5.1", OK],
            id="mixed-with-data",
        ),
        pytest.param(
            MAIL + RCPT + b"BDAT 2\r\nhi" + RCPT + MAIL + b"BDAT 0 LAST\r\n",
            [SENDER, RECIPIENT, OK, "503 5.5.1", "503 5.5.1", OK],
            id="rcpt-and-mail-between-chunks",
        ),
        pytest.param(
            MAIL + RCPT + b"BDAT 2\r\nhi" + b"RSET\r\n" + b"BDAT 0 LAST\r\n",
            [SENDER, RECIPIENT, OK, OK, "503 5.5.1"],
            id="rset-between-chunks",
        ),
        pytest.param(
            MAIL + RCPT + b"BDAT 0\r\nBDAT 0\r\nBDAT 0 LAST\r\n",
            [SENDER, RECIPIENT, OK, OK, OK],
            id="chunks-of-nothing",
        ),
        pytest.param(
            MAIL + RCPT + b"BDAT 0 LAST\r\n" + MESSAGE,
            [SENDER, RECIPIENT, OK, *TAKEN],
            id="last-of-nothing-alone",
        ),
        pytest.param(
            MAIL + RCPT + b"BDAT x\r\n" + NOOP, [SENDER, RECIPIENT, "501 5.5.4"], id="no-size"
        ),
        pytest.param(
            b"MAIL FROM:<> BODY=BINARYMIME\r\n" + RCPT + DATA + b"BDAT 2 LAST\r\nhi",
            [SENDER, RECIPIENT, "503 5.5.1", OK],
            id="binarymime-and-data",
        ),
    ],
)
def test_chunks_are_answered_as_their_rfc_says(script: bytes, expected: list[str]) -> None:
    # RFC 3030 sections 2 and 3
    assert said(script) == expected


@pytest.mark.parametrize("last", ["", " LAST"])
def test_chunk_without_a_transaction_is_consumed(last: str) -> None:
    dialogue = greeted(Dialogue(Mailroom()))
    replies = dialogue.send_raw(f"BDAT 6{last}\r\nQUIT\r\nNOOP\r\n".encode()).splitlines()
    assert [reply[:9] for reply in replies] == [b"503 5.5.1", b"250 2.0.0"]


def test_chunks_after_a_refused_one_are_503_and_their_octets_no_commands() -> None:
    # RFC 3030 section 2
    script = b"BDAT 101\r\n" + b"x" * 101 + b"BDAT 6\r\nQUIT\r\n" + b"BDAT 0 LAST\r\n" + MESSAGE
    expected = [SENDER, RECIPIENT, "552 5.3.4", "503 5.5.1", "503 5.5.1", *TAKEN]
    assert said(MAIL + RCPT + script, limits=SMALL) == expected


def test_chunks_after_a_refused_one_are_consumed() -> None:
    # RFC 3030 section 2: 5yz ends the transaction
    mailroom = Mailroom()
    limits = Limits(message_size=ByteSize(8))
    dialogue = at_data(Dialogue(mailroom, limits=limits))
    wire = b"BDAT 6\r\nabcdefBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"
    codes = [code(line) for line in dialogue.send_raw(wire).decode().splitlines()]
    assert codes == ["250 2.0.0", "552 5.3.4", "503 5.5.1", "250 2.0.0"]
    assert not mailroom.stored
    assert dialogue.send(MAIL_FROM).startswith("250")


def test_chunk_of_2_to_the_63_needs_little_memory() -> None:
    # RFC 3030 section 2: the octets are consumed though the message is too big
    limits = Limits(message_size=ByteSize(1024 * 1024))
    dialogue = Dialogue(Mailroom(), limits=limits)
    dialogue.send("EHLO c.example")
    dialogue.send_raw(MAIL + RCPT)
    piece = b"x" * 65536
    tracemalloc.start()
    output = dialogue.send_raw(b"BDAT 9223372036854775808 LAST\r\n")
    for _ in range(200):
        output += dialogue.send_raw(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert output == b""
    assert peak < 2 * 1024 * 1024


def test_binarymime_needs_bdat() -> None:
    # RFC 3030 section 3
    mailroom = Mailroom()
    dialogue = greeted(Dialogue(mailroom))
    dialogue.send(f"{MAIL_FROM} BODY=BINARYMIME")
    dialogue.send(RCPT_TO)
    assert dialogue.send("DATA") == "503 5.5.1 BINARYMIME needs BDAT"
    assert dialogue.send_raw(b"BDAT 5 LAST\r\n\r\n\0\n\xff").startswith(b"250")
    assert mailroom.stored["user@example.org"][0].endswith(b"\r\n\0\n\xff")
