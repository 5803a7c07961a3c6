"""The canonical forms of DKIM and ARC, in which they are hashed (RFC 6376 section 3.4).

Bodies are read in pieces, so memory is bounded, and each step takes linear time for any message.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Final

from minismtp import Headers

_PIECE = 65536
_EMPTY_LINE: Final = re.compile(rb"\n\r?\n")
_BLANKS: Final = re.compile(rb"  +")
_TAB_AS_BLANK: Final = bytes.maketrans(b"\t", b" ")
_ENDS: Final = 8192  # line ends in one piece
_B_TAG: Final = re.compile(rb"(;[ \t\r\n]*+b[ \t\r\n]*+=)[^;]*+")

#: A form and the number of its octets that count, None for all of them.
Extent = tuple[str, int | None]


def relaxed_field(raw: bytes) -> bytes:
    """Return a field in the relaxed form (RFC 6376 section 3.4.2)."""
    name, _, value = raw.partition(b":")
    value = value.translate(_TAB_AS_BLANK, b"\r\n")
    if b"  " in value:
        value = _BLANKS.sub(b" ", value)
    value = value.strip(b" ")
    return name.strip(b" \t").lower() + b":" + value + b"\r\n"


def simple_field(raw: bytes) -> bytes:
    """Return a field as it is on the wire (RFC 6376 section 3.4.1)."""
    return _with_crlf(raw).removesuffix(b"\r\n") + b"\r\n"


FIELD: Final = {"relaxed": relaxed_field, "simple": simple_field}


def signed_fields(headers: Headers, names: Sequence[str], form: str = "relaxed") -> bytes:
    """Return the fields of these names, the last of each name first (RFC 6376 section 5.4.2).

    The names are in lower case.
    """
    canonical = FIELD[form]
    left = {name: headers.raw_all(name) for name in headers.names() if name in names}
    return b"".join([canonical(left[name].pop()) for name in names if left.get(name)])


def without_signature(raw: bytes) -> bytes:
    """Return a field of tags with an empty tag b (RFC 6376 section 3.7)."""
    name, _, value = raw.partition(b":")
    return name + b":" + _B_TAG.sub(rb"\1", b";" + value)[1:]


def body_hash(reader: BinaryIO) -> bytes:
    """Hash the body of a message in the relaxed form."""
    return body_hashes(reader, [("relaxed", None)])["relaxed", None][0]


def body_hashes(reader: BinaryIO, extents: Iterable[Extent]) -> dict[Extent, tuple[bytes, int]]:
    """Return the SHA-256 of a message's body for each extent, and the canonical body's length."""
    found: dict[Extent, tuple[bytes, int]] = {}
    wanted = set(extents)
    for kind in sorted({kind for kind, _ in wanted}):
        digests = {length: hashlib.sha256() for each, length in wanted if each == kind}
        size = 0
        for piece in _canonical_body(reader, kind):
            for length, digest in digests.items():
                digest.update(piece if length is None else piece[: max(0, length - size)])
            size += len(piece)
        found |= {(kind, length): (each.digest(), size) for length, each in digests.items()}
    return found


def _pieces(reader: BinaryIO) -> Iterator[bytes]:
    """Yield the body, which begins after the first empty line, in pieces."""
    reader.seek(0)
    held = b"\n"  # as if a line ended before the first one
    while piece := reader.read(_PIECE):
        if match := _EMPTY_LINE.search(octets := held + piece):
            yield octets[match.end() :]
            break
        held = octets[-2:]
    yield from iter(lambda: reader.read(_PIECE), b"")


def _canonical_body(reader: BinaryIO, kind: str) -> Iterator[bytes]:
    """Yield the body in a form of RFC 6376 section 3.4.3 or 3.4.4, as lines of the wire.

    Octets at the end of a piece wait for text after them, because at the end of the body they do
    not count.
    """
    idle, form = _BODY[kind]
    held = b""
    lines = 0  # line ends before what is held
    empty = True
    for octets in _pieces(reader):
        piece = held + octets
        text = piece.rstrip(idle)
        if text:
            while lines:
                yield b"\r\n" * min(lines, _ENDS)
                lines -= min(lines, _ENDS)
            yield form(text)
            empty = False
        rest = piece[len(text) :]
        # A CR at the end may be half of a line end.
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
        lines += _line_ends(rest[:end])
        held = _BLANKS.sub(b" ", rest[end:].replace(b"\t", b" "))
    if kind == "simple" or not empty:
        yield b"\r\n"


def _relaxed_text(text: bytes) -> bytes:
    text = _wire(text)
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    if b"  " in text:
        text = _BLANKS.sub(b" ", text)
    return text.replace(b" \r\n", b"\r\n")


def _line_ends(octets: bytes) -> int:
    return octets.count(b"\r") + octets.count(b"\n") - octets.count(b"\r\n")


def _wire(text: bytes) -> bytes:
    if not text.count(b"\r\n") == text.count(b"\n") == text.count(b"\r"):
        text = _with_crlf(text)  # as it will be sent
    return text


_BODY: Final[dict[str, tuple[bytes, Callable[[bytes], bytes]]]] = {
    "relaxed": (b" \t\r\n", _relaxed_text),
    "simple": (b"\r\n", _wire),
}


def _with_crlf(text: bytes) -> bytes:
    """Return a text with CRLF for every bare CR and bare LF."""
    # A regular expression makes an object of each line end: 6 MB for 64 KB of them.
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
