"""Reading headers without trust, and writing a field."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minismtp.mail.headers import FIELD_LIMIT, READ_LIMIT, Headers, format_field

HOSTILE = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff", b"\xc3\xa9"),
                    *(b"Subject", b"=?", b"?q?", b"?B?", b"?=", b"utf-8", b"utf-16", b"idna"),
                    *(b"hex", b"=4", b"+"),
                ]
            ),
            st.binary(max_size=5),
        ),
        max_size=40,
    ).map(b"".join),
)


def test_value_is_unfolded_and_stripped() -> None:
    headers = Headers.parse(b"Subject:  one\r\n two\n\tthree \r\n\r\nbody")
    assert headers.get("Subject") == "one two\tthree"


def test_names_match_in_any_case_and_are_shown_as_received() -> None:
    headers = Headers.parse(b"sUBJECT: x\r\n")
    assert headers.get("Subject") == "x"
    assert "SUBJECT" in headers
    assert list(headers) == [("sUBJECT", "x")]


def test_missing_field_gives_the_default() -> None:
    headers = Headers.parse(b"Subject: x\r\n")
    assert headers.get("To") == ""
    assert headers.get("To", "nobody") == "nobody"
    assert headers.decoded("To", "nobody") == "nobody"
    assert headers.raw("To") == b""
    assert headers.get_all("To") == []
    assert headers.raw_all("To") == []
    assert "To" not in headers


def test_what_is_no_name_is_not_contained() -> None:
    assert 1 not in Headers.parse(b"1: x\r\n")


def test_fields_of_one_name_are_given_from_the_top() -> None:
    headers = Headers.parse(b"Received: a\r\nTo: x\r\nreceived : b\r\n\r\n")
    assert headers.get("Received") == "a"
    assert headers.get_all("Received") == ["a", "b"]
    assert headers.raw_all("Received") == [b"Received: a\r\n", b"received : b\r\n"]
    assert list(headers) == [("Received", "a"), ("To", "x"), ("received", "b")]
    assert len(headers) == 3


def test_raw_field_is_every_byte_as_received() -> None:
    field = b"X-A :\t\xff\0 \r x\r\n\t y \n"
    assert Headers.parse(b"To: x\n" + field + b"B: c\r\n\r\n").raw("x-a") == field


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"], ids=repr)
def test_first_empty_line_ends_the_header(end: bytes) -> None:
    headers = Headers.parse(b"Subject: x" + end + b"To: y\r\n")
    assert headers.get("Subject") == "x"
    assert "To" not in headers


@pytest.mark.parametrize("block", [b"", b"\r\n", b"\nTo: x\r\n", b"\r\n To: x\r\n\r\n"], ids=repr)
def test_message_without_header_has_no_field(block: bytes) -> None:
    headers = Headers.parse(block)
    assert len(headers) == 0
    assert headers.raw_all() == []


def test_line_of_white_space_continues_a_field() -> None:
    """RFC 5322 section 4.2 has such lines in its obsolete folding."""
    headers = Headers.parse(b"Subject: a\r\n \r\n b\r\nTo: c\r\n\r\n")
    assert headers.get("Subject") == "a  b"
    assert headers.get("To") == "c"


@pytest.mark.parametrize(
    "line",
    [b"no colon\r\n", b" lead\r\n", b": x\r\n", b"a b: x\r\n", b"\xe9: x\r\n", b"N\0: x\r\n"],
    ids=repr,
)
def test_line_that_is_no_field_is_kept_without_a_name(line: bytes) -> None:
    headers = Headers.parse(line + b"To: x\r\n\r\n")
    assert list(headers) == [("To", "x")]
    assert headers.raw_all() == [line, b"To: x\r\n"]


def test_bare_carriage_return_is_no_line_end_and_never_in_a_value() -> None:
    headers = Headers.parse(b"Subject: a\rTo: b\r\r\n\r\n")
    assert list(headers) == [("Subject", "a To: b")]


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"\xc3\xa9", "\xe9"),
        (b"\xe9", "\xe9"),
        (b"a\0b", "a\0b"),
        (b"\xed\xa0\x80", "\xed\xa0\x80"),
    ],
    ids=["utf-8", "latin-1", "nul", "surrogate"],
)
def test_value_in_any_bytes_is_text(octets: bytes, text: str) -> None:
    assert Headers.parse(b"Subject: " + octets + b"\r\n").get("Subject") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("=?utf-8?q?caf=C3=a9_au_lait?=", "caf\xe9 au lait"),
        ("=?UTF-8?B?Y2Fmw6k=?= noir", "caf\xe9 noir"),
        ("=?utf-8?b?Y2Fmw6k?=", "caf\xe9"),
        ("a =?iso-8859-1?q?=E9?=\r\n =?utf-8?q?=C3=A9?= b", "a \xe9\xe9 b"),
        ("=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "\xe9"),
        ("=?utf-8?q?a?= and =?utf-8?q?b?=", "a and b"),
        ("=?us-ascii*en?q?language?=", "language"),
        ("=?koi8-u?q?=A4?=", "\u0454"),
        ("=?windows-874?q?=A1?=", "\u0e01"),
        ("=?utf-8?q?spaces in it?=", "spaces in it"),
        ("=?utf-8?q?a=ZZ?=", "a=ZZ"),
        ("=?utf-8?q?=FF?=", "\ufffd"),
        ("=?utf-8?q?a=0D=0ATo:_b?=", "a  To: b"),
        ("=?punycode?q?a?= =?utf-8?q?b?=", "=?punycode?q?a?= b"),
    ],
)
def test_encoded_words_are_decoded(value: str, text: str) -> None:
    """RFC 2047 sections 2 and 6.2; a word that cannot be decoded stays."""
    assert Headers.parse(f"Subject: {value}\r\n".encode()).decoded("subject") == text


@settings(deadline=None)
@given(HOSTILE)
@example(b"\r")
@example(b"a\r\n")
def test_lines_together_are_the_block_up_to_its_first_empty_line(block: bytes) -> None:
    lines = Headers.parse(block).raw_all()
    joined = b"".join(lines)
    assert block.startswith(joined)
    assert block[len(joined) :][:1] in (b"", b"\r", b"\n")
    assert b"\r\n" not in lines
    assert b"\n" not in lines


@settings(deadline=None)
@given(HOSTILE)
def test_nothing_a_sender_writes_raises(block: bytes) -> None:
    headers = Headers.parse(b"Subject: " + block)
    values = [headers.get("Subject"), headers.decoded("Subject"), *headers.get_all("Subject")]
    for value in values + [value for _, value in headers]:
        assert not {"\r", "\n"} & set(value)
        value.encode("utf-8")  # no lone surrogates
    assert len(headers) == len(list(headers)) >= 1
    assert len(repr(headers)) > 0


def test_fields_beyond_the_limit_are_ignored() -> None:
    block = b"A: b\r\n" * (FIELD_LIMIT + 1000)
    assert not Headers.parse(block).truncated
    headers = Headers.parse(block + b"B: c\r\n\r\n")
    assert headers.truncated
    assert len(headers) == FIELD_LIMIT + 1000
    assert "B" not in headers


def test_octets_beyond_the_limit_are_ignored_by_whole_fields() -> None:
    headers = Headers.parse(b"A: b\r\nLong: " + b"x" * READ_LIMIT + b"\r\nB: c\r\n\r\n")
    assert headers.truncated
    assert list(headers) == [("A", "b")]


def test_long_body_does_not_truncate_the_header() -> None:
    assert not Headers.parse(b"A: b\r\n\r\n" + b"x" * READ_LIMIT).truncated


@settings(deadline=None)
@given(HOSTILE.map(lambda block: b"X-B: 2\r\n" + block))
def test_headers_below_a_field_are_those_of_both(block: bytes) -> None:
    headers = Headers.parse(block).below(b"X-A: 1\r\n")
    both = Headers.parse(b"X-A: 1\r\n" + block)
    assert headers.raw_all() == both.raw_all()
    assert list(headers) == list(both)
    assert headers.get("x-a") == "1"


def test_field_above_others_is_the_first_of_its_name() -> None:
    before = Headers.parse(b"X-A: 1\r\nno field\r\n")
    assert before.get("X-A") == "1"
    assert before.below(b"x-a : 2\r\n").get_all("X-A") == ["2", "1"]
    assert before.get_all("X-A") == ["1"]


def test_names_are_found_by_their_begin() -> None:
    headers = Headers.parse(b"X-B: 1\r\nx-a: 2\r\nX-b: 3\r\nno field\r\nTo: 4\r\n")
    assert headers.names() == ["x-b", "x-a", "to"]
    assert headers.names("X-") == ["x-b", "x-a"]


def test_headers_show_their_names_and_never_a_value() -> None:
    assert repr(Headers.parse(b"To: secret\r\njunk\r\nDate: x\r\n")) == "<Headers: To, Date>"


def test_short_field_is_one_line() -> None:
    assert format_field("X-Spam", "caf\xe9") == b"X-Spam: caf\xc3\xa9\r\n"


def test_long_field_is_folded_at_white_space() -> None:
    field = format_field("References", " ".join(f"<{n:030}@example.org>" for n in range(9)))
    lines = field.splitlines(keepends=True)
    assert len(lines) > 1
    assert all(len(line) <= 80 and line.endswith(b"\r\n") for line in lines)
    assert all(line.startswith(b" <") for line in lines[1:])


def test_word_longer_than_a_line_stands_on_a_line_of_its_own() -> None:
    field = format_field("X-Word", "short " + "x" * 900 + " short")
    assert field == b"X-Word: short\r\n " + b"x" * 900 + b"\r\n short\r\n"


def test_value_that_is_folded_already_stays_as_it_is() -> None:
    value = "v=1;\r\n\tb=" + "x" * 200 + ";\r\n c=d "
    assert format_field("DKIM-Signature", value) == f"DKIM-Signature: {value}\r\n".encode()


@pytest.mark.parametrize(
    "name", ["", "A:", "A B", "A ", "A\r\n", "A\n", "Caf\xe9", "\x7f", "\ud800"], ids=ascii
)
def test_field_name_must_be_ftext(name: str) -> None:
    """RFC 5322 section 3.6.8."""
    with pytest.raises(ValueError, match="field name"):
        format_field(name, "x")


@pytest.mark.parametrize(
    "value",
    [
        *("a\nb", "a\rb", "a\n b", "a\0b", "a\r\nTo: b", "a\r\n", "a \r\n", "a\r\n \r\n b"),
        *("a\r\n b\r", "a\ud800", "x" * 1000, "a\r\n " + "x" * 1000),
    ],
    ids=lambda value: ascii(value[:16]),
)
def test_field_value_that_would_break_the_header_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - a surrogate has the codec's own words
        format_field("X", value)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=240))
def test_written_field_reads_back_as_one_field_of_short_lines(value: str) -> None:
    field = format_field("X-A", value)
    (pair,) = Headers.parse(field + b"\r\n")
    assert pair == ("X-A", value.strip(" \t"))
    for line in field.split(b"\r\n")[1:-1]:
        assert line.strip(b" \t")
        assert len(line) <= 998
