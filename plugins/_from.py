"""The domains in a From field, for signing and for DMARC.

This reads RFC 5322 section 3.4, the obsolete forms of section 4.4, and common mistakes of senders.
If mail programs may read a field in several ways, the result has all domains that one of them may
show, so none can be hidden. Otherwise it has one for each address. Comments and display names,
quoted or before an address in brackets, do not count.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from minismtp import Address, Headers

from ._authres import is_closed, without_comments

MOST_DOMAINS: Final = 16  # each costs questions to the DNS
_MOST_ADDRESSES: Final = 1000
_LONGEST: Final = 5000  # characters read of a domain, which has 253 at most, and maybe blanks
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What most fields are, and no program reads in another way: words, and one address in brackets.
_PLAIN: Final = re.compile(
    r"[A-Za-z0-9 .-]*+<[A-Za-z0-9.+_-]++@([a-z][a-z0-9-]*+(?:\.[a-z0-9-]++)++)>"
)
# A closed quoted string; an open one is matched to the end, so the text is read once.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*+("?)', re.DOTALL)
_ANGLE: Final = re.compile(r"<([^<>]*+)>")
_ROUTE: Final = re.compile(r"[ \t]*+@[^:]*+:(?=[^@]*+@)")
_BETWEEN: Final = re.compile("[,;:]")
_PUNCTUATION: Final = str.maketrans('"()\\', "    ")
_BRACKETED: Final = "\1"  # stands for an address in brackets; control characters are gone by then
_NAME: Final = re.compile(r"[\w.-]*+")
_ASKABLE: Final = re.compile(r"[a-z0-9_.-]+")


class TooManyDomainsError(ValueError):
    """A From field has more domains, or addresses, than any honest sender's."""


def domains_of(fields: Iterable[str]) -> list[str]:
    """Return the domains in the values of From fields, with A-labels, each once and in order.

    The result is empty if no address has a domain. Raise TooManyDomainsError. Linear in the length.
    """
    found: dict[str, None] = {}
    for value in fields:
        if value.count("@") > _MOST_ADDRESSES:
            raise TooManyDomainsError(f"From has more than {_MOST_ADDRESSES} addresses")
        plain = _PLAIN.fullmatch(value)
        for domain in [plain[1]] if plain else _named(value):
            found[domain] = None
            if len(found) > MOST_DOMAINS:
                raise TooManyDomainsError(f"From has more than {MOST_DOMAINS} domains")
    return list(found)


def _named(value: str) -> Iterator[str]:
    """Yield the domains in a field. Some programs skip control characters, others stop there."""
    for text in dict.fromkeys((_CONTROL.sub("", value), _CONTROL.sub(",", value))):
        yield from _in_view(text)


def _in_view(value: str) -> Iterator[str]:
    bare = without_comments(value)
    plain = _QUOTED.sub(lambda each: '""' if each[1] else each[0], bare)
    is_sound = is_closed(value) and '"' not in plain.replace('""', "")
    found = [list(_domains(address)) for address in _addresses(plain)]
    for domains in found:
        yield from domains
    if not (is_sound and found and all(found)):
        # The ends of names and comments are unclear, or all text is inside them.
        text = Headers([f"F: {value.translate(_PUNCTUATION)}".encode()]).decoded("F")
        for address in _addresses(_CONTROL.sub(",", text)):
            yield from _domains(address)


def _addresses(text: str) -> Iterator[str]:
    """Yield each address: the text in brackets, else the text between separators."""
    for inside in _ANGLE.findall(text):
        if "@" in inside:
            route = _ROUTE.match(inside)
            yield inside[route.end() :] if route else inside
    outside = _ANGLE.sub(lambda each: _BRACKETED if "@" in each[1] else " ", text)
    for piece in _BETWEEN.split(outside):
        rest = piece.rpartition(_BRACKETED)[2]  # the text before it is a name
        before, bracket, inside = rest.partition("<")  # one that is never closed
        if "@" in inside or "@" in before:
            yield inside if bracket and "@" in inside else before


def _domains(address: str) -> Iterator[str]:
    """Yield the domain after each "@", which is one in a valid address."""
    texts = address.split("@")[1:]
    if "=?" in address:  # some programs decode first, and show the text hidden in the local part
        texts += Headers([f"F: {address}".encode()]).decoded("F").split("@")[1:]
    for text in texts:
        for domain in dict.fromkeys(map(_domain, _spellings(text))):
            if domain:
                yield domain


def _spellings(text: str) -> Iterator[str]:
    """Yield a domain up to a blank that is not beside a dot, or all of it without dots."""
    text = text[:_LONGEST].partition(">")[0]
    labels: list[str] = []
    for label in text.split("."):
        first, *others = label.split() or [""]
        labels.append(first)
        if others:
            break
    yield ".".join(labels)
    if len(labels) == 1:
        yield "".join(text.split())


def _domain(text: str) -> str:
    """Return a domain with A-labels, without other text after it."""
    name = Address("", text.strip(".")).ascii_domain
    if not _ASKABLE.fullmatch(name):
        match = _NAME.match(text.lstrip("."))
        name = Address("", match[0].strip(".") if match else "").ascii_domain
    name = ".".join(filter(None, name.split(".")))
    return name if _ASKABLE.fullmatch(name) else ""
