"""Parts in odd MIME: names that another mail parser finds are found here too."""

from __future__ import annotations

import base64
import email.message
import email.policy
import quopri
from collections.abc import Iterator
from email.errors import MessageError
from typing import BinaryIO, Final

import fast_mail_parser
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from minismtp_plugins._encodings import decoded
from minismtp_plugins.attachments import Attachments
from test_plugin_attachments import PROGRAM, blocked, mail, zipped

from minismtp import Message

EXE: Final = "a file of type .exe: a.exe"
HEAD: Final = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"


def part(field: bytes, body: bytes = b"x") -> bytes:
    return HEAD + field + b"\r\n\r\n" + body + b"\r\n--b--\r\n"


# Names


@pytest.mark.parametrize(
    "value",
    [
        b"filename=b.txt; filename*=utf-8''a.exe",
        b"filename*=utf-8''b.txt; filename=a.exe",
        b"filename=b.txt; filename=a.exe",
        b"filename=a.exe; filename=b.txt",
        b"name=a.exe",
        b"name*=utf-8''a.exe; filename=b.txt",
        b"filename*1=exe; filename*0=a.",
        b"filename*0*=utf-8''a%2E; filename*1=exe",
        b"filename*0=a.; filename*1*=%65xe",
        b"filename*0*=utf-8''a; filename*1*=%2Eexe; filename=b.txt",
        b"filename*00=a.; filename*01=exe",
        b"filename*1=a.; filename*2=exe",
        b"filename*0=a.exe; filename*2=.txt",
        b"filename*=iso-8859-1'en'a%2Eexe",
        b"filename*=''a.exe",
        b"filename*=utf-16be''%00a%00.%00e%00x%00e",
        b"filename*=a.exe",
        b"filename*=\"utf-8''a%2Eexe\"",
        b"filename * = utf-8''a.exe",
        b'filename="=?utf-8?Q?a=2Eexe?="',
        b"filename==?utf-8?Q?a=2Eexe?=",
        b'filename="=?utf-8?Q?a?= =?utf-8?B?LmV4ZQ==?="',
        b'filename="=?utf-8?Q?a?=\r\n =?utf-8?B?LmV4ZQ==?="',
        b'filename="=?no-such?Q?a=2Eexe?="',
        b'filename="=?utf-7?Q?a+AC4-exe?="',
        b'filename="a=?utf-8?Q?=2E?=exe"',
        b'filename="a.exe',
        b'filename=a.exe"',
        b'filename="a"".exe"',
        b'filename=a".exe',
        b'filename=a"b.exe"',
        b'filename="a"b".exe"',
        b'filename="a.e\\xe"',
        b'filename="C:\\Users\\a.exe"',
        b"filename='a.exe'",
        b"filename=(comment)a.exe",
        b"filename=a.exe(comment)",
        b"filename(comment)=a.exe",
        b'(filename="b.txt") filename=a.exe',
        b"(never closed; filename=a.exe",
        b'x="never closed; filename=a.exe',
        b"FILENAME=A.EXE",
        b"filename\t=\ta.exe",
        b"filename=a.exe ",
        b"filename=\r\n a.exe",
        b"filename=a.exe;",
        b";;filename=a.exe",
        b"filename=b.txt filename=a.exe",
        b"filename=b.txt, filename=a.exe",
        b"x=y; \xff=\xfe; filename=a.exe",
        b"filename=\xe4a.exe",
        b"filename=a%2Eexe; filename*=a%2Eexe",
        b"=?utf-8?Q?filename=3Da=2Eexe?=",
        b"=?utf-8?B?ZmlsZW5hbWU9YS5leGU=?=",
    ],
)
@pytest.mark.parametrize("field", [b"Content-Disposition: attachment; ", b"Content-Type: a/b; "])
def test_every_way_to_give_a_name_counts(field: bytes, value: bytes) -> None:
    found = blocked(part(field + value)).lower()
    assert "a file of type .exe: " in found
    assert found.rstrip("'\")").endswith(".exe")


@pytest.mark.parametrize("name", ["report.pdf", "a b.txt", "\u00e4.txt", "a;b.txt", "a"])
def test_usual_names_are_read_as_they_are(name: str) -> None:
    plugin = Attachments(action="finding", extensions=["txt", "pdf"])
    found = blocked(mail((name, b"x")), plugin)
    assert found in ("", f"a file of type .{name[-3:]}: {name}")
    assert bool(found) == ("." in name)


