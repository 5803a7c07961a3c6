"""RFC 5321 section 4.1: commands and their replies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from client_script import (
    DATA,
    HI,
    MAIL,
    MAIL_FROM,
    NOOP,
    OK,
    RCPT_TO,
    SENDER,
    TAKEN,
    Kind,
    hear,
    rules,
    said,
)
from stub_plugins import Passwords

from minismtp.testing import Dialogue, Mailroom

FIRST = ["PIPELINING", "SIZE 26214400"]
LAST = [
    "ENHANCEDSTATUSCODES",
    "8BITMIME",
    "DSN",
    "SMTPUTF8",
    "CHUNKING",
    "BINARYMIME",
    "LIMITS RCPTMAX=100",
]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A state of a session and what is offered between `FIRST` and `LAST`."""

    kind: Kind = "mx"
    starttls: bool = True
    clear_auth: bool = False
    tls: bool = False
    login: str | None = None
    more: list[str]


@pytest.mark.parametrize(
    "offer",
    [
        pytest.param(Offer(more=["STARTTLS"]), id="mx-in-clear"),
        pytest.param(Offer(tls=True, more=["REQUIRETLS", "AUTH PLAIN LOGIN"]), id="mx-inside-tls"),
        pytest.param(Offer(starttls=False, more=[]), id="mx-without-tls"),
        pytest.param(Offer(kind="submission", more=["STARTTLS"]), id="submission-in-clear"),
        pytest.param(
            Offer(kind="submission", tls=True, more=["REQUIRETLS", "AUTH PLAIN LOGIN"]),
            id="submission-inside-tls",
        ),
        pytest.param(
            Offer(kind="submission", tls=True, login="alice", more=["REQUIRETLS"]),
            id="submission-logged-in",
        ),
        pytest.param(
            Offer(starttls=False, clear_auth=True, more=["AUTH PLAIN LOGIN"]), id="on-loopback"
        ),
        pytest.param(Offer(kind="lmtp", starttls=False, more=[]), id="lmtp"),
        pytest.param(Offer(kind="lmtp", more=["STARTTLS"]), id="lmtp-in-clear"),
    ],
)
def test_ehlo_offers_what_is_true_for_the_session(offer: Offer) -> None:
    # RFC 3207 section 4.2, RFC 8689 section 2, RFC 4954 section 4. Naive clients look for
    # `250-STARTTLS` and `250-AUTH`, so the last line must be neither.
    service = replace(
        rules(Passwords(), kind=offer.kind), starttls=offer.starttls, clear_auth=offer.clear_auth
    )
    dialogue = Dialogue(service=service, tls=offer.tls, login=offer.login)
    reply = dialogue.send("LHLO client.example" if offer.kind == "lmtp" else "EHLO client.example")
    first, *lines = reply.splitlines()
    assert first == "250-mx.example.org greets client.example"
    assert [line[4:] for line in lines] == [*FIRST, *offer.more, *LAST]
    assert {line[:4] for line in lines[:-1]} == {"250-"}
    assert lines[-1][:4] == "250 "


def test_helo_makes_a_session_without_extensions() -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(mailroom)
    assert dialogue.send("HELO client.example") == "250 mx.example.org greets client.example"
    for line in (MAIL_FROM, RCPT_TO, "DATA"):
        dialogue.send(line)
    dialogue.send("x\r\n.")
    assert b" with SMTP id " in mailroom.stored["user@example.org"][0]


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
        # section 2.3.1 and RFC 6531: characters that no command may contain
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
