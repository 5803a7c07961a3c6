"""Signatures of incoming mail: made by us, by dkimpy and by OpenDKIM; broken, weak and hostile."""

from __future__ import annotations

import io
import re
import subprocess
import tracemalloc
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins import _canonical
from minismtp_plugins._canonical import body_hash
from minismtp_plugins._signing import signature_of
from minismtp_plugins.dkim_sign import DkimSign
from minismtp_plugins.dkim_verify import DKIM_RESULTS, DkimVerify
from zones import DictionaryResolver, published

from minismtp import (
    Address,
    Content,
    Delivery,
    Envelope,
    Message,
    ServerInfo,
    Session,
    UnansweredError,
    results_of,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.mail.cleanup import clean

MESSAGE = (
    b"Received: from x by y; now\r\nFrom: Alice <alice@example.org>\r\nTo: bob@example.net\r\n"
    b"Subject: Hello  there\r\n\tfolded \r\n\r\nHello,\t  Bob. \r\n\r\n 8 bit \xc3\xa9\r\n\r\n\r\n"
)
RSA, OTHER = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()
NAMES: dict[str, list[str] | UnansweredError] = {
    "rsa._domainkey.example.org": [published(RSA)],
    "ed._domainkey.example.org": [published(ED25519)],
}
SIGNERS = ("rsa", "ed")


def pem(key: Any) -> bytes:  # noqa: ANN401 - any private key
    octets: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return octets


def signed(content: bytes = MESSAGE, forms: str = "relaxed/relaxed", **options: Any) -> bytes:  # noqa: ANN401 - any option
    """Return a message signed by dkimpy."""
    canonical = tuple(form.encode() for form in forms.split("/"))
    options.setdefault("include_headers", [b"from", b"subject", b"from"])
    signature: bytes = dkim.sign(
        content, b"rsa", b"example.org", pem(RSA), canonicalize=canonical, **options
    )
    return signature + content


def verify(
    content: bytes,
    names: dict[str, list[str] | UnansweredError] | None = None,
    *,
    login: str | None = None,
    **options: Any,  # noqa: ANN401 - any option
) -> tuple[Envelope, list[str]]:
    """Return the envelope after the plugin, and results with their reasons."""
    plugin = DkimVerify(**options)
    resolver = DictionaryResolver(NAMES if names is None else names)
    plugin.on_start(ServerInfo("mx.example.org", Path(), "worker", 0, resolver))
    session = Session(
        id="s", listener="smtp", kind="mx", hostname="mx", peer="192.0.2.1", login=login
    )
    envelope = Envelope(
        id="e", reverse_path=Address("alice", "example.org"), listener="smtp",
        peer="192.0.2.1", helo="x", login=login, arrived=0.0,
    )  # fmt: skip
    message = Message("e", Content.of(content), b"Received: from us\r\n")
    plugin.on_message(session, envelope, message)
    found = envelope.stash.get(DKIM_RESULTS, ())
    return envelope, [f"{each.result} {each.reason}".strip() for each in found]


def results(content: bytes, *names: dict[str, list[str] | UnansweredError]) -> list[str]:
    return verify(content, *names)[1]


def key(record: str) -> dict[str, list[str] | UnansweredError]:
    return {"rsa._domainkey.example.org": [record]}


# Good ones


@pytest.mark.parametrize("forms", ["relaxed/relaxed", "simple/simple"])
@pytest.mark.parametrize(
    "above",
    [
        b"Return-Path: <x@example.net>\r\nRETURN-PATH :\r\n <y@example.net>\r\n",
        b"From alice@example.org Thu Jan  1 00:00:00 1970\r\n",
        b">From alice@example.org Thu Jan  1 00:00:00 1970\r\n",
        b"\xef\xbb\xbf",
    ],
    ids=["return-paths", "mbox", "quoted-mbox", "mark"],
)
def test_signature_holds_below_what_is_settled_when_a_message_comes_in(
    above: bytes, forms: str
) -> None:
    cleaned = clean(Content.of(above + signed(forms=forms)), 1 << 20)
    assert cleaned is not None
    assert results(cleaned[1].open().read()) == ["pass"]


def test_signature_of_text_without_an_empty_line_is_judged_by_what_readers_see() -> None:
    plain = b"From: Alice <alice@example.org>\r\nSubject: x\r\n\r\nText: of it.\r\n"
    ended = signed(plain)
    cleaned = clean(Content.of(ended.replace(b"\r\n\r\n", b"\r\nno field\r\n", 1)), 1 << 20)
    assert cleaned is not None
    assert results(cleaned[1].open().read()) == ["fail the body is not what was signed"]


def test_what_we_sign_holds_with_both_kinds_of_keys(tmp_path: Path) -> None:
    for name, each in (("rsa", RSA), ("ed", ED25519)):
        (tmp_path / f"{name}.pem").write_bytes(pem(each))
    signing = DkimSign(
        domains=["example.org"], keys=tmp_path / "{selector}.pem", selectors=[*SIGNERS]
    )
    message = Message("e", Content.of(MESSAGE))
    envelope = Envelope(
        id="e",
        reverse_path=None,
        listener="x",
        peer="",
        helo="",
        login=None,
        arrived=0.0,
        trusted=True,
    )
    signing.on_send(Delivery(envelope, (), "example.net"), message)
    with message.open() as reader:
        envelope, found = verify(reader.read())
    assert found == ["pass", "pass"]
    ed, first = envelope.stash[DKIM_RESULTS]
    assert (ed.domain, ed.selector, ed.algorithm) == ("example.org", "ed", "ed25519-sha256")
    told = (
        "dkim=pass header.d=example.org header.s={0.selector} header.a={0.algorithm} header.b={1}"
    )
    assert [str(each) for each in results_of(envelope)] == [
        told.format(each, each.signature[:8]) for each in (ed, first)
    ]


@pytest.mark.parametrize(
    "forms", ["simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed"]
)
@pytest.mark.parametrize("body", [b"", b"\r\n\r\n", b" \r\n", b"a  b \r\n\r\n c\r\n", b"end"])
def test_each_form_of_dkimpy_holds(forms: str, body: bytes) -> None:
    content = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    assert results(signed(content, forms)) == ["pass"]


@pytest.mark.parametrize("forms", ["simple/simple", "relaxed/relaxed", "relaxed/simple"])
def test_what_opendkim_signs_holds(
    tmp_path: Path, forms: str, require_program: Callable[[str], str]
) -> None:
    opendkim = require_program("opendkim")
    (tmp_path / "key.pem").write_bytes(pem(RSA))
    (tmp_path / "m.eml").write_bytes(MESSAGE)
    (tmp_path / "opendkim.conf").write_text(
        f"Mode s\nDomain example.org\nSelector rsa\nKeyFile {tmp_path}/key.pem\nSyslog no\n"
        f"Canonicalization {forms}\nRequireSafeKeys no\nOversignHeaders From\n"
    )
    command = [opendkim, "-x", "opendkim.conf", "-t", "m.eml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    signature = done.stdout[done.stdout.index(b"DKIM-Signature:") :].replace(b"\r\n", b"\n")
    content = signature.strip().replace(b"\n", b"\r\n") + b"\r\n" + MESSAGE
    assert results(content) == ["pass"]
    assert results(content.replace(b"Hello,", b"Hullo,")) == [BODY]


BODY = "fail the body is not what was signed"
HEADER = "fail the header is not what was signed"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"Hello,\t", b"Hullo,\t", BODY),
        (b"Subject: Hello", b"Subject: Hullo", HEADER),
        (b"From: Alice", b"From: eve@example.com\r\nFrom: Alice", HEADER),
        (b"To: bob", b"To: eve", "pass"),
        (b"Hello,\t  Bob. ", b"Hello, Bob.", "pass"),
    ],
    ids=["body", "subject", "second from", "not signed", "blanks"],
)
def test_changes_are_noticed_where_they_matter(old: bytes, new: bytes, expected: str) -> None:
    content = signed()
    assert content.count(old) == 1
    assert results(content.replace(old, new)) == [expected]


