"""Rewritten senders: what is signed comes back, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins._srs import Srs

from minismtp import Address

SECRET = b"a secret of sixteen"
ALICE = Address("alice", "example.com")


def at(day: int, *secrets: bytes, domain: str = "ours.example") -> Srs:
    return Srs([*secrets] or [SECRET], domain, lambda: day)


def rewritten(sender: Address, srs: Srs) -> Address:
    found = srs.rewrite(sender)
    assert found is not None
    return found


@given(
    st.from_regex(r"[a-zA-Z0-9=+.-]{1,20}", fullmatch=True).filter(
        lambda text: not text.upper().startswith("SRS")
    ),
    st.from_regex(r"[a-z0-9]{1,10}\.example", fullmatch=True),
    st.integers(0, 2**20),
)
def test_sender_comes_back(local: str, domain: str, day: int) -> None:
    new = rewritten(Address(local, domain), at(day))
    assert at(day).restore(new.local) == Address(local, domain)
    assert at(day).restore(new.local.lower()) == Address(local.lower(), domain)


@pytest.mark.parametrize("days", [0, 1, 21, -1, -21])  # below 0: the clock was ahead
@pytest.mark.parametrize("day", [0, 1020, 20_000])
def test_bounce_in_time_is_taken(day: int, days: int) -> None:
    assert at(day + days).restore(rewritten(ALICE, at(day)).local) == ALICE


@pytest.mark.parametrize("days", [22, 400, -22, -400, 1024 - 22])
def test_bounce_of_another_time_is_not(days: int) -> None:
    with pytest.raises(ValueError, match="expired"):
        at(20_000 + days).restore(rewritten(ALICE, at(20_000)).local)


@given(st.integers(5, 40), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ=example.com0"))
def test_any_change_is_noticed(place: int, letter: str) -> None:
    local = rewritten(ALICE, at(20_000)).local
    changed = local[:place] + letter + local[place + 1 :]
    if changed.lower() != local.lower():
        with pytest.raises(ValueError, match="wrong hash"):
            at(20_000).restore(changed)


def test_secret_can_be_replaced_by_and_by() -> None:
    local = rewritten(ALICE, at(1)).local
    assert at(1, b"a new one of sixteen", SECRET).restore(local) == ALICE
    with pytest.raises(ValueError, match="wrong hash"):
        at(1, b"a new one of sixteen").restore(local)


def test_second_forwarder_leads_back_to_the_first() -> None:
    first = rewritten(Address("a", "s.example"), at(1, domain="one.example"))
    second = rewritten(first, at(1, b"secret of the second", domain="two.example"))
    third = rewritten(second, at(1, b"secret of the third!", domain="three.example"))
    assert second.local.startswith("SRS1=")
    assert third.local.startswith("SRS1=")
    assert "=one.example==" in third.local
    assert at(1, b"secret of the second").restore(second.local) == first
    assert at(1, b"secret of the third!").restore(third.local) == first


def test_foreign_form_with_another_separator_is_kept() -> None:
    first = Address("SRS0+ab=cd=s.example=a", "one.example")
    second = rewritten(first, at(1))
    assert second.local.endswith("=one.example=+ab=cd=s.example=a")
    assert at(1).restore(second.local) == first


@given(
    st.text(st.characters(min_codepoint=32), max_size=64),
    st.sampled_from(["s.example", "[192.0.2.1]", "[ipv6:2001:db8::1]", "bücher.example", "a.b"]),
    st.integers(0, 2**20),
)
def test_each_sender_that_is_made_can_be_read(local: str, domain: str, day: int) -> None:
    """Text that needs quotes has less room (RFC 5321 section 4.5.3.1.1)."""
    try:
        sender = Address.parse(str(Address(local, domain)))
    except ValueError:
        return
    made = at(day).rewrite(sender)
    if made is not None:
        assert Address.parse(str(made)) == made
        assert at(day).restore(made.local) == Address(sender.local, sender.ascii_domain)


@pytest.mark.parametrize("local", ['a"' * 17, " " * 38, "(" + "x" * 37])
def test_sender_that_needs_quotes_is_left_alone_where_they_make_it_too_long(local: str) -> None:
    assert at(1).rewrite(Address(local[:9], "s.example")) is not None
    assert at(1).rewrite(Address(local, "s.example")) is None


def test_sender_that_would_be_too_long_is_left_alone() -> None:
    """RFC 5321 section 4.5.3.1.1: a local part has 64 octets."""
    assert at(1).rewrite(Address("a" * 34, "s.example")) is not None
    assert at(1).rewrite(Address("a" * 60, "s.example")) is None
