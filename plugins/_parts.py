"""The parts of a message, one after the other, without ever holding the message.

The parser of the standard library builds all parts in memory, several times the size of the
message, and takes seconds for what an attacker has made. This one reads forward by pieces, and
hands out each body as it passes. Where mail programs differ, it reads what any of them might: a
line that begins with a delimiter is one, and a part behind the end of its multipart is a part.
Where that could hide what others see, the message is read again in their way (`Reading`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import BinaryIO

from minismtp import Headers

from ._budget import TooMuchError, stream_of
from ._mime import boundaries_of, decoded, encodings_of, is_encoded, kinds_of, names_of

MOST_PARTS = 1000
DEEPEST = 30  # multiparts and messages inside each other
MOST_HEADERS = 1024 * 1024  # octets of a header section, and of all fields that describe parts
_PIECE = 65536
_LINE = 1000  # octets of a delimiter's line that are looked at
_REMEMBERED = 1000  # octets of boundaries whose pattern is kept
_MOST_DELIMITERS = 3 * MOST_PARTS  # those at the end of multiparts included
_DESCRIPTION = re.compile(rb"(?i)^content-[^\n]*+(?:\n[ \t][^\n]*+)*+\n?", re.MULTILINE)
_HEADER_END = re.compile(rb"\n\r?\n")
_FIELDS = re.compile(rb"(?:[!-9;-~]++[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+(?:\n|\Z))*+")
_GUESSED = re.compile(rb"\n--([^\s-][^\r\n]{0,199})[ \t]*+\r?\n[!-9;-~]++[ \t]*+:")
_FIELD = re.compile(rb"(?i)\ncontent-(?:type|disposition|transfer-encoding)\b")
_EXACT_END = re.compile(rb"(?:--)?[ \t]*+\r?(?:\n|\Z)")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a message is read where mail programs differ.

    `choice` 0 takes all boundaries, and the first type and encoding; others take the one of that
    number. `strict` has only lines that are nothing but a delimiter end a part, and the first line
    that is no field end a header. `literal` has messages inside in no encoding.
    """

    choice: int = 0
    strict: bool = False
    literal: bool = False


