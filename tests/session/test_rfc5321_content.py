"""RFC 5321 sections 4.4, 4.5 and 6.3: content, trace fields, sizes and loops."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

import pytest
from client_script import (
    DATA,
    EMPTY,
    HI,
    MAIL,
    NOOP,
    OK,
    RCPT,
    RECIPIENT,
    SENDER,
    TAKEN,
    hear,
    said,
)

from minismtp.config import Limits

DOMAIN = ".".join(["d" * 60] * 4)  # 243 octets


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param(f"RCPT TO:<{'u' * 512}@x.example>", RECIPIENT, id="local-part-of-512"),
        pytest.param(f"RCPT TO:<{'u' * 513}@x.example>", "501 5.1.3", id="local-part-of-513"),
        pytest.param(f"MAIL FROM:<{'u' * 513}@x.example>", "501 5.1.7", id="sender-of-513"),
        pytest.param(f"RCPT TO:<{'u' * 512}@{DOMAIN}.{'d' * 11}>", RECIPIENT, id="domain-of-255"),
        pytest.param(f"RCPT TO:<u@{DOMAIN}.{'d' * 12}>", "501 5.1.3", id="domain-of-256"),
        pytest.param(f"EHLO {'e' * 256}", "250", id="name-of-256"),
        pytest.param("NOOP ".ljust(2046, "x"), OK, id="line-of-2048"),
        pytest.param("NOOP ".ljust(2047, "x"), "500 5.5.2", id="line-of-2049"),
        pytest.param("EHLO ".ljust(2047, "x"), "500", id="ehlo-of-2049"),
        pytest.param("RCPT TO:<user@x.example>".ljust(4094), RECIPIENT, id="rcpt-of-4096"),
        pytest.param("RCPT TO:<user@x.example>".ljust(4095), "500 5.5.2", id="rcpt-of-4097"),
        pytest.param("NOOP ".ljust(13_000, "x"), "500 5.5.2", id="line-of-13002"),
    ],
)
def test_size_limit_holds_at_its_edge_and_the_session_stays_in_step(
    command: str, code: str
) -> None:
    # sections 4.5.3.1.1 to 4.5.3.1.4 and 4.5.3.1.9
    assert said(MAIL + command.encode() + b"\r\n" + NOOP) == [SENDER, code, OK]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        pytest.param(b"x" * 998, OK, id="1000-octets"),
        pytest.param(b"x" * 999, "500 5.6.0", id="1001-octets"),
        pytest.param(b"." * 999, OK, id="doubled-dot-not-counted"),
        pytest.param(b"." * 1000, "500 5.6.0", id="doubled-dot-of-1001"),
        pytest.param(b"x" * 100_000, "500 5.6.0", id="100002-octets"),
    ],
)
def test_text_line_beyond_the_configured_length_is_500_after_the_dot(
    line: bytes, code: str
) -> None:
    # section 4.5.3.1.6
    script = MAIL + RCPT + DATA + b"Subject: x\r\n\r\n" + line + b"\r\n.\r\n" + NOOP
    limits = Limits(line_length=1000)
    heard = hear(script, limits=limits)
    assert heard.codes == [*TAKEN[:3], code, OK]
    assert hear(script, cut=7, limits=limits).codes == heard.codes
    assert len(heard.stored) == (code == OK)


@pytest.mark.parametrize("length", [998, 999, 2000, 65_536, 1_000_000])
@pytest.mark.parametrize("where", [b"Subject: x\r\n\r\n%s\r\n", b"References: %s\r\n\r\nx\r\n"])
def test_text_lines_of_any_length_are_taken(length: int, where: bytes) -> None:
    # section 4.5.3.1: the lengths are minimums
    content = where % (b"x" * length)
    by_data = MAIL + RCPT + DATA + content + b".\r\n"
    by_bdat = MAIL + RCPT + b"BDAT %d LAST\r\n" % len(content) + content
    for script in (by_data, by_bdat):
        heard = hear(script, cut=997)
        assert heard.codes[-1] == OK
        assert heard.content == content


def test_recipient_beyond_the_limit_is_452_and_the_others_are_served() -> None:
    # sections 4.5.3.1.8 and 4.5.3.1.10
    many = [b"RCPT TO:<user%d@example.org>\r\n" % number for number in range(102)]
    heard = hear(MAIL + b"".join(many) + DATA + HI + b".\r\n")
    assert heard.codes == [SENDER, *[RECIPIENT] * 100, "452 4.5.3", "452 4.5.3", "354", OK]
    assert sorted(heard.stored) == sorted(f"user{number}@example.org" for number in range(100))


def test_default_limits_are_not_below_the_minimums() -> None:
    # sections 4.5.3.1.7, 4.5.3.1.8, 4.5.3.2.7 and 6.3
    limits = Limits()
    assert limits.message_size >= 64 * 1024
    assert limits.recipients >= 100
    assert limits.command_timeout >= timedelta(minutes=5)
    assert limits.data_timeout >= timedelta(minutes=10)
    assert limits.hops >= 100


def test_content_may_hold_any_octet() -> None:
    # section 4.5.2; RFC 6152: whether BODY=8BITMIME was said or not
    octets = bytes(set(range(256)) - {10, 13})
    heard = hear(MAIL + RCPT + DATA + EMPTY + octets + b"\r\n.\r\n")
    assert heard.codes == TAKEN
    assert heard.content == EMPTY + octets + b"\r\n"


def test_dots_are_taken_off_where_the_client_put_them() -> None:
    # section 4.5.2
    heard = hear(MAIL + RCPT + DATA + EMPTY + b"..\r\n...\r\n.a\r\na.\r\n.\r\n")
    assert heard.content == EMPTY + b".\r\n..\r\na\r\na.\r\n"


@pytest.mark.parametrize(("content", "stored"), [(b".\r\n", b""), (b"\r\n.\r\n", b"\r\n")])
def test_empty_content_is_a_message(content: bytes, stored: bytes) -> None:
    # section 4.1.1.4: the CRLF of DATA is the first of the end
    heard = hear(MAIL + RCPT + DATA + content)
    assert heard.codes == said(MAIL + RCPT + DATA + content) == TAKEN
    assert heard.content == stored


def test_bare_newline_is_550_and_nothing_is_stored() -> None:
    # sections 2.3.8 and 4.1.1.4
    script = MAIL + RCPT + DATA + EMPTY + b"a\nb\r\n.\r\n" + NOOP
    assert said(script) == [*TAKEN[:3], "550 5.6.0", OK]
    assert not hear(script).stored


def test_message_is_judged_by_its_lines_after_their_ends_were_fixed() -> None:
    # section 4.5.3.1.6, where `bare_newline = "fix"` makes line ends of bare LF and CR
    lines = b"x" * 400
    content = EMPTY + b"\n".join([lines] * 5) + b"\r\n"
    heard = hear(MAIL + RCPT + DATA + content + b".\r\n", change={"fix_newlines": True})
    assert heard.codes == TAKEN
    assert heard.content == content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    long = EMPTY + b"a\n" + b"x" * 999 + b"\r\n.\r\n"
    script = MAIL + RCPT + DATA + long
    limits = Limits(line_length=1000)
    assert said(script, change={"fix_newlines": True}, limits=limits) == [*TAKEN[:3], "500 5.6.0"]


@pytest.mark.parametrize(("hops", "code"), [(100, OK), (101, "554 5.4.6")])
def test_message_that_went_round_too_often_is_554(hops: int, code: str) -> None:
    # section 6.3
    trace = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n" * hops
    assert hear(MAIL + RCPT + DATA + trace + HI + b".\r\n").codes == [*TAKEN[:3], code]


def test_fields_in_the_body_are_no_hops() -> None:
    # section 6.3
    body = b"Received: x\r\n" * 200
    assert hear(MAIL + RCPT + DATA + HI + body + b".\r\n").codes == TAKEN


KEYWORDS: Final = (
    *("ESMTP", "ESMTPS", "ESMTPA", "ESMTPSA", "LMTP", "LMTPS", "LMTPA", "LMTPSA"),
    *("UTF8SMTP", "UTF8SMTPS", "UTF8SMTPA", "UTF8SMTPSA"),
    *("UTF8LMTP", "UTF8LMTPS", "UTF8LMTPA", "UTF8LMTPSA"),
)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_received_field_says_with_which_protocol(keyword: str) -> None:
    # section 4.4; RFC 3848; RFC 6531 section 4.3
    suffix = keyword.partition("MTP")[2]
    parameter = b" SMTPUTF8\r\n" if keyword.startswith("UTF8") else b"\r\n"
    heard = hear(
        MAIL.replace(b"\r\n", parameter) + RCPT + DATA + HI + b".\r\n",
        kind="lmtp" if "LMTP" in keyword else "mx",
        tls="S" in suffix,
        login="alice" if "A" in suffix else None,
    )
    [[message]] = heard.stored.values()
    assert re.findall(rb"\tby mx\.example\.org with (\S+) id ", message) == [keyword.encode()]


def test_received_fields_stay_in_their_order_below_ours() -> None:
    # section 4.4: never changed, never reordered
    old = b"Received: from b by c; x\r\nReceived: from a by b; x\r\n"
    heard = hear(MAIL + RCPT + DATA + old + HI + b".\r\n")
    [[message]] = heard.stored.values()
    assert message.startswith(b"Received: from client.example (")
    assert message.endswith(b"\r\n" + old + HI)
