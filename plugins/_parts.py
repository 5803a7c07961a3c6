"""The parts of a message, one after the other, without ever holding the message.

The parser of the standard library builds all parts in memory, several times the size of the
message, and takes seconds for what an attacker has made. This one reads forward by pieces, and
hands out each body as it passes. Where mail programs differ it takes what any of them might: a line
that begins with a delimiter is one, and a part behind the end of its multipart is a part.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from minismtp import Headers

from ._budget import TooMuchError
from ._mime import boundary_of, decoded, encoding_of, names_of, type_of

MOST_PARTS = 1000
DEEPEST = 30  # multiparts and messages inside each other
MOST_HEADERS = 1024 * 1024  # octets of a header section, and of all fields that describe parts
_PIECE = 65536
_REMEMBERED = 1000  # octets of boundaries whose pattern is kept
_MOST_DELIMITERS = 3 * MOST_PARTS  # those at the end of multiparts included
_DESCRIPTION = re.compile(rb"(?i)^content-[^\n]*+(?:\n[ \t][^\n]*+)*+\n?", re.MULTILINE)
_HEADER_END = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message; `kind` is the declared type in lower case, such as image/png.

    `headers` are those fields that describe the part, Content-Type and the like.
    `body` is to be read before the next part is asked for; what is left of it is skipped. It is
    empty for parts that consist of parts, and for messages, whose parts come next.
    """

    headers: Headers
    kind: str
    body: Iterator[bytes]

    @property
    def names(self) -> list[str]:
        """All that some mail program would call the file."""
        return names_of(self.headers)

    def decoded(self) -> Iterator[bytes]:
        """Give the body without its transfer encoding."""
        return decoded(self.headers, self.body)


def parts_of(message: BinaryIO) -> Iterator[Part]:
    """Walk through the parts, outer ones before those inside; raises TooMuchError."""
    reader = _Reader(message)
    boundaries: list[bytes] = []
    digests: set[bytes] = set()
    messages = 0
    for _ in range(MOST_PARTS):
        headers = reader.header(boundaries)
        kind = type_of(headers, digest=reader.delimiter in digests)
        boundary = boundary_of(headers) if kind.startswith("multipart/") else b""
        inside = kind == "message/rfc822" and encoding_of(headers) != "base64"
        if boundary:
            boundaries.append(boundary)
            if kind == "multipart/digest":
                digests.add(boundary)
        body = iter(()) if inside else reader.body(boundaries)
        yield Part(headers, kind, iter(()) if boundary else body)
        messages += inside
        if len(boundaries) + messages > DEEPEST:
            raise TooMuchError(f"parts inside each other, more than {DEEPEST} deep")
        if inside:
            continue  # the next header is that of the message
        _skip(body)
        while reader.closing:
            _skip(reader.body(boundaries))
        if not reader.delimiter:
            return
        del boundaries[boundaries.index(reader.delimiter) + 1 :]
    raise TooMuchError(f"more than {MOST_PARTS} parts")


class _Reader:
    """Reads forward. The buffer begins with the line feed in front of the next line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = b"\n"
        self._delimiters = self._described = 0
        self.delimiter = b""  # where the last body ended; none at the end of the message
        self.closing = False

    def header(self, boundaries: Sequence[bytes]) -> Headers:
        """Read a header section; a delimiter ends it too, and is left for the body to end at."""
        pattern, held, start = _delimiters(tuple(boundaries)), _held(boundaries), 0
        while True:
            end = _HEADER_END.search(self._buffer, start)
            stop = end.start() + 1 if end else len(self._buffer)
            delimiter = pattern.search(self._buffer, start, stop)
            if stop > MOST_HEADERS:
                raise TooMuchError("a header section of more than 1 MiB")
            start = max(0, stop - held)
            if end or delimiter or not self._fill():
                break
        if delimiter:
            stop = delimiter.start() + 1
        fields = _DESCRIPTION.findall(self._buffer[1:stop])
        self._described += sum(map(len, fields))
        if self._described > MOST_HEADERS:
            raise TooMuchError("more than 1 MiB that describes parts")
        self._buffer = self._buffer[end.end() - 1 if end and not delimiter else stop - 1 :]
        return Headers(fields)

    def body(self, boundaries: Sequence[bytes]) -> Iterator[bytes]:
        """Read up to the next delimiter, and past its line."""
        pattern = _delimiters(tuple(boundaries))
        held = _held(boundaries)
        self.delimiter, self.closing = b"", False
        first = 1  # the line feed in front is none of the body's octets
        while True:
            match = pattern.search(self._buffer)
            if match and (match.end() + len(b"--") <= len(self._buffer) or not self._fill()):
                yield self._buffer[first : match.start()]
                self._pass(match)
                return
            if match:
                continue
            cut = len(self._buffer) - held
            if cut > first:
                yield self._buffer[first:cut]
                self._buffer, first = self._buffer[cut:], 0
            if not self._fill():
                yield self._buffer[first:]
                self._buffer = b""
                return

    def _pass(self, match: re.Match[bytes]) -> None:
        self._delimiters += 1
        if self._delimiters > _MOST_DELIMITERS:
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
    if not boundaries:
        return re.compile(rb"(?!)")
    longest_first = sorted(boundaries, key=len, reverse=True)
    return re.compile(rb"\n--(" + b"|".join(map(re.escape, longest_first)) + rb")")


def _held(boundaries: Iterable[bytes]) -> int:
    """Return how many octets may be the beginning of a delimiter, or of an empty line."""
    return max(map(len, boundaries), default=0) + len(b"\r\n----")


def _skip(body: Iterable[bytes]) -> None:
    for _ in body:
        pass
