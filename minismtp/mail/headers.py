"""The header of a message, read without trust, and the format of one field.

`Headers` splits the leading bytes of a message into fields and keeps every byte as received.
Whatever a sender writes, it does not raise, takes linear time, and keeps no more than its limits. A
line ends at LF, with or without CR before it, as in mail stores; a CR elsewhere is data.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from minismtp.mail.encoded_words import decoded_words, octets_as_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The limits of an incoming message; a larger header is refused before a plugin sees it.
FIELD_LIMIT = 10_000
SIZE_LIMIT = 1024 * 1024  # octets
# The limits of reading, with room for the fields that the server and its plugins add.
_MOST_FIELDS = FIELD_LIMIT + 1000
READ_LIMIT = SIZE_LIMIT + 256 * 1024  # octets

# field-name ":" (RFC 5322 section 3.6.8), field-name = 1*ftext, ftext = %d33-57 / %d59-126; the
# obsolete syntax of section 4.5 has white space before the colon. As in Postfix, a field's name has
# at most 2047 octets.
_NAME = re.compile(r"[!-9;-~]+")
_BEGIN = rb"[!-9;-~]{1,2047}+[ \t]{0,2047}+:"
_FIELD_BEGIN = re.compile(_BEGIN)
_FIRST_LINE = re.compile(rb"^" + _BEGIN, re.MULTILINE)
# Section 2.2.3: a line that begins with white space continues the field above it.
_FIELDS_END = re.compile(rb"\n(?!" + _BEGIN + rb"|[ \t])")
_EMPTY_LINE = re.compile(rb"\n(?=\r?\n)")
# A field, or consecutive lines that are neither fields nor empty; and the name of a field.
_ITEM = re.compile(
    rb"(([!-9;-~]{1,2047}+)[ \t]{0,2047}+:[^\n]*+(?:\n[ \t][^\n]*+)*+\n?+"
    rb"|(?:(?!\r?\n)(?!" + _BEGIN + rb")[^\n]++\n?+)++)"
)

# Section 3.2.2: a folded line begins with white space, and is not all white space.
_CONTINUATION = re.compile(rb"[ \t]++[^ \t]")
_WORD = re.compile(rb"(?<![ \t])[ \t]*+[^ \t]++")
_LINE_WISHED = 78  # the same for the length that a line should have
LINE_LIMIT = 998  # octets without CRLF, RFC 5322 section 2.1.1


class Headers:
    """The header fields of a message in order; names match in any case, and nothing raises.

    Lines that are not fields (without a colon, or with an invalid name before it) are kept. In
    `raw_all()` consecutive ones are one item, and they have no name to be found by.
    Immutable.
    """

    __slots__ = ("_by_name", "_fields", "_names", "truncated")

    truncated: bool
    """Whether fields beyond 11,000 or 1.25 MiB were left out, which the server refuses."""

    def __init__(
        self, fields: list[bytes], names: list[bytes] | None = None, *, truncated: bool = False
    ) -> None:
        """Take the exact octets of each field, and their names if they are known.

        `Headers.parse` makes them from a message. An item that is not a field has the name b"".
        """
        self.truncated = truncated
        self._fields = fields
        self._names = list(map(_name_of, fields)) if names is None else names
        self._by_name: dict[str, list[bytes]] | None = None

    @classmethod
    def parse(cls, block: bytes) -> Headers:
        """Read the fields at the start of `block`, up to the first empty line; a body may follow.

        Without an empty line all of it is header (RFC 5322 section 2.1), as in mail stores.
        """
        end = header_end(block)
        end = end if end >= 0 else len(block)
        size = min(end, READ_LIMIT)
        if block.count(b"\n", 0, size) <= _MOST_FIELDS:
            items = _ITEM.findall(block, 0, size)
        else:
            found = islice(_ITEM.finditer(block, 0, size), _MOST_FIELDS + 1)
            items = [match.groups(b"") for match in found]
        truncated = end > READ_LIMIT or len(items) > _MOST_FIELDS
        if truncated:
            items.pop()  # the last one may be cut off
        fields, names = map(list, zip(*items, strict=True)) if items else ([], [])
        return cls(fields, names, truncated=truncated)

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of this name: unfolded, stripped, without line breaks."""
        fields = self._named(name)
        return _value(fields[0]) if fields else default

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of this name, from the top."""
        return [_value(raw) for raw in self._named(name)]

    def decoded(self, name: str, default: str = "") -> str:
        """Return the first value as mail programs show it: RFC 2047 decoded, without line breaks.

        An encoded word that cannot be decoded stays as it was written.
        """
        fields = self._named(name)
        return decoded_words(_unfolded(fields[0]) if fields else default.encode())

    def raw(self, name: str) -> bytes:
        """Return the exact bytes of the first field of this name with its line end, else b""."""
        fields = self._named(name)
        return fields[0] if fields else b""

    def raw_all(self, name: str | None = None) -> list[bytes]:
        """Return the exact bytes of each field of this name, or of all fields without a name."""
        if name is None:
            return list(self._fields)
        return list(self._named(name))

    def below(self, raw: bytes) -> Headers:
        """Return these fields below another one, which is given as its exact octets."""
        names = [_name_of(raw), *self._names]
        return Headers([raw, *self._fields], names, truncated=self.truncated)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names that begin with `prefix`, in lower case, each once."""
        begin = prefix.lower()
        return [name for name in self._index() if name.startswith(begin)]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a field of this name."""
        return isinstance(name, str) and bool(self._named(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) pairs from the top, names as the sender wrote them."""
        fields = zip(self._names, self._fields, strict=True)
        return ((name.decode("ascii"), _value(raw)) for name, raw in fields if name)

    def __len__(self) -> int:
        """Return the number of fields that have a name."""
        return sum(map(bool, self._names))

    def __repr__(self) -> str:
        """Return the first names, without values."""
        names = b", ".join(filter(None, self._names[:20]))
        return f"<Headers: {names.decode('ascii')}>"

    def _named(self, name: str) -> Sequence[bytes]:
        index = self._by_name
        if index is None:
            index = self._index()
        return index.get(name.lower(), ())

    def _index(self) -> dict[str, list[bytes]]:
        """Return the fields of each name in lower case; the index is made when it is needed."""
        if self._by_name is None:
            index: dict[str, list[bytes]] = {}
            names = b"\n".join(self._names).lower().decode("ascii").split("\n")
            for name, raw in zip(names, self._fields, strict=False):
                if name:
                    index.setdefault(name, []).append(raw)
            self._by_name = index  # whole, because another thread may look too
        return self._by_name


