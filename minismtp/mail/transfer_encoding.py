"""Write octets in lines that every host takes, by an encoding or by breaking lines.

Each class takes octets in pieces as `mime_source` returns them: whole lines, or a part of a line
that is longer than a piece. Memory is bounded by the piece, and time is linear. RFC 2045 sections
6.7 and 6.8 define quoted-printable and base64. `LineBreaker` does what Postfix does
(smtp_line_length_limit).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from minismtp.mail.encoded_words import octets_as_text
from minismtp.mail.headers import LINE_LIMIT

_ENCODED_LINE: Final = 76  # characters, RFC 2045 section 6.8
_GROUP: Final = 57  # octets that make a line of base64
_BLANKS: Final = b" \t"
_CUT_CODE: Final = re.compile(rb"=[0-9A-Fa-f]?\Z")
_WIDE: Final = bytes(range(128, 256))
_WIDE_WORD: Final = re.compile(rb"(?<![^ \t\r\n])[^ \t\r\n\x80-\xff]*+[\x80-\xff][^ \t\r\n]*+")
# An encoded word of many characters, in a charset whose octets can be split between characters.
_LONG_WORD: Final = re.compile(
    rb"=\?(utf-8|us-ascii|iso-8859-[0-9]{1,2}|windows-125[0-9]|koi8-[ru])(?:\*[!->@-~]{0,20})?"
    rb"\?(?:b\?([^? \t\r\n]{100,})|q\?([^? \t\r\n]{100,}))\?=",
    re.IGNORECASE,
)
_WORD: Final = 42  # octets in one encoded word of 75 characters

Write: TypeAlias = Callable[[bytes], object]
#: Return where to cut a line with room until `start + room`, and the begin of the next line.
Cut: TypeAlias = Callable[[bytes, int, int], tuple[int, bytes]]


def character_end(text: bytes, start: int, end: int) -> int:
    """Return the last place up to `end` that is not inside a UTF-8 character, else `end`."""
    place = end
    while place > max(start, end - 3) and place < len(text) and text[place] & 0xC0 == 0x80:  # noqa: PLR2004 - 10xxxxxx
        place -= 1
    return place if place > start else end


def at_any_place(text: bytes, start: int, room: int) -> tuple[int, bytes]:
    """Cut a line as Postfix does; the next one begins with a blank, so a header goes on."""
    return character_end(text, start, start + room), b" "


def at_white_space(text: bytes, start: int, room: int) -> tuple[int, bytes]:
    """Cut a field before a blank, so that unfolding restores it, else after a mark or anywhere."""
    window = text[start : start + room]
    blank = max(window.rfind(b" "), window.rfind(b"\t"))
    before = window[: max(blank, 0)].strip(_BLANKS)
    if before and not before.endswith(b":"):
        return start + blank, b""
    mark = max(window.rfind(each) for each in (b",", b";", b">"))
    return (start + mark + 1, b" ") if mark >= 0 else at_any_place(text, start, room)


def in_base64(_: bytes, start: int, room: int) -> tuple[int, bytes]:
    """Cut a line of base64, in which line ends have no meaning."""
    return start + room, b""


class LineBreaker:
    """Breaks lines of more than 998 octets into lines of `width` octets."""

    def __init__(self, write: Write, cut: Cut, width: int = LINE_LIMIT) -> None:
        self._write = write
        self._cut = cut
        self._width = width
        self._column = 0  # of a long line that continues in the next piece

    def take(self, piece: bytes) -> None:
        """Write the next piece."""
        if not self._column and not has_long_line(piece):
            self._write(piece)
            return
        for text, end in _lines(piece):
            self._line(text)
            if end:
                self._write(end)
                self._column = 0

    def _line(self, text: bytes) -> None:
        start, end = 0, len(text)
        long = self._column or end > LINE_LIMIT
        while long and end - start > self._width - self._column:
            place, indent = self._cut(text, start, self._width - self._column)
            self._write(text[start:place] + b"\r\n" + indent)
            start, self._column = place, len(indent)
        self._write(text[start:])
        self._column += end - start


class Base64Encoder:
    """Encodes octets in base64, without a line end after the last line."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._held = b""
        self._between = b""

    def take(self, piece: bytes) -> None:
        """Write the lines that are full."""
        piece = self._held + piece
        whole = len(piece) // _GROUP * _GROUP
        self._held = piece[whole:]
        self._encode(piece[:whole])

    def finish(self) -> None:
        """Write the last line."""
        self._encode(self._held)

    def _encode(self, octets: bytes) -> None:
        if octets:
            text = binascii.b2a_base64(octets, newline=False)
            places = range(0, len(text), _ENCODED_LINE)
            lines = b"\r\n".join(text[place : place + _ENCODED_LINE] for place in places)
            self._write(self._between + lines)
            self._between = b"\r\n"