@dataclass(slots=True)
class _Doubts:
    """What was seen that other programs read in another way, and how much has been read."""

    choices: int = 1
    strict: bool = False
    literal: bool = False
    parts: int = 0
    described: int = 0
    delimiters: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message; `kind` is the declared type in lower case, such as image/png.

    `headers` are those fields that describe the part, Content-Type and the like; `kinds` are all
    declared types, none of what stands behind the end of a multipart. `body` is to be read before
    the next part is asked for; what is left of it is skipped. It is empty for messages, whose parts
    come next, and of a multipart it is what precedes its parts.
    """

    headers: Headers
    kinds: tuple[str, ...]
    encoding: str
    body: Iterator[bytes]

    @property
    def kind(self) -> str:
        """The declared type that counts here."""
        return self.kinds[0] if self.kinds else ""

    @property
    def names(self) -> list[str]:
        """All that some mail program would call the file."""
        return names_of(self.headers)

    def decoded(self) -> Iterator[bytes]:
        """Return the body without its transfer encoding."""
        return decoded(self.encoding, self.body)


def parts_of(message: BinaryIO) -> Iterator[Part]:
    """Walk through the parts, outer ones before those inside; raise TooMuchError."""
    return _Walk(Reading(), _Doubts()).parts(message, 0)


def parts_in_all_readings(open_message: Callable[[], BinaryIO]) -> Iterator[Part]:
    """Walk through the parts in each way that some mail program may read the message in.

    Almost always there is one. Raise TooMuchError.
    """
    doubts = _Doubts()
    with open_message() as content:
        yield from _Walk(Reading(), doubts).parts(content, 0)
    choices = range(doubts.choices + 1) if doubts.choices > 1 else range(1)
    for reading in product(choices, {False, doubts.strict}, {False, doubts.literal}):
        if any(reading):
            with open_message() as content:
                yield from _Walk(Reading(*reading), _Doubts()).parts(content, 0)


@dataclass(slots=True)
class _Level:
    """A multipart that is open: its boundaries, and whether it is a digest."""

    boundaries: list[bytes]
    is_digest: bool = field(default=False)


class _Walk:
    """Walks through a message in one reading."""

    def __init__(self, reading: Reading, doubts: _Doubts) -> None:
        self._reading = reading
        self._doubts = doubts

    def parts(self, message: BinaryIO, depth: int) -> Iterator[Part]:
        """Yield the parts of a message that is `depth` messages inside of the whole."""
        reader = _Reader(message, self._doubts, strict=self._reading.strict)
        levels: list[_Level] = []
        digest = False
        while True:
            self._count()
            headers = reader.header(_all(levels))
            kinds, encodings = kinds_of(headers, digest=digest), encodings_of(headers)
            kind, encoding = self._chosen(kinds), self._chosen(encodings)
            boundaries = self._boundaries(kind, headers, reader)
            if boundaries:
                levels.append(_Level(boundaries, kind == "multipart/digest"))
            body = reader.body(_all(levels))
            is_message = kind.startswith("message/")
            plain = is_message and (self._reading.literal or not is_encoded([encoding]))
            yield Part(headers, (kind, *kinds), encoding, iter(()) if is_message else body)
            depth += is_message
            if len(levels) + depth > DEEPEST:
                raise TooMuchError(f"parts inside each other, more than {DEEPEST} deep")
            digest = False
            if plain:
                continue  # the next header is that of the message
            if is_message:
                self._doubts.literal = True
                yield from self.parts(stream_of(decoded(encoding, body)), depth + len(levels))
                depth -= 1
            _skip(body)
            while reader.closing and not reader.describes_a_part(_all(levels)):
                self._count()
                yield Part(Headers([]), (), "", rest := reader.body(_all(levels)))
                _skip(rest)
            if not reader.delimiter:
                return
            number = _level_of(reader.delimiter, levels)
            digest = levels[number].is_digest
            del levels[number + 1 :]

    def _count(self) -> None:
        self._doubts.parts += 1
        if self._doubts.parts > MOST_PARTS:
            raise TooMuchError(f"more than {MOST_PARTS} parts")

    def _chosen(self, found: Sequence[str]) -> str:
        self._doubts.choices = max(self._doubts.choices, len(found))
        if not self._reading.choice:  # a multipart before others, to see all its parts
            return next((each for each in found if each.startswith("multipart/")), found[0])
        return found[min(self._reading.choice, len(found)) - 1]

    def _boundaries(self, kind: str, headers: Headers, reader: "_Reader") -> list[bytes]:
        if not kind.startswith("multipart/"):
            return []
        found = boundaries_of(headers)
        self._doubts.choices = max(self._doubts.choices, len(found), 1 if found else 2)
        if not self._reading.choice:
            return found or reader.guessed()
        return found[min(self._reading.choice, len(found)) - 1 :][:1]


def _all(levels: Iterable[_Level]) -> list[bytes]:
    return [boundary for level in levels for boundary in level.boundaries]


def _level_of(delimiter: bytes, levels: Iterable[_Level]) -> int:
    return next(number for number, level in enumerate(levels) if delimiter in level.boundaries)


class _Reader:
    """Reads forward. The buffer begins with the line feed in front of the next line."""

    def __init__(self, stream: BinaryIO, doubts: _Doubts, *, strict: bool) -> None:
        self._stream = stream
        self._buffer = b"\n"
        self._doubts = doubts
        self._strict = strict
        self.delimiter = b""  # where the last body ended; none at the end of the message
        self.closing = False

    def header(self, boundaries: Sequence[bytes]) -> Headers:
        """Read a header section; a delimiter ends it too, and is left for the body to end at."""
        held, start = _held(boundaries), 0
        while True:
            end = _HEADER_END.search(self._buffer, start)
            stop = end.start() + 1 if end else len(self._buffer)
            delimiter = self._delimiter(boundaries, start, stop)
            if stop > MOST_HEADERS:
                raise TooMuchError("a header section of more than 1 MiB")
            start = max(0, stop - held)
            if end or delimiter or not self._fill():
                break
        if delimiter:
            stop = delimiter.start() + 1
        text = self._buffer[1:stop]
        next_line = end.end() - 1 if end and not delimiter else stop - 1
        match = _FIELDS.match(text)
        if match and match.end() < len(text):
            self._doubts.strict = True
            if self._strict:
                text, next_line = match[0], match.end()
        fields = _DESCRIPTION.findall(text)
        self._doubts.described += sum(map(len, fields))
        if self._doubts.described > MOST_HEADERS:
            raise TooMuchError("more than 1 MiB that describes parts")
        self._buffer = self._buffer[next_line:]
        return Headers(fields)

    def describes_a_part(self, boundaries: Sequence[bytes]) -> bool:
        """Tell whether a field comes next that describes a part, which it is for some programs."""
        while len(self._buffer) < _LINE and self._fill():
            pass
        delimiter = self._delimiter(boundaries, 0, _LINE)
        return _FIELD.search(self._buffer, 0, delimiter.start() if delimiter else _LINE) is not None

    def guessed(self) -> list[bytes]:
        """Return the boundary of a multipart that names none, from its first delimiter."""
        while len(self._buffer) < _PIECE and self._fill():
            pass
        match = _GUESSED.search(self._buffer)
        return [match[1]] if match else []

    def body(self, boundaries: Sequence[bytes]) -> Iterator[bytes]:
        """Read up to the next delimiter, and past its line."""
        held = _held(boundaries)
        self.delimiter, self.closing = b"", False
        first = 1  # the line feed in front is none of the body's octets
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
        """Find the next line that begins with a delimiter; if `strict`, that is nothing else."""
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
            self._doubts.strict = True
            if not self._strict:
                return match
            start = match.end()
        return None

    def _pass(self, match: re.Match[bytes]) -> None:
        self._doubts.delimiters += 1
        if self._doubts.delimiters > _MOST_DELIMITERS:
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
