"""The text of a message for filters: its text parts decoded, and the links in them.

    texts = texts_of(message)
    words = texts.visible.casefold().split()
    domains = {registrable_domain(link.host) for link in texts.links}

A message is read forward once, in pieces, and only up to a budget, so an attacker's message costs
no more than a large one. Where mail programs differ, this reads as most of them do; a check that
must see what any program shows needs more (see the plugin `attachments`).
"""

from __future__ import annotations

import binascii
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from minismtp.mail.encoded_words import decoded_text
from minismtp.mail.links import Link, links_in, visible_text
from minismtp.mail.mime_source import Declared, Source

if TYPE_CHECKING:
    from minismtp.mail.message import Message

#: Octets of decoded text that `texts_of` returns by default, and how many it reads for that.
TEXT_LIMIT: Final = 256 * 1024
READ_FACTOR: Final = 16
_MOST_PARTS: Final = 200
_DEEPEST: Final = 30
_MOST_LINKS: Final = 1000
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NO_BASE64: Final = bytes(set(range(256)) - set(_BASE64))
_NESTED: Final = (b"message/rfc822", b"message/global")


@dataclass(frozen=True)
class TextPart:
    """A text part of a message, decoded."""

    kind: str
    """Its type in lower case, such as `text/html`."""
    text: str
    """Its characters; in HTML with the tags."""

    @cached_property
    def visible(self) -> str:
        """The text without the tags, scripts and styles of HTML, and with its characters."""
        return visible_text(self.text) if self.kind == "text/html" else self.text

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The links to web pages, each once, 1000 at most."""
        markup = self.text if self.kind == "text/html" else ""
        return links_in(markup, self.visible, _MOST_LINKS)


@dataclass(frozen=True)
class Texts:
    """The text parts of a message."""

    parts: tuple[TextPart, ...]
    """The parts in the order of the message, also those of attached messages."""
    complete: bool
    """Whether the budget sufficed, so nothing was left out."""

    @property
    def visible(self) -> str:
        """The visible text of all parts, with an empty line between two."""
        return "\n\n".join(part.visible for part in self.parts)

    @property
    def links(self) -> tuple[Link, ...]:
        """The links of all parts, each once."""
        return tuple(dict.fromkeys(link for part in self.parts for link in part.links))


def texts_of(message: Message, *, limit: int = TEXT_LIMIT) -> Texts:
    """Return the text parts with `limit` octets in all, also those of attached messages.

    No more than 16 times the limit is read of the message, and no more than 200 parts. This never
    raises because of a message. 256 KiB of HTML take 1 ms of CPU time, their visible text 7 ms, and
    3,400 links 25 ms.
    """
    with message.open() as reader:
        parser = _Parser(Source(reader), limit, limit * READ_FACTOR)
        parts = tuple(parser.parts())
    return Texts(parts, parser.complete)


class _Parser:
    """Reads the parts of one message within the budget."""

    def __init__(self, source: Source, text: int, octets: int) -> None:
        self.complete = True
        self._source = source
        self._text = text
        self._octets = octets
        self._levels: list[bytes] = []  # the delimiters of open multiparts, the outermost first
        self._nested = 0

    def parts(self) -> Iterator[TextPart]:
        """Yield the text parts."""
        for _ in range(_MOST_PARTS):
            fields, _ = self._source.header(self._ends())
            self._octets -= len(fields)
            said = Declared.of(fields, b"text/plain")
            delimiter = b"--" + said.boundary
            if said.kind in _NESTED and not _is_encoded(said) and self._nested < _DEEPEST:
                self._nested += 1
                continue  # the header of the message follows
            if said.boundary and len(self._levels) < _DEEPEST and delimiter not in self._ends():
                self._levels.append(delimiter)
            elif said.kind.startswith(b"text/"):
                yield TextPart(said.kind.decode("ascii", "replace"), self._body(said))
            if not self._next():
                return
        self.complete = False

    def _body(self, said: Declared) -> str:
        """Return the text of the part, and leave its rest unread."""
        encoded = bytearray()
        most = self._text * (2 if said.encoding == b"base64" else 3 if _is_encoded(said) else 1)
        while len(encoded) <= most and self._octets > 0:
            piece = self._source.piece(self._ends())
            if not piece:
                if self._levels and encoded.endswith(b"\n"):  # which belongs to the delimiter
                    del encoded[-2 if encoded.endswith(b"\r\n") else -1 :]
                break
            encoded += piece
            self._octets -= len(piece)
        octets = _decoded(said, bytes(encoded))
        self.complete = self.complete and len(octets) <= self._text and len(encoded) <= most
        octets = octets[: self._text]
        self._text -= len(octets)
        return decoded_text(octets, said.charset)

    def _next(self) -> bool:
        """Go to the header of the next part. Return whether there is one within the budget."""
        while self._octets > 0:
            while self._octets > 0 and (piece := self._source.piece(self._ends())):
                self._octets -= len(piece)
            found, line = self._source.boundary(self._ends())
            if not found:
                break
            self._source.skip(line)
            self._octets -= len(line)
            ends = found not in self._levels
            level = self._levels.index(found.removesuffix(b"--") if ends else found)
            del self._levels[level + (not ends) :]
            if not ends:
                return True
        self.complete = self.complete and self._octets > 0
        return False

    def _ends(self) -> Collection[bytes]:
        return [*self._levels, *(each + b"--" for each in self._levels)]


def _is_encoded(said: Declared) -> bool:
    return said.encoding in (b"base64", b"quoted-printable")


def _decoded(said: Declared, octets: bytes) -> bytes:
    if said.encoding == b"quoted-printable":
        return binascii.a2b_qp(octets)
    if said.encoding != b"base64":
        return octets
    # Some senders encode piece by piece, with padding in the middle; others omit padding.
    pieces = octets.translate(None, _NO_BASE64).split(b"=")
    whole = (piece[: len(piece) - (len(piece) % 4 == 1)] for piece in pieces)
    return b"".join(binascii.a2b_base64(piece + b"==") for piece in whole if piece)
