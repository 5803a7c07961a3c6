"""Messages are converted for a host, and readers still find what was sent."""

from __future__ import annotations

import email
import gc
import tracemalloc
from base64 import b64encode, encodebytes
from pathlib import Path
from quopri import encodestring
from typing import Any, Final

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from minismtp.mail.content import Content, ContentWriter
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, converted, is_clean, is_sealed

LONG: Final = b"<td>" + b"cell " * 600 + b"</td>"
HTML: Final = b"Content-Type: text/html\r\n\r\n" + LONG + b"\r\n"
UMLAUT: Final = "Gr\u00fc\u00dfe".encode()
SIGNED: Final = (
    b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\nx \r\n--b \t\r\n\r\ny\r\n--b--\r\n"
)


def message(content: bytes) -> Message:
    return Message("m", Content.of(content))


def convert(
    content: bytes, *, eight_bit: bool = False, binary: bool = False, ascii_fields: bool = False
) -> bytes:
    made = converted(
        message(content), eight_bit=eight_bit, binary=binary, ascii_fields=ascii_fields
    )
    with made.open() as reader:
        return reader.read()


def leaves(content: bytes) -> list[tuple[str, str | None, Any]]:
    """Return type, name and decoded content of the parts that Python's parser finds."""
    parsed = email.message_from_bytes(content)
    return [
        (part.get_content_type(), part.get_filename(), part.get_payload(decode=True))
        for part in parsed.walk()
        if not part.is_multipart()
    ]


def longest(content: bytes) -> int:
    return max(map(len, content.split(b"\r\n")))


# What goes as it is


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"Subject: x",
        b"Subject: x\r\n\r\nhello\r\n",
        b"Subject: x\r\n\r\n" + b"x" * 998 + b"\r\n",
        b"X: " + b"x" * 995 + b"\r\n\r\n",
        SIGNED,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b",
        b"Content-Type: multipart/mixed\r\n\r\n--b\r\n",
        b"Content-Type: message/rfc822\r\n\r\nContent-Type: message/rfc822\r\n\r\n\r\n",
    ],
)
def test_what_every_host_takes_stays_octet_by_octet(content: bytes, *, eight_bit: bool) -> None:
    assert convert(content, eight_bit=eight_bit) == content


def test_parts_that_need_nothing_stay_octet_by_octet() -> None:
    signed = b'Content-Type: text/plain; charset="us-ascii"\r\n\r\nDear all, \r\n\r\n--\r\nMe'
    content = (
        b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n\r\n" + UMLAUT + b"\r\n--o\r\n"
        b"Content-Type: multipart/signed; boundary=i\r\n\r\n--i\r\n" + signed + b"\r\n--i--\r\n"
        b"--o--\r\n"
    )
    made = convert(content)
    assert made.isascii()
    assert b"--i\r\n" + signed + b"\r\n--i--" in made


# Long lines


def test_text_without_mime_is_broken_as_postfix_does() -> None:
    line = b"".join(b"%d," % number for number in range(1000))
    made = convert(b"Subject: x\r\n\r\n" + line + b"\r\nend\r\n")
    lines = made.split(b"\r\n")
    assert [len(each) for each in lines[2:5]] == [998, 998, 998]
    assert made.partition(b"\r\n\r\n")[2].replace(b"\r\n ", b"") == line + b"\r\nend\r\n"


@pytest.mark.parametrize("shift", range(4))
def test_no_character_is_cut(shift: int) -> None:
    text = "x" * shift + "\u20ac" * 30_000
    made = convert(b"Subject: x\r\n\r\n" + text.encode() + b"\r\n", eight_bit=True)
    lines = made.decode().split("\r\n")  # each line by itself
    assert longest(made) <= 998
    assert "".join(lines[2:]).replace(" ", "") == text
    for line in made.split(b"\r\n"):
        line.decode()


