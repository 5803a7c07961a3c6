"""The content of DATA: its end, its dots, its line ends."""

import re
from itertools import pairwise

import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minismtp.smtp.dot_stuffing import END, DotDecoder, fix_newlines

_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def _decode(data: bytes, cuts: list[int] | None = None, line_length: int = 0) -> DotDecoder:
    return _decode_all(data, cuts, line_length)[0]


def _decode_all(
    data: bytes, cuts: list[int] | None = None, line_length: int = 0
) -> tuple[DotDecoder, bytes]:
    """Feed `data` in pieces cut at `cuts`, and return the decoder and the content."""
    decoder = DotDecoder(line_length)
    places = sorted({0, len(data), *(cut for cut in cuts or () if cut < len(data))})
    content = b""
    for start, end in pairwise(places):
        if decoder.done:
            decoder.rest += data[start:end]
        else:
            content += decoder.decode(data[start:end])
    return decoder, content


def _stuffed(content: bytes) -> bytes:
    """Do what a client does (RFC 5321 section 4.5.2); `content` is empty or ends with CRLF."""
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 1000], ids=lambda size: f"{size}-octets-each")
@pytest.mark.parametrize(
    ("wire", "content", "rest"),
    [
        # RFC 5321 section 4.1.1.4: the CRLF of DATA is the first one of the end
        pytest.param(b".\r\n", b"", b"", id="empty"),
        pytest.param(b".\r\nQUIT\r\n", b"", b"QUIT\r\n", id="empty-and-rest"),
        pytest.param(b"a\r\n.\r\n", b"a\r\n", b"", id="one-line"),
        pytest.param(b"\r\n.\r\n", b"\r\n", b"", id="empty-line"),
        pytest.param(b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n", id="second-end-is-rest"),
        # RFC 5321 section 4.5.2: the first dot of a line goes
        pytest.param(b"..\r\n.\r\n", b".\r\n", b"", id="dot-on-first-line"),
        pytest.param(b"a\r\n..\r\n.\r\n", b"a\r\n.\r\n", b"", id="lone-dot"),
        pytest.param(b"a\r\n...b\r\n.\r\n", b"a\r\n..b\r\n", b"", id="three-dots"),
        pytest.param(b".a\r\n.\r\n", b"a\r\n", b"", id="dot-not-doubled"),
        pytest.param(b"a.\r\n.\r\n", b"a.\r\n", b"", id="dot-at-the-end-of-a-line"),
        pytest.param(b"a\r\n. \r\n.\r\n", b"a\r\n \r\n", b"", id="dot-blank"),
    ],
)
def test_content_is_decoded(size: int, wire: bytes, content: bytes, rest: bytes) -> None:
    decoder, decoded = _decode_all(wire, list(range(0, len(wire), size)))
    assert decoder.done
    assert (decoded, decoder.rest) == (content, rest)
    assert not decoder.bare_newline


# What other servers took for CRLF.CRLF: the SMTP smuggling lists of 2023 and 2024 (CVE-2023-51764,
# CVE-2023-51765, CVE-2023-51766, CVE-2024-27305).
SMUGGLING = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\n",
    b"\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
    b"\r\n.\r\0\n",
    b"\r\r\n.\n",
    b"\n\n.\n\n",
    b"\r\n.\n\r\n",
    b"\r\n. \r\n",
    b"\r\n\x85.\r\n",
    b"\r\n.\xe2\x80\xa8",
]


@pytest.mark.parametrize("size", [1, 2, 3, 1000], ids=lambda size: f"{size}-octets-each")
@pytest.mark.parametrize("end", SMUGGLING, ids=repr)
def test_nothing_but_the_end_ends_the_content(end: bytes, size: int) -> None:
    # RFC 5321 section 4.1.1.4: "a server MUST NOT treat <LF>.<LF> as the end"
    inside = b"first" + end + b"MAIL FROM:<smuggled@x.org>\r\n"
    wire = inside + b".\r\n"
    decoder, content = _decode_all(wire, list(range(0, len(wire), size)))
    assert decoder.done
    assert decoder.rest == b""
    assert content == inside.replace(b"\r\n.", b"\r\n")
    assert decoder.bare_newline is bool(_BARE.search(inside))


