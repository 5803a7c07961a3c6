"""Mailbox addresses as values, and the grammar of a mailbox (RFC 5321 section 4.1.2).

`Address` keeps the local part without quotes and the domain in lower case. UTS 46 maps an
international domain. `str()` returns the spelling of the RFC. Two spellings of one mailbox are
equal, also if one has A-labels and the other U-labels (RFC 5890). Lengths and characters are
checked after the mapping, so an address that was parsed once can be parsed again. Every domain
becomes ASCII through `to_ascii`, by the rules of IDNA 2008 (RFC 5891).
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import idna

# Octets without quotes. The 64 of RFC 5321 section 4.5.3.1 are a minimum, and newsletters, SRS and
# Exchange write more. This limit keeps lines that contain a mailbox below 998 octets.
LOCAL_PART_LIMIT: Final = 512
DOMAIN_LIMIT: Final = 255  # octets, RFC 5321 section 4.5.3.1.2
LABEL_LIMIT: Final = 63  # octets, RFC 1035 section 2.3.4

# None of the classes below has these characters: DEL, C1 controls, U+2028 and U+2029, which some
# programs take for controls or line ends, and surrogates. All have the rest of UTF8-non-ascii (RFC
# 6531 section 3.3). They are written as what they exclude, because `re` needs ten times as long to
# compile a class that names most of Unicode: a tenth of a second for all of them at each start.
NO_TEXT: Final = r"\x7f-\x9f\u2028\u2029\ud800-\udfff"
# sub-domain = Let-dig [Ldh-str] / U-label ; Domain = sub-domain *("." sub-domain)
# with the underscore, which real host names contain against RFC 952 and 1123
_LET_DIG = rf"[^\x00-/:-@\[-^`{{-~{NO_TEXT}]"
SUB_DOMAIN: Final = rf"{_LET_DIG}(?:[^\x00-,./:-@\[-^`{{-~{NO_TEXT}]*{_LET_DIG})?"
DOMAIN: Final = rf"{SUB_DOMAIN}(?:\.{SUB_DOMAIN})*"
# Atom = 1*atext ; Dot-string = Atom *("." Atom)
_NO_ATEXT = rf"\x00- \"(),:;<>@\[\\\]{NO_TEXT}"
_DOT_STRING = rf"[^.{_NO_ATEXT}]+(?:\.[^.{_NO_ATEXT}]+)*"
# A Dot-string of real addresses, with dots also at its ends and in sequence
BARE_WORD: Final = rf"[^{_NO_ATEXT}]+"
# Quoted-string = DQUOTE *QcontentSMTP DQUOTE ; QcontentSMTP = qtextSMTP / quoted-pairSMTP
QUOTED_STRING: Final = rf'"(?:[^\x00-\x1f"\\{NO_TEXT}]|\\[ -~])*"'
# address-literal = "[" ( IPv4-address-literal / IPv6-address-literal / ... ) "]"
LITERAL: Final = r"\[[!-Z^-~]+\]"
# Mailbox = Local-part "@" ( Domain / address-literal ) ; Local-part = Dot-string / Quoted-string
# A dot behind the domain is not part of it.
MAILBOX: Final = rf"({BARE_WORD}|{QUOTED_STRING})@({DOMAIN}|{LITERAL})\.?"

_LONGEST: Final = 800  # characters of an address that is cached; blanks may make it longer
_REMEMBERED: Final = (
    1024  # cached addresses; a forwarded message has each of its addresses parsed several times
)
_PLAIN = re.compile(_DOT_STRING)
_MAILBOX = re.compile(MAILBOX)
_DOMAIN = re.compile(DOMAIN)
_LABEL_END = re.compile(r"[.\u3002\uff0e\uff61]")  # UTS 46 section 2.3
# Characters that a mapped domain must not contain, such as "/" from its full-width form.
_NO_NAME = re.compile(r"[\x00-,/:-^`{-\x7f]")
# Characters that IDNA 2008 forbids but registries sell, such as emoji. Postfix allows them too.
_SYMBOLS = frozenset({"So", "Sk"})
_JOINERS = frozenset("\u200c\u200d")
_QUOTED_PAIR = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox; `str()` is its text in the spelling of RFC 5321.

    `<Postmaster>` has no domain (RFC 5321 section 4.1.1.3). Two addresses are equal if their local
    parts are, and their domains in any spelling.
    """

    local: str
    """The local part, without quotes."""
    domain: str
    """The domain in lower case, or a literal in brackets; "" only for `<Postmaster>`."""
    ascii_domain: str = field(init=False, compare=False, repr=False)
    """The domain with each U-label as its A-label, to compare and for the DNS (RFC 5890)."""
    is_ascii: bool = field(init=False, compare=False, repr=False)
    """Whether the address can travel without SMTPUTF8 (RFC 6531)."""
    _text: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        local, domain = self.local, self.domain
        is_ascii = domain.isascii()
        if not (is_ascii and domain.islower()) or domain[0] == "[" or domain[-1] == ".":
            domain = _normalized(domain)
            is_ascii = domain.isascii()
            object.__setattr__(self, "domain", domain)
            object.__setattr__(self, "ascii_domain", to_ascii(domain))
        else:
            object.__setattr__(self, "ascii_domain", domain)
        object.__setattr__(self, "is_ascii", local.isascii() and is_ascii)
        if not _PLAIN.fullmatch(local):
            escaped = local.replace("\\", "\\\\").replace('"', '\\"')
            local = f'"{escaped}"'
        object.__setattr__(self, "_text", f"{local}@{domain}" if domain else local)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Address):
            return NotImplemented
        same = self.domain == other.domain or self.ascii_domain == other.ascii_domain
        return same and self.local == other.local

    def __hash__(self) -> int:
        return hash((self.local, self.ascii_domain))

    def __str__(self) -> str:
        return self._text

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `local@domain` in the spelling of RFC 5321, with quotes. Raise ValueError."""
        return _parse(text) if len(text) <= _LONGEST else _parse.__wrapped__(text)

    @property
    def unicode_domain(self) -> str:
        """The domain with each A-label as its U-label, as people read it (RFC 5890)."""
        return to_unicode(self.domain)


@lru_cache(_REMEMBERED)
def _parse(text: str) -> Address:
    match = _MAILBOX.fullmatch(
        text.strip(" \t\r\n")
    )  # only these, because a local part may contain U+00A0
    if match is None:
        raise ValueError(f"{text!r} is not an address of the form local@domain")
    return read_mailbox(match[1], match[2])


@lru_cache(_REMEMBERED)
def read_mailbox(local: str, domain: str) -> Address:
    """Return the address of two parts that `MAILBOX` matched. Raise ValueError.

    This checks lengths, IP addresses and international names, which the pattern does not.
    """
    if local[0] == '"':
        local = unquoted(local)
    return checked(local, domain)


def unquoted(text: str) -> str:
    """Return the text in a quoted string."""
    return _QUOTED_PAIR.sub(r"\1", text[1:-1])


def checked(local: str, domain: str) -> Address:
    """Return the address of an unquoted local part and a domain or literal. Raise ValueError."""
    if len(local.encode("utf-8", "surrogatepass")) > LOCAL_PART_LIMIT:
        raise ValueError(f"local part longer than {LOCAL_PART_LIMIT} octets")
    if domain[0] == "[":
        _check_literal(domain[1:-1])
    elif len(domain) > LABEL_LIMIT or not domain.isascii():
        domain = _normalized(domain)
        _check_domain(domain)
    return Address(local, domain)


def to_ascii(domain: str) -> str:
    """Return the one form in which a domain is compared, looked up and sent: with A-labels.

    It is in lower case, without a dot at the end. UTS 46 maps the spellings of people, without the
    transitional rules of 2003, so `straße` keeps its ß. An address literal has one form too. A
    domain without a valid form is only changed to lower case.
    """
    if domain.isascii():
        return _plain(domain)
    return _to_ascii(domain) if _fits(domain) else domain.lower()


def to_unicode(domain: str) -> str:
    """Return a domain with U-labels, for people. Invalid A-labels stay as they are (RFC 5891)."""
    return ".".join(map(_u_label, to_ascii(domain).split(".")))


def _u_label(label: str) -> str:
    if not label.isascii() or label[:4] != "xn--" or len(label) > LABEL_LIMIT:
        return label
    try:
        found = label[4:].encode().decode("punycode")
    except UnicodeError:
        return label
    return found if to_ascii(found) == label else label


def _plain(domain: str) -> str:
    """Return the only spelling of an ASCII domain or of an address literal."""
    lower = domain.lower()
    if lower[:6] != "[ipv6:":
        return lower.removesuffix(".")
    try:
        address = ipaddress.IPv6Address(lower[6:-1])
    except ValueError:
        return lower
    return f"[{address.ipv4_mapped or f'ipv6:{address}'}]"  # RFC 4291 section 2.5.5.2


def _fits(domain: str) -> bool:
    """Return whether a domain may be short enough. The time of IDNA grows with its square."""
    longest = max(map(len, _LABEL_END.split(domain)))
    return len(domain) <= DOMAIN_LIMIT and longest <= LABEL_LIMIT


@lru_cache(_REMEMBERED)
def _to_ascii(domain: str) -> str:
    try:
        return ".".join(map(_a_label, _mapped(domain).split(".")))
    except UnicodeError:
        return domain.lower()


def _mapped(domain: str) -> str:
    """Return a domain as UTS 46 section 4 maps it. Raise UnicodeError."""
    mapped = idna.uts46_remap(domain, std3_rules=False).removesuffix(".")
    if _NO_NAME.search(mapped) or not _fits(mapped):  # one character may be mapped to 18
        raise UnicodeError("not a domain")
    return mapped


def _a_label(label: str) -> str:
    """Return the A-label of a mapped label. Raise UnicodeError.

    UTS 46 section 4.1 allows symbols and "_", which IDNA 2008 forbids. Both check the direction of
    text and the places of invisible characters. Emoji may be joined.
    """
    if label.isascii():
        if not 0 < len(label) <= LABEL_LIMIT:
            raise UnicodeError("label is empty or too long")
        return label
    kinds = ["S" if char != "_" and _is_symbol(char) else char for char in label]
    emoji = {n for n in range(1, len(label) - 1) if kinds[n - 1 : n + 2] == ["S", "\u200d", "S"]}
    letters = (char for n, char in enumerate(label) if n not in emoji and not _is_symbol(char))
    idna.check_label("".join(letters) or "a")
    idna.check_bidi(label)
    joiners = {n for n, char in enumerate(label) if char in _JOINERS}
    if not all(idna.valid_contextj(label, n) for n in joiners - emoji):
        raise UnicodeError("a joiner is not allowed here")
    a_label = f"xn--{label.encode('punycode').decode()}"
    if len(a_label) > LABEL_LIMIT:
        raise UnicodeError("label too long")
    return a_label


def _is_symbol(char: str) -> bool:
    return char == "_" or unicodedata.category(char) in _SYMBOLS


def _normalized(domain: str) -> str:
    """Return the only spelling of a domain, or its lower case if it is not a valid domain."""
    if domain.isascii():
        return _plain(domain)
    try:
        return _mapped(domain) if _fits(domain) else domain.lower()
    except UnicodeError:
        return domain.lower()


def _check_domain(domain: str) -> None:
    ascii_form = to_ascii(domain)
    if max(len(domain.encode()), len(ascii_form)) > DOMAIN_LIMIT:
        raise ValueError("domain longer than 255 octets")
    if not ascii_form.isascii() or not _DOMAIN.fullmatch(domain):
        raise ValueError("domain is not a valid internationalized domain name")
    if any(len(label) > LABEL_LIMIT for label in ascii_form.split(".")):
        raise ValueError("domain label longer than 63 octets")


def _check_literal(text: str) -> None:
    """Check `192.0.2.1` or `IPv6:2001:db8::1` (RFC 5321 section 4.1.3). Raise ValueError."""
    try:
        if text[:5].lower() != "ipv6:":
            ipaddress.IPv4Address(text)
        elif ipaddress.IPv6Address(text[5:]).scope_id is not None:
            raise ValueError("an address literal has no zone")
    except ipaddress.AddressValueError:
        raise ValueError("address literal is not an IP address") from None
