"""Command lines: their meaning, and the reply to invalid ones."""

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from minismtp.smtp.commands import (
    LINE_LIMITS,
    LONGEST_LINE,
    Auth,
    Bdat,
    Command,
    CommandProblem,
    Data,
    Greeting,
    Mail,
    Noop,
    Other,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    parse,
)
from minismtp.values.address import Address

A = Address("a", "x.org")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        pytest.param(b"EHLO mx.example.org", Greeting("EHLO", "mx.example.org"), id="ehlo"),
        pytest.param(b"HELO [192.0.2.1]", Greeting("HELO", "[192.0.2.1]"), id="helo"),
        pytest.param(b"LHLO a", Greeting("LHLO", "a"), id="lhlo"),
        # RFC 5321 section 2.4: verbs in any case
        pytest.param(b"mAiL fRoM:<a@x.org>", Mail(A), id="any-case"),
        # RFC 5321 section 4.1.1: white space before CRLF is tolerated
        pytest.param(b"QUIT \t ", Quit(), id="blanks-at-the-end"),
        pytest.param(b"MAIL FROM:<>", Mail(None), id="null-reverse-path"),
        pytest.param(b"MAIL FROM:  <a@x.org> ", Mail(A), id="blanks-after-colon"),
        # Blanks and tabs where the grammar has none
        pytest.param(b" MAIL FROM:<a@x.org>", Mail(A), id="blank-first"),
        pytest.param(b"\t QUIT", Quit(), id="tab-first"),
        pytest.param(b"MAIL  FROM:<a@x.org>", Mail(A), id="two-blanks-after-the-verb"),
        pytest.param(b"MAIL\tFROM:<a@x.org>", Mail(A), id="tab-after-the-verb"),
        pytest.param(b"MAIL \tFROM:<a@x.org>", Mail(A), id="blank-and-tab"),
        pytest.param(b"MAIL FROM :<a@x.org>", Mail(A), id="blank-before-colon"),
        pytest.param(b"RCPT TO\t:\t<a@x.org>", Rcpt(A), id="tabs-beside-the-colon"),
        pytest.param(b"MAIL FROM:<a@x.org>\tSIZE=5", Mail(A, size=5), id="tab-before-parameter"),
        pytest.param(b"MAIL FROM:< a@x.org >", Mail(A), id="blanks-in-the-brackets"),
        pytest.param(b"MAIL FROM:a@x.org SIZE=5", Mail(A, size=5), id="no-brackets"),
        pytest.param(b"RCPT TO: a@x.org", Rcpt(A), id="rcpt-without-brackets"),
        pytest.param(b"RCPT\tTO:<a@x.org>", Rcpt(A), id="rcpt-tab"),
        pytest.param(b"EHLO\tx", Greeting("EHLO", "x"), id="ehlo-tab"),
        pytest.param(b"EHLO Anna's PC", Greeting("EHLO", "Anna's PC"), id="ehlo-two-words"),
        pytest.param(b"HELO a\tb", Greeting("HELO", "a b"), id="helo-tab-inside"),
        pytest.param(b"EHLO M\xfcller", Greeting("EHLO", "Müller"), id="ehlo-latin-1"),
        pytest.param("HELO Müller".encode(), Greeting("HELO", "Müller"), id="helo-utf-8"),
        pytest.param("EHLO a\u202eb".encode(), Greeting("EHLO", "a?b"), id="ehlo-right-to-left"),
        pytest.param(b"EHLO a\x85b", Greeting("EHLO", "a?b"), id="ehlo-c1-control"),
        pytest.param(b"MAIL FROM:<> ENVID=q+2b1", Mail(None, dsn_id="q+1"), id="small-hex"),
        pytest.param(
            b"RCPT TO:<a@x.org> ORCPT=rfc822;b+2bc+3dd=e@y.org",
            Rcpt(A, original="rfc822;b+2Bc+3Dd+3De@y.org"),
            id="orcpt-as-others-can-read-it",
        ),
        pytest.param(b"MAIL FROM:<a@x.org> SIZE=5", Mail(A, size=5), id="size"),
        pytest.param(b"MAIL FROM:<a@x.org>  SIZE=5", Mail(A, size=5), id="two-blanks"),
        # RFC 1870 section 3: up to twenty digits
        pytest.param(b"MAIL FROM:<> SIZE=" + b"9" * 20, Mail(None, size=10**20 - 1), id="big-size"),
        pytest.param(b"MAIL FROM:<> SIZE=0", Mail(None, size=0), id="size-0"),
        # RFC 6152, RFC 3030
        pytest.param(b"MAIL FROM:<> body=8bitmime", Mail(None, body="8BITMIME"), id="8bitmime"),
        pytest.param(b"MAIL FROM:<> BODY=7BIT", Mail(None), id="7bit"),
        pytest.param(
            b"MAIL FROM:<> BODY=BINARYMIME", Mail(None, body="BINARYMIME"), id="binarymime"
        ),
        # RFC 6531 section 3.4
        pytest.param(
            "MAIL FROM:<é@x.org> SMTPUTF8".encode(),
            Mail(Address("é", "x.org"), smtputf8=True),
            id="smtputf8",
        ),
        # RFC 4954 section 5
        pytest.param(b"MAIL FROM:<> AUTH=<>", Mail(None), id="submitter-unknown"),
        pytest.param(
            b"MAIL FROM:<> AUTH=e+3Dm@x.org", Mail(None, submitter="e=m@x.org"), id="submitter"
        ),
        # RFC 3461 sections 4.3 and 4.4
        pytest.param(
            b"MAIL FROM:<> RET=hdrs ENVID=QQ+2B1",
            Mail(None, dsn_return="HDRS", dsn_id="QQ+1"),
            id="dsn",
        ),
        pytest.param(
            b"MAIL FROM:<> ENVID=" + b"x" * 100, Mail(None, dsn_id="x" * 100), id="envid-of-100"
        ),
        # RFC 8689 section 2
        pytest.param(b"MAIL FROM:<> REQUIRETLS", Mail(None, require_tls=True), id="requiretls"),
        pytest.param(b"RCPT TO:<a@x.org>", Rcpt(A), id="rcpt"),
        pytest.param(b"RCPT TO:<@r.org:a@x.org>", Rcpt(A), id="source-route"),
        pytest.param(b"RCPT TO:<postmaster>", Rcpt(Address("postmaster", "")), id="postmaster"),
        # RFC 3461 sections 4.1 and 4.2
        pytest.param(
            b"RCPT TO:<a@x.org> NOTIFY=success,Delay ORCPT=rfc822;b+2Bc@y.org",
            Rcpt(A, notify=frozenset({"SUCCESS", "DELAY"}), original="rfc822;b+2Bc@y.org"),
            id="rcpt-dsn",
        ),
        pytest.param(
            b"RCPT TO:<a@x.org> NOTIFY=NEVER", Rcpt(A, notify=frozenset({"NEVER"})), id="never"
        ),
        *(
            pytest.param(
                b"RCPT TO:<a@x.org> NOTIFY=" + value,
                Rcpt(A, notify=frozenset(words)),
                id=f"{value!r}",
            )
            for value, words in (
                (b"DELAY,DELAY", {"DELAY"}),
                (b"never,NEVER", {"NEVER"}),
                (b"DELAY,", {"DELAY"}),
                (b",SUCCESS,,delay", {"SUCCESS", "DELAY"}),
            )
        ),
        # RFC 6533 section 3
        pytest.param(
            "RCPT TO:<a@x.org> ORCPT=utf-8;é@x".encode(), Rcpt(A, original="utf-8;é@x"), id="utf-8"
        ),
        pytest.param(
            b"RCPT TO:<a@x.org> ORCPT=rfc822;+C3+A9+2B@x.org",
            Rcpt(A, original=r"utf-8;\x{E9}\x{2B}@x.org"),
            id="utf-8-by-postfix",
        ),
        pytest.param(
            "RCPT TO:<a@x.org> ORCPT=rfc822;é+2B@x.org".encode(),
            Rcpt(A, original=r"utf-8;\x{E9}\x{2B}@x.org"),
            id="utf-8-as-it-is",
        ),
        pytest.param(b"DATA", Data(), id="data"),
        # RFC 3030 section 2
        pytest.param(b"BDAT 10", Bdat(10, last=False), id="bdat"),
        pytest.param(b"BDAT 0 last", Bdat(0, last=True), id="bdat-last"),
        pytest.param(
            b"BDAT " + b"9" * 20 + b" LAST", Bdat(10**20 - 1, last=True), id="bdat-20-digits"
        ),
        pytest.param(b"RSET", Rset(), id="rset"),
        # RFC 5321 section 4.1.1.9: the argument is ignored
        pytest.param(b"NOOP what ever", Noop(), id="noop-argument"),
        pytest.param(b"STARTTLS", StartTls(), id="starttls"),
        # RFC 4954 section 4
        pytest.param(b"AUTH plain", Auth("PLAIN", None), id="auth"),
        pytest.param(b"AUTH PLAIN AGEAYg==", Auth("PLAIN", b"AGEAYg=="), id="auth-initial"),
        pytest.param(b"AUTH PLAIN =", Auth("PLAIN", b"="), id="auth-empty-initial"),
        pytest.param(b"VRFY some body", Other("VRFY", "some body"), id="vrfy"),
        pytest.param("VRFY é SMTPUTF8".encode(), Other("VRFY", "é SMTPUTF8"), id="vrfy-utf-8"),
        pytest.param(b"EXPN list", Other("EXPN", "list"), id="expn"),
        pytest.param(b"HELP", Other("HELP", ""), id="help"),
        pytest.param(b"HELP mail", Other("HELP", "mail"), id="help-argument"),
        pytest.param(b"xclient NAME=a", Other("XCLIENT", "NAME=a"), id="unknown-verb"),
    ],
)
def test_line_is_read(line: bytes, command: Command) -> None:
    assert parse(line) == command


