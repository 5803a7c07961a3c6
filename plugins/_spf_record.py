"""SPF records, read by the grammar of RFC 7208 section 12.

Any record is read in linear time; one that violates the grammar raises RecordError.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import quote

from ._dns import ParsedRecords, unmapped_network

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

# macro-expand = ( "%{" macro-letter transformers *delimiter "}" ) / "%%" / "%_" / "%-"
_PIECE = re.compile(
    r"%\{([slodipvhcrt])([0-9]{0,9})(r?)([.+,/_=-]*)\}|%([%_-])|([!-$&-~]+)", re.IGNORECASE
)
#: The meaning of the signs.
SIGNS = {"%": "%", "_": " ", "-": "%20"}
_EXPLAINING = frozenset("crt")  # letters in the text of an explanation only


class RecordError(ValueError):
    """A record violates the grammar, as the text says."""


@dataclass(frozen=True, slots=True)
class Macro:
    """The value of `letter`, split, maybe reversed, the last `parts` (0 = all) joined by dots."""

    letter: str
    parts: int
    reverse: bool
    delimiters: str
    escape: bool

    def expand(self, value: str) -> str:
        """Return the expansion for the value of the letter (RFC 7208 section 7.3)."""
        # Each delimiter once, because `re` keeps patterns, and strangers could make long ones.
        delimiters = "".join(sorted(set(self.delimiters)))
        pieces = re.split(f"[{re.escape(delimiters)}]", value)
        if self.reverse:
            pieces.reverse()
        text = ".".join(pieces[-self.parts :])
        return quote(text, safe="") if self.escape else text


#: Text and macros in turn; a sign such as %_ is text already.
MacroString = tuple[str | Macro, ...]


def parse_macros(text: str, *, explaining: bool = False) -> MacroString:
    """Read text with macros. Raise RecordError. An explanation may have more letters, and SP."""
    pieces: list[str | Macro] = []
    end = 0
    while end < len(text):
        match = _PIECE.match(text, end)
        if match is None and explaining and text[end] == " ":
            pieces.append(" ")
            end += 1
            continue
        if match is None:
            raise RecordError(f"{text[:100]!r} has a wrong character or macro")
        letter, parts, reverse, delimiters, sign, literal = match.groups()
        if letter is None:
            pieces.append(literal or SIGNS[sign])
        else:
            if not explaining and letter.lower() in _EXPLAINING:
                raise RecordError(f"%{{{letter}}} is for explanations only")
            if parts and not int(parts):
                raise RecordError(f"{match[0]} leaves nothing")
            escape = letter.isupper()
            pieces.append(
                Macro(letter.lower(), int(parts or 0), bool(reverse), delimiters or ".", escape)
            )
        end = match.end()
    return tuple(pieces)


def expand(pieces: MacroString, value_of: Callable[[str], str]) -> str:
    """Return the text for the values of the letters."""
    return "".join(
        piece if isinstance(piece, str) else piece.expand(value_of(piece.letter))
        for piece in pieces
    )


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
