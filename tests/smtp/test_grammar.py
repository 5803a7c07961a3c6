"""The grammar of paths, parameters, xtext and base64."""

import contextlib

import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minismtp.mail.encoded_words import octets_as_text
from minismtp.smtp.commands import CommandProblem, Greeting, parse
from minismtp.smtp.grammar import (
    SyntaxProblem,
    decode_base64,
    decode_xtext,
    parse_helo,
    parse_parameters,
    parse_path,
    split_words,
)
from minismtp.values.address import Address

_LONG_DOMAIN = ".".join(["d" * 60] * 4)  # 243 octets


@pytest.mark.parametrize(
    ("text", "address", "rest"),
    [
        # RFC 5321 section 4.1.2
        pytest.param("<a@x.org>", Address("a", "x.org"), "", id="plain"),
        pytest.param("<a@x.org> SIZE=1", Address("a", "x.org"), " SIZE=1", id="parameters-follow"),
        pytest.param('<"a>b"@x.org>', Address("a>b", "x.org"), "", id="bracket-quoted"),
        pytest.param('<"a b"@[192.0.2.1]>', Address("a b", "[192.0.2.1]"), "", id="literal"),
        # RFC 5321 appendix C: source routes are accepted and ignored
        pytest.param("<@one.org:a@x.org>", Address("a", "x.org"), "", id="source-route"),
        pytest.param("<@one,@two.org:a@x.org>", Address("a", "x.org"), "", id="long-source-route"),
        # RFC 5321 section 4.5.3.1: its 256 octets for a path and 64 for a local part are minimums
        pytest.param(
            f"<{'a' * 320}@{_LONG_DOMAIN}>", Address("a" * 320, _LONG_DOMAIN), "", id="565-octets"
        ),
        pytest.param(
            f"<@{_LONG_DOMAIN},@{_LONG_DOMAIN}:a@x.org>", Address("a", "x.org"), "", id="long-route"
        ),
    ],
)
def test_path_is_read(text: str, address: Address, rest: str) -> None:
    assert parse_path(text) == (address, rest)


# Paths outside the grammar that are accepted: see test_path.
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<a@x.org", id="not-closed"),
        pytest.param("<a@>", id="empty-domain"),
        pytest.param("<@one.org a@x.org>", id="route-without-colon"),
        pytest.param(f"<{'a' * 513}@x.org>", id="local-part-of-513"),
        pytest.param("<a@[300.0.2.1]>", id="bad-literal"),
    ],
)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(SyntaxProblem):
        parse_path(text)


def test_null_reverse_path_is_none() -> None:
    # RFC 5321 section 4.5.5
    assert parse_path("<> BODY=7BIT") == (None, " BODY=7BIT")


@pytest.mark.parametrize("text", ["<>", "< >", '<"">', "<(nobody)>"])
def test_null_forward_path_is_refused(text: str) -> None:
    # RFC 5321 section 4.1.1.3: forward-path = Path, which is never empty
    with pytest.raises(CommandProblem) as problem:
        parse(f"RCPT TO:{text}".encode())
    assert problem.value.reply.text == "recipient: expected an address"


@pytest.mark.parametrize("name", ["Postmaster", "postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain(name: str) -> None:
    # RFC 5321 section 4.1.1.3
    assert parse_path(f"<{name}> X") == (Address(name, ""), " X")


@pytest.mark.parametrize("name", ["root", "MAILER-DAEMON", "anna.", "a b"])
def test_local_part_alone_has_no_domain_yet(name: str) -> None:
    text = f'<"{name}"> X'
    assert parse_path(text) == (Address(name, ""), " X")


@pytest.mark.parametrize(
    "name",
    [
        "mail.example.org",
        "localhost",
        "[192.0.2.1]",
        "[IPv6:2001:db8::1]",
        # RFC 5321 section 4.1.4: mail must not be refused for the name
        "my_desktop",
        "-",
        "x" * 255,
        *("localhost.(none)", "[IPv6:fe80::1%en0]", "Anna's PC", "HP LaserJet 4/4M", "a;b", "<x>"),
        *("Müller-PC", "山田の部屋", '"x"', "a\\b", "%(x)s", "a,b=c", "${HOST}", "(", "x@y"),
    ],
    ids=lambda name: name[:20],
)
def test_helo_name_is_taken(name: str) -> None:
    assert parse_helo(f" {name} ") == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a\0b", "a?b"),
        ("a\u202eb", "a?b"),
        ("a\u2028b\x85", "a?b?"),
        ("a\u00a0b", "a?b"),
        ("\udcff", "?"),
        ("x" * 256, "x" * 255),
        ("字" * 600, "字" * 255),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_helo_name_is_recorded_as_visible_text(text: str, name: str) -> None:
    assert parse_helo(text) == name


@pytest.mark.parametrize("text", ["", " ", "   "], ids=len)
def test_no_helo_name_is_refused(text: str) -> None:
    with pytest.raises(SyntaxProblem):
        parse_helo(text)


@pytest.mark.parametrize(
    ("octets", "name"),
    [
        (b"pc.example", "pc.example"),
        ("Müller".encode(), "Müller"),
        ("Müller".encode("latin-1"), "Müller"),
        ("山".encode("shift_jis"), "?R"),
    ],
    ids=repr,
)
def test_helo_name_is_utf_8_or_else_latin_1(octets: bytes, name: str) -> None:
    assert parse(b"EHLO " + octets) == Greeting("EHLO", name)


@given(st.binary())
def test_any_octets_give_a_name_that_is_visible_or_none(octets: bytes) -> None:
    try:
        name = parse_helo(octets_as_text(octets)[0])
    except SyntaxProblem:
        return
    assert name.isprintable()
    assert 0 < len(name) <= 255


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        pytest.param("", {}, id="none"),
        pytest.param("   ", {}, id="blanks"),
        pytest.param(" SIZE=10  body=8BITMIME ", {"SIZE": "10", "BODY": "8BITMIME"}, id="values"),
        pytest.param(" SMTPUTF8", {"SMTPUTF8": None}, id="no-value"),
        pytest.param(" X-1=<>;+2B", {"X-1": "<>;+2B"}, id="any-printable-value"),
        pytest.param(" X=a=b", {"X": "a=b"}, id="equals-in-value"),
        pytest.param(" X=é", {"X": "é"}, id="utf-8-value"),  # RFC 6531 section 3.3
    ],
)
def test_parameters_are_read(text: str, parameters: dict[str, str | None]) -> None:
    # RFC 5321 section 4.1.2
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(" SIZE=", id="empty-value"),
        pytest.param(" =10", id="empty-keyword"),
        pytest.param(" -X", id="hyphen-first"),
        pytest.param(" SIZE =10", id="blank-before-equals"),
        pytest.param(" X_Y", id="underscore"),
        pytest.param(" é", id="utf-8-keyword"),
        pytest.param(" X=a\tb", id="tab"),
        pytest.param(" X=a\u2028", id="line-separator"),
        pytest.param(" SIZE=1 size=1", id="twice"),
    ],
)
def test_malformed_or_repeated_parameter_is_refused(text: str) -> None:
    with pytest.raises(SyntaxProblem):
        parse_parameters(text)


