"""The text parts of a message, within a budget, and the links in them."""

import base64
import quopri
from email.message import EmailMessage
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pumps import grows_too_fast

from minismtp import Content, ContentWriter, Message, Texts, registrable_domain, texts_of
from minismtp.mail.links import links_in, visible_text


def texts(content: str | bytes, *, limit: int = 1 << 18) -> Texts:
    octets = content.encode() if isinstance(content, str) else content
    message = Message("1", Content.of(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")))
    return texts_of(message, limit=limit)


def shown(content: str | bytes) -> list[tuple[str, str]]:
    return [(part.kind, part.text.replace("\r\n", "\n").strip()) for part in texts(content).parts]


def mail(head: str, body: str | bytes) -> bytes:
    return head.encode() + b"\n\n" + (body.encode() if isinstance(body, str) else body)


LATIN: Final = "Content-Type: TEXT/Plain; charset=iso-8859-1"
MIXED: Final = "Content-Type: multipart/mixed; boundary=b\n\n"
INNER: Final = 'Content-Type: multipart/alternative; boundary="i"\n\n--i\n\na\n--i--\nno'
PLAIN: Final = "text/plain"
PART: Final = "Content-Type: multipart/mixed; boundary=b\n\n--b\n{}\n--b--\n"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (mail("Subject: x", "Hello"), [("text/plain", "Hello")]),
        (mail("Content-Type: text/html", "<b>x</b>"), [("text/html", "<b>x</b>")]),
        (mail("Content-Type: image/png", "x"), []),
        (mail(LATIN, b"caf\xe9"), [(PLAIN, "café")]),
        (mail('Content-Type: text/plain; charset="utf-8"', "café"), [("text/plain", "café")]),
        (mail("Content-Type: text/plain; charset=nonsense", "café"), [("text/plain", "café")]),
        (mail("Content-Type: text/plain; charset=koi8-r", b"\xc4\xc1"), [("text/plain", "да")]),
        (mail("Content-Transfer-Encoding: base64", "SGVs\nbG8="), [("text/plain", "Hello")]),
        (mail("Content-Transfer-Encoding: base64", "SGVs*bG8"), [("text/plain", "Hello")]),
        (mail("Content-Transfer-Encoding: base64", "SGU=bGxv"), [("text/plain", "Hello")]),
        (mail("Content-Transfer-Encoding: base64", "SGVsbG8gIQ="), [("text/plain", "Hello !")]),
        (
            mail("Content-Transfer-Encoding: Quoted-Printable", "caf=C3=A9 =\nx"),
            [("text/plain", "café x")],
        ),
        (
            PART.format("\na\n--b\nContent-Type: text/html\n\nc"),
            [(PLAIN, "a"), ("text/html", "c")],
        ),
        (PART.format("Content-Type: image/png\n\nx\n--b\n\ny"), [("text/plain", "y")]),
        (
            PART.format(f"{INNER}\n--b\n\nz"),
            [("text/plain", "a"), ("text/plain", "z")],
        ),
        (PART.format("Content-Type: message/rfc822\n\nSubject: x\n\nin"), [("text/plain", "in")]),
        (f"{MIXED}no\n--b\n\ncut off", [(PLAIN, "cut off")]),
        (f"{MIXED}nothing\n", []),
        ("", [("text/plain", "")]),
        ("\n", [("text/plain", "")]),
    ],
)
def test_text_parts_are_decoded(content: str | bytes, found: list[tuple[str, str]]) -> None:
    assert shown(content) == found


def test_text_of_the_standard_library_is_read_back() -> None:
    made = EmailMessage()
    made["Subject"] = "x"
    made.set_content("Grüße\n" * 50, cte="base64")
    made.add_alternative("<p>Grüße</p>\n", subtype="html", cte="quoted-printable")
    made.add_attachment(b"\0" * 1000, maintype="application", subtype="octet-stream")
    found = texts(made.as_bytes())
    assert [(part.kind, part.text.replace("\r\n", "\n")) for part in found.parts] == [
        ("text/plain", "Grüße\n" * 50),
        ("text/html", "<p>Grüße</p>\n"),
    ]
    assert found.complete


@pytest.mark.parametrize("encode", [bytes, base64.encodebytes, quopri.encodestring])
def test_no_more_text_than_the_limit_is_returned(encode: object) -> None:
    octets = encode(b"0123456789\n" * 100)  # type: ignore[operator]
    name = {"encodebytes": "base64", "encodestring": "quoted-printable"}
    encoding = name.get(getattr(encode, "__name__", ""), "7bit")
    head = f"Content-Transfer-Encoding: {encoding}"
    whole, cut = texts(mail(head, octets)), texts(mail(head, octets), limit=100)
    assert (whole.complete, cut.complete) == (True, False)
    assert len(cut.parts[0].text) == 100
    assert whole.parts[0].text.startswith(cut.parts[0].text[:90])


def test_limit_is_that_of_all_parts() -> None:
    part = "\n" + "x" * 80 + "\n--b\n"
    found = texts(PART.format(part * 3), limit=100)
    assert sum(len(each.text) for each in found.parts) <= 100
    assert not found.complete


def test_large_attachment_is_not_read_to_its_end() -> None:
    attachment = "Content-Type: image/png\n\n" + "x\n" * 100_000 + "--b\n\nafter"
    assert texts(PART.format(attachment)).parts[0].text == "after"
    assert texts(PART.format(attachment), limit=1000) == Texts((), complete=False)


def test_parts_beyond_the_limit_are_left_out() -> None:
    found = texts(PART.format("\nx\n--b\n" * 300))
    assert len(found.parts) == 199  # the multipart is one too
    assert not found.complete


