"""RFC 2034 section 4: which replies have an enhanced status code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from client_script import (
    MAIL,
    MAIL_FROM,
    MESSAGE,
    OK,
    RCPT_TO,
    TAKEN,
    code,
    greeted,
    hear,
    plain,
)
from stub_plugins import Passwords

from minismtp import (
    Reject,
    hookimpl,
    plugin,
)
from minismtp.testing import Dialogue, Mailroom


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


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["NOOP"], "250 2.0.0 ok"),
        (["NOOP with an argument"], "250 2.0.0 ok"),
        (["RSET"], "250 2.0.0 ok"),
        (["HELP"], "214 2.0.0 see RFC 5321; mail to postmaster reaches a person"),
        (["HELP MAIL_FROM"], "214 2.0.0 see RFC 5321; mail to postmaster reaches a person"),
        (["VRFY user"], "252 2.5.2 cannot verify, but will take mail and try"),
        (["EXPN list"], "502 5.5.1 EXPN is not implemented"),
        (["TURN"], "500 5.5.2 command not recognized"),
        (["ÜBER"], "500 5.5.2 command not recognized"),
        (["XCLIENT ADDR=192.0.2.7"], "550 5.7.1 XCLIENT is not for you"),
        (["STARTTLS"], "502 5.5.1 STARTTLS is not offered here"),
        (["AUTH PLAIN"], "502 5.5.1 AUTH is not offered here"),
        ([MAIL_FROM], "250 2.1.0 sender ok"),
        ([MAIL_FROM, MAIL_FROM], "503 5.5.1 bad sequence of commands"),
        ([MAIL_FROM, RCPT_TO], "250 2.1.5 recipient ok"),
        ([MAIL_FROM, "DATA"], "503 5.5.1 bad sequence of commands"),
        ([MAIL_FROM, "BDAT 0 LAST"], "503 5.5.1 bad sequence of commands"),
        ([MAIL_FROM, RCPT_TO, "DATA"], "354 end data with <CR><LF>.<CR><LF>"),
        ([MAIL_FROM, RCPT_TO, "BDAT 0"], "250 2.0.0 chunk received"),
        ([MAIL_FROM, RCPT_TO, "BDAT 0", "DATA"], "503 5.5.1 DATA cannot be mixed with BDAT"),
        ([RCPT_TO], "503 5.5.1 bad sequence of commands"),
        (["MAIL FROM:<a@client.example> FUN=1"], "555 5.5.4 parameter FUN not recognized"),
        (["QUIT"], "221 2.0.0 mx.example.org closing connection"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_reply_has_its_code_and_enhanced_code(lines: list[str], reply: str) -> None:
    # RFC 2034 section 4
    dialogue = greeted(Dialogue(Mailroom()))
    assert [dialogue.send(line) for line in lines][-1] == reply


def with_draining(dialogue: Dialogue) -> None:
    dialogue.service.draining.set()


def with_errors(dialogue: Dialogue) -> None:
    for _ in range(dialogue.service.limits.errors):
        dialogue.send("TURN")


def with_failed_logins(dialogue: Dialogue) -> None:
    for _ in range(dialogue.service.limits.failed_logins):
        dialogue.send(plain("wrong"))


@pytest.mark.parametrize("ending", [with_draining, with_failed_logins])
@pytest.mark.parametrize("line", ["EHLO client.example", "HELO client.example", "HELO", "LHLO a"])
def test_greeting_that_ends_the_session_has_no_enhanced_code(
    line: str, ending: Callable[[Dialogue], None]
) -> None:
    # RFC 2034 section 4
    dialogue = greeted(Dialogue(Passwords()))
    ending(dialogue)
    assert code(dialogue.send(line)) == "421"
    assert dialogue.receiver.closing


@pytest.mark.parametrize("line", ["EHLO", "HELO \x7f", "LHLO a"])
def test_bad_greeting_beyond_the_limit_of_errors_has_no_enhanced_code(line: str) -> None:
    dialogue = greeted(Dialogue())
    with_errors(dialogue)
    assert code(dialogue.send(line)) == "421"
