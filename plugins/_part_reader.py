"""Read headers and bodies of parts forward, from delimiter to delimiter."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from minismtp import fields_end, header_end

from ._budget import TooMuchError

MOST_HEADERS = 1024 * 1024  # octets of a header section, and of all fields that describe parts
_PIECE = 65536
_LINE = 1000  # octets of a delimiter's line that are read
_REMEMBERED = 1000  # octets of boundaries whose pattern is kept
_MOST_DELIMITERS = 3000  # those at the end of multiparts included
_DESCRIPTION = re.compile(rb"(?i)\n(content-[!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)")
_GUESSED = re.compile(rb"\n--([^\s-][^\r\n]{0,199})[ \t]*+\r?\n[!-9;-~]++[ \t]*+:")
_FIELD = re.compile(rb"(?i)\ncontent-(?:type|disposition|transfer-encoding)\b")
_EXACT_END = re.compile(rb"(?:--)?[ \t]*+\r?(?:\n|\Z)")


@dataclass(slots=True)
class Ambiguities:
    """Signs that other programs read the message differently, and counts for the limits."""

    choices: int = 1
    strict: bool = False
    literal: bool = False
    parts: int = 0
    described: int = 0
    delimiters: int = 0


class Reader:
    """Reads forward. The buffer begins with the line feed in front of the next line."""

    def __init__(self, stream: BinaryIO, found: Ambiguities, *, strict: bool) -> None:
        self._stream = stream
        self._buffer = b"\n"
        self._found = found
        self._strict = strict
        self.delimiter = b""  # where the last body ended; none at the end of the message
        self.closing = False

    def header(self, boundaries: Sequence[bytes]) -> dict[bytes, list[bytes]]:
        """Read a header section, and return the values of Content fields by names in lower case.

        A delimiter ends the section too, and is left for the body to end at.
        """
        held, start = _held(boundaries), 0
        while True:
            end = header_end(self._buffer, 1, start)
            stop = end if end >= 0 else len(self._buffer)
            delimiter = self._delimiter(boundaries, start, stop)
            if stop > MOST_HEADERS:
                raise TooMuchError("a header section of more than 1 MiB")
            start = max(0, stop - held)
            if end >= 0 or delimiter or not self._fill():
                break
        if delimiter:
            stop = delimiter.start() + 1
        text = self._buffer[1:stop]
        next_line = self._buffer.find(b"\n", stop) if end >= 0 and not delimiter else stop - 1
        last = fields_end(text)
        if last < len(text):
            self._found.strict = True
            if self._strict:
                text, next_line = text[:last], last
        fields: dict[bytes, list[bytes]] = {}
        for name, value in _DESCRIPTION.findall(b"\n" + text):
            self._found.described += len(value)
            fields.setdefault(name.lower(), []).append(value)
        if self._found.described > MOST_HEADERS:
            raise TooMuchError("more than 1 MiB that describes parts")
        self._buffer = self._buffer[next_line:]
        return fields

    def describes_a_part(self, boundaries: Sequence[bytes]) -> bool:
        """Return whether a field follows that describes a part, which some programs accept."""
        while len(self._buffer) < _LINE and self._fill():
            pass
        delimiter = self._delimiter(boundaries, 0, _LINE)
        return _FIELD.search(self._buffer, 0, delimiter.start() if delimiter else _LINE) is not None

    def guessed(self) -> list[bytes]:
        """Return the boundary of a multipart without the parameter, from its first delimiter."""
        while len(self._buffer) < _PIECE and self._fill():
            pass
        match = _GUESSED.search(self._buffer)
        return [match[1]] if match else []

    def body(self, boundaries: Sequence[bytes]) -> Iterator[bytes]:
        """Read up to the next delimiter, and past its line."""
        held = _held(boundaries)
        self.delimiter, self.closing = b"", False
        first = 1  # the line feed in front is not part of the body
        while True:
            match = self._delimiter(boundaries, 0, len(self._buffer))
            if match:
                yield self._buffer[first : match.start()]
                self._pass(match)
                return
            cut = len(self._buffer) - held
            if cut > first:
                yield self._buffer[first:cut]
                self._buffer, first = self._buffer[cut:], 0
            if not self._fill():
                yield self._buffer[first:]
                self._buffer = b""
                return

    def _delimiter(
        self, boundaries: Sequence[bytes], start: int, stop: int
    ) -> re.Match[bytes] | None:
        """Find the next line that begins with a delimiter, or if `strict`, that is one."""
        if not boundaries:
            return None
        pattern = _delimiters(tuple(boundaries))
        while match := pattern.search(self._buffer, start, stop):
            while (
                len(self._buffer) < match.end() + _LINE
                and self._buffer.find(b"\n", match.end()) < 0
                and self._fill()
            ):
                pass
            if _EXACT_END.match(self._buffer, match.end()):
                return match
            self._found.strict = True
            if not self._strict:
                return match
            start = match.end()
        return None

    def _pass(self, match: re.Match[bytes]) -> None:
        self._found.delimiters += 1
        if self._found.delimiters > _MOST_DELIMITERS:
            raise TooMuchError("too many delimiters of parts")
        self.delimiter = match[1]
        self.closing = self._buffer.startswith(b"--", match.end())
        self._buffer = self._buffer[match.end() :]
        while (end := self._buffer.find(b"\n")) < 0:
            self._buffer = b""
            if not self._fill():
                return
        self._buffer = self._buffer[end:]

    def _fill(self) -> bool:
        piece = self._stream.read(_PIECE)
        self._buffer += piece
        return bool(piece)


def _delimiters(boundaries: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """Return the pattern of the lines that end parts; short ones are remembered."""
    if sum(map(len, boundaries)) <= _REMEMBERED:
        return _compiled(boundaries)
    try:
        return _compiled.__wrapped__(boundaries)
    finally:
        re.purge()  # it keeps 512 patterns itself, of any size: 8 KB of boundary take 140 KB


@lru_cache(maxsize=64)
def _compiled(boundaries: tuple[bytes, ...]) -> re.Pattern[bytes]:
    longest_first = sorted(boundaries, key=len, reverse=True)
    return re.compile(rb"\n--(" + b"|".join(map(re.escape, longest_first)) + rb")")


def _held(boundaries: Iterable[bytes]) -> int:
    """Return the number of octets that may begin a delimiter or an empty line."""
    return max(map(len, boundaries), default=0) + len(b"\r\n----")
