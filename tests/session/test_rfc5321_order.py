"""RFC 5321 sections 2, 3 and 4.1.4: the order of a session, from octets to codes."""

from __future__ import annotations

import pytest
from client_script import (
    DATA,
    HI,
    MAIL,
    MAIL_FROM,
    MESSAGE,
    NOBODY,
    NOOP,
    OK,
    RCPT,
    RCPT_TO,
    RECIPIENT,
    SENDER,
    TAKEN,
    Kind,
    at_data,
    greeted,
    hear,
    said,
)
from stub_plugins import Judge, OnlyUser, passwords_and_tokens

from minismtp import (
    Address,
    Reject,
)
from minismtp.runtime.thread_activity import Activity
from minismtp.session.receiver import Receiver
from minismtp.testing import Dialogue, Mailroom


@pytest.mark.parametrize(
    ("kind", "word"), [("mx", "ESMTP"), ("submission", "ESMTP"), ("lmtp", "LMTP")]
)
def test_banner_names_host_and_protocol_without_enhanced_code(kind: Kind, word: str) -> None:
    # RFC 5321 section 4.2; RFC 2034 section 4
    assert Dialogue(kind=kind).banner == f"220 mx.example.org {word} minismtp\r\n"


def test_peer_that_talks_before_the_banner_is_unwelcome() -> None:
    # RFC 5321 section 4.3.1
    dialogue = Dialogue()
    receiver = Receiver(dialogue.service, dialogue.session, Activity())
    assert receiver.greet(early=True).startswith(b"554 mx.example.org you talk before the ")
    assert receiver.receive(b"EHLO client.example\r\nQUIT\r\n").startswith(b"503 ")
    assert dialogue.count("connections_total", listener="test", result="refused") == 1


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
            b"MAIL FROM:<> REQUIRETLS\r\n" + RCPT + MAIL,
            ["530 5.7.10", "503 5.5.1", SENDER],
            id="rcpt-after-refused-mail",
        ),
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
    assert said(script, passwords_and_tokens(), change={"starttls": True}) == expected


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


def test_ehlo_in_the_middle_ends_the_transaction() -> None:
    # section 4.1.4
    script = MAIL + RCPT + b"EHLO again.example\r\n" + DATA + MESSAGE
    heard = hear(script)
    assert heard.codes == said(script) == [SENDER, RECIPIENT, "250", "503 5.5.1", *TAKEN]
    assert heard.envelope.helo == "again.example"


@pytest.mark.parametrize(
    "line", ["RSET", "EHLO client.example", "HELO client.example", "EHLO other.example"]
)
@pytest.mark.parametrize("chunks", [0, 1])
def test_rset_and_greetings_drop_the_transaction(line: str, chunks: int) -> None:
    # RFC 5321 sections 4.1.1.5 and 4.1.4
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    for _ in range(chunks):
        dialogue.send_raw(b"BDAT 3\r\nold")
    assert dialogue.send(line).startswith("250")
    assert dialogue.send("DATA").startswith("503")
    assert dialogue.send(RCPT_TO).startswith("503")
    dialogue.send(MAIL_FROM)
    dialogue.send("RCPT TO:<other@example.org>")
    dialogue.send_raw(b"BDAT 3 LAST\r\nnew")
    assert [*mailroom.stored] == ["other@example.org"]
    assert mailroom.stored["other@example.org"][0].endswith(b"+0000\r\n\r\nnew")


def test_refused_ehlo_leaves_the_transaction() -> None:
    # section 4.1.4
    script = MAIL + RCPT + b"EHLO\r\nEHLO \x7f\r\nLHLO c.example\r\n" + DATA + HI + b".\r\n"
    assert said(script) == [*TAKEN[:2], "501", "501", "500", *TAKEN[2:]]


@pytest.mark.parametrize("hook", ["on_helo", "ehlo_keywords"])
def test_refused_greeting_leaves_no_name(hook: str) -> None:
    # RFC 5321 section 4.1.4
    dialogue = Dialogue(Judge(hook=hook, verdict=Reject("no")))
    assert dialogue.send("EHLO bad.example") == "550 no"
    assert (dialogue.session.helo, dialogue.session.esmtp) == ("", False)
    assert dialogue.send(MAIL_FROM).startswith("503")


def test_quit_drops_the_transaction() -> None:
    # section 4.1.1.10
    heard = hear(MAIL + RCPT + b"BDAT 2\r\nhi" + b"QUIT\r\n" + b"BDAT 0 LAST\r\n")
    assert heard.codes == [SENDER, RECIPIENT, OK, "221 2.0.0"]
    assert not heard.stored


def test_nothing_follows_quit() -> None:
    dialogue = greeted(Dialogue())
    assert (
        dialogue.send_raw(b"QUIT\r\nNOOP\r\n") == b"221 2.0.0 mx.example.org closing connection\r\n"
    )
    assert dialogue.receiver.closing
    assert dialogue.receiver.reason == "quit"
    assert dialogue.send("NOOP") == ""