def test_message_without_a_signature_has_the_result_none() -> None:
    envelope, found = verify(MESSAGE)
    assert found == []
    assert str(results_of(envelope)[0]) == 'dkim=none reason="the message has no signature"'


def test_mail_of_users_is_not_looked_at() -> None:
    envelope, _ = verify(signed(), login="alice")
    assert results_of(envelope) == []
    assert DKIM_RESULTS not in envelope.stash


# What is not acceptable


def test_appended_text_is_not_covered_by_a_signature_of_a_part() -> None:
    """RFC 6376 section 8.2."""
    content = signed(length=True)
    assert b"l=" in content
    assert results(content) == ["pass"]
    assert results(content.rstrip() + b"\r\nmore\r\n") == [
        "policy only a part of the body is signed"
    ]
    assert results(content.replace(b"Hello,\t  Bob. \r\n", b"")) == [BODY]


def test_length_beyond_the_end_is_none() -> None:
    """RFC 6376 section 3.5."""
    body = b64encode(body_hash(io.BytesIO(MESSAGE))).decode()
    tags = "v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=rsa; h=from;"
    unsigned = f"DKIM-Signature: {tags} bh={body}; "
    for length, expected in (("", "pass"), ("l=9999; ", BODY)):
        field = f"{unsigned}{length}b=".encode()
        octets = _canonical.relaxed_field(b"From: Alice <alice@example.org>\r\n")
        octets += _canonical.relaxed_field(field).removesuffix(b"\r\n")
        field += b64encode(signature_of(RSA, octets)) + b"\r\n"
        assert results(field + MESSAGE) == [expected]


