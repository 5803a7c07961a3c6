import email.utils
from datetime import UTC, datetime

import pytest

from minismtp import Address, Envelope, Recipient, Session
from minismtp.mail.session import TlsInfo
from minismtp.mail.trace_fields import date, received

TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")


def session(
    *,
    kind: str = "mx",
    peer: str = "192.0.2.1",
    helo: str = "client.example",
    esmtp: bool = True,
    tls: TlsInfo | None = None,
    login: str | None = None,
) -> Session:
    return Session(
        id="abc",
        listener="smtp",
        kind=kind,
        hostname="mx.example.org",
        peer=peer,
        helo=helo,
        esmtp=esmtp,
        tls=tls,
        login=login,
    )


def envelope(
    *recipients: str, smtputf8: bool = False, arrived: float = 1_000_000_000.9
) -> Envelope:
    return Envelope(
        id="abc.1",
        reverse_path=None,
        listener="smtp",
        peer="192.0.2.1",
        helo="client.example",
        login=None,
        arrived=arrived,
        smtputf8=smtputf8,
        recipients=[Recipient(Address.parse(recipient)) for recipient in recipients],
    )


@pytest.mark.parametrize(
    ("helo", "written"),
    [
        pytest.param("mx.example", b"mx.example", id="domain"),
        pytest.param("[192.0.2.1]", b"[192.0.2.1]", id="literal"),
        pytest.param("", b"unknown", id="none"),
        pytest.param("localhost.(none)", b'"localhost.(none)"', id="parentheses"),
        pytest.param("Anna's PC", b'"Anna\'s PC"', id="blank"),
        pytest.param('a"b\\c', rb'"a\"b\\c"', id="quote-and-backslash"),
        pytest.param("Müller", rb'"M\\xfcller"', id="utf-8"),
        pytest.param("a; b", b'"a; b"', id="semicolon"),
        pytest.param("字" * 255, b'"' + rb"\\u5b57" * 42 + rb'\\u5"', id="long"),
    ],
)
def test_name_that_is_no_domain_is_a_quoted_string(helo: str, written: bytes) -> None:
    # RFC 5322 section 3.6.7: a word; so it hides nothing that follows, and needs no UTF-8
    field = received(session(helo=helo), envelope("user@example.org"))
    assert field.startswith(b"Received: from " + written + b" ([192.0.2.1])\r\n")


def test_recipient_too_long_for_a_line_is_left_out() -> None:
    mailbox = str(Address('"' * 512, "x"))
    assert b"for <" not in received(session(), envelope(mailbox))
    assert b"for <" in received(session(), envelope(str(Address("a" * 512, "x"))))


def test_field_says_from_by_with_id_for_and_when() -> None:
    # RFC 5321 section 4.4
    assert received(session(tls=TLS), envelope("user@example.org")) == (
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org with ESMTPS id abc.1\r\n"
        b"\t(TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        b"\tfor <user@example.org>;\r\n"
        b"\tSun, 09 Sep 2001 01:46:40 +0000\r\n"
    )


def keyword(of: Session, *, smtputf8: bool = False) -> str:
    text = received(of, envelope(smtputf8=smtputf8)).decode()
    return text.partition(" with ")[2].split()[0]


@pytest.mark.parametrize(
    ("tls", "login", "suffix"),
    [(None, None, ""), (TLS, None, "S"), (None, "alice", "A"), (TLS, "alice", "SA")],
    ids=["plain", "S", "A", "SA"],
)
@pytest.mark.parametrize(
    ("kind", "base"), [("mx", "SMTP"), ("submission", "SMTP"), ("lmtp", "LMTP")]
)
def test_with_keyword(
    kind: str, base: str, tls: TlsInfo | None, login: str | None, suffix: str
) -> None:
    # RFC 3848; RFC 6531 section 4.3
    of = session(kind=kind, tls=tls, login=login)
    extended = "LMTP" if kind == "lmtp" else "ESMTP"
    assert keyword(of) == extended + suffix
    assert keyword(of, smtputf8=True) == f"UTF8{base}{suffix}"


def test_with_keyword_after_helo_is_smtp() -> None:
    assert keyword(session(esmtp=False)) == "SMTP"


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        ("192.0.2.1", "([192.0.2.1])"),
        ("2001:db8::1", "([IPv6:2001:db8::1])"),
        ("::1", "([IPv6:::1])"),
        ("fd00::1", "([IPv6:fd00::1])"),
        ("unix", "(unix)"),
    ],
)
def test_origin_is_an_address_literal(peer: str, origin: str) -> None:
    # RFC 5321 section 4.1.3
    first = received(session(peer=peer), envelope()).partition(b"\r\n")[0].decode()
    assert first == f"Received: from client.example {origin}"


def test_several_recipients_are_not_named() -> None:
    # RFC 5321 section 7.2: blind copies stay blind
    assert b"for <" not in received(session(), envelope("a@example.org", "b@example.org"))


def test_recipient_is_written_as_on_the_wire() -> None:
    assert b'for <"a b"@example.org>;' in received(session(), envelope('"a b"@example.org'))


@pytest.mark.parametrize(
    ("recipient", "named"),
    [
        ("j\u00fcrgen@example.org", ""),
        ("j\u00fcrgen@b\u00fccher.example", ""),
        ("jo@b\u00fccher.example", "\r\n\tfor <jo@xn--bcher-kva.example>"),
    ],
)
def test_recipient_outside_ascii_is_in_ascii_or_not_named(recipient: str, named: str) -> None:
    text = received(session(), envelope(recipient, smtputf8=True))
    assert f" id abc.1{named};\r\n\tSun, ".encode() in text
    assert text.isascii()


@pytest.mark.parametrize(
    "recipient", ["user@example.org", '"' + "a b" * 20 + '"@' + "x." * 95 + "org"]
)
def test_lines_are_folded_and_short_enough(recipient: str) -> None:
    # RFC 5322 section 2.1.1
    of = session(helo="h" * 255, tls=TLS, login="alice")
    lines = received(of, envelope(recipient)).split(b"\r\n")
    assert lines.pop() == b""
    assert all(len(line) <= 998 for line in lines)
    assert all(line.startswith(b"\t") for line in lines[1:])


@pytest.mark.parametrize(
    "seconds", [0.0, 951782399.0, 951782400.5, 1_000_000_000.0, 4_102_444_799.9]
)
def test_date_is_that_of_rfc_5322(seconds: float) -> None:
    parsed = email.utils.parsedate_to_datetime(date(seconds))
    assert parsed == datetime.fromtimestamp(int(seconds), UTC)
    weekday = date(seconds).partition(",")[0]
    assert weekday == parsed.strftime("%a")


def test_date_is_made_again_each_second() -> None:
    assert date(10.2) == date(10.9) != date(11.0)


@pytest.mark.parametrize(
    ("seconds", "year"), [(-1e9, 1970), (-1e300, 1970), (1e12, 9999), (1e300, 9999)]
)
def test_date_of_a_clock_that_went_wrong_is_one_that_rfc_5322_can_write(
    seconds: float, year: int
) -> None:
    assert f" {year} " in date(seconds)
