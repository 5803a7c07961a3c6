"""Mailbox addresses: grammar, equality and spelling."""

import time

import idna
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from minismtp.values.address import Address, to_ascii, to_unicode


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("user@example.org", Address("user", "example.org"), id="plain"),
        pytest.param(" user@example.org\n", Address("user", "example.org"), id="blanks-around"),
        pytest.param("User@EXAMPLE.org", Address("User", "example.org"), id="case-of-local-kept"),
        pytest.param("a.b+c@example.org", Address("a.b+c", "example.org"), id="dot-string"),
        pytest.param(
            "!#$%&'*+-/=?^_`{|}~@x", Address("!#$%&'*+-/=?^_`{|}~", "x"), id="every-atext"
        ),
        pytest.param('"a b"@example.org', Address("a b", "example.org"), id="quoted"),
        pytest.param('"a@b"@example.org', Address("a@b", "example.org"), id="quoted-at"),
        pytest.param(r'"a\"\\b"@example.org', Address('a"\\b', "example.org"), id="quoted-pair"),
        pytest.param('""@example.org', Address("", "example.org"), id="empty-quoted"),
        pytest.param('"user"@example.org', Address("user", "example.org"), id="needless-quotes"),
        pytest.param("a@[192.0.2.1]", Address("a", "[192.0.2.1]"), id="ipv4-literal"),
        pytest.param("a@[IPv6:2001:DB8::1]", Address("a", "[ipv6:2001:db8::1]"), id="ipv6-literal"),
        # RFC 6531 section 3.3
        pytest.param("jürgen@bücher.example", Address("jürgen", "bücher.example"), id="utf-8"),
        pytest.param("a@straße.example", Address("a", "straße.example"), id="sharp-s-of-2008"),
        pytest.param(
            "a@\uff22ÜCHER。example", Address("a", "bücher.example"), id="mapped-by-uts-46"
        ),
        pytest.param("a@bu\u0308cher.x", Address("a", "bücher.x"), id="composed"),
        pytest.param("a@\uff45xample.org", Address("a", "example.org"), id="mapped-to-ascii"),
        pytest.param("a@İ.example", Address("a", "i\u0307.example"), id="lower-case-is-longer"),
        pytest.param("a@example-1.org", Address("a", "example-1.org"), id="hyphen"),
        # Dots outside the grammar, as some providers gave such addresses to their customers
        pytest.param(".a@example.org", Address(".a", "example.org"), id="dot-first"),
        pytest.param("a.@example.org", Address("a.", "example.org"), id="dot-last"),
        pytest.param("a..b@example.org", Address("a..b", "example.org"), id="two-dots"),
        pytest.param("...@example.org", Address("...", "example.org"), id="dots-only"),
        pytest.param('"a..b."@example.org', Address("a..b.", "example.org"), id="dots-quoted"),
        pytest.param("a@my_pc.example", Address("a", "my_pc.example"), id="underscore"),
        pytest.param("a@_x_.example", Address("a", "_x_.example"), id="underscores-at-the-ends"),
        pytest.param("a@example.org.", Address("a", "example.org"), id="dot-behind-the-domain"),
        pytest.param("a@é.example.", Address("a", "é.example"), id="dot-behind-utf-8"),
        pytest.param("a@[192.0.2.1].", Address("a", "[192.0.2.1]"), id="dot-behind-a-literal"),
        pytest.param("a" * 512 + "@x", Address("a" * 512, "x"), id="local-part-of-512"),
        pytest.param('"' + "\\a" * 512 + '"@x', Address("a" * 512, "x"), id="512-without-quotes"),
        pytest.param("." * 512 + "@x", Address("." * 512, "x"), id="512-that-get-quotes"),
        pytest.param("a@" + "b" * 63 + ".x", Address("a", "b" * 63 + ".x"), id="label-of-63"),
        pytest.param(
            "a@" + ".".join(["b" * 63] * 4),
            Address("a", ".".join(["b" * 63] * 4)),
            id="domain-of-255",
        ),
    ],
)
def test_address_is_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("user", id="no-domain"),
        pytest.param("@example.org", id="no-local-part"),
        pytest.param("user@", id="empty-domain"),
        pytest.param("a@b@example.org", id="two-ats"),
        pytest.param("a b@example.org", id="blank"),
        pytest.param("<a@example.org>", id="angle-brackets"),
        pytest.param('"a"b"@example.org', id="quote-inside"),
        pytest.param('"a@example.org', id="quote-not-closed"),
        pytest.param('"a\\"@example.org', id="quote-escaped"),
        pytest.param('"a\nb"@example.org', id="line-feed-quoted"),
        pytest.param("a\r\nb@example.org", id="line-end"),
        pytest.param("a\x85b@example.org", id="c1-control"),
        pytest.param('"a\u2028b"@example.org', id="line-separator"),
        pytest.param("a\udc80@example.org", id="surrogate"),
        pytest.param("a@-example.org", id="hyphen-first"),
        pytest.param("a@example-.org", id="hyphen-last"),
        pytest.param("a@example..org", id="empty-label"),
        pytest.param("a@example.org..", id="dots-behind-the-domain"),
        pytest.param("a@.", id="only-a-dot-for-a-domain"),
        pytest.param("a@[192.0.2.256]", id="ipv4-out-of-range"),
        pytest.param("a@[192.0.2]", id="ipv4-short"),
        pytest.param("a@[2001:db8::1]", id="ipv6-without-tag"),
        pytest.param("a@[IPv6:2001:db8::1%eth0]", id="ipv6-zone"),
        pytest.param("a@[IPv6:192.0.2.1]", id="ipv4-as-ipv6"),
        pytest.param("a@[tag:what]", id="unknown-tag"),
        pytest.param("a@[]", id="empty-literal"),
        pytest.param("a" * 513 + "@x", id="local-part-of-513"),
        pytest.param("é" * 257 + "@x", id="local-part-of-514-octets"),
        # RFC 5321 section 4.5.3.1.2, RFC 1035 section 2.3.4
        pytest.param("a@" + "b" * 64, id="label-of-64"),
        pytest.param("a@" + ".".join(["b" * 63] * 4) + ".c", id="domain-of-257"),
        pytest.param("a@" + ".".join(["é" * 50] * 5), id="domain-too-long-as-a-labels"),
        pytest.param("a@" + "é" * 60 + ".org", id="a-label-too-long"),
        pytest.param("a@" + "İ." * 85 + "x", id="longer-in-lower-case"),
        pytest.param("a@x。。", id="empty-label-once-mapped"),
        pytest.param("a@x-\u00ad", id="hyphen-last-once-mapped"),
        pytest.param("a@x\u2044y.example", id="no-letter-and-no-symbol"),  # RFC 5892
        pytest.param("a@x\u200dy.example", id="joiner-that-joins-nothing"),  # RFC 5892 A.2
        pytest.param("a@1\u05d0.example", id="order-of-directions"),  # RFC 5893
        # The compatibility forms of a slash and of two dots
        pytest.param("a@\u2025\uff0fx", id="folds-to-a-path"),
        pytest.param("a@x\uff0fy.org", id="folds-to-a-slash"),
        pytest.param("a@x\u00a0y.org", id="folds-to-a-blank"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|octets|domain|zone"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        pytest.param(Address("a.b", "example.org"), "a.b@example.org", id="plain"),
        pytest.param(Address("a b", "example.org"), '"a b"@example.org', id="blank"),
        pytest.param(Address(".a", "example.org"), '".a"@example.org', id="dot-first"),
        pytest.param(Address('a"\\', "x"), r'"a\"\\"@x', id="quote-and-backslash"),
        pytest.param(Address("", "x"), '""@x', id="empty"),
        pytest.param(Address("jürgen", "x"), "jürgen@x", id="utf-8"),
        pytest.param(Address("Postmaster", ""), "Postmaster", id="postmaster"),
    ],
)
def test_address_is_spelt_as_the_rfc_asks(address: Address, text: str) -> None:
    assert str(address) == text