def _name_of(raw: bytes) -> bytes:
    match = _ITEM.match(raw)
    return match[2] or b"" if match else b""


def header_end(octets: bytes, begin: int = 0, known: int = 0) -> int:
    """Return where the empty line is that ends the header at `begin`, -1 if there is none.

    Up to `known` there is no empty line, so a header that arrives in pieces is read once.
    """
    if octets.startswith((b"\r\n", b"\n"), begin):
        return begin
    match = _EMPTY_LINE.search(octets, max(begin, known))
    return match.end() if match else -1


def fields_end(octets: bytes, begin: int = 0, known: int = 0) -> int:
    """Return where the fields at `begin` end: at the first line that is not a part of a field.

    Up to `known`, the begin of a line, all lines are known to be parts of fields.
    """
    if known <= begin and not _FIELD_BEGIN.match(octets, begin):
        return begin
    match = _FIELDS_END.search(octets, known - 1 if known > begin else begin)
    return match.end() if match else len(octets)


def too_many_fields(section: bytes) -> bool:
    """Return whether a header section has more fields than an incoming message may have."""
    return len(_FIRST_LINE.findall(section)) > FIELD_LIMIT


def format_field(name: str, value: str) -> bytes:
    """Return one header field with its line end, folded at white space where it is long.

    A value that is already folded (CRLF and white space) is not changed, so a signature of it
    stays valid. Raise ValueError for a name or value that RFC 5322, with UTF-8 (RFC 6532), forbids.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a header field name")
    first, *folded = f"{name}: {value}".encode().split(b"\r\n")  # a lone surrogate is a ValueError
    lines = [first, *folded] if folded else _fold(first)
    field = b"\r\n".join(lines)
    if b"\0" in field or not field.count(b"\r") == field.count(b"\n") == len(lines) - 1:
        raise ValueError(f"the value of {name} has a bare CR or LF, or a NUL")
    if max(map(len, lines)) > LINE_LIMIT:
        raise ValueError(f"{name} has a line of more than {LINE_LIMIT} octets")
    if not all(map(_CONTINUATION.match, folded)):
        raise ValueError(f"the value of {name} has a line end that is not folding")
    return field + b"\r\n"


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