def test_name_ends_where_some_programs_stop_reading() -> None:
    assert blocked(part(b'Content-Disposition: x; filename="a.exe\0.txt"')) == EXE
    assert blocked(part(b'Content-Disposition: x; filename="a.txt\0.exe"')) != ""


# Fields


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64", "base64"),
        (b"Content-Transfer-Encoding: base64\r\nContent-Transfer-Encoding: 7bit", "base64"),
        (b"Content-Transfer-Encoding: 8bit\r\nContent-Transfer-Encoding: quoted-printable", "qp"),
        (b"Content-Transfer-Encoding: base64 (comment)", "base64"),
        (b'Content-Transfer-Encoding: "base64"', "base64"),
        (b"Content-Transfer-Encoding: (x) BASE64;", "base64"),
        (b"Content-Transfer-Encoding:\r\n base64", "base64"),
        (b"Content-Transfer-Encoding : base64", "base64"),
        (b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\nnone", "base64"),
    ],
)
def test_every_transfer_encoding_counts(fields: bytes, body: str) -> None:
    coded = base64.encodebytes(PROGRAM) if body == "base64" else quopri.encodestring(PROGRAM)
    assert blocked(part(fields, coded)) == "a program: "


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        (b"TVqQAA==", b"MZ\x90\0"),
        (b"TV\r\nqQ\tAA = =", b"MZ\x90\0"),
        (b"T!V*q\xffQAA", b"MZ\x90\0"),
        (b"TVqQ=AAA", b"MZ\x90\0\0"),
        (b"TQ==WpAA", b"MZ\x90\0"),
        (b"TVo=kAA=", b"MZ\x90\0"),
        (b"TVo=\r\n=kAA=", b"MZ\x90\0"),
        (b"T=V=q=QAA", b"MZ@\0"),
        (b"====TVqQAA", b"MZ\x90\0"),
        (b"TVqQAA" + b"=" * 500, b"MZ\x90\0"),
        (b"TVqQA", b"MZ\x90"),
        (b"", b""),
    ],
)
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_base64_is_read_whatever_stands_in_it(text: bytes, octets: bytes, piece: int) -> None:
    pieces = (text[start : start + piece] for start in range(0, len(text), piece))
    assert b"".join(decoded("base64", pieces)) == octets


@pytest.mark.parametrize("piece", [1, 2, 5])
def test_quoted_printable_is_read_in_any_pieces(piece: int) -> None:
    text = b"=4D=5A=\r\n=90=00x"
    pieces = (text[start : start + piece] for start in range(0, len(text), piece))
    assert b"".join(decoded("quoted-printable", pieces)) == b"MZ\x90\0x"


INSIDE: Final = b"Content-Disposition: attachment; filename=a.exe\n\nx\n"
HIDING: Final = {
    "second type": b"Content-Type: text/plain\n"
    b"Content-Type: multipart/mixed; boundary=b\n\n--b\n%s",
    "first type": b"Content-Type: multipart/mixed; boundary=b\nContent-Type: text/plain\n\n--b\n%s",
    "first of two boundaries": b"Content-Type: multipart/mixed; boundary=b; boundary=c\n\n--b\n%s",
    "second boundary": b"Content-Type: multipart/mixed; boundary=c; boundary=b\n\n--b\n%s",
    "boundary of the second field": b"Content-Type: multipart/mixed; boundary=c\n"
    b"Content-Type: multipart/mixed; boundary=b\n\n--b\n%s",
    "boundary never closed": b'Content-Type: multipart/mixed; boundary="b\n\n--b\n%s',
    "boundary with its quote": b'Content-Type: multipart/mixed; boundary="b\n\n--"b\n%s',
    "boundary in a comment": b"Content-Type: multipart/mixed; (boundary=c) boundary=b\n\n--b\n%s",
    "boundary with a comment": b"Content-Type: multipart/mixed; boundary=b(c)\n\n--b\n%s",
    "boundary and no comment": b"Content-Type: multipart/mixed; boundary=b(c)\n\n--b(c)\n%s",
    "boundary of RFC 2231": b"Content-Type: multipart/mixed; boundary*=us-ascii''%%62\n\n--b\n%s",
    "no boundary": b"Content-Type: multipart/mixed\n\n--b\n%s",
    "empty boundary": b'Content-Type: multipart/mixed; boundary=""\n\n--b\n%s',
    "type in a comment": b"Content-Type: (text/plain) multipart/mixed; boundary=b\n\n--b\n%s",
    "type with blanks": b"Content-Type: multipart / mixed ; boundary = b\n\n--b\n%s",
    "longer delimiter": b"Content-Type: multipart/mixed; boundary=b\n\n--bc\n%s",
    "message": b"Content-Type: message/rfc822\n\n%s",
    "message in UTF-8": b"Content-Type: message/global\n\n%s",
    "message of news": b"Content-Type: message/news\n\n%s",
    "message said to be base64": b"Content-Type: message/rfc822\n"
    b"Content-Transfer-Encoding: base64\n\n%s",
}


