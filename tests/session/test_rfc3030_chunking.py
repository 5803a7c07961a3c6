"""RFC 3030: BDAT and BINARYMIME."""

from __future__ import annotations

import tracemalloc

import pytest
from client_script import (
    DATA,
    EMPTY,
    MAIL,
    MESSAGE,
    NOOP,
    OK,
    RCPT,
    RECIPIENT,
    SENDER,
    TAKEN,
    at_data,
    hear,
    said,
)

from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.smtp.dot_stuffing import fix_newlines
from minismtp.testing import Dialogue, Mailroom

ANY = bytes(range(256)) + b"\r\n.\r\nQUIT\r\n.\n.\r\n..\r\n\r\r\n"
SMALL = Limits(message_size=ByteSize(100))


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize("body", [b"", b" BODY=8BITMIME", b" BODY=BINARYMIME"])
def test_chunks_are_stored_octet_for_octet(body: bytes, cut: int) -> None:
    # RFC 3030 section 2: no dots; section 3: bare CR and LF, and any lines, in BINARYMIME only
    binary = b"BINARY" in body
    content = EMPTY + (ANY if binary else fix_newlines(ANY)) + b"x" * (5000 if binary else 998)
    script = MAIL.replace(b"\r\n", body + b"\r\n") + RCPT
    for at in range(0, len(content), 999):
        piece = content[at : at + 999]
        script += b"BDAT %d\r\n" % len(piece) + piece
    heard = hear(script + b"BDAT 0 LAST\r\n", cut=cut)
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


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(b"BDAT 6\r\nQUIT\r\n" + NOOP, ["503 5.5.1", OK], id="without-mail"),
        pytest.param(b"BDAT 6 LAST\r\nQUIT\r\n" + NOOP, ["503 5.5.1", OK], id="last-without-mail"),
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


def test_chunks_after_a_refused_one_are_503_and_their_octets_no_commands() -> None:
    # RFC 3030 section 2
    script = b"BDAT 101\r\n" + b"x" * 101 + b"BDAT 6\r\nQUIT\r\n" + b"BDAT 0 LAST\r\n" + MESSAGE
    expected = [SENDER, RECIPIENT, "552 5.3.4", "503 5.5.1", "503 5.5.1", *TAKEN]
    assert said(MAIL + RCPT + script, limits=SMALL) == expected


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