def test_fields_of_one_name_are_signed_from_the_last_one_up() -> None:
    """RFC 6376 section 5.4.2."""
    content = signed(b"X: a\r\nX: b\r\n" + MESSAGE, include_headers=[b"from", b"x"])
    assert results(content.replace(b"X: a", b"X: c")) == ["pass"]
    assert results(content.replace(b"X: b", b"X: c")) == [HEADER]


SIGNED = signed()


def with_tag(change: Callable[[bytes], bytes]) -> bytes:
    """Return a signed message whose signature was changed."""
    name, body = SIGNED.split(b"Received:", 1)
    return change(name) + b"Received:" + body


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"a=rsa-sha256", b"a=rsa-sha1", "policy the algorithm is rsa-sha1"),
        (b"a=rsa-sha256", b"a=dsa", "neutral the algorithm is dsa"),
        (b"v=1", b"v=2", "neutral its version is not known"),
        (b"v=1; ", b"", "neutral there is no tag v"),
        (b"v=1;", b"v=1; v=1;", "neutral 'v=1' is no tag, or there twice"),
        (b"v=1;", b"v=1; x;", "neutral 'x' is no tag, or there twice"),
        (b"d=example.org", b"d=exa mple..org", "neutral 'exa mple..org' is no name in the DNS"),
        (b"d=example.org", b"d=" + b"x" * 300, f"neutral '{'x' * 40}' is no name in the DNS"),
        (b"i=@example.org", b"i=@example.com", "neutral the tag i is not of the domain"),
        (b"i=@example.org", b"i=@notexample.org", "neutral the tag i is not of the domain"),
        (b"h=from : ", b"h=", HEADER),
        (b"q=dns/txt", b"q=http", "neutral its key is not in the DNS"),
        (b"q=dns/txt", b"x=1", "policy the signature has expired"),
        (b"q=dns/txt", b"x=never", "neutral the tag x is no number"),
        (b"q=dns/txt", b"l=-1", "neutral the tag l is no number"),
        (b"q=dns/txt", b"l=99999999999999999999", "neutral the tag l is no number"),
        (b"c=relaxed/relaxed", b"c=tight", "neutral its forms are not known"),
        (b"s=rsa", b"s=none", "permerror there is no key"),
        (b"s=rsa", b"s=ed", "permerror the key is ed25519, not rsa"),
    ],
)
def test_signature_that_cannot_be_is_named(old: bytes, new: bytes, expected: str) -> None:
    content = with_tag(lambda field: re.sub(rb"(?<=[^b])%b" % re.escape(old), new, field))
    assert results(content) == [expected]


def test_signature_has_to_cover_the_from_field() -> None:
    content = with_tag(lambda field: re.sub(rb"h=from[^;]*;", b"h=subject;", field))
    assert results(content) == ["permerror the From field is not signed"]