@pytest.mark.parametrize("form", HIDING.values(), ids=HIDING.keys())
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_part_cannot_hide(form: bytes, line_end: bytes) -> None:
    assert blocked((form % INSIDE).replace(b"\n", line_end)) == EXE


@pytest.mark.parametrize("kind", [b"message/rfc822", b"message/global"])
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable"])
def test_message_in_an_encoding_is_opened(kind: bytes, encoding: bytes, times: int) -> None:
    content = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n" + INSIDE + b"--x--\r\n"
    body = b""
    for _ in range(times):
        body = (
            base64.encodebytes(content) if encoding == b"base64" else quopri.encodestring(content)
        )
        head = b"Content-Type: " + kind + b"\r\nContent-Transfer-Encoding: " + encoding
        content = head + b"\r\n\r\n" + body
    assert blocked(content) == EXE
    assert blocked(part(content.partition(b"\r\n\r\n")[0], body)) == EXE


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_multipart_in_an_encoding_is_opened(encoding: str) -> None:
    inner = b"--c\r\n" + INSIDE + b"\r\n--c--\r\n"
    body = base64.encodebytes(inner) if encoding == "base64" else quopri.encodestring(inner)
    fields = b"Content-Type: multipart/mixed; boundary=c\r\nContent-Transfer-Encoding: "
    assert blocked(part(fields + encoding.encode(), body)) == EXE
    assert blocked(part(fields + encoding.encode(), inner)) == EXE  # announced, and not done


def test_messages_deep_in_each_other_are_too_much() -> None:
    content = INSIDE
    for _ in range(31):
        head = (
            b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        )
        content = head + content
    assert blocked(content).startswith("too much to be checked, parts inside each other")


def test_content_right_behind_the_fields_is_seen() -> None:
    """Python takes the first line that is no field for the body."""
    coded = b"Content-Transfer-Encoding: base64\r\n" + base64.encodebytes(PROGRAM)
    assert blocked(HEAD + coded + b"\r\n--b--\r\n") == "a program: "


def test_line_that_only_begins_with_a_delimiter_hides_no_content() -> None:
    coded = base64.b64encode(PROGRAM)
    content = (
        b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n--%b\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n--%b\r\n\r\nx\r\n--%b--\r\n"
        % (coded[:4], coded[:4], coded, coded[:4])
    )
    assert blocked(content) == "a program: "


def test_usual_message_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def opened(self: Message) -> BinaryIO:
        nonlocal read
        read += 1
        return original(self)

    original = Message.open
    monkeypatch.setattr(Message, "open", opened)
    assert blocked(mail(("a.pdf", b"x"), ("b.zip", zipped(("c.txt", b"x"))))) == ""
    assert read == 1


# Compared with others


