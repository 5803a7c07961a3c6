"""What the RFCs ask of a server, from octets to codes; docs/conformance.md names each clause.

Every script is said whole and again octet by octet: packet boundaries must not matter.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import re
import ssl
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack

import pytest
import trustme

from minismtp import (
    Address,
    Credentials,
    Envelope,
    Message,
    Recipient,
    Reject,
    hookimpl,
    plugin,
)
from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.smtp.dot_stuffing import fix_newlines
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Client, Launch, Running

ROOT: Final = Path(__file__).parents[1]

Kind = Literal["mx", "submission", "lmtp"]
MAIL = b"MAIL FROM:<a@client.example>\r\n"
RCPT = b"RCPT TO:<user@example.org>\r\n"
NOBODY = b"RCPT TO:<nobody@example.org>\r\n"
DATA = b"DATA\r\n"
NOOP = b"NOOP\r\n"
EMPTY = b"Subject: x\r\n\r\n"
HI = EMPTY + b"Hi\r\n"
MESSAGE = MAIL + RCPT + DATA + HI + b".\r\n"
SENDER, RECIPIENT, OK = "250 2.1.0", "250 2.1.5", "250 2.0.0"
TAKEN = [SENDER, RECIPIENT, "354", OK]


@plugin
class Clerk:
    """Keeps the envelope of every message, and its content as it came."""

    envelopes: list[Envelope] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        self.envelopes.append(envelope)
        with message.content.open() as content:
            self.contents.append(content.read())


@plugin
class OnlyUser:
    """Refuses every recipient but those called `user`."""

    @hookimpl
    def on_rcpt(self, recipient: Recipient) -> None:
        if not recipient.address.local.lower().startswith("user"):
            raise Reject("no such user", enhanced="5.1.1")


@plugin
class Doorkeeper:
    """Lets in whoever knows the secret or holds the token."""

    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN", "OAUTHBEARER")

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        known = credentials.password == "secret" or credentials.token == "t0ken"  # noqa: S105
        return credentials.username if known else None


@dataclass
class Heard:
    """What came of a script."""

    text: str
    clerk: Clerk
    stored: dict[str, list[bytes]]

    @property
    def codes(self) -> list[str]:
        """The code and the enhanced code of each reply."""
        last = r"^([2-5]\d\d) (?:([245]\.\d{1,3}\.\d{1,3}) )?.*\r$"
        return [
            " ".join(filter(None, codes)) for codes in re.findall(last, self.text, re.MULTILINE)
        ]

    @property
    def envelope(self) -> Envelope:
        """The envelope of the only message."""
        [envelope] = self.clerk.envelopes
        return envelope

    @property
    def content(self) -> bytes:
        """The content of the only message."""
        [content] = self.clerk.contents
        return content


class How(TypedDict, total=False):
    """What a Dialogue may be told."""

    kind: Kind
    login: str | None
    tls: bool
    limits: Limits


def hear(
    script: bytes,
    *plugins: object,
    cut: int = 0,
    change: dict[str, Any] | None = None,
    **how: Unpack[How],
) -> Heard:
    """Say a script, in pieces of `cut` octets, in a session that has greeted.

    `how` is for the Dialogue; `change` replaces parts of its service.
    """
    mailroom, clerk = Mailroom(), Clerk()
    dialogue = Dialogue(clerk, *plugins, mailroom, **how)
    if change:
        service = replace(dialogue.service, **change)
        tls, login = how.get("tls", False), how.get("login")
        dialogue = Dialogue(service=service, tls=tls, login=login)
    dialogue.send("LHLO c.example" if dialogue.service.lmtp else "EHLO c.example")
    size = cut or max(len(script), 1)
    pieces = [script[at : at + size] for at in range(0, len(script), size)]
    output = b"".join([dialogue.send_raw(piece) for piece in pieces])
    return Heard(output.decode("ascii"), clerk, mailroom.stored)


def said(
    script: bytes, *plugins: object, change: dict[str, Any] | None = None, **how: Unpack[How]
) -> list[str]:
    """Return the codes that a script is answered with: the same however it is cut."""
    whole = hear(script, *plugins, change=change, **how)
    bytewise = hear(script, *plugins, cut=1, change=change, **how)
    assert bytewise.codes == whole.codes
    assert bytewise.clerk.contents == whole.clerk.contents
    return whole.codes


# RFC 5321 section 2: the model -----------------------------------------------------------------


def test_case_of_verbs_and_keywords_does_not_matter() -> None:
    # section 2.4
    script = b"mAiL fRoM:<a@client.example> sIzE=10 bOdY=8bitmime\r\nrcpt tO:<user@example.org>\r\n"
    assert said(script + b"dAtA\r\n" + HI + b".\r\nnOoP\r\n") == [*TAKEN, OK]


def test_case_of_the_local_part_is_kept_and_that_of_the_domain_is_not() -> None:
    # section 2.4
    heard = hear(
        b"MAIL FROM:<MiXed@Client.EXAMPLE>\r\nRCPT TO:<UsEr@EXAMPLE.org>\r\n" + DATA + b".\r\n"
    )
    assert heard.envelope.reverse_path == Address("MiXed", "client.example")
    assert list(heard.stored) == ["UsEr@example.org"]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\n\r"], ids=repr)
def test_only_crlf_ends_a_command(end: bytes) -> None:
    # section 2.3.8
    assert said(b"NOOP x" + end + b"NOOP\r\n" + NOOP) == ["501 5.5.2", OK]


# RFC 5321 section 3: the procedures ------------------------------------------------------------


def test_mail_data_follows_mail_and_rcpt_and_is_stored() -> None:
    # section 3.3
    heard = hear(MESSAGE)
    assert heard.codes == TAKEN
    assert heard.content == HI
    assert list(heard.stored) == ["user@example.org"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(b"RCPT TO:<a@x.example>\r\n", ["503 5.5.1"], id="rcpt-first"),
        pytest.param(DATA, ["503 5.5.1"], id="data-first"),
        pytest.param(b"BDAT 2 LAST\r\nhi" + NOOP, ["503 5.5.1", OK], id="bdat-first"),
        pytest.param(MAIL + DATA, [SENDER, "503 5.5.1"], id="data-without-rcpt"),
        pytest.param(
            MAIL + b"BDAT 2 LAST\r\nhi" + RCPT,
            [SENDER, "503 5.5.1", RECIPIENT],
            id="bdat-without-rcpt",
        ),
        pytest.param(MESSAGE + RCPT, [*TAKEN, "503 5.5.1"], id="rcpt-after-the-message"),
        pytest.param(MESSAGE + DATA, [*TAKEN, "503 5.5.1"], id="data-after-the-message"),
        pytest.param(MESSAGE * 2, TAKEN * 2, id="two-messages"),
        pytest.param(
            MAIL + b"RSET\r\n" + RCPT, [SENDER, OK, "503 5.5.1"], id="rset-ends-the-transaction"
        ),
        pytest.param(
            MAIL + b"AUTH PLAIN\r\n" + b"STARTTLS\r\n",
            [SENDER, "503 5.5.1", "503 5.5.1"],
            id="auth-and-starttls-in-a-transaction",
        ),
    ],
)
def test_command_out_of_order_is_503(script: bytes, expected: list[str]) -> None:
    # sections 3.3 and 4.1.4
    assert said(script, Doorkeeper(), change={"starttls": True}) == expected


@pytest.mark.parametrize("verb", [b"MAIL FROM:<a@b.example>", b"RCPT TO:<a@b.example>", b"DATA"])
def test_mail_commands_before_the_greeting_are_503(verb: bytes) -> None:
    # section 4.1.4
    assert Dialogue(Mailroom()).send_raw(verb + b"\r\n").startswith(b"503 5.5.1 say EHLO first")


def test_nested_mail_is_503_and_the_first_goes_on() -> None:
    # section 4.1.4
    script = MAIL + b"MAIL FROM:<other@client.example>\r\n" + RCPT + DATA + HI + b".\r\n"
    heard = hear(script)
    assert heard.codes == said(script) == [SENDER, "503 5.5.1", *TAKEN[1:]]
    assert heard.envelope.sender == "a@client.example"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(MAIL + NOBODY + DATA, [SENDER, "550 5.1.1", "554 5.5.1"], id="refused"),
        pytest.param(
            MAIL + b"RCPT TO:<>\r\n" + DATA, [SENDER, "501 5.1.3", "554 5.5.1"], id="malformed"
        ),
        pytest.param(
            MAIL + NOBODY + b"BDAT 2 LAST\r\nhi" + NOOP,
            [SENDER, "550 5.1.1", "554 5.5.1", OK],
            id="bdat",
        ),
        pytest.param(
            MAIL + NOBODY + DATA + RCPT + DATA + HI + b".\r\n",
            [SENDER, "550 5.1.1", "554 5.5.1", *TAKEN[1:]],
            id="the-next-recipient-counts",
        ),
    ],
)
def test_data_without_a_valid_recipient_is_554(script: bytes, expected: list[str]) -> None:
    # section 3.3; RFC 2920 section 3.1: the client could not wait for the replies to RCPT
    assert said(script, OnlyUser()) == expected


def test_data_is_stored_for_the_valid_recipients_only() -> None:
    # section 3.3
    heard = hear(MAIL + NOBODY + RCPT + DATA + HI + b".\r\n", OnlyUser())
    assert heard.codes == [SENDER, "550 5.1.1", *TAKEN[1:]]
    assert list(heard.stored) == ["user@example.org"]


@pytest.mark.parametrize(
    "route", [b"@one.example:", b"@one.example,@two.example:", b"@one.example,@[192.0.2.1]:"]
)
def test_source_route_is_accepted_and_ignored(route: bytes) -> None:
    # sections 3.6.1 and 4.1.1.3, appendix C
    script = b"MAIL FROM:<" + route + b"a@client.example>\r\nRCPT TO:<" + route + RCPT[9:]
    heard = hear(script + DATA + b".\r\n")
    assert heard.envelope.sender == "a@client.example"
    assert list(heard.stored) == ["user@example.org"]


def test_quit_drops_the_transaction() -> None:
    # section 4.1.1.10
    heard = hear(MAIL + RCPT + b"BDAT 2\r\nhi" + b"QUIT\r\n" + b"BDAT 0 LAST\r\n")
    assert heard.codes == [SENDER, RECIPIENT, OK, "221 2.0.0"]
    assert not heard.stored


# RFC 5321 section 4.1: commands ----------------------------------------------------------------


def test_ehlo_in_the_middle_ends_the_transaction() -> None:
    # section 4.1.4
    script = MAIL + RCPT + b"EHLO again.example\r\n" + DATA + MESSAGE
    heard = hear(script)
    assert heard.codes == said(script) == [SENDER, RECIPIENT, "250", "503 5.5.1", *TAKEN]
    assert heard.envelope.helo == "again.example"


def test_refused_ehlo_leaves_the_transaction() -> None:
    # section 4.1.4
    assert said(MAIL + RCPT + b"EHLO\r\n" + DATA + HI + b".\r\n") == [*TAKEN[:2], "501", *TAKEN[2:]]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        # section 4.1.1.2
        pytest.param(b"MAIL FROM:<>", SENDER, id="null-reverse-path"),
        pytest.param(b"MAIL FROM:<a@client.example> FOO=1", "555 5.5.4", id="unknown-parameter"),
        pytest.param(b"MAIL FROM:<> SIZE=1 size=1", "501 5.5.4", id="repeated-parameter"),
        pytest.param(b"MAIL FROM:<> =1", "501 5.5.4", id="parameter-without-keyword"),
        pytest.param(b"MAIL FROM:<> SIZE=", "501 5.5.4", id="empty-value"),
        pytest.param(b"MAIL", "501 5.5.4", id="mail-without-argument"),
        # section 4.1.3
        pytest.param(b"MAIL FROM:<a@[192.0.2.1]>", SENDER, id="ipv4-literal"),
        pytest.param(b"MAIL FROM:<a@[IPv6:2001:db8::1]>", SENDER, id="ipv6-literal"),
        pytest.param(b"MAIL FROM:<a@[2001:db8::1]>", "501 5.1.7", id="ipv6-without-tag"),
        pytest.param(b"MAIL FROM:<a@[192.0.2.256]>", "501 5.1.7", id="no-ipv4-literal"),
        pytest.param(b'MAIL FROM:<"a b"@client.example>', SENDER, id="quoted-string"),
        pytest.param(b"MAIL FROM:<a b@client.example>", "501 5.1.7", id="blank-in-local-part"),
        # section 4.1.1.4 and others that take no argument
        pytest.param(b"DATA x", "501 5.5.4", id="data-argument"),
        pytest.param(b"RSET x", "501 5.5.4", id="rset-argument"),
        # sections 4.1.1.6 to 4.1.1.9
        pytest.param(b"VRFY user", "252 2.5.2", id="vrfy"),
        pytest.param(b"VRFY", "501 5.5.4", id="vrfy-nobody"),
        pytest.param(b"EXPN list", "502 5.5.1", id="expn"),
        pytest.param(b"HELP", "214 2.0.0", id="help"),
        pytest.param(b"HELP MAIL", "214 2.0.0", id="help-argument"),
        pytest.param(b"NOOP what ever", OK, id="noop-argument"),
        # section 4.2.4
        pytest.param(b"WIZ", "500 5.5.2", id="unknown-command"),
        pytest.param(b"", "500 5.5.2", id="empty-line"),
        pytest.param(b"NOOP \t ", OK, id="blanks-at-the-end"),
        # section 2.3.1 and RFC 6531: what no command may hold
        pytest.param(b"NOOP \0", "501 5.5.2", id="nul-in-argument"),
        pytest.param(b"NO\0OP", "500 5.5.2", id="nul-in-verb"),
        pytest.param(b"MAIL FROM:<\xe9@client.example>", "501 5.5.2", id="8-bit-not-utf-8"),
        pytest.param(b"\xc3\xa9", "500 5.5.2", id="8-bit-verb"),
    ],
)
def test_command_is_answered_as_its_section_says(command: bytes, code: str) -> None:
    assert said(command + b"\r\n" + NOOP) == [code, OK]


@pytest.mark.parametrize("name", ["postmaster", "Postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain(name: str) -> None:
    # sections 4.1.1.3 and 4.5.1
    heard = hear(MAIL + f"RCPT TO:<{name}>\r\n".encode() + DATA + HI + b".\r\n")
    assert heard.codes == TAKEN
    assert list(heard.stored) == [f"{name}@mx.example.org"]


@pytest.mark.parametrize("literal", ["[192.0.2.7]", "[ipv6:2001:db8::7]"])
def test_mail_for_an_address_literal_is_a_matter_of_routing(literal: str) -> None:
    # section 4.1.3
    heard = hear(MAIL + f"RCPT TO:<user@{literal}>\r\n".encode() + DATA + HI + b".\r\n")
    assert heard.codes == TAKEN
    assert list(heard.stored) == [f"user@{literal}"]


# RFC 5321 section 4.5.3: sizes and time-outs ---------------------------------------------------

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


# RFC 5321: content, trace, loops ---------------------------------------------------------------


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


def test_received_field_after_helo_says_smtp() -> None:
    # section 4.4
    heard = hear(b"HELO c.example\r\n" + MESSAGE)
    [[message]] = heard.stored.values()
    assert b" with SMTP id " in message


def test_received_fields_stay_in_their_order_below_ours() -> None:
    # section 4.4: never changed, never reordered
    old = b"Received: from b by c; x\r\nReceived: from a by b; x\r\n"
    heard = hear(MAIL + RCPT + DATA + old + HI + b".\r\n")
    [[message]] = heard.stored.values()
    assert message.startswith(b"Received: from c.example (")
    assert message.endswith(b"\r\n" + old + HI)


# RFC 1870: SIZE --------------------------------------------------------------------------------

SMALL = Limits(message_size=ByteSize(100))


@pytest.mark.parametrize(
    ("parameter", "code"),
    [
        (b"SIZE=100", SENDER),
        (b"SIZE=101", "552 5.3.4"),
        (b"SIZE=0", SENDER),
        (b"SIZE=" + b"9" * 20, "552 5.3.4"),
    ],
    ids=["limit", "beyond", "zero", "20-digits"],
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


# RFC 2033: LMTP --------------------------------------------------------------------------------

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
            id="none-for-a-refused-recipient",
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
            TWO + DATA + b"a\nb\r\n.\r\n" + NOOP,
            [SENDER, RECIPIENT, RECIPIENT, "354", "550 5.6.0", "550 5.6.0", OK],
            id="for-a-refused-message-too",
        ),
    ],
)
def test_lmtp_speaks_as_its_rfc_says(script: bytes, expected: list[str]) -> None:
    # RFC 2033 sections 4.1 and 4.2
    assert said(script, OnlyUser(), kind="lmtp") == expected


def test_lhlo_is_for_lmtp_only() -> None:
    # RFC 2033 section 4.1
    assert said(b"LHLO c.example\r\n") == ["500"]


# RFC 2034 and 5248: enhanced status codes ------------------------------------------------------


def test_replies_have_enhanced_codes_except_greetings_and_go_ahead() -> None:
    # RFC 2034 section 4
    heard = hear(b"EHLO d.example\r\nHELO e.example\r\nHELO\r\nRSET\r\n" + MESSAGE + b"QUIT\r\n")
    assert heard.codes == ["250", "250", "501", OK, *TAKEN, "221 2.0.0"]


def test_every_line_of_a_longer_reply_has_the_enhanced_code() -> None:
    # RFC 2034 section 4
    @plugin
    class Talker:
        @hookimpl
        def on_mail(self) -> None:
            raise Reject("one\ntwo\nthree")

    *lines, last = hear(MAIL, Talker()).text.splitlines()
    assert lines == ["550-5.7.1 one", "550-5.7.1 two"]
    assert last.startswith("550 5.7.1 three (id ")


# RFC 2920: PIPELINING --------------------------------------------------------------------------


def test_group_of_commands_is_answered_in_order_in_one_piece() -> None:
    # RFC 2920 section 3.2
    dialogue = Dialogue(OnlyUser(), Mailroom())
    dialogue.send("EHLO c.example")
    output = dialogue.send_raw(b"RSET\r\n" + MAIL + RCPT + NOBODY + b"FOO\r\n" + NOOP + DATA)
    heard = Heard(output.decode(), Clerk(), {})
    assert heard.codes == [OK, SENDER, RECIPIENT, "550 5.1.1", "500 5.5.2", OK, "354"]


# RFC 3030: CHUNKING and BINARYMIME -------------------------------------------------------------

ANY = bytes(range(256)) + b"\r\n.\r\nQUIT\r\n.\n.\r\n..\r\n\r\r\n"


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


# RFC 3207: STARTTLS ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "change", "tls", "expected"),
    [
        (b"STARTTLS\r\n", {"starttls": True}, False, ["220 2.0.0"]),
        (b"STARTTLS x\r\n", {"starttls": True}, False, ["501 5.5.4"]),
        (b"STARTTLS\r\n", {}, False, ["502 5.5.1"]),
        (b"STARTTLS\r\n", {"starttls": True}, True, ["503 5.5.1"]),
        (MAIL + b"STARTTLS\r\n", {"starttls": True}, False, [SENDER, "503 5.5.1"]),
    ],
    ids=["offered", "argument", "not-offered", "again", "in-a-transaction"],
)
def test_starttls_is_answered_as_its_rfc_says(
    script: bytes, change: dict[str, Any], tls: bool, expected: list[str]
) -> None:
    # RFC 3207 section 4
    assert said(script, change=change, tls=tls) == expected


@pytest.mark.parametrize(
    "behind", [NOOP, MESSAGE, b"EHLO x.example\r\n" + MESSAGE, b"\x16", b"\r\n"]
)
def test_octets_in_clear_behind_starttls_end_the_session(behind: bytes) -> None:
    # RFC 3207 section 6 (CVE-2011-0411)
    heard = hear(b"STARTTLS\r\n" + behind, change={"starttls": True})
    assert heard.codes == ["421 4.7.0"]
    assert not heard.stored


# RFC 3461, 6533: DSN ---------------------------------------------------------------------------


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


# RFC 4954, 7628: AUTH --------------------------------------------------------------------------


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


GOOD = b"AUTH PLAIN " + b64("\0alice\0secret") + b"\r\n"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(GOOD, ["235 2.7.0"], id="initial-response"),
        pytest.param(
            b"AUTH plain\r\n" + b64("\0alice\0secret") + b"\r\n",
            ["334", "235 2.7.0"],
            id="challenge",
        ),
        pytest.param(
            b"AUTH LOGIN\r\n" + b64("alice") + b"\r\n" + b64("secret") + b"\r\n",
            ["334", "334", "235 2.7.0"],
            id="login",
        ),
        # What clients send beside the grammar: blanks around words and responses.
        pytest.param(
            b"auth   plain   " + b64("\0alice\0secret") + b"  \r\n", ["235 2.7.0"], id="blanks"
        ),
        pytest.param(
            b"AUTH PLAIN \r\n " + b64("\0alice\0secret") + b" \t\r\n",
            ["334", "235 2.7.0"],
            id="blanks-around-a-response",
        ),
        pytest.param(
            b"AUTH login " + b64("alice") + b" \r\n" + b64("secret") + b" \r\n",
            ["334", "235 2.7.0"],
            id="login-with-initial-response",
        ),
        pytest.param(
            b"AUTH LOGIN\r\n" + b64("alice") + b" \r\n" + b64("secret") + b"\t\r\n",
            ["334", "334", "235 2.7.0"],
            id="blanks-behind-responses",
        ),
        pytest.param(
            b"AUTH LOGIN =\r\n" + b64("secret") + b"\r\n" + NOOP,
            ["334", "535 5.7.8", OK],
            id="login-without-a-name",
        ),
        pytest.param(
            b"AUTH PLAIN\r\n *  \r\n" + NOOP, ["334", "501 5.7.0", OK], id="cancelled-with-blanks"
        ),
        pytest.param(
            b"AUTH PLAIN * \r\n" + NOOP, ["501 5.7.0", OK], id="cancelled-where-it-begins"
        ),
        pytest.param(
            b"AUTH PLAIN\r\n\r\n" + NOOP, ["334", "535 5.7.8", OK], id="response-of-nothing"
        ),
        pytest.param(
            b"AUTH PLAIN\r\n" + b64("\0alice\0secret")[:8] + b" AAAA\r\n" + NOOP,
            ["334", "501 5.5.2", OK],
            id="blank-within-a-response",
        ),
        pytest.param(
            b"AUTH PLAIN\r\n" + b64("\0alice\0secret") + b"\r\r\n" + NOOP,
            ["334", "501 5.5.2", OK],
            id="bare-cr-in-a-response",
        ),
        pytest.param(GOOD * 2, ["235 2.7.0", "503 5.5.1"], id="once-in-a-session"),
        pytest.param(b"AUTH PLAIN\r\n*\r\n" + NOOP, ["334", "501 5.7.0", OK], id="cancelled"),
        pytest.param(b"AUTH PLAIN\r\n!\r\n" + NOOP, ["334", "501 5.5.2", OK], id="no-base64"),
        pytest.param(b"AUTH PLAIN =\r\n" + GOOD, ["535 5.7.8", "235 2.7.0"], id="empty-initial"),
        pytest.param(
            b"AUTH PLAIN " + b64("\0alice\0wrong") + b"\r\n" + NOOP, ["535 5.7.8", OK], id="wrong"
        ),
        pytest.param(b"AUTH X-WIZ\r\n", ["504 5.5.4"], id="unknown-mechanism"),
        pytest.param(b"AUTH\r\n", ["501 5.5.4"], id="no-mechanism"),
        pytest.param(MAIL + GOOD, [SENDER, "503 5.5.1"], id="in-a-transaction"),
        pytest.param(
            b"AUTH PLAIN\r\n" + b"A" * 12287 + b"\r\n" + NOOP,
            ["334", "500 5.5.6", OK],
            id="response-of-12289",
        ),
        pytest.param(
            b"AUTH PLAIN ".ljust(12287, b"A") + b"\r\n" + NOOP,
            ["500 5.5.6", OK],
            id="command-of-12289",
        ),
        pytest.param(
            b"AUTH PLAIN ".ljust(13_000, b"A") + b"\r\n" + NOOP,
            ["500 5.5.6", OK],
            id="command-of-13002",
        ),
        # RFC 7628 section 3.2.3: the error is a challenge, then the 535
        pytest.param(
            b"AUTH OAUTHBEARER " + b64("n,a=al,\1auth=Bearer no\1\1") + b"\r\nAQ==\r\n",
            ["334", "535 5.7.8"],
            id="wrong-token",
        ),
        pytest.param(
            b"AUTH OAUTHBEARER " + b64("n,a=al,\1auth=Bearer t0ken\1\1") + b"\r\n",
            ["235 2.7.0"],
            id="token",
        ),
    ],
)
def test_auth_is_answered_as_its_rfc_says(script: bytes, expected: list[str]) -> None:
    # RFC 4954 sections 4 and 6
    assert said(script, Doorkeeper()) == expected


def test_auth_in_clear_is_538_where_it_would_be_heard() -> None:
    # RFC 4954 section 6
    assert said(GOOD, Doorkeeper(), change={"clear_auth": False}) == ["538 5.7.11"]
    assert said(GOOD, Doorkeeper(), change={"clear_auth": False}, tls=True) == ["235 2.7.0"]


@pytest.mark.parametrize(
    ("login", "parameter", "submitter"),
    [
        ("relay", b"AUTH=e+3Dmc2@x.example", "e=mc2@x.example"),
        ("relay", b"AUTH=<>", ""),
        (None, b"AUTH=e+3Dmc2@x.example", ""),
        (None, b"AUTH=<>", ""),
    ],
)
def test_submitter_is_believed_only_from_who_has_logged_in(
    login: str | None, parameter: bytes, submitter: str
) -> None:
    # RFC 4954 section 5: accepted from everybody, but else as AUTH=<>
    script = MAIL.replace(b"\r\n", b" " + parameter + b"\r\n") + RCPT + DATA + b".\r\n"
    heard = hear(script, login=login)
    assert heard.codes == TAKEN
    assert heard.envelope.submitter == submitter


# RFC 6152, 6409, 6531, 8689, 9422 --------------------------------------------------------------


@pytest.mark.parametrize("body", ["7BIT", "8BITMIME", "BINARYMIME"])
def test_body_is_kept_in_the_envelope(body: str) -> None:
    # RFC 6152 section 2; RFC 3030 section 3
    script = f"MAIL FROM:<> BODY={body}\r\n".encode() + RCPT + b"BDAT 0 LAST\r\n"
    assert hear(script).envelope.body == body


FROM = b"From: Alice <alice@example.org>\r\n"


def test_submission_adds_what_is_missing() -> None:
    # RFC 6409 sections 8.1 to 8.3
    heard = hear(
        MAIL + RCPT + DATA + FROM + HI + b".\r\n",
        kind="submission",
        login="bob@example.org",
        change={"add_sender": True},
    )
    [[message]] = heard.stored.values()
    header = message.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n")
    assert re.search(r"^Date: \w{3}, \d+ \w{3} \d{4} [\d:]{8} \+0000$", header, re.MULTILINE)
    assert re.search(r"^Message-ID: <[\w.]+@mx\.example\.org>$", header, re.MULTILINE)
    assert re.search(r"^Sender: bob@example\.org$", header, re.MULTILINE)


def test_submission_changes_nothing_that_is_there() -> None:
    # RFC 6409 section 8
    fields = FROM + b"Date: whenever\r\nmessage-id: mine\r\nSENDER: me@b.example\r\n"
    heard = hear(
        MAIL + RCPT + DATA + fields + HI + b".\r\n", kind="submission", login="bob@example.org"
    )
    [[message]] = heard.stored.values()
    assert message.endswith(b"+0000\r\n" + fields + HI)


def test_submission_without_login_is_530() -> None:
    # RFC 6409 section 4.3
    assert said(MAIL, kind="submission") == ["530 5.7.0"]


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


# Over sockets: TLS and PROXY -------------------------------------------------------------------

V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
FRONT: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
client_certificates = true

[[listeners]]
name = "submissions"
address = "127.0.0.1:0"
kind = "submission"
tls = "implicit"
client_certificates = true

[[listeners]]
name = "proxied"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["127.0.0.1/32"]

[[listeners]]
name = "untrusting"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["192.0.2.0/24"]
"""


