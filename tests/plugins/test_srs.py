"""Rewritten senders: only signed ones return to the original sender."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins._srs import Srs

from minismtp import Address

SECRET = b"a secret of sixteen"
ALICE = Address("alice", "example.com")


KEPT: dict[str, str] = {}


def at(day: int, *secrets: bytes, domain: str = "ours.example") -> Srs:
    return Srs([*secrets] or [SECRET], domain, lambda: day, kept=KEPT.get)


def rewritten(sender: Address, srs: Srs) -> Address:
    """Rewrite a sender, and store it if necessary."""
    made = srs.rewrite(sender)
    if key := srs.key_of(sender, made):
        KEPT[key] = str(sender)
    return made


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
    made = rewritten(sender, at(day))
    assert Address.parse(str(made)) == made
    assert len(str(made).rpartition("@")[0].encode()) <= 64
    assert at(day).restore(made.local).ascii_domain == sender.ascii_domain
    assert at(day).restore(made.local).local == sender.local


LONG = [
    "bounces+1234567-ab12-name=customer.example.com",  # VERP, by newsletter services
    "01020190f2c6f3a4-5b7d1c9e-8f3a-4d2b-9c1e-000000",
    "SRS0=abcd=EF=a-domain-that-is-long.example=somebody-with-a-name",
    "SRS1=abcd=one.example==abcd=EF=a-domain-that-is-long.example=a-name",
    "jürgen.von-und-zu-einem-langen-namen-über-alles-äöü",
    "UPPER.and.lower-Case-that-Must-come-back-as-it-was",
    'quo"ted (and) [so] on, "with" @ signs',
]


@pytest.mark.parametrize("local", LONG, ids=lambda text: text[:12])
@pytest.mark.parametrize("fold", [str, str.lower, str.upper], ids=["kept", "lower", "upper"])
def test_sender_of_any_length_is_rewritten_and_comes_back(
    local: str, fold: Callable[[str], str]
) -> None:
    """RFC 5321 section 4.5.3.1.1: not every host takes a local part of more than 64 octets."""
    sender = Address(local, "a-domain-that-is-long-too.example")
    made = rewritten(sender, at(20_000))
    assert len(made.local) == len(made.local.encode()) <= 64
    assert made.domain == "ours.example"
    # Some hosts change the case; the stored sender comes back unchanged.
    assert at(20_021).restore(fold(made.local)) == sender
    with pytest.raises(ValueError, match="expired"):
        at(20_022).restore(made.local)


def test_same_sender_is_kept_under_the_same_name() -> None:
    sender = Address(LONG[0], "em.example.net")
    first, second = at(1), at(2)
    name = first.key_of(sender, first.rewrite(sender))
    assert name
    assert second.key_of(sender, second.rewrite(sender)) == name


def test_name_is_found_by_the_secret_that_made_it() -> None:
    sender = Address(LONG[0], "em.example.net")
    made = at(1).rewrite(sender)
    assert at(1, b"a new one of sixteen", SECRET).key_of(sender, made)
    assert not at(1, b"a new one of sixteen").key_of(sender, made)


def test_name_is_needed_for_the_senders_that_are_kept_only() -> None:
    srs = at(1)
    sender = Address(LONG[0], "em.example.net")
    made = srs.rewrite(sender)
    assert not srs.key_of(ALICE, srs.rewrite(ALICE))
    assert not srs.key_of(ALICE, made)
    assert not srs.key_of(sender, Address(made.local, "elsewhere.example"))


@given(st.integers(5, 31), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ=234567"))
def test_any_change_of_a_short_name_is_noticed(place: int, letter: str) -> None:
    local = rewritten(Address(LONG[0], "em.example.net"), at(20_000)).local
    changed = local[:place] + letter + local[place + 1 :]
    if changed.lower() != local.lower():
        with pytest.raises(ValueError, match="wrong hash"):
            at(20_000).restore(changed)


def test_sender_that_was_not_kept_is_no_sender() -> None:
    made = at(1).rewrite(Address("never-kept" * 6, "em.example.net"))
    with pytest.raises(ValueError, match="expired"):
        at(1).restore(made.local)


def test_host_that_forwards_a_short_name_finds_the_way_back() -> None:
    sender = Address(LONG[0], "em.example.net")
    first = rewritten(sender, at(1, domain="one.example"))
    second = rewritten(first, at(1, b"secret of the second", domain="two.example"))
    assert second.local.startswith("SRS1=")
    back = at(1, b"secret of the second").restore(second.local.lower())
    assert back.domain == "one.example"
    assert at(1, domain="one.example").restore(back.local) == sender
