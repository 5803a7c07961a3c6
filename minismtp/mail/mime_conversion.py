"""Convert a message to one that a host can take, with short lines, and 7-bit if it must be.

This does what Postfix does for a host without 8BITMIME, part by part and also for nested messages.
Text becomes quoted-printable, other content base64 if that is shorter, and a part that needs no
conversion keeps its octets. Lines of more than 998 octets (RFC 5322 section 2.1.1) are broken where
that changes nothing: within quoted-printable and base64, and at blanks in fields. Any other part
with long lines is encoded. Only in text without MIME fields long lines are broken as Postfix does,
by CRLF and a blank.

The result is spooled, so memory is bounded; time is linear. Fields with 8-bit octets are kept, as
in Postfix. In a notification `ascii_fields` turns them into encoded words.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minismtp.mail.content import Content, ContentWriter
from minismtp.mail.headers import READ_LIMIT
from minismtp.mail.message import Message
from minismtp.mail.mime_source import Declared, Source, with_encoding, with_end
from minismtp.mail.transfer_encoding import (
    Base64Encoder,
    LineBreaker,
    QuotedEncoder,
    QuotedRewrap,
    Write,
    at_any_place,
    at_white_space,
    has_long_line,
    in_base64,
    with_encoded_words,
    with_short_words,
    without_wide,
)
from minismtp.smtp.dot_stuffing import has_bare_newline

_DEEPEST: Final = 50  # levels of parts; deeper ones are copied
_MOST: Final = 10_000  # parts; further ones are copied, because each takes more time than its size
_RFC822: Final = b"message/rfc822"
_NESTED: Final = (_RFC822, b"message/global")
_CODED: Final = (b"base64", b"quoted-printable")
# Old encodings in which lines have a meaning, and are never long.
_UUENCODED: Final = (b"x-uuencode", b"uuencode", b"x-uue", b"uue", b"x-binhex40", b"x-yencode")
_SEALS: Final = ("DKIM-Signature", "ARC-Message-Signature")
_ENCODED_LINE: Final = 76


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a message: `wide` if it has 8-bit octets, `long` if a line has more than 998."""

    wide: bool
    long: bool

    @classmethod
    def of(cls, message: Message) -> Form:
        """Return the form of a message, which is read once and in pieces if it is not known."""
        if message.is_7bit:
            return _USUAL
        wide = long = False
        with message.open() as reader:
            for piece in iter(Source(reader).piece, b""):
                wide = wide or not piece.isascii()
                long = long or has_long_line(piece)
        return cls(wide, long)


_USUAL: Final = Form(wide=False, long=False)


def is_clean(message: Message) -> bool:
    """Return whether each CR and LF of a message is part of a line end."""
    with message.open() as reader:
        return not any(map(has_bare_newline, iter(Source(reader).piece, b"")))


def is_sealed(message: Message) -> bool:
    """Return whether a message has a signature that a conversion would break (RFC 6376, 1847)."""
    headers = message.headers
    if any(name in headers for name in _SEALS):
        return True
    return headers.get("Content-Type").lower().startswith("multipart/signed")


def converted(
    message: Message,
    *,
    eight_bit: bool,
    binary: bool = False,
    ascii_fields: bool = False,
    directory: Path | None = None,
) -> Message:
    """Return a message with short lines that is 7-bit, or may be `eight_bit`.

    `binary` says that its parts may have CR, LF and NUL anywhere (RFC 3030 section 3); such parts
    are encoded. `directory` is for the unnamed file of a large result. Raise OSError.
    """
    writer = ContentWriter(directory)
    with message.open() as reader:
        source = Source(reader)
        _Converter(source, writer.write, eight_bit, binary, ascii_fields, directory).run()
    made = Message(message.id, writer.finish())
    made.quarantined, made.discarded = message.quarantined, message.discarded
    return made


@dataclass(slots=True)
class _Place:
    """The place of a part: how `deep`, whether inside a `signed` one, or a whole `message`."""

    deep: int = 0
    signed: bool = False
    message: bool = False
    default: bytes = b"text/plain"


@dataclass(slots=True)
class _Facts:
    """Facts about a body: its octets, how many of them are wide (8-bit), and its lines."""

    size: int = 0
    wide: int = 0
    long: bool = False
    junk: bool = False  # a NUL, or a CR or LF by itself
    utf_8: bool = True
    end: bytes = b""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=codecs.getincrementaldecoder("utf-8")
    )

    def take(self, piece: bytes) -> None:
        self.size += len(piece)
        self.end = (self.end + piece[-2:])[-2:]
        self.long = self.long or has_long_line(piece)
        self.junk = self.junk or b"\0" in piece or has_bare_newline(piece)
        if not piece.isascii():
            self.wide += len(piece) - len(without_wide(piece))
            if self.utf_8:
                try:
                    self._decoder.decode(piece)
                except UnicodeDecodeError:
                    self.utf_8 = False

    @property
    def line_end(self) -> int:
        """The octets of the line end behind the last line."""
        return 2 if self.end == b"\r\n" else self.end.endswith(b"\n")