@pytest.mark.parametrize(
    ("line", "verb", "code", "enhanced"),
    [
        # RFC 5321 section 4.2.4: 500 for what is not recognized
        pytest.param(b"", "OTHER", 500, "5.5.2", id="empty"),
        pytest.param(b"MAILFROM:<a@x.org>", "OTHER", 500, "5.5.2", id="no-blank-after-the-verb"),
        pytest.param(b"\0", "OTHER", 500, "5.5.2", id="nul"),
        pytest.param(b"\xff\xfe", "OTHER", 500, "5.5.2", id="8-bit-verb"),
        pytest.param("ﬁx".encode(), "OTHER", 500, "5.5.2", id="utf-8-verb"),
        pytest.param(b"From: a@x.org", "OTHER", 500, "5.5.2", id="header-field"),
        # RFC 5321 section 4.1.1.1
        pytest.param(b"EHLO", "EHLO", 501, "5.5.4", id="ehlo-without-name"),
        pytest.param(b"HELO  \t", "HELO", 501, "5.5.4", id="helo-blanks"),
        pytest.param(b"HELO a\0b", "HELO", 501, "5.5.2", id="helo-nul"),
        pytest.param(b"HELO a\x1b[1mb", "HELO", 501, "5.5.2", id="helo-escape"),
        pytest.param(b"EHLO a\rb", "EHLO", 501, "5.5.2", id="ehlo-bare-cr"),
        pytest.param(b"EHLO a\nb", "EHLO", 501, "5.5.2", id="ehlo-bare-lf"),
        # RFC 5321 section 4.3.2: 501 for arguments where none belong
        pytest.param(b"DATA now", "DATA", 501, "5.5.4", id="data-argument"),
        pytest.param(b"RSET now", "RSET", 501, "5.5.4", id="rset-argument"),
        pytest.param(b"QUIT now", "QUIT", 501, "5.5.4", id="quit-argument"),
        pytest.param(b"STARTTLS now", "STARTTLS", 501, "5.5.4", id="starttls-argument"),
        pytest.param(b"VRFY", "VRFY", 501, "5.5.4", id="vrfy-nobody"),
        pytest.param(b"EXPN  ", "EXPN", 501, "5.5.4", id="expn-nothing"),
        pytest.param(b"NOOP \0", "NOOP", 501, "5.5.2", id="control-character"),
        pytest.param("HELP \u2028".encode(), "HELP", 501, "5.5.2", id="line-separator"),
        pytest.param("HELP \x85".encode(), "HELP", 501, "5.5.2", id="c1-control"),
        pytest.param(b"HELP \xff", "HELP", 501, "5.5.2", id="not-utf-8"),
        pytest.param(b"MAIL FROM:<a\r@x.org>", "MAIL", 501, "5.5.2", id="bare-cr"),
        pytest.param(b"MAIL FROM:<a@x.org>\n", "MAIL", 501, "5.5.2", id="bare-lf"),
        pytest.param(b"MAIL FROM:<\xe9@x.org>", "MAIL", 501, "5.5.2", id="latin-1"),
        # RFC 5321 section 4.1.1.2
        pytest.param(b"MAIL", "MAIL", 501, "5.5.4", id="mail-alone"),
        pytest.param(b"MAIL a@x.org", "MAIL", 501, "5.5.4", id="mail-without-from"),
        pytest.param(b"MAIL TO:<a@x.org>", "MAIL", 501, "5.5.4", id="mail-to"),
        pytest.param(b"MAIL FROM:", "MAIL", 501, "5.5.4", id="mail-from-nothing"),
        pytest.param(b"MAIL FROM <a@x.org>", "MAIL", 501, "5.5.4", id="mail-without-colon"),
        pytest.param(b"MAIL FROM:<a b@x.org>", "MAIL", 501, "5.1.7", id="blank-in-the-sender"),
        pytest.param(b"MAIL FROM:<a@x.org>SIZE=1", "MAIL", 501, "5.5.4", id="no-blank"),
        pytest.param(b"MAIL FROM:<a@x.org> SIZE=x", "MAIL", 501, "5.5.4", id="size-no-number"),
        pytest.param(b"MAIL FROM:<a@x.org> SIZE=-1", "MAIL", 501, "5.5.4", id="size-negative"),
        pytest.param(
            "MAIL FROM:<a@x.org> SIZE=٣".encode(), "MAIL", 501, "5.5.4", id="size-other-digits"
        ),
        pytest.param(
            b"MAIL FROM:<> SIZE=" + b"1" * 21, "MAIL", 501, "5.5.4", id="size-of-21-digits"
        ),
        pytest.param(b"MAIL FROM:<> SIZE", "MAIL", 501, "5.5.4", id="size-without-value"),
        pytest.param(b"MAIL FROM:<> SIZE=1 SIZE=1", "MAIL", 501, "5.5.4", id="repeated"),
        pytest.param(b"MAIL FROM:<> BODY=9BIT", "MAIL", 501, "5.5.4", id="body-unknown"),
        pytest.param(b"MAIL FROM:<> SMTPUTF8=1", "MAIL", 501, "5.5.4", id="flag-with-value"),
        pytest.param(b"MAIL FROM:<> REQUIRETLS=1", "MAIL", 501, "5.5.4", id="tls-with-value"),
        pytest.param(b"MAIL FROM:<> RET=ALL", "MAIL", 501, "5.5.4", id="ret-unknown"),
        pytest.param(b"MAIL FROM:<> ENVID=a+0Ab", "MAIL", 501, "5.5.4", id="envid-line-end"),
        pytest.param(b"MAIL FROM:<> ENVID=+C3+A9", "MAIL", 501, "5.5.4", id="envid-not-ascii"),
        pytest.param(
            b"MAIL FROM:<> ENVID=" + b"x" * 501, "MAIL", 501, "5.5.4", id="envid-too-long"
        ),
        pytest.param(b"MAIL FROM:<> AUTH=a+", "MAIL", 501, "5.5.4", id="auth-no-xtext"),
        # RFC 5321 section 4.1.1.11
        pytest.param(b"MAIL FROM:<> X=1", "MAIL", 555, "5.5.4", id="unknown-parameter"),
        pytest.param(b"MAIL FROM:<> NOTIFY=NEVER", "MAIL", 555, "5.5.4", id="of-rcpt"),
        pytest.param(b"RCPT TO:<a@x.org> SIZE=1", "RCPT", 555, "5.5.4", id="of-mail"),
        # RFC 6531 section 3.5
        pytest.param("MAIL FROM:<é@x.org>".encode(), "MAIL", 553, "5.6.7", id="needs-smtputf8"),
        pytest.param("MAIL FROM:<a@é.org>".encode(), "MAIL", 553, "5.6.7", id="domain-needs-it"),
        # RFC 5321 section 4.1.1.3
        pytest.param(b"RCPT TO:<>", "RCPT", 501, "5.1.3", id="null-forward-path"),
        pytest.param(b"RCPT FROM:<a@x.org>", "RCPT", 501, "5.5.4", id="rcpt-from"),
        pytest.param(b"RCPT TO:<a@[999.0.0.1]>", "RCPT", 501, "5.1.3", id="rcpt-bad-literal"),
        # RFC 3461 section 4.1: NEVER stands alone, nothing twice
        pytest.param(b"RCPT TO:<a@x> NOTIFY=NEVER,DELAY", "RCPT", 501, "5.5.4", id="never-and"),
        pytest.param(b"RCPT TO:<a@x> NOTIFY=,", "RCPT", 501, "5.5.4", id="notify-comma"),
        pytest.param(b"RCPT TO:<a@x> NOTIFY=LATE", "RCPT", 501, "5.5.4", id="notify-unknown"),
        pytest.param(b"RCPT TO:<a@x> NOTIFY", "RCPT", 501, "5.5.4", id="notify-nothing"),
        pytest.param(b"RCPT TO:<a@x> ORCPT=b@y.org", "RCPT", 501, "5.5.4", id="orcpt-no-type"),
        pytest.param(b"RCPT TO:<a@x> ORCPT=;b@y.org", "RCPT", 501, "5.5.4", id="orcpt-empty-type"),
        pytest.param(b"RCPT TO:<a@x> ORCPT=rfc822;b+", "RCPT", 501, "5.5.4", id="orcpt-no-xtext"),
        pytest.param(b"RCPT TO:<a@x> ORCPT=x400;+C3+A9", "RCPT", 501, "5.5.4", id="orcpt-wide"),
        pytest.param(
            b"RCPT TO:<a@x> ORCPT=rfc822;" + b"b" * 2394, "RCPT", 501, "5.5.4", id="orcpt-too-long"
        ),
        # RFC 3030 section 2
        pytest.param(b"BDAT", "BDAT", 501, "5.5.4", id="bdat-alone"),
        pytest.param(b"BDAT x", "BDAT", 501, "5.5.4", id="bdat-no-number"),
        pytest.param(b"BDAT -1", "BDAT", 501, "5.5.4", id="bdat-negative"),
        pytest.param(b"BDAT 1 FIRST", "BDAT", 501, "5.5.4", id="bdat-not-last"),
        pytest.param(b"BDAT 1 LAST 2", "BDAT", 501, "5.5.4", id="bdat-three-words"),
        pytest.param(b"BDAT " + b"1" * 21, "BDAT", 501, "5.5.4", id="bdat-21-digits"),
        # RFC 4954 section 4
        pytest.param(b"AUTH", "AUTH", 501, "5.5.4", id="auth-alone"),
        pytest.param(b"AUTH PLAIN a b", "AUTH", 501, "5.5.4", id="auth-three-words"),
        # Cross-protocol attacks: a client that speaks HTTP is cut off
        pytest.param(b"GET / HTTP/1.1", "OTHER", 421, "4.7.0", id="http-get"),
        pytest.param(b"post /", "OTHER", 421, "4.7.0", id="http-post"),
        pytest.param(b"CONNECT x:25 HTTP/1.1", "OTHER", 421, "4.7.0", id="http-connect"),
        pytest.param(b"HTTP/1.1 200 OK", "OTHER", 421, "4.7.0", id="http-response"),
    ],
)
def test_line_that_is_no_command_is_answered(
    line: bytes, verb: str, code: int, enhanced: str
) -> None:
    with pytest.raises(CommandProblem) as problem:
        parse(line)
    assert problem.value.verb == verb
    assert problem.value.reply.code == code
    assert problem.value.reply.enhanced == enhanced