@settings(max_examples=examples(200))
@given(
    st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cc"])).filter(
        lambda text: len(text.encode()) <= 512
    )
)
def test_spelling_is_read_back(local: str) -> None:
    address = Address(local, "example.org")
    assert Address.parse(str(address)) == address


# Domains of all characters, and of those that folding and mapping change or lengthen.
_DOMAINS = st.lists(
    st.text(
        st.sampled_from("aZ09-İßΣςǅﬁ½\uff41。\u00ad\u0307\u200déüǆ\u05d0\u0627中ーꭰẞ₂")
        | st.characters(),
        min_size=1,
    ),
    min_size=1,
    max_size=90,
).map(".".join)


@given(st.text(max_size=70), _DOMAINS)
def test_what_was_read_is_read_again(local: str, domain: str) -> None:
    """A message in the queue has its addresses as text."""
    for text in (f"{local}@{domain}", f"{Address(local, '')}@{domain}", f"a@{domain}"):
        try:
            address = Address.parse(text)
        except ValueError:
            continue
        assert Address.parse(str(address)) == address
        assert address.ascii_domain.isascii()
        assert max(map(len, address.ascii_domain.split("."))) <= 63


@given(_DOMAINS)
def test_ascii_form_of_a_domain_is_that_of_its_one_spelling(domain: str) -> None:
    if to_ascii(domain).isascii():
        assert (
            to_ascii(Address("", domain).domain) == to_ascii(to_ascii(domain)) == to_ascii(domain)
        )


