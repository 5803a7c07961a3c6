"""The header of a message, read without trust, and the format of one field.

`Headers` splits the leading bytes of a message into fields and keeps every byte as received.
Whatever a sender writes, it does not raise, takes linear time, and keeps no more than its limits. A
line ends at LF, with or without CR before it, as in mail stores; a CR elsewhere is data.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from minismtp.mail.encoded_words import decoded_words, octets_as_text

if TYPE_CHECKING:
    from collections.abc import Iterator

# The limits of an incoming message; a larger header is refused before a plugin sees it.
FIELD_LIMIT = 10_000
SIZE_LIMIT = 1024 * 1024  # octets
# The limits of reading, with room for the fields that the server and its plugins add.
_MOST_FIELDS = FIELD_LIMIT + 1000
READ_LIMIT = SIZE_LIMIT + 256 * 1024  # octets

# RFC 5322 section 2.2.3: a line that begins with white space continues the field above it.
_FIELD_END = re.compile(rb"\n(?![ \t])")

# field-name = 1*ftext; ftext = %d33-57 / %d59-126 (RFC 5322 section 3.6.8), then ":"; the obsolete
# syntax of section 4.5 has white space before the colon.
_NAME = re.compile(r"[!-9;-~]+")
_FIELD_NAME = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_FIRST_LINE = re.compile(rb"^[!-9;-~]++[ \t]*+:", re.MULTILINE)
# Lines that are neither fields nor empty.
_NO_FIELDS = re.compile(rb"(?:(?!\r?\n)(?![!-9;-~]++[ \t]*+:)[^\n]*+(?:\n|\Z))++")

_WORD = re.compile(rb"(?<![ \t])[ \t]*+[^ \t]++")
_LINE_WISHED = 78  # the same for the length that a line should have
LINE_LIMIT = 998  # octets without CRLF, RFC 5322 section 2.1.1


class Headers:
    """The header fields of a message in order; names match in any case, and nothing raises.

    Lines that are not fields (without a colon, or with an invalid name before it) are kept. In
    `raw_all()` consecutive ones are one item, and they have no name to be found by. `truncated`
    says that fields beyond 11,000 or 1.25 MiB were ignored; an incoming message of that size is
    refused. Immutable.
    """

    __slots__ = ("_by_name", "_fields", "truncated")

    def __init__(self, fields: list[bytes], *, truncated: bool = False) -> None:
        """Take the exact bytes of each field; `Headers.parse` makes them from a message."""
        self.truncated = truncated
        self._fields: list[tuple[str, bytes]] = []
        self._by_name: dict[str, list[bytes]] = {}
        for raw in fields:
            match = _FIELD_NAME.match(raw)
            name = match[1].decode("ascii") if match else ""
            self._fields.append((name, raw))
            if name:
                self._by_name.setdefault(name.lower(), []).append(raw)

    @classmethod
    def parse(cls, block: bytes) -> Headers:
        """Read the fields at the start of `block`, up to the first empty line; a body may follow.

        Without an empty line all of it is header (RFC 5322 section 2.1), as in mail stores.
        """
        window = block[:READ_LIMIT]
        fields: list[bytes] = []
        start = named = 0
        while start < len(window) and not window.startswith((b"\r\n", b"\n"), start):
            if _FIELD_NAME.match(window, start):
                match = _FIELD_END.search(window, start)
                named += 1
            else:
                match = _NO_FIELDS.match(window, start)
            end = match.end() if match else len(window)
            if named > _MOST_FIELDS or end == len(window) < len(block):
                return cls(fields, truncated=True)
            fields.append(window[start:end])
            start = end
        return cls(fields)

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of this name: unfolded, stripped, without line breaks."""
        fields = self._by_name.get(name.lower())
        return _value(fields[0]) if fields else default

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of this name, from the top."""
        return [_value(raw) for raw in self._by_name.get(name.lower(), ())]

    def decoded(self, name: str, default: str = "") -> str:
        """Return the first value as mail programs show it: RFC 2047 decoded, without line breaks.

        An encoded word that cannot be decoded stays as it was written.
        """
        fields = self._by_name.get(name.lower())
        return decoded_words(_unfolded(fields[0]) if fields else default.encode())

    def raw(self, name: str) -> bytes:
        """Return the exact bytes of the first field of this name with its line end, else b""."""
        fields = self._by_name.get(name.lower())
        return fields[0] if fields else b""

    def raw_all(self, name: str | None = None) -> list[bytes]:
        """Return the exact bytes of each field of this name, or of all fields without a name."""
        if name is None:
            return [raw for _, raw in self._fields]
        return list(self._by_name.get(name.lower(), ()))

    def __contains__(self, name: object) -> bool:
        """Return whether there is a field of this name."""
        return isinstance(name, str) and name.lower() in self._by_name

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) pairs from the top, names as the sender wrote them."""
        return ((name, _value(raw)) for name, raw in self._fields if name)

    def __len__(self) -> int:
        """Return the number of fields that have a name."""
        return sum(map(len, self._by_name.values()))

    def __repr__(self) -> str:
        """Return the first names, without values."""
        return f"<Headers: {', '.join(name for name, _ in self._fields[:20] if name)}>"


def too_many_fields(section: bytes) -> bool:
    """Return whether a header section has more fields than an incoming message may have."""
    # Few sections have that number of lines, and only in those the fields are counted.
    return section.count(b"\n") > FIELD_LIMIT and len(_FIRST_LINE.findall(section)) > FIELD_LIMIT


def format_field(name: str, value: str) -> bytes:
    """Return one header field with its line end, folded at white space where it is long.

    A value that is already folded (CRLF and white space) is not changed, so a signature of it
    stays valid. Raise ValueError for a name or value that RFC 5322, with UTF-8 (RFC 6532), forbids.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a header field name")
    first, *folded = f"{name}: {value}".encode().split(b"\r\n")  # a lone surrogate is a ValueError
    lines = [first, *folded] if folded else _fold(first)
    for line in lines:
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise ValueError(f"the value of {name} has a bare CR or LF, or a NUL")
        if len(line) > LINE_LIMIT:
            raise ValueError(f"{name} has a line of more than {LINE_LIMIT} octets")
    # RFC 5322 section 3.2.2: a folded line begins with white space, and is not all white space.
    if not all(line.startswith((b" ", b"\t")) and line.strip(b" \t") for line in folded):
        raise ValueError(f"the value of {name} has a line end that is not folding")
    return b"\r\n".join(lines) + b"\r\n"


def _fold(line: bytes) -> list[bytes]:
    if len(line) <= _LINE_WISHED:
        return [line]
    lines: list[bytes] = []
    current = b""
    for word in _WORD.findall(
        line.rstrip(b" \t")
    ):  # else a run of blanks at the end takes quadratic time
        if current and len(current) + len(word) > _LINE_WISHED:
            lines.append(current)
            current = b""
        current += word
    return [*lines, current]


def _value(raw: bytes) -> str:
    return octets_as_text(_unfolded(raw))[0]


def _unfolded(raw: bytes) -> bytes:
    body = raw.partition(b":")[2].replace(b"\r\n", b"").replace(b"\n", b"").replace(b"\r", b" ")
    return body.strip(b" \t")
