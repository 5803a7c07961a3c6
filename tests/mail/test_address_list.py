"""The authors in a From field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.mail.address_list import mailboxes_of
from minismtp.values.address import Address


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("alice@example.org", ["alice@example.org"]),
        ("<alice@example.org>", ["alice@example.org"]),
        ("Alice <alice@example.org>", ["alice@example.org"]),
        ('"Smith, (A) <x@y>" <alice@example.org>', ["alice@example.org"]),
        ('"\\"" <alice@example.org>', ["alice@example.org"]),
        ("alice (bob@evil.example (nested) \\) ) @ example.org", ["alice@example.org"]),
        ("Alice <alice@example.org> (bob@evil.example)", ["alice@example.org"]),
        ('"a b"@example.org', ['"a b"@example.org']),
        ('<"a>b"@example.org>', ['"a>b"@example.org']),
        (
            "a@x.example, B <b@y.example>,, c@z.example",
            ["a@x.example", "b@y.example", "c@z.example"],
        ),
        ("group: a@x.example, <b@y.example>;", ["a@x.example", "b@y.example"]),
        ("nobody:;", []),
        ("alice@example.org <alice@example.org>", ["alice@example.org"] * 2),
        ("a@x.example <b@y.example>", ["a@x.example", "b@y.example"]),
        ("<b@y.example> a@x.example", ["a@x.example", "b@y.example"]),
        ("<@x.example:b@y.example>", ["b@y.example"]),
        ("< @x.example,\t@z.example : b@y.example >", ["b@y.example"]),
        ("Alice <alice@example.org", ["alice@example.org"]),
        ("alice@example.org.", ["alice@example.org"]),
        ("Alice <alice@example.org.>", ["alice@example.org"]),
        ("", []),
    ],
)
def test_addresses_of_a_field(value: str, addresses: list[str]) -> None:
    assert mailboxes_of(value) == [Address.parse(each) for each in addresses]


@pytest.mark.parametrize(
    "value",
    [
        *("alice", "alice@", "@example.org", "Alice <alice>", "<>", "@x.example:b@y.example"),
        *("alice@example.org>", "a@x.example b@y.example", "<a@x.example> <b@y.example>"),
        *("a@x.example z <b@y.example>", "<@x.example>", "<<a@x.example>>"),
        *("<@x.example:@b@y.example>", "a@b@c.example", "a@x.example)", "(a@x.example"),
        *('"a@x.example', '"a" b@x.example', "<a@x.example, b@y.example>", "a@x.example\\"),
        *("=?utf-8?q?=40?= x", "a@x.example\0"),
    ],
)
def test_what_readers_could_take_for_different_addresses_is_none(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        mailboxes_of(value)


@given(st.text('ab@.<>()\\",;: '))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        found = mailboxes_of(text)
    except ValueError:
        return
    for address in found:
        assert mailboxes_of(f"Name <{address}>") == [address]