@pytest.mark.parametrize(
    ("domain", "read"),
    [
        ("XN--STRAE-OQA.Example.", "straße.example"),
        ("xn--i-7iq.ws", "i❤.ws"),
        ("straße.xn--9ca", "straße.é"),
        ("example.org", "example.org"),
        # Not the name of a domain, because it would display a wrong name
        ("xn--a.example", "xn--a.example"),
        ("xn--strasse-.example", "xn--strasse-.example"),
        ("xn--x-y2t.example", "xn--x-y2t.example"),
        ("xn--99999999.example", "xn--99999999.example"),
        ("xn--" + "9" * 100_000, "xn--" + "9" * 100_000),
    ],
)
def test_domain_is_read_by_people(domain: str, read: str) -> None:
    assert to_unicode(domain) == Address("", domain).unicode_domain == read


@given(_DOMAINS)
def test_domain_for_people_is_the_same_domain(domain: str) -> None:
    assert to_ascii(to_unicode(domain)) == to_ascii(domain) or not to_ascii(domain).isascii()


def test_domain_that_none_can_be_costs_nothing() -> None:
    """The codec needs quadratic time for text that is not a domain."""
    began = time.thread_time()
    for letter in ("é", "İ", "\u0307", "。", "é."):
        to_ascii(letter * 500_000)
        Address("", letter * 500_000)
    assert time.thread_time() - began < 2  # the codec of 2003 took 18 seconds for one of them


def test_only_ascii_blanks_around_an_address_do_not_count() -> None:
    assert Address.parse(" a@x\r\n") == Address("a", "x")
    assert Address.parse("\xa0a@x") == Address("\xa0a", "x")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('"a"@x.ORG', "a@X.org"),
        ("a@straße.example", "a@XN--strae-oqa.example"),
        ("a@[IPv6:::ffff:192.0.2.1]", "a@[192.0.2.1]"),
        ("a@[IPv6:2001:db8:0:0::1]", "a@[IPv6:2001:DB8::1]"),
    ],
)
def test_equal_mailboxes_are_one_in_a_set(one: str, other: str) -> None:
    assert len({Address.parse(one), Address.parse(other)}) == 1


def test_other_mailboxes_are_others() -> None:
    assert Address.parse("a@straße.example") != Address.parse("a@strasse.example")
    assert Address.parse("a@x") not in (Address.parse("A@x"), "a@x")