def test_rcpt_in_utf_8_is_left_to_whoever_knows_the_transaction() -> None:
    # RFC 6531 section 3.5: whether it may be is said in MAIL
    assert parse("RCPT TO:<é@x.org>".encode()) == Rcpt(Address("é", "x.org"))


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        # RFC 5321 section 4.5.3.1.4: 512 octets with CRLF at least, and what the extensions add
        # (RFC 1870, 6152, 4954, 6531, 3461, 8689)
        pytest.param(b"NOOP ", 2048, id="NOOP"),
        pytest.param(b"EHLO ", 2048, id="EHLO"),
        pytest.param(b"WIZ ", 2048, id="unknown-verb"),
        pytest.param(b"MAIL FROM:<> ENVID=a", 4096, id="MAIL"),
        pytest.param(b"RCPT TO:<a@x.org> ORCPT=a", 4096, id="RCPT"),
        pytest.param(b"VRFY ", 2048, id="VRFY"),
        pytest.param(b"AUTH PLAIN ", 12288, id="AUTH"),
        # Octets that are not commands follow it
        pytest.param(b"BDAT ", 512, id="BDAT"),
    ],
)
def test_line_may_be_as_long_as_the_extensions_of_its_verb_ask(line: bytes, limit: int) -> None:
    longest = line.ljust(limit - 2, b"x")
    assert _code(longest) != 500
    assert _code(longest + b"x") == 500