@pytest.mark.parametrize(
    "part",
    [
        HTML,
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: 7bit\r\n\r\n" + LONG,
        b"Content-Type: application/json\r\n\r\n{" + LONG + b"}\r\n",
        b"Content-Type: text/plain; format=flowed\r\n\r\n" + LONG * 40 + b" \r\n.\r\nFrom x\r\n",
        b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 30_000 + b"\r\nQUJD\r\n",
        b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 300,
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        + b"a=C3=A4=3D" * 9000
        + b"=\r\nx\r\n",
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\na=20\r\n" + b"=41" * 6000 + b"\r\nx",
        b"Content-Transfer-Encoding: x-unknown\r\n\r\n" + LONG,
        b"Content-Transfer-Encoding: 7bit (comment)\r\n\r\n" + LONG,
        b"Content-Type: text/html\r\nContent-Transfer-Encoding: 8BIT\r\n\r\n" + LONG + UMLAUT,
        b"Content-Type: text/html\r\n\r\n" + LONG + b"\r\n\r\n\r\n",
    ],
)
@pytest.mark.parametrize("inside", ["alone", "in a multipart", "in a message", "deep"])
def test_long_lines_of_a_part_change_nothing_for_its_reader(part: bytes, inside: str) -> None:
    if inside == "in a multipart":
        content = wrapped(part)
    elif inside == "in a message":
        content = b"Content-Type: message/rfc822\r\n\r\nMIME-Version: 1.0\r\n" + part
    elif inside == "deep":
        content = wrapped(b"Content-Type: message/rfc822\r\n\r\n" + wrapped(part, b"i"))
    else:
        content = b"MIME-Version: 1.0\r\n" + part
    for eight_bit in (False, True):
        made = convert(content, eight_bit=eight_bit)
        assert leaves(made) == leaves(content)
        assert longest(made) <= 998
        assert made.isascii() or eight_bit


def wrapped(*parts: bytes | tuple[bytes, ...], boundary: bytes = b"o") -> bytes:
    *bodies, last = parts
    if isinstance(last, bytes) and len(last) == 1:
        boundary = last
    else:
        bodies.append(last)
    line = b"\r\n--" + boundary
    head = b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\r\n'
    inner = b"".join(line + b"\r\n" + body for body in bodies if isinstance(body, bytes))
    return head + inner + line + b"--\r\n"


@pytest.mark.parametrize(
    ("field", "unfolds"),
    [
        (b"References: " + b"<1234567890@mail.example.org> " * 90 + b"<x@y>", True),
        (b"To:\t" + b"a@example.org,\tb@example.org, " * 60 + b"c@example.org", True),
        (b"X: " + b"a" * 900 + b" " * 2000 + b"b", None),
        (b"References: " + b"<1234567890@mail.example.org>" * 90, False),
        (b"To: " + b"a@example.org," * 200 + b"c@example.org", False),
        (b"X-Token: " + b"x" * 5000, False),
        (b"Subject: " + "\u20ac".encode() * 5000, False),
        (b"X: a\r\n " + b"b " * 600 + b"\r\n\tc", True),
    ],
)
def test_long_fields_are_folded(field: bytes, unfolds: bool | None) -> None:
    made = convert(field + b"\r\nSubject: x\r\n\r\nhello\r\n", eight_bit=True)
    header = made.partition(b"\r\n\r\n")[0]
    assert longest(made) <= 998
    assert made.endswith(b"\r\nSubject: x\r\n\r\nhello\r\n")
    first = header.removesuffix(b"\r\nSubject: x")
    assert len(email.message_from_bytes(made).items()) == 2
    if unfolds:
        assert first.replace(b"\r\n", b"") == field.replace(b"\r\n", b"")
    elif unfolds is False:
        assert first.replace(b"\r\n ", b"") == field
        for line in first.split(b"\r\n"):
            line.decode()
            assert b"<" not in field or line.endswith(b">")
            assert b"To:" not in field or line.endswith((b",", b"org"))


