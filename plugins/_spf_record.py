"""SPF records, read by the grammar of RFC 7208 section 12.

Any record is read in linear time; one that violates the grammar raises RecordError.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from ._dns import ParsedRecords, unmapped_network
from ._spf_macros import SIGNS, Macro, MacroString, RecordError, parse_macros

_LONGEST = 4096  # octets, eight times the advice of RFC 7208 section 3.4
_TERMS = 300
_TERM, _MACRO = 1200, 250  # octets that each takes when it is parsed, about
#: The result of a mechanism that matches, by its qualifier.
QUALIFIERS = {"": "pass", "+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_VERSION = re.compile(r"v=spf1(?: |\Z)", re.IGNORECASE)
_ALMOST = re.compile(r"[^a-z]{0,9}(?:v\s*+=\s*+)?spf1?\b", re.IGNORECASE)
# modifier = name "=" macro-string ; name = ALPHA *( ALPHA / DIGIT / "-" / "_" / "." )
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", re.IGNORECASE | re.DOTALL)
_MECHANISM = re.compile(
    r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)((?:[:/].*)?)", re.IGNORECASE | re.DOTALL
)
# dual-cidr-length = [ "/" ip4-cidr-length ] [ "//" ip6-cidr-length ], no leading zeros
_LENGTH = r"(0|[1-9][0-9]{0,2})"
_DUAL_LENGTH = re.compile(rf"(?:/{_LENGTH})?(?://{_LENGTH})?\Z")
_NETWORK = {
    "ip4": re.compile(rf"[0-9]+(?:\.[0-9]+){{3}}(?:/{_LENGTH})?"),
    "ip6": re.compile(rf"[0-9a-f:.]+(?:/{_LENGTH})?", re.IGNORECASE),
}
# toplabel: letters, digits and hyphens inside, and no number
_TOP_LABEL = re.compile(r"(?![0-9]+\Z)[a-z0-9]+(?:-+[a-z0-9]+)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A directive: its kind, and its `result` if it matches. `text` is the published text.

    `domain` is None for the record's own domain. The lengths are those of prefixes.
    """

    kind: str
    result: str
    text: str
    domain: MacroString | None = None
    network: IPv4Network | IPv6Network | None = None
    ip4_length: int = 32
    ip6_length: int = 128


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record: mechanisms in order, and the known modifiers."""

    mechanisms: tuple[Mechanism, ...]
    redirect: MacroString | None
    explanation: MacroString | None


def is_record(text: str) -> bool:
    """Return whether a TXT record is an SPF record (RFC 7208 section 4.5)."""
    return _VERSION.match(text) is not None


def absence_in(texts: Iterable[str]) -> str:
    """Return why none of a domain's TXT records is an SPF record, as a predicate of the domain."""
    if any(map(_ALMOST.match, texts)):
        return "has a record that does not begin with 'v=spf1 '"
    return "has no SPF record"


def parse_record(text: str) -> Record:
    """Read a record with the right version. Raise RecordError, also if it is too long.

    RFC 7208 section 4.6 requires reading the whole record before its evaluation.
    """
    if len(text) > _LONGEST or text.count(" ") > _TERMS:
        raise RecordError(f"it is longer than {_LONGEST} octets or {_TERMS} terms")
    mechanisms: list[Mechanism] = []
    modifiers: dict[str, MacroString] = {}
    for term in filter(None, text.split(" ")[1:]):
        match = _MODIFIER.fullmatch(term)
        if match is None:
            mechanisms.append(_mechanism(term))
            continue
        name, value = match[1].lower(), match[2]
        if name not in ("redirect", "exp"):
            parse_macros(value)
        elif name in modifiers:
            raise RecordError(f"{name} stands there twice")
        else:
            modifiers[name] = _domain_spec(term, value)
    return Record(tuple(mechanisms), modifiers.get("redirect"), modifiers.get("exp"))


def _size(text: str) -> int:
    """Return about the octets that the parsed record of a text takes."""
    return 2 * len(text) + _TERM * (text.count(" ") + 1) + _MACRO * text.count("%")


#: The records that were read.
RECORDS = ParsedRecords(parse_record, _size)


def _mechanism(term: str) -> Mechanism:
    match = _MECHANISM.fullmatch(term)
    if match is None:
        raise RecordError(f"{term[:100]!r} is no mechanism")
    kind, rest, result = match[2].lower(), match[3], QUALIFIERS[match[1]]
    if kind in ("ip4", "ip6"):
        return Mechanism(kind, result, term, network=_network(kind, term, rest))
    lengths = ("32", "128")
    if kind in ("a", "mx"):
        found = _DUAL_LENGTH.search(rest)
        assert found is not None  # noqa: S101 - the empty end matches
        rest = rest[: found.start()]
        lengths = (found[1] or "32", found[2] or "128")
    if rest and (kind == "all" or rest[0] != ":"):
        raise RecordError(f"{term[:100]!r} has something that does not belong there")
    domain = _domain_spec(term, rest[1:]) if rest else None
    if domain is None and kind in ("include", "exists"):
        raise RecordError(f"{term[:100]!r} lacks a domain")
    ip4_length, ip6_length = map(int, lengths)
    if ip4_length > 32 or ip6_length > 128:  # noqa: PLR2004 - the bits of an address
        raise RecordError(f"{term[:100]!r} has a prefix longer than an address")
    return Mechanism(kind, result, term, domain, None, ip4_length, ip6_length)


def _network(kind: str, term: str, rest: str) -> IPv4Network | IPv6Network:
    make = IPv4Network if kind == "ip4" else IPv6Network
    try:
        if rest[:1] == ":" and _NETWORK[kind].fullmatch(rest, 1):
            return unmapped_network(make(rest[1:], strict=False))
    except ValueError:
        pass
    raise RecordError(f"{term[:100]!r} is no network")


def _domain_spec(term: str, text: str) -> MacroString:
    """Read macro-string domain-end ; domain-end = ( "." toplabel [ "." ] ) / macro-expand."""
    pieces = parse_macros(text)
    last = pieces[-1] if pieces else ""
    if not isinstance(last, Macro) and last not in SIGNS.values():
        _, dot, label = text.removesuffix(".").rpartition(".")
        if not dot or not _TOP_LABEL.fullmatch(label):
            raise RecordError(f"{term[:100]!r} has no whole domain")
    return pieces
