"""Links to web pages in text and HTML, read as browsers read them, in linear time."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from minismtp.values.address import to_ascii

# A link in text ends at a blank or a mark that mail programs do not take for a part of it.
_IN_TEXT: Final = re.compile(
    r"(?i)(?:https?:[/\\]{2}|(?<![\w.@/-])www\.)[^\s<>\"'|^`{}\x00-\x1f]++"
)
_TRAILING: Final = ".,;:!?)]*_~>"
_ATTRIBUTE: Final = re.compile(
    r"(?i)[\s/\"'](?:href|src|action|background|formaction)\s*+=\s*+"
    r"(?:\"([^\"]*+)|'([^']*+)|([^\s>\"']++))"
)
_TAG: Final = re.compile(r"<[a-zA-Z/!?][^>]*+>?")
_SILENT: Final = re.compile(r"(?i)<(script|style|title|template)(?![\w-])")
_ENDS: Final = {
    name: re.compile(f"(?i)</{name}") for name in ("script", "style", "title", "template")
}
_ZEROS: Final = re.compile(r"&#([xX]?)0++(?=[0-9a-fA-F])")
_LONG_NUMBER: Final = re.compile(r"&#(?:[0-9]{8,}+|[xX][0-9a-fA-F]{8,}+);?")
_BREAKS: Final = re.compile(r"(?i)</?(?:p|br|div|tr|li|h[1-6]|td|table|hr)(?![\w-])")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
# scheme ":" "//" [userinfo "@"] host [":" port], as browsers read it: with any number of slashes
_PLACE: Final = re.compile(r"(?i)(?:(https?):)?[/\\]*+([^/\\?#]*+)")
_PORT: Final = re.compile(r":[0-9]*+\Z")
_HOST: Final = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]")
_LONGEST: Final = 2048  # characters of a link


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a web page."""

    url: str
    """The link as it is written, 2048 characters at most."""
    host: str
    """The name or the address that a browser asks, in lower case, with A-labels."""


def links_in(markup: str, visible: str, most: int) -> tuple[Link, ...]:
    """Return the links in HTML and in visible text, each once, in their order."""
    found: dict[Link, None] = {}
    for url in _urls(markup, visible):
        link = _link(url)
        if link is not None:
            found[link] = None
            if len(found) >= most:
                break
    return tuple(found)


def visible_text(markup: str) -> str:
    """Return the text of HTML as it is shown, roughly: each element of a line is a line."""
    pieces = []
    for piece in _outside_scripts(markup):
        lines = _BREAKS.sub(lambda match: f"\n{match[0]}", piece)
        pieces.append(_TAG.sub("", lines))
    return _unescape("".join(pieces)).replace("\xa0", " ")


def _urls(markup: str, visible: str) -> Iterator[str]:
    for match in _ATTRIBUTE.finditer(markup):
        url = _unescaped((match[1] or match[2] or match[3] or "")[:_LONGEST])
        if url.lower().startswith(("http:", "https:", "//", "\\\\")):
            yield url
    for match in _IN_TEXT.finditer(visible):
        yield match[0].rstrip(_TRAILING)


def _unescaped(value: str) -> str:
    # Browsers remove line ends and tabs from a URL, and controls around it.
    return _CONTROLS.sub("", _unescape(value)).strip()


def _link(url: str) -> Link | None:
    """Return the link, None if it has no host."""
    place = _PLACE.match(url[:_LONGEST])
    if place is None:
        return None
    host = unquote(_PORT.sub("", place[2].rpartition("@")[2])).lower().rstrip(".")
    if not _HOST.fullmatch(host):
        return None
    return Link(url[:_LONGEST], host if host[0] == "[" else to_ascii(host))


def _unescape(text: str) -> str:
    """Return text without character references; `html.unescape` raises for very long numbers."""
    return html.unescape(_LONG_NUMBER.sub("\ufffd", _ZEROS.sub(r"&#\1", text)))


def _outside_scripts(markup: str) -> Iterator[str]:
    """Yield HTML without the elements whose text is not shown; each part is looked at once."""
    place = 0
    while match := _SILENT.search(markup, place):
        yield markup[place : match.start()]
        end = _ENDS[match[1].lower()].search(markup, match.end())
        if end is None:
            return  # a browser shows nothing after it
        place = end.start()
    yield markup[place:]
