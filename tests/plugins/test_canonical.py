"""The canonical forms of DKIM, against a loop over lines that says the same in the RFC's words."""

from __future__ import annotations

import hashlib
import io
import re
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins import _canonical
from minismtp_plugins._canonical import body_hashes, relaxed_field, without_signature

PIECES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b"  ", b" \t", b"a", b"bc", b".", b";", b"\xff", b":"]
OCTETS = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)


def lines_of(body: bytes) -> list[bytes]:
    """Return the lines that a body has on the wire, where each line end is CRLF."""
    lines = re.split(rb"\r\n|\r|\n", body)
    return lines if lines[-1] else lines[:-1]


def canonical(body: bytes, form: str) -> bytes:
    """Return a body in a form of RFC 6376 section 3.4.3 or 3.4.4."""
    lines = lines_of(body)
    if form == "relaxed":
        lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    text = b"".join(line + b"\r\n" for line in lines)
    return text or (b"\r\n" if form == "simple" else b"")


@given(
    body=OCTETS,
    header=st.sampled_from([b"", b"A: b\r\n", b"A: b\n", b"A: " + b"x" * 20 + b"\r\n b\r\n"]),
    end=st.sampled_from([b"\r\n", b"\n"]),
    size=st.sampled_from([1, 2, 3, 7, 65536]),
    length=st.none() | st.integers(0, 40),
)
def test_body_has_the_hash_of_the_canonical_lines(
    body: bytes, header: bytes, end: bytes, size: int, length: int | None
) -> None:
    extents = [(form, each) for form in ("relaxed", "simple") for each in {None, length}]
    with patch.object(_canonical, "_PIECE", size):
        found = body_hashes(io.BytesIO(header + end + body), extents)
    for form, each in extents:
        text = canonical(body, form)
        assert found[form, each] == (hashlib.sha256(text[:each]).digest(), len(text))


@pytest.mark.parametrize("message", [b"", b"A: b", b"A: b\r\n", b"A: b\r\n\r\n", b"\r\n"])
def test_message_without_a_body_has_the_hash_of_an_empty_one(message: bytes) -> None:
    extents = [("relaxed", None), ("simple", None)]
    found = body_hashes(io.BytesIO(message), extents)
    assert found["relaxed", None] == (hashlib.sha256(b"").digest(), 0)
    assert found["simple", None] == (hashlib.sha256(b"\r\n").digest(), 2)


@given(OCTETS)
def test_relaxed_field_is_that_of_rfc_6376_section_3_4_2(value: bytes) -> None:
    unfolded = value.replace(b"\r", b"").replace(b"\n", b"")
    expected = re.sub(rb"[ \t]+", b" ", unfolded).strip(b" ")
    assert relaxed_field(b"Sub-Ject \t:" + value) == b"sub-ject:" + expected + b"\r\n"


@given(st.lists(OCTETS | st.sampled_from([b"b=1", b" b =x:y", b"\r\n\tb\t=", b"bh=b=2"])))
def test_signature_is_removed_from_each_tag_b(tags: list[bytes]) -> None:
    value = b";".join(tags)
    left = []
    for tag in value.split(b";"):
        match = re.match(rb"[ \t\r\n]*b[ \t\r\n]*=", tag)
        left.append(match[0] if match else tag)
    assert without_signature(b"X:" + value) == b"X:" + b";".join(left)