@pytest.mark.parametrize("encoding", ["b", "B", "q", "Q"])
@pytest.mark.parametrize("charset", ["utf-8", "ISO-8859-1"])
def test_long_encoded_words_are_read_as_before(charset: str, encoding: str) -> None:
    text = "Gr\u00fc\u00dfe_= " * 300
    octets = text.encode(charset)
    if encoding in "bB":
        code = b64encode(octets).decode()
    else:
        code = "".join(f"={octet:02x}" for octet in octets)
    field = f"Subject: =?{charset}?{encoding}?{code}?= and more"
    made = convert(f"{field}\r\n\r\n".encode())
    assert longest(made) <= 998
    assert message(made).headers.decoded("Subject") == f"{text} and more"


@pytest.mark.parametrize(
    "word",
    [
        "=?iso-2022-jp?b?" + "GyRC" * 600 + "?=",  # has states
        "=?utf-8?b?" + "QUJD" * 600,
        "=?utf-8?b?" + "QUJD" * 600 + "Q?=",
        "=?utf-8?x?" + "QUJD" * 600 + "?=",
    ],
)
def test_other_long_words_are_broken_as_all_are(word: str) -> None:
    made = convert(f"Subject: {word}\r\n\r\n".encode())
    assert longest(made) <= 998
    assert f"Subject: {word}" == made.replace(b"\r\n ", b"").decode().strip()


# 8-bit content


@pytest.mark.parametrize(
    ("text", "charset"), [(UMLAUT, "utf-8"), (b"Gr\xfc\xdfe und mehr", "unknown-8bit")]
)
def test_text_without_mime_becomes_mime(text: bytes, charset: str) -> None:
    parsed = email.message_from_bytes(convert(b"Subject: x\r\n\r\n" + text + b"\r\n"))
    assert parsed["MIME-Version"] == "1.0"
    assert parsed.get_content_charset() == charset
    assert parsed["Content-Transfer-Encoding"] == "quoted-printable"
    assert parsed.get_payload(decode=True) == text + b"\r\n"


def test_what_is_mostly_not_ascii_becomes_base64() -> None:
    text = "\u4f60\u597d".encode() * 500
    made = convert(b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + text)
    assert email.message_from_bytes(made)["Content-Transfer-Encoding"] == "base64"
    assert email.message_from_bytes(made).get_payload(decode=True) == text
    assert longest(made) <= 76


def test_labels_are_true_of_the_conversion() -> None:
    label = b"Content-Transfer-Encoding: 8bit\r\n"
    content = label + wrapped(label + b"\r\n" + UMLAUT, label + b"\r\nascii") + UMLAUT
    made = convert(content)
    parsed = email.message_from_bytes(made)
    labels = [part.get_all("Content-Transfer-Encoding") for part in parsed.walk()]
    assert labels == [["7bit"], ["quoted-printable"], ["7bit"]]
    assert b"8bit" not in made


def test_of_several_encodings_one_is_left() -> None:
    label = b"Content-Transfer-Encoding: 8bit\r\n"
    made = convert(label + b"MIME-Version: 1.0\r\n" + label + b"\r\n" + UMLAUT * 2 + b" etc.")
    assert email.message_from_bytes(made).get_all("Content-Transfer-Encoding") == [
        "quoted-printable"
    ]


def test_fields_outside_ascii_stay_as_postfix_leaves_them() -> None:
    content = b"Subject: " + UMLAUT + b"\r\n\r\n" + UMLAUT + b"\r\n"
    assert convert(content).startswith(b"Subject: " + UMLAUT + b"\r\n")


@pytest.mark.parametrize("text", ["Gr\u00fc\u00dfe", "\u4f60\u597d" * 400, "a " + "\u00fc" * 99])
def test_a_notification_has_them_as_encoded_words(text: str) -> None:
    content = f"X: 1\r\nSubject: {text}\r\n\r\n{text}\r\n".encode()
    made = convert(content, ascii_fields=True)
    assert made.isascii()
    assert longest(made) <= 998
    assert message(made).headers.decoded("Subject") == text
    assert leaves(made)[0][2] == f"{text}\r\n".encode()


