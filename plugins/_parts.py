"""The parts of a message, one after the other, without keeping the message in memory.

The parser of the standard library builds all parts in memory, several times the size of the
message, and takes seconds for an attacker's message. This one reads forward by pieces, and yields
each body while it reads it. If mail programs differ, it reads all that any of them might: a line
that begins with a delimiter is one, and a part after the end of its multipart is a part. If that
could hide a part that others see, the message is read again in their way (`_Parser`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from typing import BinaryIO

from ._budget import TooMuchError, stream_of
from ._encodings import decoded, is_encoded
from ._mime import boundaries_of, encodings_of, kinds_of, names_of, values_of
from ._part_reader import Ambiguities, Reader

MOST_PARTS = 1000
DEEPEST = 30  # levels of multiparts and messages


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message; `kind` is the declared type in lower case, such as image/png.

    `fields` are those that describe the part, such as Content-Type. `kinds` are all declared types,
    empty for text after the end of a multipart. `body` must be read before the next part; the rest
    of it is skipped. For a message it is empty, because its parts follow. For a multipart it is the
    text before its parts.
    """

    fields: Mapping[bytes, list[bytes]]
    kinds: tuple[str, ...]
    encoding: str
    body: Iterator[bytes]

    @property
    def kind(self) -> str:
        """The declared type that counts here."""
        return self.kinds[0] if self.kinds else ""

    @property
    def names(self) -> list[str]:
        """All names that some mail program shows for the file. Raise TooMuchError."""
        dispositions = values_of(self.fields, b"content-disposition")
        return names_of(dispositions + values_of(self.fields, b"content-type"))

    def decoded(self) -> Iterator[bytes]:
        """Return the body without its transfer encoding."""
        return decoded(self.encoding, self.body)


def parts_of(open_message: Callable[[], BinaryIO]) -> Iterator[Part]:
    """Yield the parts, outer ones before inner ones, in each way that a mail program may read them.

    Almost always there is one way. Raise TooMuchError.
    """
    first = Ambiguities()
    with open_message() as content:
        yield from _Parser(first).parts(content, 0)
    choices = range(first.choices + 1) if first.choices > 1 else range(1)
    for reading in product(choices, {False, first.strict}, {False, first.literal}):
        if any(reading):
            with open_message() as content:
                yield from _Parser(Ambiguities(), *reading).parts(content, 0)


@dataclass(slots=True)
class _Level:
    """A multipart that is open: its boundaries, and whether it is a digest."""

    boundaries: list[bytes]
    is_digest: bool = field(default=False)


@dataclass(slots=True)
class _Parser:
    """Reads the parts of a message in one of the ways in which mail programs differ.

    `choice` 0 uses all boundaries, and the first type and encoding; others use the one of that
    number. With `strict` a part ends only at a line that is exactly a delimiter, and a header ends
    at the first line that is not a field. With `literal` nested messages and multiparts are not
    decoded.
    """

    found: Ambiguities
    choice: int = 0
    strict: bool = False
    literal: bool = False

    def parts(self, message: BinaryIO, depth: int) -> Iterator[Part]:
        """Yield the parts of a message that is nested in `depth` messages."""
        reader = Reader(message, self.found, strict=self.strict)
        levels: list[_Level] = []
        digest = False
        while True:
            self._count()
            fields = reader.header(_all(levels))
            types = values_of(fields, b"content-type")
            kinds = kinds_of(types, digest=digest)
            kind = self._chosen(kinds)
            encoding = self._chosen(encodings_of(values_of(fields, b"content-transfer-encoding")))
            boundaries = self._boundaries(kind, types, reader)
            whole = bool(boundaries) and is_encoded([encoding]) and not self.literal
            if boundaries and not whole:
                levels.append(_Level(boundaries, kind == "multipart/digest"))
            body = reader.body(_all(levels))
            is_message = whole or kind.startswith("message/")
            plain = is_message and (self.literal or not is_encoded([encoding]))
            yield Part(fields, (kind, *kinds), encoding, iter(()) if is_message else body)
            depth += is_message
            if len(levels) + depth > DEEPEST:
                raise TooMuchError(f"parts inside each other, more than {DEEPEST} deep")
            digest = False
            if plain:
                continue  # the next header is that of the message
            if is_message:
                self.found.literal = True
                content = decoded(encoding, body)
                if whole:  # programs do not write that, but some read it
                    again = [b"Content-Type:" + raw + b"\n" for raw in fields[b"content-type"]]
                    content = chain([*again, b"\r\n"], content)
                yield from self.parts(stream_of(content), depth + len(levels))
                depth -= 1
            _skip(body)
            while reader.closing and not reader.describes_a_part(_all(levels)):
                self._count()
                yield Part({}, (), "", rest := reader.body(_all(levels)))
                _skip(rest)
            if not reader.delimiter:
                return
            number = _level_of(reader.delimiter, levels)
            digest = levels[number].is_digest
            del levels[number + 1 :]

    def _count(self) -> None:
        self.found.parts += 1
        if self.found.parts > MOST_PARTS:
            raise TooMuchError(f"more than {MOST_PARTS} parts")

    def _chosen(self, found: Sequence[str]) -> str:
        self.found.choices = max(self.found.choices, len(found))
        if not self.choice:  # a multipart before others, to see all its parts
            return next((each for each in found if each.startswith("multipart/")), found[0])
        return found[min(self.choice, len(found)) - 1]

    def _boundaries(self, kind: str, types: list[str], reader: "Reader") -> list[bytes]:
        if not kind.startswith("multipart/"):
            return []
        found = boundaries_of(types)
        self.found.choices = max(self.found.choices, len(found), 1 if found else 2)
        if not self.choice:
            return found or reader.guessed()
        return found[min(self.choice, len(found)) - 1 :][:1]


def _all(levels: Iterable[_Level]) -> list[bytes]:
    return [boundary for level in levels for boundary in level.boundaries]


def _level_of(delimiter: bytes, levels: Iterable[_Level]) -> int:
    return next(number for number, level in enumerate(levels) if delimiter in level.boundaries)


def _skip(body: Iterable[bytes]) -> None:
    for _ in body:
        pass
