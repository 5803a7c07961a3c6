"""Replies on the wire, and the verdicts that carry them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.values.reply import LINE_LIMIT, Defer, Disconnect, Reject, Reply, Verdict, printable

# Reply-line of RFC 5321 section 4.2, whose text is *( HT / %d32-126 )
WIRE = re.compile(rb"(?:([2-5][0-5][0-9])-[\t -~]*\r\n)*([2-5][0-5][0-9]) [\t -~]*\r\n")


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        pytest.param(Reply(250, "ok"), b"250 ok\r\n", id="no-enhanced-code"),
        pytest.param(Reply(250, "ok", "2.0.0"), b"250 2.0.0 ok\r\n", id="enhanced-code"),
        # RFC 5321 section 4.2.1: code, hyphen, text; the last line with a space
        pytest.param(Reply(250, "a\nb\nc"), b"250-a\r\n250-b\r\n250 c\r\n", id="lines"),
        # RFC 2034 section 4: every line of a reply has the enhanced code
        pytest.param(
            Reply(550, "a\nb", "5.7.1"), b"550-5.7.1 a\r\n550 5.7.1 b\r\n", id="enhanced-lines"
        ),
        # RFC 4954 section 4: the space stays when the challenge is empty
        pytest.param(Reply(334, ""), b"334 \r\n", id="empty-challenge"),
        pytest.param(Reply(250, "a\n"), b"250-a\r\n250 \r\n", id="empty-last-line"),
        # RFC 5321 section 4.2 allows ASCII; UTF-8 needs SMTPUTF8 (RFC 6531 section 3.7.4)
        pytest.param(Reply(550, "refusé"), b"550 refus\\xe9\r\n", id="not-ascii"),
        pytest.param(Reply(550, "\udc80"), b"550 \\udc80\r\n", id="surrogate"),
    ],
)
def test_reply_is_encoded(reply: Reply, wire: bytes) -> None:
    assert reply.encode() == wire


def test_line_that_is_too_long_is_wrapped() -> None:
    # RFC 5321 section 4.5.3.1.5: 512 octets with code and CRLF
    lines = Reply(550, "word " * 300, "5.7.1").encode().splitlines(keepends=True)
    assert len(lines) == 3
    assert all(len(line) <= LINE_LIMIT for line in lines)
    assert all(line.startswith((b"550-5.7.1 word", b"550 5.7.1 word")) for line in lines)
    assert b"".join(line[10:] for line in lines).split() == [b"word"] * 300


@pytest.mark.parametrize(("size", "lines"), [(506, 1), (507, 2)])
def test_longest_line_is_not_wrapped(size: int, lines: int) -> None:
    assert Reply(250, "x" * size).encode().count(b"\r\n") == lines


def test_long_line_of_blanks_is_still_a_reply() -> None:
    assert Reply(250, " " * 600).encode() == b"250 \r\n"


def test_long_challenge_stays_one_line() -> None:
    # RFC 4954 section 4: challenges have up to 12288 octets
    assert Reply(334, "A" * 2000).encode() == b"334 " + b"A" * 2000 + b"\r\n"


@given(st.text(), st.sampled_from([220, 250, 354, 421, 550]))
def test_any_printable_text_is_well_formed_on_the_wire(text: str, code: int) -> None:
    match = WIRE.fullmatch(Reply(code, printable(text)).encode())
    assert match is not None
    assert {match[1], match[2]} <= {None, b"%d" % code}


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(199, id="1yz"),
        pytest.param(99, id="two-digits"),
        pytest.param(600, id="6yz"),
        pytest.param(260, id="second-digit-6"),
        pytest.param(560, id="560"),
        pytest.param(2500, id="four-digits"),
        pytest.param(-250, id="negative"),
    ],
)
def test_code_that_is_none_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="not an SMTP reply code"):
        Reply(code, "text")


@pytest.mark.parametrize("code", [200, 250, 354, 421, 559])
def test_code_of_the_grammar_is_taken(code: int) -> None:
    assert Reply(code, "text").category == code // 100


@pytest.mark.parametrize(
    "enhanced",
    [
        pytest.param("3.0.0", id="class-3"),
        pytest.param("2.0", id="two-parts"),
        pytest.param("2.0.0.0", id="four-parts"),
        pytest.param("2.01.0", id="leading-zero"),
        pytest.param("2.1000.0", id="four-digits"),
        pytest.param("2.٣.0", id="other-digits"),
        pytest.param("2.0.0 ", id="blank"),
    ],
)
def test_enhanced_code_that_is_none_is_refused(enhanced: str) -> None:
    # RFC 3463 section 2
    with pytest.raises(ValueError, match="not an enhanced status code"):
        Reply(250, "text", enhanced)


@pytest.mark.parametrize(("code", "enhanced"), [(250, "5.0.0"), (550, "4.7.1"), (354, "2.0.0")])
def test_enhanced_code_of_another_class_is_refused(code: int, enhanced: str) -> None:
    # RFC 2034 section 4: its class is the first digit of the reply code
    with pytest.raises(ValueError, match="does not fit"):
        Reply(code, "text", enhanced)


@pytest.mark.parametrize("text", ["a\rb", "a\r\nb", "a\0b", "a\tb", "a\x1bb", "a\x7fb"], ids=repr)
def test_text_with_control_characters_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        Reply(250, text)


@pytest.mark.parametrize(
    ("reply", "text"),
    [(Reply(250, "a\nb", "2.0.0"), "250 2.0.0 a b"), (Reply(354, "go"), "354 go")],
    ids=["whole", "no-enhanced-code"],
)
def test_reply_as_text_is_one_line(reply: Reply, text: str) -> None:
    assert str(reply) == text


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        pytest.param(Reject(), Reply(550, "refused", "5.7.1"), id="reject"),
        pytest.param(Defer(), Reply(451, "try again later", "4.7.1"), id="defer"),
        pytest.param(
            Disconnect(), Reply(421, "closing connection", "4.7.0"), id="disconnect"
        ),  # RFC 5321 section 3.8
        pytest.param(
            Reject("no such user", code=550, enhanced="5.1.1"),
            Reply(550, "no such user", "5.1.1"),
            id="refined",
        ),
        pytest.param(
            Disconnect("go", code=554, enhanced="5.7.1"),
            Reply(554, "go", "5.7.1"),
            id="disconnect-for-good",
        ),
        pytest.param(
            Reject("a\0b\r\nc\rd", enhanced=""), Reply(550, "a b\nc d"), id="control-characters"
        ),
    ],
)
def test_verdict_carries_its_reply(verdict: Verdict, reply: Reply) -> None:
    assert verdict.reply == reply
    assert str(verdict) == str(reply)


@pytest.mark.parametrize(
    ("verdict", "code", "enhanced"),
    [
        (Reject, 450, "4.7.1"),
        (Reject, 250, "2.0.0"),
        (Defer, 550, "5.7.1"),
        (Disconnect, 250, "2.0.0"),
        (Disconnect, 354, ""),
    ],
)
def test_verdict_of_another_class_is_refused(
    verdict: type[Reject | Defer | Disconnect], code: int, enhanced: str
) -> None:
    with pytest.raises(ValueError, match=r"takes a [45]yz code"):
        verdict("text", code=code, enhanced=enhanced)