def test_words_are_parted_by_blanks_only() -> None:
    assert split_words("  a\tb  c\u00a0d ") == ["a\tb", "c\u00a0d"]


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        # RFC 3461 section 4
        pytest.param("", "", id="empty"),
        pytest.param("abc@x.org", "abc@x.org", id="plain"),
        pytest.param("a+2Bb+3Dc+20d", "a+b=c d", id="encoded"),
        pytest.param("+C3+A9", "é", id="utf-8"),
        # as clients write it
        pytest.param("a+2bb+3dc", "a+b=c", id="lower-case-digits"),
        pytest.param("a=b", "a=b", id="bare-equals"),
        pytest.param("é+2b", "é+", id="utf-8-as-it-is"),
    ],
)
def test_xtext_is_decoded(text: str, decoded: str) -> None:
    assert decode_xtext(text) == decoded


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a+b", id="bare-plus"),
        pytest.param("+2", id="one-digit"),
        pytest.param("+0a", id="line-feed-in-lower-case"),
        pytest.param("a b", id="blank"),
        pytest.param("\u200b", id="invisible"),
        pytest.param("+0D+0A", id="line-end"),
        pytest.param("+00", id="nul"),
        pytest.param("+7F", id="delete"),
        pytest.param("+E2+80+A8", id="line-separator"),
        pytest.param("+C3", id="half-a-character"),
        pytest.param("+FF", id="not-utf-8"),
    ],
)
def test_malformed_or_unprintable_xtext_is_refused(text: str) -> None:
    with pytest.raises(SyntaxProblem):
        decode_xtext(text)


@settings(max_examples=examples(200))
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x24F)).filter(str.isprintable))
@example("+=+2B")
def test_encoded_text_is_decoded_to_itself(text: str) -> None:
    encoded = "".join(
        chr(octet) if 0x21 <= octet <= 0x7E and octet not in b"+=" else f"+{octet:02X}"
        for octet in text.encode()
    )
    assert decode_xtext(encoded) == text


@pytest.mark.parametrize(
    ("text", "decoded"),
    [(b"", b""), (b"AGEAYg==", b"\0a\0b"), (b"+/+/", b"\xfb\xff\xbf")],
    ids=repr,
)
def test_base64_is_decoded(text: bytes, decoded: bytes) -> None:
    assert decode_base64(text) == decoded


@pytest.mark.parametrize(
    "text",
    [
        b"*",
        b"A",
        b"AA",
        b"AAA",
        b"AA=A",
        b"=",
        b"AAAA=",
        b"AAAA====",
        b"AA AA",
        b"AA\tAA=",
        b"-_-_",
    ],
    ids=repr,
)
def test_what_is_not_strict_base64_is_refused(text: bytes) -> None:
    # RFC 4954 section 4: 501 for what cannot be decoded
    with pytest.raises(SyntaxProblem):
        decode_base64(text)


@settings(max_examples=examples(300))
@given(st.text(st.sampled_from('<>@,:". \\[]-aé1')) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parser in (
        parse_path,
        parse_helo,
        parse_parameters,
        decode_xtext,
    ):
        with contextlib.suppress(SyntaxProblem):
            parser(text)


@given(
    st.from_regex(r'<(@[a-zé.]{1,9}:)?(.{1,40}|".{1,40}")@[^\x00-\x20@>]{1,90}>', fullmatch=True)
)
def test_an_address_that_was_read_is_read_again(path: str) -> None:
    """A message in the queue has its addresses as text."""
    try:
        address, _ = parse_path(path)
    except SyntaxProblem:
        return
    assert address is not None
    assert Address.parse(str(address)) == address