def found_by_python(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents by the old and the new parser of the standard library."""
    for policy in (email.policy.compat32, email.policy.default):
        message: email.message.Message = email.message_from_bytes(content, policy=policy)
        for each in message.walk():
            try:
                names = [each.get_filename(), each.get_param("name")]
                data = each.get_payload(decode=True)
            except (MessageError, AttributeError, ValueError, TypeError, LookupError, IndexError):
                continue  # it fails with some messages
            octets = data if isinstance(data, bytes) else b""
            yield from ((str(name), octets) for name in names if name)
            yield "", octets


def found_by_rust(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents by mailparse, of the programs written in Rust."""
    try:
        message = fast_mail_parser.parse_email(content)
    except fast_mail_parser.ParseError:
        return
    for each in message.attachments:
        yield str(each.filename or ""), bytes(each.content)


def is_program(name: str, data: bytes) -> bool:
    return name.lower().rstrip(". ").endswith(".exe") or (data[:2] == b"MZ" and b"\0" in data[:64])


_NAMES: Final = (
    *(b"filename=a.exe", b'filename="a.exe"', b"filename*=utf-8''a%2Eexe", b"filename=b.txt"),
    *(b'name="a.exe"', b"filename*0=a.; filename*1=exe", b"filename*1*=exe; filename*0*=utf-8''a."),
    *(b'filename="=?utf-8?B?YS5leGU=?="', b'filename="a.exe', b"filename=a.exe (x)", b""),
    *(b'filename="b;c.exe"', b'filename="\\"a.exe"', b"name*=latin1'de'a.exe", b"charset=x"),
    *(b"filename='a.exe'", b"filename*0*=utf-8''a%2; filename*1*=Eexe", b"filename*=a.exe"),
)
_TYPES: Final = (
    *(b"application/octet-stream", b"text/plain", b"a/b (c)", b"message/rfc822", b"image", b""),
    *(b"multipart/mixed; boundary=c", b'multipart/mixed; boundary="b"', b"multipart/mixed"),
    *(b"multipart/digest; boundary=c", b"message/delivery-status", b"multipart/x; boundary=bb"),
)
_FIELDS: Final = st.one_of(
    st.tuples(
        st.sampled_from([b"Content-Type: ", b"content-type:", b"Content-Type :"]),
        st.sampled_from(_TYPES),
        st.sampled_from([b"; ", b";\r\n\t", b";", b" "]),
        st.sampled_from(_NAMES),
    ).map(b"".join),
    st.tuples(
        st.just(b"Content-Disposition: "),
        st.sampled_from([b"attachment", b"inline", b"", b'"attachment"', b"x (y)"]),
        st.sampled_from([b"; ", b";\r\n ", b";;"]),
        st.sampled_from(_NAMES),
        st.sampled_from([b"", b"; size=1", b"; filename=b.txt", b"; x=\xff"]),
    ).map(b"".join),
    st.sampled_from([b"base64", b"BASE64 ", b"quoted-printable", b"7bit", b"x", b"binary"]).map(
        lambda encoding: b"Content-Transfer-Encoding: " + encoding
    ),
    st.sampled_from([b"Subject: x", b"no field", b"X:", b" folded"]),
)
_CODED: Final = base64.encodebytes(PROGRAM).replace(b"\n", b"\r\n")
_BODIES: Final = (
    *(b"x", b"", _CODED, PROGRAM, quopri.encodestring(PROGRAM), b"TVqQAA=" + b"=AAAA" * 20),
    *(b" " + _CODED, _CODED[:20] + b"!\r\n\t" + _CODED[20:], b"--", b"--bx", b"\r\n\r\n"),
)
_DELIMITERS: Final = (
    *(b"--b", b"--c", b"--b--", b"--c--", b"--bb", b"--b \t", b"-- b", b"--b--x", b"--bx", b""),
)
_PIECES: Final = st.one_of(
    st.tuples(
        st.sampled_from(_DELIMITERS),
        st.lists(_FIELDS, max_size=3).map(b"\r\n".join),
        st.sampled_from([b"\r\n", b"", b"\r\n\r\n"]),
        st.sampled_from(_BODIES),
    ).map(b"\r\n".join),
    st.sampled_from(_DELIMITERS),
)


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(_FIELDS, max_size=2),
    st.lists(_PIECES, max_size=5),
    st.booleans(),
)
@example([b"Content-Type: multipart/mixed; boundary=c"], [b"--c\r\n\r\n\r\nx"], False)
def test_what_another_parser_finds_is_found(
    fields: list[bytes], pieces: list[bytes], bare: bool
) -> None:
    head = [b"Subject: x", b"Content-Type: multipart/mixed; boundary=b", *fields]
    content = b"\r\n".join([*head, b"", *pieces, b""])
    if bare:
        content = content.replace(b"\r\n", b"\n")
    found = [*found_by_python(content), *found_by_rust(content)]
    if any(is_program(name, data) for name, data in found):
        assert blocked(content) != ""
