"""Read a message as header sections, boundaries, and the text between them (RFC 2045, 2046).

The octets are returned unchanged. Memory is bounded by the longest header section, and time is
linear for any message.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO, Final

from minismtp.mail.headers import READ_LIMIT, fields_end
from minismtp.mail.transfer_encoding import character_end

PIECE: Final = 16384  # octets at most
_LONGEST_BOUNDARY: Final = 1000  # octets of a line
_BLANKS: Final = b" \t\r\n"
_SEPARATOR: Final = re.compile(rb"\r?\n")
_MIME_FIELD: Final = re.compile(
    rb"^(content-type|content-transfer-encoding|mime-version)[ \t]*+:"
    rb"([^\n]*+(?:\n|\Z)(?:[ \t][^\n]*+(?:\n|\Z))*+)",
    re.IGNORECASE | re.MULTILINE,
)
_COMMENTS: Final = rb"[\s]*+(?:\([^()]*+\)\s*+)*+"
_KIND: Final = re.compile(_COMMENTS + rb"([^\s/;()]++/[^\s;()]++)")
_ENCODING: Final = re.compile(_COMMENTS + rb"([^\s;()]++)")
# parameter := attribute "=" value, with the sections and charsets of RFC 2231
_PARAMETER: Final = re.compile(
    rb';\s*+([^\s=;"*]++)(?:\*([0-9]{1,3}))?(\*)?\s*+=\s*+("(?:[^"\\]|\\.)*+"?|[^;]*+)', re.DOTALL
)
_QUOTED: Final = re.compile(rb"\\(.)", re.DOTALL)


class Source:
    """Reads a message piece by piece; `boundaries` are the lines that end a part."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = reader
        self._data = b""
        self._place = 0
        self._at_line = True
        self._ended = False

    def piece(self, boundaries: Collection[bytes] = ()) -> bytes:
        """Return the next lines, or a part of a long one; b"" at a boundary and at the end."""
        self._fill()
        data, start = self._data, self._place
        end = data.rfind(b"\n", start, start + PIECE) + 1
        if self._ended and len(data) - start <= PIECE:
            end = len(data)
        elif not end:
            end = character_end(data, start, start + PIECE)
            end -= data[end - 1] == 0x0D  # noqa: PLR2004 - a CR, whose LF may follow
        if boundaries:
            if self._at_line and self._is_boundary(start, boundaries):
                return b""
            place = data.find(b"\n--", start, end)
            while place >= 0 and not self._is_boundary(place + 1, boundaries):
                place = data.find(b"\n--", place + 1, end)
            if place >= 0:
                end = place + 1
        self._place = end
        piece = data[start:end]
        self._at_line = piece[-1:] == b"\n" or (self._at_line and not piece)
        return piece

    def boundary(self, boundaries: Collection[bytes]) -> tuple[bytes, bytes]:
        """Return the boundary at the current place, and its line; b"" if there is no boundary."""
        self._fill()
        if not self._is_boundary(self._place, boundaries):
            return b"", b""
        line = self._boundary_line(self._place)
        return line.rstrip(_BLANKS), line

    def skip(self, line: bytes) -> None:
        """Skip a line that `boundary` returned."""
        self._place += len(line)

    def header(self, boundaries: Collection[bytes]) -> tuple[bytes, bytes]:
        """Return the next fields, and the empty line after them if there is one.

        Of a section above `READ_LIMIT` this returns the beginning, which may end within a line.
        """
        block, end = b"", 0
        while piece := self.piece(boundaries):
            block += piece
            if block.endswith(b"\n"):
                end = fields_end(block, known=end)
                if end < len(block):
                    break
            if len(block) > READ_LIMIT:
                break
        end = fields_end(block, known=end)
        separator = _SEPARATOR.match(block, end)
        behind = separator.end() if separator else end
        if behind < len(block):
            self._go_back(block[behind:])
        return block[:end], block[end:behind]

    def _go_back(self, octets: bytes) -> None:
        if len(octets) <= self._place:
            self._place -= len(octets)
        else:
            self._data = octets + self._data[self._place :]
            self._place = 0
        self._at_line = True

    def _fill(self) -> None:
        while not self._ended and len(self._data) - self._place < 2 * PIECE:
            read = self._reader.read(4 * PIECE)
            self._ended = not read
            self._data = self._data[self._place :] + read
            self._place = 0

    def _is_boundary(self, place: int, boundaries: Collection[bytes]) -> bool:
        if not self._data.startswith(b"--", place):
            return False
        return self._boundary_line(place).rstrip(_BLANKS) in boundaries

    def _boundary_line(self, place: int) -> bytes:
        end = self._data.find(b"\n", place, place + _LONGEST_BOUNDARY) + 1
        if not end:
            whole = self._ended and len(self._data) - place <= _LONGEST_BOUNDARY
            return self._data[place:] if whole else b""
        return self._data[place:end]


@dataclass(frozen=True, slots=True)
class Declared:
    """The MIME fields of a part: `kind` and `encoding` in lower case, `any` if there are any.

    `content_type` is the whole value.
    """

    kind: bytes
    encoding: bytes
    boundary: bytes
    any: bool
    version: bool
    content_type: bytes = b""

    @property
    def charset(self) -> str:
        """The charset, "" if none is declared."""
        return _parameter(self.content_type, b"charset").decode("ascii", "replace")

    @classmethod
    def of(cls, fields: bytes, default: bytes) -> Declared:
        """Read the fields, of which the first of each name counts."""
        if not fields:
            return cls(default, b"", b"", any=False, version=False)
        values: dict[bytes, bytes] = {}
        for name, value in _MIME_FIELD.findall(fields):
            values.setdefault(name.lower(), value.translate(None, b"\r\n").strip())
        content = values.get(b"content-type", b"")
        kind = _KIND.match(content)
        encoding = _ENCODING.match(values.get(b"content-transfer-encoding", b""))
        return cls(
            kind[1].lower() if kind else default,
            encoding[1].lower() if encoding else b"",
            _parameter(content, b"boundary")
            if kind and kind[1].lower().startswith(b"multipart/")
            else b"",
            bool(values),
            b"mime-version" in values,
            content,
        )


def with_encoding(fields: bytes, encoding: bytes) -> bytes:
    """Return fields with one Content-Transfer-Encoding, in place of the first or at the end."""
    field = b"Content-Transfer-Encoding: " + encoding + b"\r\n"
    done = False

    def replaced(match: re.Match[bytes]) -> bytes:
        nonlocal done
        if match[1].lower() != b"content-transfer-encoding":
            return match[0]
        first, done = not done, True
        return field if first else b""

    fields = _MIME_FIELD.sub(replaced, fields)
    return fields if done else with_end(fields) + field


def with_end(fields: bytes) -> bytes:
    """Return fields with a line end after the last one."""
    return fields if not fields or fields.endswith(b"\n") else fields + b"\r\n"


def _parameter(content_type: bytes, wanted: bytes) -> bytes:
    """Return a parameter of a Content-Type, b"" if it has no such parameter."""
    sections: dict[int, bytes] = {}
    for name, section, extended, text in _PARAMETER.findall(content_type):
        if name.lower() == wanted:
            quoted = text[:1] == b'"'
            plain = _QUOTED.sub(rb"\1", text[1:].removesuffix(b'"')) if quoted else text.strip()
            if extended and not int(section or 0):
                plain = plain.rpartition(b"'")[2]
            sections.setdefault(int(section or 0), plain)
    return b"".join(text for _, text in sorted(sections.items())).rstrip()
