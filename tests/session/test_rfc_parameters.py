"""Parameters of MAIL and RCPT: RFC 1870, 3461, 6152, 6531, 6533, 8689 and 9422."""

from __future__ import annotations

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
from minismtp.config.types import ByteSize
from minismtp.testing import Dialogue

SMALL = Limits(message_size=ByteSize(100))


def test_ehlo_offers_the_configured_limits() -> None:
    limits = Limits(message_size=ByteSize(1000), recipients=7)
    lines = Dialogue(limits=limits).send("EHLO client.example").splitlines()
    assert "250-SIZE 1000" in lines
    assert "250 LIMITS RCPTMAX=7" in lines


@pytest.mark.parametrize(
    ("parameter", "code"),
    [
        (b"SIZE=100", SENDER),
        (b"SIZE=101", "552 5.3.4"),
        (b"SIZE=0", SENDER),
        (b"SIZE=" + b"9" * 20, "552 5.3.4"),
        (b"SIZE=" + b"9" * 21, "501 5.5.4"),
        (b"size=101", "552 5.3.4"),
        (b"SIZE=1k", "501 5.5.4"),
        (b"SIZE=-1", "501 5.5.4"),
    ],
    ids=["limit", "beyond", "zero", "20-digits", "21-digits", "lower-case", "unit", "negative"],
)
def test_declared_size_beyond_the_limit_is_552(parameter: bytes, code: str) -> None:
    # RFC 1870 section 6.1
    assert said(b"MAIL FROM:<> " + parameter + b"\r\n", limits=SMALL) == [code]


@pytest.mark.parametrize("chunked", [False, True], ids=["data", "bdat"])
@pytest.mark.parametrize(("size", "code"), [(100, OK), (101, "552 5.3.4")])
def test_content_beyond_the_limit_is_552_at_its_end(size: int, code: str, chunked: bool) -> None:
    # RFC 1870 section 6.3: whatever was declared
    content = EMPTY + b"x" * (size - len(EMPTY) - 2) + b"\r\n"
    body = b"BDAT %d LAST\r\n" % size + content if chunked else DATA + content + b".\r\n"
    expected = [*TAKEN[: 2 if chunked else 3], code, OK]
    assert said(MAIL + RCPT + body + NOOP, limits=SMALL) == expected


def test_wishes_for_dsns_are_kept_in_the_envelope() -> None:
    # RFC 3461 sections 4.1 to 4.4
    script = (
        b"MAIL FROM:<a@client.example> RET=HDRS ENVID=QQ+2B314\r\n"
        b"RCPT TO:<user1@example.org> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;Bob+40x.example\r\n"
        b"RCPT TO:<user2@example.org> NOTIFY=NEVER\r\nRCPT TO:<user3@example.org>\r\n"
    )
    envelope = hear(script + DATA + HI + b".\r\n", login="a").envelope
    assert (envelope.dsn_return, envelope.dsn_id) == ("HDRS", "QQ+314")
    assert [(recipient.notify, recipient.original) for recipient in envelope.recipients] == [
        (frozenset({"SUCCESS", "FAILURE", "DELAY"}), "rfc822;Bob+40x.example"),
        (frozenset({"NEVER"}), ""),
        (frozenset(), ""),
    ]


@pytest.mark.parametrize(
    ("parameter", "code"),
    [
        ("NOTIFY=NEVER", RECIPIENT),
        ("NOTIFY=success", RECIPIENT),
        ("NOTIFY=NEVER,FAILURE", "501 5.5.4"),
        ("NOTIFY=SUCCESS,NEVER", "501 5.5.4"),
        ("NOTIFY=", "501 5.5.4"),
        ("NOTIFY=FAILURE NOTIFY=DELAY", "501 5.5.4"),
        ("ORCPT=rfc822;a@x.example", RECIPIENT),
        ("ORCPT=a@x.example", "501 5.5.4"),
        ("ORCPT=rfc822;a+2", "501 5.5.4"),
        ("ORCPT=rfc822;a+2b", RECIPIENT),
        ("ORCPT=rfc822;a=b", RECIPIENT),
        ("ORCPT=rfc822;a+0Ax", "501 5.5.4"),
        (f"ORCPT=rfc822;{'a' * 2393}", RECIPIENT),
        (f"ORCPT=rfc822;{'a' * 2394}", "501 5.5.4"),
        ("RET=FULL", "555 5.5.4"),
    ],
)
def test_dsn_parameter_of_rcpt_is_checked(parameter: str, code: str) -> None:
    # RFC 3461 sections 4.1 and 4.2
    assert said(MAIL + f"RCPT TO:<u@x.example> {parameter}\r\n".encode()) == [SENDER, code]


