"""Which domains a From field names: one reading for what is signed and for what is judged.

RFC 5322 section 3.4, with what section 4.4 has of old, and with what real senders get wrong. Where
mail programs may read a field in more than one way, all domains that one of them may show are
named, so none of these escapes; where they agree there is one for each address. Text that is only
the name of somebody, quoted or before an address in brackets, and comments name nobody.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from minismtp import Address, Headers

from ._authres import without_comments

MOST_DOMAINS: Final = 16  # each costs questions to the DNS
_MOST_ADDRESSES: Final = 1000
_LONGEST: Final = 5000  # characters of a domain that are read; it has 253 and may have blanks
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# A closed quoted string; one that is not closed is matched to the end, so that all is read once.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*+("?)', re.DOTALL)
_ANGLE: Final = re.compile(r"<([^<>]*+)>")
_ROUTE: Final = re.compile(r"[ \t]*+@[^:]*+:(?=[^@]*+@)")
_BETWEEN: Final = re.compile("[,;:]")
_PUNCTUATION: Final = str.maketrans('"()\\', "    ")
_BRACKETED: Final = "\1"  # stands for an address in brackets; control characters are gone by then
_NAME: Final = re.compile(r"[\w.-]*+")
_ASKABLE: Final = re.compile(r"[a-z0-9_.-]+")


class TooManyDomainsError(ValueError):
    """A From field names more domains, or addresses, than anybody sends for."""


def domains_of(fields: Iterable[str]) -> list[str]:
    """Return the domains in the values of From fields, with A-labels, each once and in order.

    There are none where no address has a domain. Raise TooManyDomainsError. Linear in the length.
    """
    found: dict[str, None] = {}
    for value in fields:
        if value.count("@") > _MOST_ADDRESSES:
            raise TooManyDomainsError(f"From has more than {_MOST_ADDRESSES} addresses")
        for domain in _named(value):
            found[domain] = None
            if len(found) > MOST_DOMAINS:
                raise TooManyDomainsError(f"From has more than {MOST_DOMAINS} domains")
    return list(found)


def _named(value: str) -> Iterator[str]:
    """Yield the domains in a field. Some programs skip control characters, others stop there."""
    if not _CONTROL.search(value):
        yield from _in_view(value)
        return
    yield from _in_view(_CONTROL.sub("", value))
    yield from _in_view(_CONTROL.sub(",", value))


def _in_view(value: str) -> Iterator[str]:
    bare = without_comments(value)
    plain = _QUOTED.sub(lambda each: '""' if each[1] else each[0], bare)
    is_sound = _is_closed(value) and '"' not in plain.replace('""', "")
    found = [list(_domains(address)) for address in _addresses(plain)]
    for domains in found:
        yield from domains
    if not (is_sound and found and all(found)):
        # Nobody can say where names and comments end, or all is said in them.
        text = Headers([f"F: {value.translate(_PUNCTUATION)}".encode()]).decoded("F")
        for address in _addresses(_CONTROL.sub(",", text)):
            yield from _domains(address)


def _is_closed(value: str) -> bool:
    """Tell whether all comments end: what follows the value is kept then."""
    return without_comments(f"{value},").endswith(",")


def _addresses(text: str) -> Iterator[str]:
    """Yield each address: what stands in brackets, else what stands between separators."""
    for inside in _ANGLE.findall(text):
        if "@" in inside:
            route = _ROUTE.match(inside)
            yield inside[route.end() :] if route else inside
    outside = _ANGLE.sub(lambda each: _BRACKETED if "@" in each[1] else " ", text)
    for piece in _BETWEEN.split(outside):
        rest = piece.rpartition(_BRACKETED)[2]  # what precedes is a name
        before, bracket, inside = rest.partition("<")  # one that is never closed
        if "@" in inside or "@" in before:
            yield inside if bracket and "@" in inside else before


def _domains(address: str) -> Iterator[str]:
    """Yield what follows each "@": one, where the address is sound."""
    texts = address.split("@")[1:]
    if "=?" in address:  # some decode first, and show what was hidden in the local part
        texts += Headers([f"F: {address}".encode()]).decoded("F").split("@")[1:]
    for text in texts:
        for domain in dict.fromkeys(map(_domain, _spellings(text))):
            if domain:
                yield domain


def _spellings(text: str) -> Iterator[str]:
    """Yield a domain up to a blank that is not beside a dot, and all of it if that is no name."""
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
    """Return a domain with A-labels, of one with something behind it the beginning."""
    name = Address("", text.strip(".")).ascii_domain
    if not _ASKABLE.fullmatch(name):
        match = _NAME.match(text.lstrip("."))
        name = Address("", match[0].strip(".") if match else "").ascii_domain
    name = ".".join(filter(None, name.split(".")))
    return name if _ASKABLE.fullmatch(name) else ""