@pytest.mark.parametrize("value", [b"!!!!", b"A", b"\xff\xfe", b"AAAA" * 20000])
def test_broken_base64_is_no_signature(value: bytes) -> None:
    content = with_tag(lambda field: re.sub(rb"(?s)\bb=.*", b"b=" + value + b"\r\n", field))
    [found] = results(content)
    assert found == HEADER or re.fullmatch(r"neutral '.*' is no base64", found)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("v=DKIM1; p=", "permerror the key is revoked"),
        ("v=DKIM1", "permerror the record has no key (tag p)"),
        ("v=DKIM1; p=AAAA", "permerror the key cannot be read"),
        ("v=DKIM1; p=!", "permerror the key cannot be read: '!' is no base64"),
        ("v=spf1 -all", "permerror the record has no key (tag p)"),
        (published(RSA).replace("DKIM1", "DKIM2"), "permerror the version of the key is DKIM2"),
        (f"{published(RSA)}; s=tlsrpt", "permerror the key is not for mail"),
        (f"{published(RSA)}; h=sha1", "permerror the key is not for sha256"),
        (f"{published(RSA)}; s=x:email; h=sha1 : sha256; n=a b", "pass"),
        (published(RSA).removeprefix("v=DKIM1; k=rsa; "), "pass"),
        (f"{published(RSA)}; t=s", "pass"),
        (published(OTHER), HEADER),
        (f"{published(OTHER)}; t=y", f"neutral the domain only tests; {HEADER[5:]}"),
    ],
)  # fmt: skip
def test_record_says_what_a_key_is_for(record: str, expected: str) -> None:
    assert results(signed(), key(record)) == [expected]


def test_key_that_is_not_for_subdomains_does_not_sign_for_them() -> None:
    content = signed(identity=b"alice@news.example.org")
    assert results(content, key(published(RSA))) == ["pass"]
    problem = "permerror the key is not for subdomains"
    assert results(content, key(f"{published(RSA)}; t=s")) == [problem]


def test_failure_of_a_domain_that_only_tests_is_neutral_for_the_body_too() -> None:
    content = signed().replace(b"Hello,", b"Hullo,")
    found = results(content, key(f"{published(RSA)}; t=y"))
    assert found == ["neutral the domain only tests; the body is not what was signed"]


def test_bare_key_is_read_as_well() -> None:
    """RFC 6376 section 3.6.1 says RSAPublicKey; most publish SubjectPublicKeyInfo."""
    octets = RSA.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.PKCS1
    )
    assert results(signed(), key(f"p={b64encode(octets).decode()}")) == ["pass"]


def test_second_record_counts_where_the_first_is_no_key() -> None:
    names: dict[str, list[str] | UnansweredError] = {
        "rsa._domainkey.example.org": ["v=spf1 -all", published(RSA)]
    }
    assert results(signed(), names) == ["pass"]


def der(modulus: int, exponent: int) -> str:
    def field(tag: int, octets: bytes) -> bytes:
        size = len(octets).to_bytes((len(octets).bit_length() + 7) // 8, "big")
        length = size if len(octets) < 128 else bytes([0x80 | len(size)]) + size
        return bytes([tag]) + length + octets

    numbers = [
        number.to_bytes(number.bit_length() // 8 + 1, "big") for number in (modulus, exponent)
    ]
    octets = field(0x30, b"".join(field(2, each) for each in numbers))
    return f"v=DKIM1; p={b64encode(octets).decode()}"


@pytest.mark.parametrize(
    ("modulus", "exponent", "expected"),
    [
        ((1 << 511) + 1, 65537, "policy the key has 512 bits only"),
        ((1 << 1022) + 1, 65537, "policy the key has 1023 bits only"),
        ((1 << 8199) + 1, 65537, "policy the key is too large"),
        ((1 << 300_000) + 1, 65537, "policy the key is too large"),
        (RSA.public_key().public_numbers().n, (1 << 1999) + 1, "policy the key is too large"),
    ],
    ids=["512", "1023", "8200", "300000", "exponent"],
)
def test_key_too_weak_or_too_dear_is_not_used(modulus: int, exponent: int, expected: str) -> None:
    assert results(signed(), key(der(modulus, exponent))) == [expected]


# Time and memory


def test_dns_that_does_not_answer_is_a_temperror() -> None:
    names: dict[str, list[str] | UnansweredError] = {
        "rsa._domainkey.example.org": UnansweredError("the DNS does not answer")
    }
    assert results(signed(), names) == ["temperror the DNS does not answer"]


def test_keys_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 9.0, 31.0])  # for this module only, because others use the clock too
    clock = SimpleNamespace(monotonic=now.__next__)
    monkeypatch.setattr("minismtp_plugins._dns.time", clock)
    content = signed()
    other = content.partition(b"Received:")[0].replace(b"s=rsa", b"s=other")
    again = content.partition(b"Received:")[0]  # a key that was found is not asked for again
    found = results(again + other + content)
    assert found == [
        "pass",
        "temperror no time is left to ask the DNS for other._domainkey.example.org TXT",
        "pass",
    ]


