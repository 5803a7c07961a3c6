"""The fields of a part, read in every way that some mail program reads them.

Mail programs differ in the choice among several fields or parameters, and in reading malformed
ones. Here all readings count, so a check sees what any mail program could show.
"""

import binascii
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from minismtp import Headers

from ._authres import without_comments
from ._budget import TooMuchError

_LONGEST_BOUNDARY = 250  # RFC 2046 section 5.1.1 allows 70
_LONGEST_FIELD = 4096  # characters; a longer field raises TooMuchError
_MOST_FIELDS = 4  # of one name: mail programs differ in which of them they take
_KIND = re.compile(r'(?<![^\s/;()"])([^\s/;()"]++)\s*+/\s*+([^\s;()",]++)')
_ENCODING = re.compile(r"[\w-]+")
# parameter := attribute "=" value, with the sections and charsets of RFC 2231; some leave out the
# semicolon, some the quotation mark at the end.
_PARAMETER = re.compile(
    r"(?<![^\s;,\"'])([\w-]++)\s*+(?:\*\s*+([0-9]{1,3}))?\s*+(\*)?\s*+=\s*+"
    r'("(?:[^"\\]|\\.)*+"?|[^;"]*+)',
    re.DOTALL,
)
_QUOTED = re.compile(r"\\(.)", re.DOTALL)
_MISPLACED = re.compile(r'[^\s=;,"]"[^\s;,"]')  # a quotation mark within a value
_CHARSET = re.compile(r"([^']{0,60}+)'[^']{0,60}+'")
_CODED = re.compile(r"=\?[^?]{0,80}+\?([BbQq])\?")


def kinds_of(types: Iterable[str], *, digest: bool) -> list[str]:
    """Return the types in values of Content-Type, in lower case.

    `digest` says that the part is one of a digest.
    """
    matches = filter(None, (_KIND.search(_bare(value)) for value in types))
    found = dict.fromkeys(f"{match[1]}/{match[2]}".lower() for match in matches)
    # RFC 2046 section 5.1.5
    return list(found) or ["message/rfc822" if digest else "text/plain"]


def encodings_of(values: Iterable[str]) -> list[str]:
    """Return the transfer encodings in lower case, "" for none."""
    matches = (_ENCODING.search(_bare(value)) for value in values)
    return list(dict.fromkeys(match[0].lower() if match else "" for match in matches)) or [""]


def boundaries_of(types: Iterable[str]) -> list[bytes]:
    """Return the boundaries in values of Content-Type. Raise TooMuchError."""
    found: dict[bytes, None] = {}
    for value in types:
        for text in _readings(value, "boundary"):
            boundary = text.rstrip().encode("utf-8", "surrogateescape")
            if len(boundary) > _LONGEST_BOUNDARY:
                raise TooMuchError(f"a boundary of more than {_LONGEST_BOUNDARY} octets")
            if boundary:
                found[boundary] = None
    return list(found)


def names_of(values: Iterable[str]) -> list[str]:
    """Return all names that some mail program shows for the file (RFC 2231, RFC 2047).

    The values are those of Content-Disposition and Content-Type.
    """
    read = (_readings(value, name) for value in values for name in ("filename", "name"))
    decoded = chain.from_iterable(map(_decoded_names, chain.from_iterable(read)))
    return list(dict.fromkeys(filter(None, decoded)))


def values_of(fields: Mapping[bytes, list[bytes]], name: bytes) -> list[str]:
    """Return the values of a name, with octets that are not UTF-8 as surrogates.

    Raise TooMuchError if there are more than any mail program writes.
    """
    raw = fields.get(name, ())
    if len(raw) > _MOST_FIELDS:
        raise TooMuchError(f"more than {_MOST_FIELDS} fields {name.decode()} in a part")
    texts = [each.translate(None, b"\r\n").decode("utf-8", "surrogateescape") for each in raw]
    for text in texts:
        if len(text) > _LONGEST_FIELD:
            raise TooMuchError(f"a field of a part of more than {_LONGEST_FIELD} characters")
    return texts


def _bare(value: str) -> str:
    return without_comments(value) if "(" in value else value


def _readings(value: str, parameter: str) -> Iterator[str]:
    """Yield all readings of a parameter: with and without comments, each one, and joined."""
    if "=?" in value and (whole := _decoded_names(value)[0]) != value and "=?" not in whole:
        yield from _readings(whole, parameter)  # some programs encode the field instead of the name
    if parameter not in value.lower():
        return
    bare = _bare(value)
    odd = value.count('"') % 2 or "\\" in value or '""' in value or _MISPLACED.search(value)
    unquoted = value.replace('"', "") if odd else value
    for text in dict.fromkeys((bare, value, unquoted)):
        sections: dict[int, list[str]] = {}
        for name, section, extended, found in _PARAMETER.findall(text):
            if name.lower() == parameter:
                number = int(section) if section else -1
                texts = list(_unquoted(found))
                if extended:
                    texts = [each for raw in texts for each in _percent_decoded(raw)] + texts
                sections.setdefault(number, []).extend(texts)
        yield from sections.pop(-1, [])
        if sections:
            yield from _joined(sections)


def _joined(sections: dict[int, list[str]]) -> Iterator[str]:
    """Yield the joined sections of a parameter: up to the first gap, and all of them."""
    ordered = sorted(sections)
    unbroken = [number for place, number in enumerate(ordered) if number == place]
    for numbers in (unbroken, ordered, list(sections)):
        for choice in (0, -1):
            yield "".join(sections[number][choice] for number in numbers)


def _unquoted(text: str) -> Iterator[str]:
    """Yield a value without its quotes, also with backslashes as they are."""
    text = text.strip()
    if text[:1] != '"':
        yield text
        first = text.split(maxsplit=1)[:1]
        yield from {*first, text.strip("'")} - {text}
        return
    inside = text[1:].removesuffix('"')
    yield _QUOTED.sub(r"\1", inside)
    if "\\" in inside:
        yield inside
    if len(text) == 1 or not text.endswith('"'):
        yield text  # a quotation mark that is never closed may be part of it


def _percent_decoded(text: str) -> Iterator[str]:
    """Yield a section of RFC 2231: in its charset as an encoded word, and as UTF-8."""
    match = _CHARSET.match(text)
    octets = urllib.parse.unquote_to_bytes(
        text[match.end() if match else 0 :].encode("utf-8", "surrogateescape")
    )
    if match and (b"\0" in octets or not octets.isascii()):
        yield f"=?{match[1]}?B?{binascii.b2a_base64(octets, newline=False).decode()}?="
    yield octets.decode("utf-8", "surrogateescape")


def _decoded_names(name: str) -> list[str]:
    """Return a name with its encoded words decoded, in their charset and in UTF-8."""
    texts = [
        Headers([b"N: " + text.encode("utf-8", "surrogateescape")]).decoded("N")
        for text in (name, _CODED.sub(r"=?utf-8?\1?", name))
    ]
    if "=?utf-7" in name.lower():  # most programs show it as it is, but not all
        texts.append(texts[-1].encode("ascii", "ignore").decode("utf-7", "replace"))
    # Some programs stop reading at a NUL.
    return texts + [text.partition("\0")[0] for text in texts if "\0" in text]