def test_no_limit_is_beyond_the_longest_line() -> None:
    assert max(LINE_LIMITS.values()) == LONGEST_LINE == 12288


def _code(line: bytes) -> int:
    """Return the code that refuses a line, 0 for a good one."""
    try:
        parse(line)
    except CommandProblem as problem:
        return problem.reply.code
    return 0


_LINES = st.binary(max_size=600) | st.builds(
    lambda verb, rest: f"{verb} {rest}".encode("utf-8", "surrogatepass"),
    st.sampled_from(
        ["EHLO", "MAIL FROM:", "RCPT TO:", "MAIL FROM:<>", "RCPT TO:<a@x>", "BDAT", "AUTH", "VRFY"]
    ),
    st.text(st.sampled_from('<>@,:;="+ \\[]-aé1\t\0')) | st.text(),
)


@settings(max_examples=examples(500))
@given(_LINES)
def test_any_line_gives_a_command_or_a_reply(line: bytes) -> None:
    problem = None
    try:
        command = parse(line)
    except CommandProblem as refusal:
        problem = refusal
    else:
        assert command.verb == line.strip(b" \t").split()[0].decode().upper()
    if problem is not None:
        assert problem.reply.category in {4, 5}
        assert len(problem.reply.encode()) <= 512
        assert problem.reply.enhanced