def test_parts_too_deep_are_left_out() -> None:
    head = "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(50))
    assert texts(head + "\nx").parts == ()


def test_message_on_disk_is_read_too() -> None:
    writer = ContentWriter(None, memory=10)
    writer.write(b"Subject: x\r\n\r\nHello\r\n")
    assert texts_of(Message("1", writer.finish())).visible == "Hello\r\n"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>Hello <b>you</b></p>", "Hello you"),
        ("a<br>b", "a\nb"),
        ("&lt;b&gt; caf&eacute; &#x41;&#0000000066;", "<b> café AB"),
        ("&#" + "9" * 5000 + ";", "\ufffd"),
        ("<style>p {}</style>x<script>y</script>z", "xz"),
        ("x<SCRIPT>never closed", "x"),
        ("a<!-- b -->c", "ac"),
        ("a<b c", "a"),
        ("a < b", "a < b"),
        ("\u0130<style>x</style>y", "\u0130y"),
    ],
)
def test_text_of_html_is_what_is_shown(markup: str, text: str) -> None:
    assert visible_text(markup).strip() == text


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("see https://www.example.com/a?b#c.", ["www.example.com"]),
        ("(http://a.example), HTTP://B.example!", ["a.example", "b.example"]),
        ("www.example.com/x", ["www.example.com"]),
        ("mail me@www.example.com", []),
        ("https://good.example@evil.example/", ["evil.example"]),
        ("https://evil.example:8080", ["evil.example"]),
        ("https://bücher.example/", ["xn--bcher-kva.example"]),
        ("https://[2001:db8::1]/x", ["[2001:db8::1]"]),
        ("https://192.0.2.1/", ["192.0.2.1"]),
        ("https://%65vil.example/", ["evil.example"]),
        ("https://evil.example./", ["evil.example"]),
        ("https:\\\\evil.example\\x", ["evil.example"]),
        ("https://", []),
        ("https://a b", ["a"]),
        ("https://a.example https://a.example", ["a.example"]),
        ("ftp://a.example mailto:x@a.example", []),
    ],
)
def test_links_in_text_have_the_host_that_a_browser_asks(text: str, hosts: list[str]) -> None:
    assert [link.host for link in links_in("", text, 100)] == hosts


@pytest.mark.parametrize(
    ("markup", "hosts"),
    [
        ('<a href="https://a.example/">x</a>', ["a.example"]),
        ("<a HREF = 'https://a.example/'>x</a>", ["a.example"]),
        ("<a href=https://a.example/>x</a>", ["a.example"]),
        ('<img src="//a.example/x.png">', ["a.example"]),
        ('<form action="https:///a.example">', ["a.example"]),
        ('<a href="https://a&#46;example/?a=1&amp;b=2">', ["a.example"]),
        ('<a href="ht\ntps://a.example">', ["a.example"]),
        ('<a href="https://a.example">https://b.example</a>', ["a.example", "b.example"]),
        ('<a href="mailto:a@b.example">x</a>', []),
        ('<a href="#top">x</a>', []),
        ('<a href="https://a.example', ["a.example"]),
    ],
)
def test_links_in_html_have_the_host_that_a_browser_asks(markup: str, hosts: list[str]) -> None:
    assert [link.host for link in links_in(markup, visible_text(markup), 100)] == hosts


def test_links_of_all_parts_come_once() -> None:
    html = 'Content-Type: text/html\n\n<a href="https://a.example/">'
    found = texts(PART.format(f"\nhttps://a.example/ https://b.example\n--b\n{html}"))
    assert [link.url for link in found.links] == ["https://a.example/", "https://b.example"]


def test_number_of_links_is_limited() -> None:
    [part] = texts("\n" + "".join(f"https://{n}.example\n" for n in range(2000))).parts
    assert len(part.links) == 1000


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("www.example.co.uk", "example.co.uk"),
        ("example.com", "example.com"),
        ("A.B.Example.COM.", "example.com"),
        ("co.uk", "co.uk"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("www.bücher.de", "xn--bcher-kva.de"),
        ("localhost", "localhost"),
        ("", ""),
    ],
)
def test_registrable_domain_is_what_was_registered(name: str, domain: str) -> None:
    assert registrable_domain(name) == domain


@given(st.binary(max_size=3000) | st.text(alphabet="<>&#;x\n-=\"' ahref:/b", max_size=500))
def test_no_message_makes_it_raise(content: bytes | str) -> None:
    for head in ("Content-Type: text/html\n\n", "", PART.partition("{}")[0]):
        octets = content.encode() if isinstance(content, str) else content
        found = texts(head.encode() + octets, limit=1000)
        assert len(found.visible) >= 0
        assert all(link.host for link in found.links)


PIECES: Final = [
    *(b"\n--b\n\n", b"\n--b\nContent-Type: text/html\n\n<a href='", b"<script>", b'<a href="'),
    *(b"https://", b"&#", b"&#0", b"<", b"www.", b"=", b"\n--b--", b"a=\n", b"</style", b"x" * 60),
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kind", ["text/plain", "text/html", "multipart/mixed; boundary=b"])
def test_time_is_linear(piece: bytes, kind: str) -> None:
    head = f"Content-Type: {kind}\n\n--b\nContent-Type: text/html\n\n".encode()

    def work(size: int) -> object:
        message = Message("1", Content.of(head + piece * (size // len(piece))))

        def read() -> None:
            found = texts_of(message, limit=size)
            assert found.visible is not None
            assert found.links is not None

        return read

    assert not grows_too_fast(work, 100_000, 0.02)  # type: ignore[arg-type]