@pytest.mark.parametrize("end", SMUGGLING, ids=repr)
def test_nothing_but_the_end_ends_an_empty_content(end: bytes) -> None:
    assert not _decode(end).done


@pytest.mark.parametrize("cut", range(len(b"a\r\n.\r\nb") + 1))
def test_end_is_found_across_two_packets(cut: int) -> None:
    decoder, content = _decode_all(b"a\r\n.\r\nb", [cut])
    assert (decoder.done, content, decoder.rest) == (True, b"a\r\n", b"b")


def test_little_is_held_back() -> None:
    decoder = DotDecoder()
    assert decoder.decode(b"abc\r\n.\r") == b"abc"
    assert decoder.decode(b"x") == b"\r\n\rx"


# RFC 5321 section 4.5.3.1.6: 1000 octets with CRLF, the doubled dot not counted
@pytest.mark.parametrize(
    "size", [1, 990, 998, 999, 1000, 9999], ids=lambda size: f"{size}-octets-each"
)
@pytest.mark.parametrize(
    ("wire", "is_long"),
    [
        pytest.param(b"x" * 998 + b"\r\n", False, id="1000-octets"),
        pytest.param(b"x" * 999 + b"\r\n", True, id="1001-octets"),
        pytest.param(b"." + b"." * 998 + b"\r\n", False, id="doubled-dot"),
        pytest.param(b"." + b"." * 999 + b"\r\n", True, id="doubled-dot-of-1001"),
        pytest.param((b"x" * 998 + b"\r\n") * 3, False, id="three-lines"),
        pytest.param(b"x\r\n" * 3 + b"x" * 999 + b"\r\n" + b"y\r\n", True, id="in-the-middle"),
        pytest.param(b"x" * 500 + b"\n" + b"x" * 500 + b"\r\n", False, id="bare-lf-ends-a-line"),
        pytest.param(b"x" * 500 + b"\r" + b"x" * 500 + b"\r\n", True, id="bare-cr-ends-no-line"),
    ],
)
def test_long_line_is_noticed(size: int, wire: bytes, is_long: bool) -> None:
    cuts = list(range(0, len(wire), size))
    assert _decode(wire + b".\r\n", cuts, 1000).long_line is is_long


def test_no_line_is_too_long_without_a_limit() -> None:
    assert not _decode(b"x" * 100000 + b"\r\n.\r\n").long_line


_PIECES = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"bcd", b"\0", b"\x85", b"\r\n.", b"e" * 9])
).map(b"".join)


@settings(max_examples=examples(400))
@given(
    content=_PIECES.map(lambda text: text + b"\r\n") | st.just(b""),
    rest=_PIECES,
    cuts=st.lists(st.integers(0, 60)),
    line_length=st.integers(2, 12),
)
@example(content=b"\r\n.\r\n", rest=b"", cuts=[1, 2, 3, 4, 5], line_length=2)
def test_any_content_comes_back_whatever_the_packets(
    content: bytes, rest: bytes, cuts: list[int], line_length: int
) -> None:
    decoder, decoded = _decode_all(_stuffed(content) + rest, cuts, line_length)
    assert decoder.done
    assert (decoded, decoder.rest) == (content, rest)
    assert decoder.bare_newline is bool(_BARE.search(content))
    lines = content.split(b"\n")[:-1]
    assert decoder.long_line is any(len(line) + 1 > line_length for line in lines)


@settings(max_examples=examples(400))
@given(_PIECES, st.lists(st.integers(0, 60)))
def test_any_octets_give_the_same_whatever_the_packets(data: bytes, cuts: list[int]) -> None:
    whole, pieces = _decode_all(data, [], 5), _decode_all(data, cuts, 5)
    assert (whole[1], whole[0].done, whole[0].rest) == (pieces[1], pieces[0].done, pieces[0].rest)
    assert whole[0].done is (END in b"\r\n" + data)
    assert whole[0].bare_newline is pieces[0].bare_newline
    assert whole[0].long_line is pieces[0].long_line


@settings(max_examples=examples(200))
@given(_PIECES)
@example(b"\r\r\n\n")
@example(b"\n\r")
def test_fixed_newlines_are_all_crlf(data: bytes) -> None:
    assert fix_newlines(data) == _BARE.sub(b"\r\n", data)