class QuotedEncoder:
    """Encodes lines of text in quoted-printable."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._inside = False  # a line that continues in the next piece

    def take(self, piece: bytes) -> None:
        """Write the next piece; a bare LF ends a line, as in `dotted`."""
        lines = piece.replace(b"\r\n", b"\n").split(b"\n")
        if self._inside:
            self._write(b"=\r\n")
        self._write(b"\r\n".join(map(quoted_printable, lines)))
        self._inside = lines[-1] != b""

    def finish(self) -> None:
        """Do nothing, because everything is already written."""


class QuotedRewrap:
    """Breaks the long lines of quoted-printable; `ascii_only` encodes 8-bit octets too."""

    def __init__(self, write: Write, *, ascii_only: bool) -> None:
        self._write = write
        self._ascii_only = ascii_only
        self._held = b""
        self._inside = False

    def take(self, piece: bytes) -> None:
        """Write the next piece."""
        fits = piece.isascii() or not self._ascii_only
        if fits and not self._inside and not has_long_line(piece):
            self._write(piece)
            return
        for text, end in _lines(piece):
            self._line(text, ends=bool(end))
            if end:
                self._write(end)
                self._inside = False

    def finish(self) -> None:
        """Write the octets that were held back."""
        self._write(self._held)
        self._held = b""

    def _line(self, text: bytes, *, ends: bool) -> None:
        begins, self._held, text = not self._inside, b"", self._held + text
        fits = text.isascii() or not self._ascii_only
        if begins and ends and fits and len(text) <= LINE_LIMIT:
            self._write(text)
            return
        if ends:
            text = text.rstrip(_BLANKS)  # they have no meaning there, RFC 2045 section 6.7
        cut = _CUT_CODE.search(text)
        if cut:
            text = text[: cut.start()]
        if not begins:
            self._write(b"=\r\n")
        self._write(quoted_printable(binascii.a2b_qp(text)))
        self._inside = True
        if cut and ends:
            self._write(cut[0])
        elif cut:
            self._held = cut[0]


def _lines(piece: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each line and its end, which is empty for a line that may go on."""
    *lines, last = piece.split(b"\n")
    for line in lines:
        text = line.removesuffix(b"\r")
        yield text, line[len(text) :] + b"\n"
    if last:
        yield last, b""


def quoted_printable(line: bytes) -> bytes:
    """Return a line, without its end, in quoted-printable (RFC 2045 section 6.7)."""
    return binascii.b2a_qp(line, istext=False).replace(b"\n", b"\r\n")


def is_7bit(piece: bytes) -> bool:
    """Return whether whole lines are 7bit data (RFC 2045 section 2.7); a bare CR is not sought."""
    return piece.isascii() and b"\0" not in piece and not has_long_line(piece)


def has_long_line(piece: bytes) -> bool:
    """Return whether a line, or a part of one, has more than 998 octets; jump by the limit."""
    start, end = 0, len(piece)
    while end - start > LINE_LIMIT:
        newline = piece.rfind(b"\n", start, start + LINE_LIMIT + 1)
        if newline < 0 and piece.startswith(b"\r\n", start + LINE_LIMIT):
            newline = start + LINE_LIMIT + 1
        if newline < 0:
            return True
        start = newline + 1
    return False


def without_wide(piece: bytes) -> bytes:
    """Return octets without 8-bit ones."""
    return piece.translate(None, _WIDE)


def with_encoded_words(text: bytes) -> bytes:
    """Return fields in ASCII, with each word that is not ASCII as encoded words (RFC 2047)."""
    return _WIDE_WORD.sub(_encoded_word, text)


def _encoded_word(match: re.Match[bytes]) -> bytes:
    is_utf_8 = octets_as_text(match[0])[1] == "utf-8"
    return _words(match[0], b"utf-8" if is_utf_8 else b"unknown-8bit")


def with_short_words(text: bytes) -> bytes:
    """Return fields whose encoded words are short enough for folding (RFC 2047 section 2)."""
    return _LONG_WORD.sub(_short_words, text) if has_long_line(text) else text


def _short_words(match: re.Match[bytes]) -> bytes:
    charset, base64, quoted = match.groups()
    try:
        octets = binascii.a2b_base64(base64) if base64 else binascii.a2b_qp(quoted, header=True)
    except binascii.Error:
        return match[0]
    return _words(octets, charset)


def _words(octets: bytes, charset: bytes) -> bytes:
    words, start = [], 0
    while start < len(octets):
        end = character_end(octets, start, min(start + _WORD, len(octets)))
        code = binascii.b2a_base64(octets[start:end], newline=False)
        words.append(b"=?%s?b?%s?=" % (charset, code))
        start = end
    return b" ".join(words)