@dataclass
class Front:
    """A server with two certificates, and what its clients have."""

    server: Running
    clients: dict[str, ssl.SSLContext]

    def secured(self, listener: str, name: str = "mx.example.org", who: str = "nobody") -> Client:
        """Connect and make the handshake, asking for the server by a name."""
        client = self.server.connect(listener)
        if listener == "smtp":
            client.greet()
            assert client.command("STARTTLS").startswith("220 2.0.0 ")
        context = self.clients[who]
        client.socket = context.wrap_socket(client.socket, server_hostname=name)
        if listener != "smtp":
            client.reply()
        return client


@pytest.fixture(scope="module")
def front(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Run a server behind whatever a server may stand behind."""
    directory = tmp_path_factory.mktemp("front")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("mx.example.org", "mail.example.com"):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
    clients = {who: ssl.create_default_context() for who in ("nobody", "alice")}
    for context in clients.values():
        authority.configure_trust(context)
    authority.issue_cert("alice@example.org").configure_cert(clients["alice"])
    pairs = {
        name: f'certificate = "{directory}/{name}.pem"\nkey = "{directory}/{name}.key"\n'
        for name in ("mx.example.org", "mail.example.com")
    }
    tls = f'[tls]\nclient_ca = "{directory}/ca.pem"\n{pairs["mx.example.org"]}'
    sni = f'[[tls.sni]]\nname = "mail.example.com"\n{pairs["mail.example.com"]}'
    with launch(tls, sni, listeners=FRONT) as server:
        yield Front(server, clients)


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
@pytest.mark.parametrize("name", ["mx.example.org", "mail.example.com"])
def test_name_that_the_client_asks_for_chooses_the_certificate(
    front: Front, listener: str, name: str
) -> None:
    # RFC 6066 section 3; the handshake fails for a certificate of another name
    with front.secured(listener, name) as client:
        assert client.command("NOOP").startswith(OK)


def test_starttls_inside_tls_is_503_and_not_offered(front: Front) -> None:
    # RFC 3207 sections 4 and 4.2; RFC 8314 section 3
    for listener in ("smtp", "submissions"):
        with front.secured(listener) as client:
            assert "STARTTLS" not in client.command("EHLO client.example")
            assert client.command("STARTTLS").startswith("503 5.5.1 ")


def test_session_inside_tls_begins_anew(front: Front) -> None:
    # RFC 3207 section 4.2
    with front.secured("smtp") as client:
        assert client.command("MAIL FROM:<>").startswith("503 5.5.1 ")
        client.command("EHLO client.example")
        assert client.command("MAIL FROM:<>").startswith(SENDER)


def test_commands_in_clear_after_the_220_are_no_commands(front: Front) -> None:
    # RFC 3207 section 6: in a packet of their own, where a handshake was to come
    with front.server.connect() as client:
        client.greet()
        assert client.command("STARTTLS").startswith("220 2.0.0 ")
        client.send(b"EHLO client.example\r\n" + MESSAGE.replace(b"user@", b"injected@"))
        assert "250" not in _rest(client)
    assert front.server.mail("injected") == []


def _rest(client: Client) -> str:
    """Return what comes until the connection ends, in TLS alerts or otherwise."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.socket.recv(65536):
            received += data
    return received.decode("latin-1")


def test_identity_is_that_of_the_client_certificate(front: Front) -> None:
    # RFC 4422 appendix A
    with front.secured("submissions", who="alice") as client:
        assert "AUTH EXTERNAL" in client.command("EHLO client.example")
        assert client.command("AUTH EXTERNAL =").startswith("235 2.7.0 ")
        assert client.command("MAIL FROM:<alice@example.org>").startswith(SENDER)


def test_client_without_a_certificate_has_no_identity(front: Front) -> None:
    # RFC 4422 appendix A
    with front.secured("submissions") as client:
        assert "EXTERNAL" not in client.command("EHLO client.example")
        assert client.command("AUTH EXTERNAL =").startswith(("502 5.5.1 ", "504 5.5.4 "))
        assert client.command("MAIL FROM:<alice@example.org>").startswith("530 5.7.0 ")


@pytest.mark.parametrize(
    ("header", "origin"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 25\r\n", "[192.0.2.7]"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 25\r\n", "[IPv6:2001:db8::7]"),
        (b"PROXY UNKNOWN\r\n", "[127.0.0.1]"),
        (V2 + b"\x21\x11\0\x0c\xc0\0\2\x07\xc0\0\2\1\x13\x88\0\x19", "[192.0.2.7]"),
        (V2 + b"\x20\0\0\0", "[127.0.0.1]"),
    ],
    ids=["v1-tcp4", "v1-tcp6", "v1-unknown", "v2-tcp4", "v2-local"],
)
def test_trusted_proxy_says_who_the_client_is(front: Front, header: bytes, origin: str) -> None:
    # PROXY protocol sections 2.1 and 2.2
    mailbox = f"proxied{len(header)}"
    with front.server.connect("proxied") as client:
        client.send(header)
        client.begin_data(f"{mailbox}@example.org")
        client.send(HI + b".\r\n")
        assert client.reply().startswith(OK)
    [message] = front.server.mail(mailbox)
    assert f"from client.example ({origin})" in message.decode()


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO client.example\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5000\r\n",
        b"PROXY TCP4 2001:db8::7 192.0.2.1 5000 25\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        V2 + b"\x31\x11\0\x0c" + bytes(12),
        V2 + b"\x21\x11\0\x04" + bytes(4),
        V2 + b"\x21\x11\xff\xff" + bytes(100),
    ],
    ids=["none", "short", "family", "long", "v2-version", "v2-short", "v2-long"],
)
def test_connection_with_a_wrong_proxy_header_is_closed_unanswered(
    front: Front, header: bytes
) -> None:
    # PROXY protocol section 2: the receiver must not guess
    with front.server.connect("proxied") as client:
        client.send(header)
        assert _rest(client) == ""