@pytest.mark.parametrize(
    ("text", "is_ascii"), [("a@x", True), ("é@x", False), ("a@é", False)], ids=str
)
def test_address_knows_whether_it_is_ascii(text: str, is_ascii: bool) -> None:
    assert Address.parse(text).is_ascii is is_ascii


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        pytest.param("Example.ORG", "example.org", id="ascii"),
        pytest.param("Bücher.example", "xn--bcher-kva.example", id="u-label"),
        pytest.param("xn--BCHER-kva.example", "xn--bcher-kva.example", id="a-label"),
        # RFC 5891 and UTS 46 section 4, not transitional
        pytest.param("straße.example", "xn--strae-oqa.example", id="sharp-s"),
        pytest.param("Faß.βόλος.example", "xn--fa-hia.xn--nxasmm1c.example", id="sigma"),
        pytest.param("\uff42ücher。example", "xn--bcher-kva.example", id="fullwidth"),
        pytest.param("ΒΌΛΟΣ.example", "xn--nxasmq6b.example", id="sigma-of-capitals"),
        pytest.param("نامه\u200c\u0627ی.example", "xn--mgba3gch31f060k.example", id="non-joiner"),
        pytest.param("क्\u200dष.example", "xn--11b2ezcw70k.example", id="joiner"),
        pytest.param("Straße.Example.", "xn--strae-oqa.example", id="dot-behind"),
        pytest.param("example.org.", "example.org", id="dot-behind-ascii"),
        pytest.param("I❤\ufe0f.ws", "xn--i-7iq.ws", id="emoji"),
        pytest.param("🇩🇪.👍🏽.example", "xn--h77hc.xn--on8h5e.example", id="flag-and-skin"),
        pytest.param("my_straße.example", "xn--my_strae-wya.example", id="underscore"),
        pytest.param("_tcp.straße.example", "_tcp.xn--strae-oqa.example", id="ascii-beside"),
        pytest.param("é.XN--I-7IQ.ws", "xn--9ca.xn--i-7iq.ws", id="emoji-as-a-label-beside"),
        pytest.param("[IPv6:2001:DB8::0:1]", "[ipv6:2001:db8::1]", id="literal"),
        pytest.param("[IPv6:::FFFF:192.0.2.1]", "[192.0.2.1]", id="mapped-literal"),
        pytest.param("[IPv6:::ffff:c000:201]", "[192.0.2.1]", id="mapped-literal-in-hex"),
        pytest.param("é..x", "é..x", id="empty-label-stays"),
        pytest.param("👨\u200d👩\u200d👧.ws", "xn--1uga80807abag.ws", id="joined-emoji"),
        pytest.param("❤\ufe0f\u200d🔥.ws", "xn--1ug010ai253b.ws", id="joined-with-variation"),
        pytest.param("x\u200d👨.ws", "x\u200d👨.ws", id="joiner-behind-a-letter-stays"),
        pytest.param("\u200d👨.ws", "\u200d👨.ws", id="joiner-at-the-start-stays"),
        pytest.param("👨\u200d.ws", "👨\u200d.ws", id="joiner-at-the-end-stays"),
        pytest.param("👨\u200c👩.ws", "👨\u200c👩.ws", id="non-joiner-in-emoji-stays"),
        pytest.param("é_\u200d_.ws", "é_\u200d_.ws", id="joiner-of-underscores-stays"),
        pytest.param("\ufdfa" * 8, "\ufdfa" * 8, id="mapped-to-many-stays"),
        pytest.param("é" * 64, "é" * 64, id="long-label-stays"),
        pytest.param("é.x\uff0fy", "é.x\uff0fy", id="slash-stays"),
    ],
)
def test_domain_gets_its_ascii_form(domain: str, ascii_form: str) -> None:
    assert to_ascii(domain) == ascii_form
    assert Address("", domain).ascii_domain == ascii_form


@pytest.mark.parametrize("domain", ["é" * 64, f"{'字' * 64}.example", "é." * 128], ids=len)
def test_name_that_no_domain_can_have_costs_no_work(
    domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **_named: object) -> bytes:
        raise AssertionError

    for name in ("uts46_remap", "check_label"):
        monkeypatch.setattr(idna, name, never)
    assert to_ascii(domain) == domain


def test_label_ends_at_any_dot() -> None:
    label = "é" * 40
    assert to_ascii(f"{label}。{label}.example") == ".".join([*[to_ascii(label)] * 2, "example"])