@pytest.mark.parametrize(
    ("parameter", "code"),
    [
        ("RET=full", SENDER),
        ("RET=ALL", "501 5.5.4"),
        ("RET", "501 5.5.4"),
        ("RET=FULL RET=FULL", "501 5.5.4"),
        (f"ENVID={'x' * 500}", SENDER),
        (f"ENVID={'x' * 501}", "501 5.5.4"),
        ("ENVID=a+2b", SENDER),
        ("ENVID=a+2", "501 5.5.4"),
        ("ENVID=", "501 5.5.4"),
    ],
)
def test_dsn_parameter_of_mail_is_checked(parameter: str, code: str) -> None:
    # RFC 3461 sections 4.3 and 4.4
    assert said(f"MAIL FROM:<> {parameter}\r\n".encode()) == [code]


@pytest.mark.parametrize(
    ("utf8", "original", "code"),
    [
        ("", r"utf-8;j\x{FC}rgen@x.example", RECIPIENT),
        (" SMTPUTF8", "utf-8;jürgen@x.example", RECIPIENT),
        ("", "utf-8;jürgen@x.example", "553 5.6.7"),
        (" SMTPUTF8", "rfc822;jürgen@x.example", RECIPIENT),
    ],
    ids=["xtext", "unitext-with-smtputf8", "unitext-without-smtputf8", "rfc822-with-smtputf8"],
)
def test_original_recipient_in_utf_8_needs_smtputf8(utf8: str, original: str, code: str) -> None:
    # RFC 6533 section 3
    script = f"MAIL FROM:<>{utf8}\r\nRCPT TO:<u@x.example> ORCPT={original}\r\n"
    assert said(script.encode()) == [SENDER, code]


@pytest.mark.parametrize("body", ["7BIT", "8BITMIME", "BINARYMIME"])
def test_body_is_kept_in_the_envelope(body: str) -> None:
    # RFC 6152 section 2; RFC 3030 section 3
    script = f"MAIL FROM:<> BODY={body}\r\n".encode() + RCPT + b"BDAT 0 LAST\r\n"
    assert hear(script).envelope.body == body


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("MAIL FROM:<é@x.example>\r\n", ["553 5.6.7"]),
        ("MAIL FROM:<a@é.example>\r\n", ["553 5.6.7"]),
        ("MAIL FROM:<>\r\nRCPT TO:<é@x.example>\r\n", [SENDER, "553 5.6.7"]),
        ("MAIL FROM:<>\r\nRCPT TO:<a@é.example>\r\n", [SENDER, "553 5.6.7"]),
        ("MAIL FROM:<é@é.example> SMTPUTF8\r\nRCPT TO:<é@é.example>\r\n", [SENDER, RECIPIENT]),
        ("MAIL FROM:<a@x.example> SMTPUTF8\r\n", [SENDER]),
        ("MAIL FROM:<> SMTPUTF8=yes\r\n", ["501 5.5.4"]),
        ("MAIL FROM:<> SMTPUTF8 SMTPUTF8\r\n", ["501 5.5.4"]),
        (
            "RSET\r\nMAIL FROM:<> SMTPUTF8\r\nRSET\r\nMAIL FROM:<é@x>\r\n",
            [OK, SENDER, OK, "553 5.6.7"],
        ),
        (f"MAIL FROM:<> SMTPUTF8\r\nRCPT TO:<{'é' * 256}@x.example>\r\n", [SENDER, RECIPIENT]),
        (f"MAIL FROM:<> SMTPUTF8\r\nRCPT TO:<{'é' * 257}@x.example>\r\n", [SENDER, "501 5.1.3"]),
        ("EHLO é.example\r\n", ["250"]),
    ],
)
def test_addresses_outside_ascii_need_smtputf8(script: str, expected: list[str]) -> None:
    # RFC 6531 sections 3.1, 3.3, 3.4, 3.5 and 3.7.1
    assert said(script.encode()) == expected


def test_replies_are_ascii_whatever_was_said() -> None:
    # RFC 6531 section 3.7.4
    heard = hear("MAIL FROM:<é@x.example> É=1\r\nVRFY é\r\nHELP é\r\n".encode())
    assert heard.text.isascii()


def test_requiretls_is_kept_inside_tls_and_530_outside() -> None:
    # RFC 8689 sections 2 and 4
    script = b"MAIL FROM:<> REQUIRETLS\r\n"
    assert said(script) == ["530 5.7.10"]
    heard = hear(script + RCPT + DATA + b".\r\n", tls=True)
    assert heard.envelope.require_tls


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_requiretls_is_offered_inside_tls_only(tls: bool) -> None:
    # RFC 8689 section 2
    assert ("REQUIRETLS" in hear(b"EHLO c.example\r\n", tls=tls).text) is tls


def test_limits_keyword_says_what_is_so() -> None:
    # RFC 9422 section 3
    heard = hear(b"EHLO d.example\r\n" + MAIL + RCPT * 4, limits=Limits(recipients=3))
    assert "250-LIMITS RCPTMAX=3\r\n" in heard.text or "250 LIMITS RCPTMAX=3\r\n" in heard.text
    assert heard.codes[1:] == [SENDER, RECIPIENT, RECIPIENT, RECIPIENT, "452 4.5.3"]