def test_only_the_first_of_a_thousand_signatures_are_verified() -> None:
    content = signed()
    field = content.partition(b"Received:")[0]
    envelope, found = verify(field * 999 + content, signatures=3)
    assert found == ["pass"] * 3 + ["policy 997 more signatures were not verified"]
    assert len(results_of(envelope)) == 4


def test_results_tell_signatures_apart() -> None:
    first = signed()
    field = first.partition(b"Received:")[0]
    alike = re.sub(rb"( b=\S{12})(?s:.*)", rb"\1AAAA\r\n", field)
    envelope, _ = verify(alike + first)
    shown = [each.properties["header.b"] for each in results_of(envelope)]
    assert len(set(shown)) == 2
    assert all(len(each) > 8 for each in shown)


@pytest.mark.parametrize(
    "content",
    [
        signed(b"From: a@example.org\r\nX: " + b"x" * 10_000_000 + b"\r\n\r\nHello.\r\n"),
        signed(b"From: a@example.org\r\n" + b"X: y\r\n" * 20_000 + b"\r\nHello.\r\n"),
    ],
    ids=["long", "many"],
)
def test_header_beyond_all_bounds_is_not_verified(content: bytes) -> None:
    assert results(content) == ["policy the header is too large"]


@pytest.mark.parametrize(
    "body",
    [
        b" " * 2_000_000 + b"x",
        b"\r\n" * 500_000 + b"x",
        b" \t\r" * 300_000 + b"x",
        b"\r" * 500_000,
    ],
    ids=["blanks", "lines", "blanks and CR", "CR"],
)
def test_body_made_to_be_slow_takes_linear_time(body: bytes) -> None:
    """A quadratic algorithm would need hours for one of them."""
    content = with_tag(lambda field: field).partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    assert results(content) == [BODY]


@pytest.mark.parametrize("unit", [b"\r", b" ", b"\r\n"])
def test_no_body_is_held_in_memory(unit: bytes) -> None:
    reader = io.BytesIO(b"A: b\r\n\r\n" + unit * (1_500_000 // len(unit)))
    tracemalloc.start()
    try:
        _canonical.body_hashes(reader, [("simple", None), ("relaxed", 10)])
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


@settings(max_examples=examples(30))
@given(st.lists(st.sampled_from([b"\r\n", b" ", b"\t", b"a", b".", b"\xff"])), st.integers(1, 9))
def test_simple_form_of_a_body_is_that_of_dkimpy(words: list[bytes], piece: int) -> None:
    body = b"".join(words)
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"
    content = signed(b"From: a@example.org\r\n\r\n" + body, "simple/simple")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_canonical, "_PIECE", piece)
        assert results(content) == ["pass"]


@settings(max_examples=examples(30))
@given(st.binary(max_size=200), st.sampled_from([b"v=1; ", b"d=", b"b=", b"bh=", b"h=", b"s="]))
def test_nothing_in_a_signature_is_a_failure(noise: bytes, at: bytes) -> None:
    value = noise.replace(b"\n", b" ").replace(b"\r", b" ")
    content = with_tag(lambda field: field.replace(at, at + value, 1))
    assert len(results(content)) == 1


@settings(max_examples=examples(30))
@given(st.text(max_size=100))
def test_nothing_in_a_record_is_a_failure(text: str) -> None:
    ascii_only = text.encode("ascii", "replace").decode().replace('"', "").replace("\\", "")
    clean = "".join(char for char in ascii_only if char.isprintable())
    assert results(SIGNED, key(f"v=DKIM1; {clean}"))[0].split()[0] in {"permerror", "fail"}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"signatures": 0}, "signatures: expected at least 1"),
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
    ],
)
def test_fault_is_named(table: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as fault:
        build(DkimVerify, table, file="c.toml", key="plugins[0]", base=tmp_path)
    assert problem in str(fault.value)