def test_lines_around_the_parts_are_ascii_in_a_notification() -> None:
    content = wrapped(HTML).replace(b"\r\n\r\n--o", b"\r\n\r\n" + UMLAUT + b"\r\n--o", 1) + UMLAUT
    made = convert(content, ascii_fields=True)
    assert made.isascii()
    assert leaves(made) == leaves(content)


@pytest.mark.parametrize(("outer", "inner"), [(b"o", b"o"), (b"o", b"o--"), (b"o--", b"o")])
def test_boundary_of_an_outer_part_ends_an_inner_one(outer: bytes, inner: bytes) -> None:
    """Python's parser reads it in the same way; a part without parts stays unchanged."""
    content = wrapped(wrapped(b"\r\ninner", boundary=inner), b"\r\n" + UMLAUT, boundary=outer)
    made = convert(content)
    assert leaves(made) == leaves(content)
    assert (b"Gr=C3=BC=C3=9Fe" in made) == (outer == b"o--")  # else it is behind the parts


# BINARYMIME


@pytest.mark.parametrize(
    "octets", [b"\0\r\n", b"a\nb", b"a\rb\r\n", bytes(range(256)), b"\r", b"\n", b"\r\n\r"]
)
@pytest.mark.parametrize("eight_bit", [False, True])
def test_binary_parts_are_encoded_octet_for_octet(octets: bytes, *, eight_bit: bool) -> None:
    label = b"Content-Transfer-Encoding: binary\r\n"
    part = b"Content-Type: application/octet-stream\r\n" + label + b"\r\n" + octets
    content = label + wrapped(part, b"\r\nplain")
    made = convert(content, eight_bit=eight_bit, binary=True)
    parsed = email.message_from_bytes(made)
    [first, second] = [each for each in parsed.walk() if not each.is_multipart()]
    assert first["Content-Transfer-Encoding"] == "base64"
    assert first.get_payload(decode=True) == octets
    assert second.get_payload() == "plain"
    assert parsed["Content-Transfer-Encoding"] == ("8bit" if eight_bit else "7bit")
    assert is_clean(message(made))
    assert b"\0" not in made


# Any message

TEXTS: Final = st.lists(
    st.sampled_from(
        [
            *(b"a", b" ", b"\t", b".", b"=", b"=3D", b"From ", b"-", b"--o", b"x" * 999, b"y" * 77),
            *(b"\r\n", b"\r\n\r\n", b"\r\n.\r\n", b"\r\n--", UMLAUT, b"\xff", b"z" * 17_000),
        ]
    ),
    max_size=12,
).map(b"".join)


@st.composite
def parts(draw: st.DrawFn, depth: int = 0) -> bytes:
    kind = draw(st.sampled_from(["leaf", "leaf", "base64", "quoted", "multipart", "message"]))
    if depth > 3 or kind == "leaf":
        kinds = ["", "Content-Type: text/html; charset=utf-8\r\n", "Content-Type: a/b; name=c\r\n"]
        labels = ["", "Content-Transfer-Encoding: 8bit\r\n", "Content-Transfer-Encoding: 7bit\r\n"]
        head = draw(st.sampled_from(kinds)) + draw(st.sampled_from(labels))
        return head.encode() + b"\r\n" + draw(TEXTS)
    if kind == "base64":
        text = encodebytes(draw(TEXTS)).replace(b"\n", draw(st.sampled_from([b"\r\n", b""])))
        return b"Content-Transfer-Encoding: base64\r\n\r\n" + text
    if kind == "quoted":
        text = encodestring(draw(TEXTS)).replace(b"=\n", draw(st.sampled_from([b"=\n", b""])))
        return b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + text.replace(b"\n", b"\r\n")
    if kind == "message":
        return b"Content-Type: message/rfc822\r\n\r\nMIME-Version: 1.0\r\n" + draw(parts(depth + 1))
    children = draw(st.lists(parts(depth + 1), min_size=1, max_size=3))
    return wrapped(*children, boundary=b"b%d" % depth)