@dataclass(slots=True)
class _Converter:
    """One conversion with the options of `converted`; `_boundaries` are those of open parts."""

    _source: Source
    _write: Write
    _eight_bit: bool
    _binary: bool
    _ascii_fields: bool
    _directory: Path | None
    _boundaries: dict[bytes, bytes] = field(default_factory=dict)
    _parts: int = 0

    def run(self) -> None:
        self._part(_Place(message=True))

    def _part(self, place: _Place) -> None:
        self._parts += 1
        if self._parts > _MOST:
            self._boundaries.clear()
            self._opaque()
            return
        fields, separator = self._source.header(self._boundaries)
        if len(fields) > READ_LIMIT:  # so the type of the body is unknown
            self._opaque(fields)
            return
        said = Declared.of(fields, place.default)
        kind, plain = said.kind, said.encoding not in _CODED
        fits = place.deep < _DEEPEST
        if kind.startswith(b"multipart/"):
            self._fields(self._relabelled(fields, said, place), separator)
            begin = b"--" + said.boundary
            known = begin in self._boundaries or begin + b"--" in self._boundaries
            if said.boundary and fits and not known:
                self._multipart(said, place)
            else:
                self._opaque()
        elif kind in _NESTED and plain and fits:
            self._fields(self._relabelled(fields, said, place), separator)
            self._part(_Place(place.deep + 1, place.signed, message=True))
        elif not plain:
            self._fields(fields, separator)
            self._coded(said.encoding)
        elif kind.startswith(b"message/") or said.encoding in _UUENCODED:
            self._fields(self._relabelled(fields, said, place), separator)
            self._opaque()
        else:
            self._leaf(fields, separator, said, place)

    def _multipart(self, said: Declared, place: _Place) -> None:
        begin = b"--" + said.boundary
        end = begin + b"--"
        self._boundaries[begin] = self._boundaries[end] = begin
        below = _Place(
            place.deep + 1,
            place.signed or said.kind == b"multipart/signed",
            default=_RFC822 if said.kind == b"multipart/digest" else b"text/plain",
        )
        self._opaque()
        while True:
            found, line = self._source.boundary(self._boundaries)
            if self._boundaries.get(found) != begin:
                break
            self._source.skip(line)
            self._write(line)
            if found == end:
                break
            self._part(below)
        for line in (begin, end):
            self._boundaries.pop(line, None)
        self._opaque()  # the text after the last part

    def _relabelled(self, fields: bytes, said: Declared, place: _Place) -> bytes:
        """Return fields whose transfer encoding is true for the converted content."""
        if place.signed or said.encoding not in (b"8bit", b"binary"):
            return fields
        if not self._eight_bit:
            return with_encoding(fields, b"7bit")
        return with_encoding(fields, b"8bit") if self._binary else fields

    def _fields(self, fields: bytes, separator: bytes) -> None:
        if self._ascii_fields and not fields.isascii():
            fields = with_encoded_words(fields)
        LineBreaker(self._write, at_white_space).take(with_short_words(fields))
        self._write(separator)

    def _opaque(self, piece: bytes = b"") -> None:
        """Copy text between parts, or a part that must not be encoded, after a `piece` of it."""
        breaker = LineBreaker(self._write, at_white_space)
        while piece := piece or self._source.piece(self._boundaries):
            breaker.take(with_encoded_words(piece) if self._ascii_fields else piece)
            piece = b""

    def _coded(self, encoding: bytes) -> None:
        """Copy a part that is already encoded, with short lines."""
        ascii_only = not self._eight_bit
        if encoding == b"base64":
            breaker = LineBreaker(self._write, in_base64, _ENCODED_LINE)
            while piece := self._source.piece(self._boundaries):
                breaker.take(without_wide(piece) if ascii_only else piece)
        else:
            rewrap = QuotedRewrap(self._write, ascii_only=ascii_only)
            while piece := self._source.piece(self._boundaries):
                rewrap.take(piece)
            rewrap.finish()

    def _leaf(self, fields: bytes, separator: bytes, said: Declared, place: _Place) -> None:
        """Copy a part as it is, or encode it if necessary."""
        facts, writer = _Facts(), ContentWriter(self._directory)
        while piece := self._source.piece(self._boundaries):
            facts.take(piece)
            writer.write(piece)
        content = writer.finish()
        silent = place.message and not said.any  # it has no MIME field
        junk = self._binary and facts.junk
        wide = bool(facts.wide) and not self._eight_bit
        if not (junk or wide or (facts.long and not silent)):
            self._fields(self._relabelled(fields, said, place), separator)
            breaker = LineBreaker(self._write, at_any_place)
            for piece in _pieces(content, content.size):
                breaker.take(piece)
            return
        text = silent or said.kind.startswith(b"text/")
        most = 3 * facts.size // 4 if text else facts.size // 6  # text should stay readable
        readable = facts.wide <= most and not junk
        encoding = b"quoted-printable" if readable else b"base64"
        fields = with_end(fields)
        if place.message and not said.version:
            fields += b"MIME-Version: 1.0\r\n"
        if silent and facts.wide:
            charset = b"utf-8" if facts.utf_8 else b"unknown-8bit"  # RFC 1428 section 3
            fields += b"Content-Type: text/plain; charset=" + charset + b"\r\n"
        self._fields(with_encoding(fields, encoding), separator or b"\r\n")
        self._encode(content, facts, encoding)

    def _encode(self, content: Content, facts: _Facts, encoding: bytes) -> None:
        ends = facts.line_end
        inside = bool(ends) and self._source.boundary(self._boundaries)[0] != b""
        size = content.size - (ends if inside else 0)  # the line end belongs to the boundary
        quoted = encoding == b"quoted-printable"
        encoder = (QuotedEncoder if quoted else Base64Encoder)(self._write)
        for piece in _pieces(content, size):
            encoder.take(piece)
        encoder.finish()
        if inside or not quoted:
            self._write(b"\r\n")


def _pieces(content: Content, size: int) -> Iterator[bytes]:
    """Yield the first `size` octets of a content, in whole lines if they fit."""
    with content.open() as reader:
        source = Source(reader)
        while size > 0 and (piece := source.piece()):
            yield piece[:size]
            size -= len(piece)
