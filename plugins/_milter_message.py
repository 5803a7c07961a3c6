"""A message as a milter sees it, and the milter's changes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Final

from minismtp import ContentWriter, Envelope, Message, fields_end

from . import _milter as wire

_LINE_ENDS: Final = re.compile(rb"[\r\n]+")
_MOST: Final = 1000  # changes, except parts of the body
_LARGEST_HEADER: Final = 1 << 20  # octets of all additions
_LARGEST_BODY: Final = 1 << 30


@dataclass(slots=True)
class _Field:
    """One field. The server's trace field and deleted fields are hidden."""

    name: bytes
    raw: bytes
    hidden: bool = False
    deleted: bool = False


class MilterMessage:
    """A message as a filter sees it, without the server's own Received field.

    A line that is not a field ends the header, as in Sendmail, so every octet is sent, at least as
    a part of the body. With `keeps_space` values include the white space after the colon.
    """

    def __init__(self, message: Message, envelope: Envelope, *, keeps_space: bool) -> None:
        self.message = message
        self.envelope = envelope
        self.keeps_space = keeps_space
        self.header: list[_Field] = []
        raws = message.headers.raw_all()
        for raw in takewhile(fields_end, raws):
            self.header.append(_Field(raw.partition(b":")[0].rstrip(b" \t").lower(), raw))
        self.rest = raws[len(self.header) :]
        ours = f" id {envelope.id}".encode()
        for each in self.header:
            if each.name == b"received" and ours in each.raw:
                each.hidden = True
                break

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield names and values, folded by line feeds."""
        for each in self.header:
            if not each.hidden:
                name, _, value = each.raw.partition(b":")
                value = value.removesuffix(b"\n").removesuffix(b"\r").replace(b"\r\n", b"\n")
                if not self.keeps_space:
                    value = value.removeprefix(b" ")
                yield name.rstrip(b" \t"), value

    def body(self) -> Iterator[bytes]:
        """Yield the octets after the header in pieces that fit into packets."""
        start = sum(len(each.raw) for each in self.header)
        with self.message.open() as reader:
            reader.seek(start)
            empty_line = re.match(rb"\r?\n", reader.read(2))
            reader.seek(start + (empty_line.end() if empty_line else 0))
            yield from iter(lambda: reader.read(wire.CHUNK), b"")


class Changes:
    """Collects a filter's changes, and applies them after its last one.

    A large body is in an unnamed file in `directory`. Raise MilterError, and OSError for a full
    disk.
    """

    def __init__(self, message: MilterMessage, directory: Path | None) -> None:
        self._message = message
        self._directory = directory
        self._edited = False
        self._body: ContentWriter | None = None
        self._others: list[Callable[[], None]] = []
        self._same: dict[bytes, list[_Field]] = {}  # the shown fields of a name, as long as known
        self._count = self._size = 0

    def take(self, letter: bytes, data: bytes) -> None:
        """Collect one of the `CHANGES`."""
        if letter == b"b":
            self._body = self._body or ContentWriter(self._directory)
            if self._body.size + len(data) > _LARGEST_BODY:
                raise wire.MilterError("the filter's body is too large")
            self._body.write(data)
            return
        try:
            self._take(letter, data)
        except ValueError as error:
            problem = f"the filter's change {letter!r} cannot be read: {error}"
            raise wire.MilterError(problem) from None
        self._count += 1
        if self._count > _MOST or self._size > _LARGEST_HEADER:
            raise wire.MilterError("the filter changes too much")

    def _take(self, letter: bytes, data: bytes) -> None:
        envelope = self._message.envelope
        match letter:
            case b"h":
                self._insert(len(self._message.header), *wire.read_field(data))
            case b"i":
                self._insert(*wire.read_numbered_field(data))
            case b"m":
                self._change(*wire.read_numbered_field(data))
            case b"+":
                self._later(envelope.add, wire.read_address(data))
            case b"2":
                self._later(envelope.add, wire.read_address(data), wire.read_notify(data))
            case b"-":
                self._later(envelope.remove, wire.read_address(data))
            case b"e":
                self._later(setattr, envelope, "reverse_path", wire.read_sender(data))
            case b"q":
                self._later(self._message.message.quarantine, wire.read_text(data))
            case _:
                raise ValueError("there is no such change")

    def _later(self, change: Callable[..., None], *arguments: object) -> None:
        self._others.append(partial(change, *arguments))

    def apply(self) -> None:
        """Change the message and its envelope."""
        if self._edited or self._body is not None:
            kept = [each.raw for each in self._message.header if not each.deleted]
            self._message.message.edit(kept if self._body else kept + self._message.rest)
            if self._body is not None:
                self._replace_body(b"".join(kept), self._body)
        for change in self._others:
            change()

    def _insert(self, index: int, name: bytes, value: bytes) -> None:
        header = self._message.header
        if index >= len(header):
            # No field can follow one without a line end, the last of content without body.
            index = len(header) - bool(header and not header[-1].raw.endswith(b"\n"))
        header.insert(index, _Field(name.lower(), self._raw(name, value)))
        self._same.pop(name.lower(), None)

    def _change(self, index: int, name: bytes, value: bytes) -> None:
        """Change a field by its number among those of its name, counted before any deletion."""
        same = self._same.get(name.lower())
        if same is None:
            shown = (each for each in self._message.header if not each.hidden)
            same = self._same[name.lower()] = [each for each in shown if each.name == name.lower()]
        if max(index, 1) > len(same):
            if value:
                self._insert(len(self._message.header), name, value)
            return
        found = same[max(index, 1) - 1]
        found.deleted = not value
        found.raw = self._raw(name, value)

    def _raw(self, name: bytes, value: bytes) -> bytes:
        """Return a field in the form of a message, with line ends that fold."""
        self._edited = True
        lines = [line for line in _LINE_ENDS.split(value) if line.strip(b" \t")]
        space = b"" if self._message.keeps_space else b" "
        folded = [line if line[:1] in b" \t" else b"\t" + line for line in lines[1:]]
        raw = name + b":" + space + b"\r\n".join(lines[:1] + folded) + b"\r\n"
        self._size += len(raw)
        return raw

    def _replace_body(self, header: bytes, body: ContentWriter) -> None:
        if header and not header.endswith(b"\n"):
            header += b"\r\n"
        message = self._message.message
        before = header[len(message.prefix) :] + b"\r\n"
        message.replace(body.finish().behind(before, 0))