@settings(max_examples=examples(150), deadline=None)
@given(parts(), st.booleans())
def test_readers_find_the_same_in_any_message(part: bytes, eight_bit: bool) -> None:
    content = b"MIME-Version: 1.0\r\n" + part.replace(b"\r\r\n", b"\r\n")
    made = convert(content, eight_bit=eight_bit)
    assert longest(made) <= 998
    assert made.isascii() or eight_bit
    assert leaves(made) == leaves(content)
    assert convert(made, eight_bit=eight_bit) == made


# What a conversion costs


@pytest.mark.parametrize(
    "content",
    [
        HTML.replace(LONG, LONG * 8600),
        b"MIME-Version: 1.0\r\n\r\n" + (b"x" * 70 + UMLAUT + b"\r\n") * 330_000,
        b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 6_500_000,
        wrapped(*[b"\r\n" + UMLAUT * 350] * 9_900),
        b"X: " + b"x" * 26_000_000,
    ],
    ids=["one line", "lines", "base64", "parts", "header"],
)
def test_large_messages_take_little_memory(content: bytes, tmp_path: Path) -> None:
    writer = ContentWriter(tmp_path)
    writer.write(content)
    large = Message("m", writer.finish())
    del writer
    gc.collect()
    tracemalloc.start()
    made = converted(large, eight_bit=False, directory=tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 6_000_000
    form = Form.of(made)
    assert (form.wide, form.long) == (False, False)


def test_parts_beyond_many_are_not_looked_at() -> None:
    content = wrapped(*[b"\r\n" + UMLAUT] * 11_000, b"\r\n" + b"x " * 600)
    made = convert(content)
    assert longest(made) <= 998
    encoded = made.count(b"Gr=C3=BC=C3=9Fe\r\n")
    assert encoded == 9999
    assert made.count(UMLAUT) == 11_000 - encoded


# What is looked at before


@pytest.mark.parametrize(
    ("content", "wide", "long"),
    [
        (b"", False, False),
        (b"x" * 998, False, False),
        (b"x" * 998 + b"\r\n" + b"x" * 998 + b"\r\n", False, False),
        (b"x" * 999, False, True),
        (b"\r\n" * 40_000 + b"x" * 998 + b"\n", False, False),
        (b"\r\n" * 40_000 + b"x" * 999 + b"\n", False, True),
        (b"\n" * 900 + b"x" * 999, False, True),
        (b"x" * 70_000, False, True),
        (b"\r\n" * 40_000 + UMLAUT, True, False),
    ],
)
def test_form_of_a_message(content: bytes, wide: bool, long: bool) -> None:
    assert Form.of(message(content)) == Form(wide, long)


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"x" * 997, b"y"]), max_size=30))
def test_a_long_line_is_found_wherever_it_is(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    assert Form.of(message(content)).long == any(len(line) > 998 for line in lines)


@pytest.mark.parametrize(
    ("fields", "sealed"),
    [
        (b"Subject: x\r\n", False),
        (b"DKIM-Signature: v=1\r\n", True),
        (b"arc-message-signature: i=1\r\n", True),
        (b"Content-Type: Multipart/Signed; boundary=b\r\n", True),
        (b"Content-Type: multipart/mixed; boundary=b\r\n", False),
        (b"Subject: DKIM-Signature: v=1\r\n", False),
    ],
)
def test_a_seal_is_what_a_conversion_would_break(fields: bytes, sealed: bool) -> None:
    assert is_sealed(message(fields + b"\r\nDKIM-Signature: body\r\n")) is sealed
