"""Mailbox addresses as values, and the grammar of a mailbox (layer 0; RFC 5321 section 4.1.2).

`Address` keeps the local part without its quoting and the domain in lower case, an international
one as UTS 46 maps it, so that two spellings of one mailbox are equal; `str()` gives the spelling of
the RFC back. Lengths and characters are checked after that, so what was read once is read again.
Every domain becomes ASCII through `to_ascii`, by the rules of 2008 (RFC 5891).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import idna

LOCAL_PART_LIMIT: Final = 64  # octets, RFC 5321 section 4.5.3.1.1
DOMAIN_LIMIT: Final = 255  # octets, RFC 5321 section 4.5.3.1.2
LABEL_LIMIT: Final = 63  # octets, RFC 1035 section 2.3.4

# UTF8-non-ascii (RFC 6531 section 3.3) but for what somebody takes for a control character or the
# end of a line: C1 controls and the separators U+2028 and U+2029; surrogates are no characters.
WIDE: Final = r"\u00a0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"
# sub-domain = Let-dig [Ldh-str] / U-label ; Domain = sub-domain *("." sub-domain)
_SUB_DOMAIN = rf"[A-Za-z0-9{WIDE}](?:[A-Za-z0-9\-{WIDE}]*[A-Za-z0-9{WIDE}])?"
DOMAIN: Final = rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*"
# Atom = 1*atext ; Dot-string = Atom *("." Atom)
_ATOM = rf"[A-Za-z0-9!#$%&'*+\-/=?^_`{{|}}~{WIDE}]+"
_DOT_STRING = rf"{_ATOM}(?:\.{_ATOM})*"
# Quoted-string = DQUOTE *QcontentSMTP DQUOTE ; QcontentSMTP = qtextSMTP / quoted-pairSMTP
_QUOTED_STRING = rf'"(?:[ !#-\[\]-~{WIDE}]|\\[ -~])*"'
# address-literal = "[" ( IPv4-address-literal / IPv6-address-literal / ... ) "]"
_LITERAL = r"\[[!-Z^-~]+\]"
# Mailbox = Local-part "@" ( Domain / address-literal ) ; Local-part = Dot-string / Quoted-string
MAILBOX: Final = rf"({_DOT_STRING}|{_QUOTED_STRING})@({DOMAIN}|{_LITERAL})"

_LONGEST: Final = 500  # characters of an address that is remembered; blanks can make it longer
_REMEMBERED: Final = 1024  # addresses; a message that is sent on has each parsed several times
_PLAIN = re.compile(_DOT_STRING)
_MAILBOX = re.compile(MAILBOX)
_DOMAIN = re.compile(DOMAIN)
_LABEL_END = re.compile(r"[.\u3002\uff0e\uff61]")  # UTS 46 section 2.3
_QUOTED_PAIR = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: `local` part (unquoted) and `domain` (lower case, or a literal in brackets).

    The domain is empty only for `<Postmaster>` (RFC 5321 section 4.1.1.3).
    """

    local: str
    domain: str

    def __post_init__(self) -> None:
        if not (self.domain.islower() and self.domain.isascii()):
            object.__setattr__(self, "domain", _normalized(self.domain))

    def __str__(self) -> str:
        local = self.local
        if not _PLAIN.fullmatch(local):
            escaped = local.replace("\\", "\\\\").replace('"', '\\"')
            local = f'"{escaped}"'
        return f"{local}@{self.domain}" if self.domain else local

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `local@domain` as RFC 5321 spells it, quotes included; raises ValueError."""
        return _parse(text) if len(text) <= _LONGEST else _parse.__wrapped__(text)

    @property
    def is_ascii(self) -> bool:
        """Whether the address can travel without SMTPUTF8 (RFC 6531)."""
        return self.local.isascii() and self.domain.isascii()

    @property
    def ascii_domain(self) -> str:
        """The domain with each U-label as its A-label, for comparing and for DNS (RFC 5890)."""
        return to_ascii(self.domain)


@lru_cache(_REMEMBERED)
def _parse(text: str) -> Address:
    match = _MAILBOX.fullmatch(text.strip(" \t\r\n"))  # not wider: a local part may have U+00A0
    if match is None:
        raise ValueError(f"{text!r} is not an address of the form local@domain")
    return read_mailbox(match[1], match[2])


def read_mailbox(local: str, domain: str) -> Address:
    """Give the address whose two parts `MAILBOX` has matched; raises ValueError.

    What the pattern leaves to check are lengths, IP addresses and international names.
    """
    if len(local.encode()) > LOCAL_PART_LIMIT:
        raise ValueError("local part longer than 64 octets")
    if local[0] == '"':
        local = _QUOTED_PAIR.sub(r"\1", local[1:-1])
    if domain[0] == "[":
        _check_literal(domain[1:-1])
    elif len(domain) > LABEL_LIMIT or not domain.isascii():
        domain = _normalized(domain)
        _check_domain(domain)
    return Address(local, domain)


def to_ascii(domain: str) -> str:
    """Return a domain in lower case with A-labels; one that has no such form only in lower case.

    UTS 46 maps what people write, without the transitional forms of 2003: `straße` keeps its ß.
    """
    if domain.isascii() or not _fits(domain):
        return domain.lower()
    return _to_ascii(domain)


def _fits(domain: str) -> bool:
    """Return whether a domain may be short enough: the work of IDNA grows with the square."""
    longest = max(map(len, _LABEL_END.split(domain)))
    return len(domain) <= DOMAIN_LIMIT and longest <= LABEL_LIMIT


@lru_cache(_REMEMBERED)
def _to_ascii(domain: str) -> str:
    try:
        return idna.encode(domain, uts46=True, std3_rules=True).decode()
    except UnicodeError:
        return domain.lower()


def _normalized(domain: str) -> str:
    """Return the one spelling of a domain; of what is no international domain, its lower case."""
    if domain.isascii() or len(domain) > DOMAIN_LIMIT:
        return domain.lower()
    try:
        return idna.uts46_remap(domain)
    except UnicodeError:
        return domain.lower()


def _check_domain(domain: str) -> None:
    ascii_form = to_ascii(domain)
    if max(len(domain.encode()), len(ascii_form)) > DOMAIN_LIMIT:
        raise ValueError("domain longer than 255 octets")
    if not ascii_form.isascii() or not _DOMAIN.fullmatch(domain):
        raise ValueError("domain is no internationalized domain name")
    if any(len(label) > LABEL_LIMIT for label in ascii_form.split(".")):
        raise ValueError("domain label longer than 63 octets")


def _check_literal(text: str) -> None:
    """Check `192.0.2.1` or `IPv6:2001:db8::1` (RFC 5321 section 4.1.3); raises ValueError."""
    try:
        if text[:5].lower() != "ipv6:":
            ipaddress.IPv4Address(text)
        elif ipaddress.IPv6Address(text[5:]).scope_id is not None:
            raise ValueError("an address literal has no zone")
    except ipaddress.AddressValueError:
        raise ValueError("address literal that is no IP address") from None
