"""Encoded words, decoded as mail programs do."""

from __future__ import annotations

import base64
import quopri
from pathlib import Path
from typing import Final

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from minismtp import Headers
from minismtp.mail.encoded_words import decoded_words

WORDS: Final[dict[bytes, str]] = {
    # Labels mean what senders mean
    b"=?iso-8859-1?Q?=80_=93x=94?=": "\u20ac \u201cx\u201d",
    b"=?us-ascii?Q?caf=E9?=": "caf\u00e9",
    b"=?latin1?Q?=E9?=": "\u00e9",
    b"=?gb2312?B?gUA=?=": "\u4e02",
    b"=?gbk?Q?=81=40?=": "\u4e02",
    b"=?GB18030?B?gTCEMg==?=": "\u00a0",
    b"=?ks_c_5601-1987?B?sKE=?=": "\uac00",
    b"=?euc-kr?B?gUE=?=": "\uac02",
    b"=?x-sjis?B?h0A=?=": "\u2460",
    b"=?shift_jis?B?g2WDWINn?=": "\u30c6\u30b9\u30c8",
    b"=?iso-2022-jp?B?GyRCLSEbKEI=?=": "\u2460",
    b"=?iso-2022-jp?B?GyRCJUYlOSVIGyhC?=": "\u30c6\u30b9\u30c8",
    b"=?euc-jp?B?raE=?=": "\u2460",
    b"=?big5?B?pKQ=?=": "\u4e2d",
    b"=?utf8?Q?=C3=A9?=": "\u00e9",
    b"=?UTF-8?Q?=C3=A9?=": "\u00e9",
    b"=?unicode-1-1-utf-8?Q?=C3=A9?=": "\u00e9",
    b"=?iso-8859-9?Q?=FD=80?=": "\u0131\u20ac",
    b"=?windows-1252?Q?=80?=": "\u20ac",
    b"=?cp1252?Q?=80?=": "\u20ac",
    b"=?koi8?Q?=C1?=": "\u0430",
    b"=?tis-620?Q?=A1=80?=": "\u0e01\u20ac",
    # Nobody knows which
    b"=?unknown-8bit?Q?=C3=A9?=": "\u00e9",
    b"=?unknown-8bit?Q?=E9=80?=": "\u00e9\u20ac",
    b"=?x-unknown?q?a?=": "a",
    b"=??Q?a?=": "a",
    b"=?no-such?Q?a?=": "=?no-such?Q?a?=",
    b"=?utf-7?q?+2AA-?=": "=?utf-7?q?+2AA-?=",
    b"=?unicode-1-1-utf-7?q?+2AA-?=": "=?unicode-1-1-utf-7?q?+2AA-?=",
    b"=?hex?q?3d?=": "=?hex?q?3d?=",
    b"=?rot13?q?3d?=": "=?rot13?q?3d?=",
    # Spelling
    b"=?utf-8?q?a_b?=": "a b",
    b"=?utf-8?q?a b?=": "a b",
    b"=?utf-8?b?YQ?=": "a",
    b"=?utf-8?b?YWI?=": "ab",
    b"=?utf-8?b?Y W\t I=?=": "ab",
    b"=?utf-8?b?YQ==YQ==?=": "aa",
    b"=?utf-8?b?YQ====?=": "a",
    b"=?utf-8?b?Y?=": "=?utf-8?b?Y?=",
    b"=?utf-8?B??=": "",
    b"=?utf-8*en?Q?a?=": "a",
    b"=?utf-8*en-GB?Q?a?=": "a",
    b"=?'utf-8'?Q?a?=": "a",
    b'=?"utf-8" ?Q?a?=': "a",
    b"=?utf-8?Q?What??=": "What?",
    b"=?utf-8?Q?a=3F?b?=": "a??b",
    b"=?utf-8?q?=e9=zz=?=": "\ufffd=zz=",
    b"=?utf-8?Q?open": "=?utf-8?Q?open",
    b"=?utf-8?X?a?=": "=?utf-8?X?a?=",
    b"a=?utf-8?Q?b?=c": "abc",
    b'"=?utf-8?Q?b?=" <a@b>': '"b" <a@b>',
    # Neighbours
    b"=?utf-8?Q?a?==?utf-8?Q?b?=": "ab",
    b"=?utf-8?Q?a?= \t =?utf-8?Q?b?=": "ab",
    b"=?utf-8?Q?a?= and =?utf-8?Q?b?=": "a and b",
    b"=?utf-8?Q?=E2=82?= =?UTF-8?B?rA==?=": "\u20ac",
    b"=?utf-8?Q?=C3?= =?iso-8859-1?Q?=A9?=": "\ufffd\u00a9",
    b"=?gb2312?B?1g==?= =?GBK?B?0A==?=": "\u4e2d",
    b"=?utf-8?Q?=E9?= x =?utf-8?Q?=C3=A9?=": "\ufffd x \u00e9",
    # Octets that are not encoded
    "caf\u00e9".encode(): "caf\u00e9",
    b"caf\xe9 \x80": "caf\u00e9 \u20ac",
    b"\x93=?utf-8?Q?a?=\x94": "\u201ca\u201d",
    b"=?iso-8859-1?Q?J\xf6rg?=": "J\u00f6rg",
    "=?utf-8?Q?J\u00f6rg?=".encode(): "J\u00f6rg",
}


@pytest.mark.parametrize(("octets", "text"), WORDS.items())
def test_words_are_decoded_as_mail_programs_do(octets: bytes, text: str) -> None:
    """RFC 2047 section 2; a word that cannot be decoded stays."""
    assert decoded_words(octets) == text
    assert Headers([b"Subject: " + octets + b"\r\n"]).decoded("subject") == text


def test_word_that_was_folded_inside_is_put_together() -> None:
    headers = Headers([b"Subject: =?utf-8?B?Y2Fm\r\n w6k=?=\r\n"])
    assert headers.decoded("Subject") == "caf\u00e9"


_TABLE: Final = Path(__file__).parents[1] / "data" / "whatwg_labels.txt"
_LABELS: Final = [line.split() for line in _TABLE.read_text().splitlines()[1:]]


@pytest.mark.parametrize(("label", "codec"), _LABELS)
def test_every_label_of_the_standard_is_known(label: str, codec: str) -> None:
    """WHATWG Encoding Standard section 4.2, except for the replacements there."""
    octets = "A".encode(codec) if codec.startswith("utf-16") else b"A\xa4\xa4"
    word = b"=?" + label.encode() + b"?B?" + base64.b64encode(octets) + b"?="
    assert decoded_words(word) == octets.decode(codec, "replace")


@settings(max_examples=examples(200))
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.sampled_from(["utf-8", "utf-16-be", "gb18030"]),
    st.lists(st.tuples(st.sampled_from("BbQq"), st.integers(1, 12)), min_size=1),
)
def test_what_was_cut_anywhere_is_put_together(
    text: str, charset: str, cuts: list[tuple[str, int]]
) -> None:
    rest, words, number = text.encode(charset), [], 0
    while rest:
        encoding, size = cuts[number % len(cuts)]
        piece, rest, number = rest[:size], rest[size:], number + 1
        if encoding in "Bb":
            coded = base64.b64encode(piece)
        else:
            coded = b"".join(b"=%02X" % octet for octet in piece)
            assert quopri.decodestring(coded) == piece
        words.append(b"=?" + charset.encode() + b"?" + encoding.encode() + b"?" + coded + b"?=")
    assert decoded_words(b" ".join(words)) == text