def test_proxy_header_of_others_is_a_wrong_command(front: Front) -> None:
    # PROXY protocol section 2: only from whom the configuration names
    with front.server.connect("untrusting") as client:
        assert client.reply().startswith("220 ")
        assert client.command("PROXY TCP4 192.0.2.7 192.0.2.1 5000 25").startswith("500 5.5.2 ")


# The page itself -------------------------------------------------------------------------------

PAGE: Final = (ROOT / "docs" / "conformance.md").read_text()
NAMED: Final = set(re.findall(r"`(test_\w+)::(test_\w+)`", PAGE))


def functions_of(path: Path) -> set[str]:
    """Return the names of the test functions in a file."""
    nodes = ast.parse(path.read_text()).body
    return {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_exist(file: str) -> None:
    named = {test for of, test in NAMED if of == file}
    [path] = (ROOT / "tests").rglob(f"{file}.py")
    assert named <= functions_of(path)


@pytest.mark.parametrize("file", ["test_conformance", "test_smuggling"])
def test_every_test_of_conformance_proves_a_clause(file: str) -> None:
    own = {
        "test_named_tests_exist",
        "test_every_row_names_a_test",
        "test_reply_has_a_registered_code",
    }
    own |= {"test_every_test_of_conformance_proves_a_clause", "test_every_code_of_the_page_is_used"}
    assert functions_of(ROOT / "tests" / f"{file}.py") - own <= {
        test for of, test in NAMED if of == file
    }


def test_every_row_names_a_test() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    for heading in set(headings) - {"The codes we use"}:
        assert rows(heading)
        for row in rows(heading):
            assert len(row) == 3, row
            assert re.fullmatch(r"(?:`test_\w+::test_\w+`(?: |$))+", row[2]), row


def literal_codes() -> Iterator[tuple[int, str]]:
    """Yield each reply code of the source with the enhanced code that stands beside it."""
    for path in (ROOT / "minismtp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name("Reply"), args=[code, _, ast.Constant(str(enhanced))]):
                    for part in ast.walk(code):
                        if isinstance(part, ast.Constant) and isinstance(part.value, int):
                            yield part.value, enhanced


USED: Final = {(int(row[1]), row[0].strip("`")) for row in rows("The codes we use")}


def test_reply_has_a_registered_code() -> None:
    # RFC 5248: the page has each pair, with what the registry says of it
    assert set(literal_codes()) <= USED


def test_every_code_of_the_page_is_used() -> None:
    source = "".join(path.read_text() for path in (ROOT / "minismtp").rglob("*.py"))
    for code, enhanced in USED - set(literal_codes()):
        assert f'"{enhanced}"' in source, (code, enhanced)
