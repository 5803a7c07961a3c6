"""The canonical forms of DKIM and ARC, in which they are hashed (RFC 6376 section 3.4).

Bodies are read in pieces, so memory is bounded, and each step takes linear time for any message.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from minismtp import Headers

_PIECE = 65536
_ROW: Final = 4096  # octets of a header's line at once
_BLANKS: Final = re.compile(rb"[ \t]{2,}|\t")
_ENDS: Final = 8192  # line ends in one piece
_B_TAG: Final = re.compile(rb"[ \t\r\n]*b[ \t\r\n]*=")

#: A form and the number of its octets that count, None for all of them.
Extent = tuple[str, int | None]


def relaxed_field(raw: bytes) -> bytes:
    """Return a field in the relaxed form (RFC 6376 section 3.4.2)."""
    name, _, value = raw.partition(b":")
    if b"\n" in value or b"\r" in value:
        value = value.translate(None, b"\r\n")
    if b"\t" in value or b"  " in value:
        value = _BLANKS.sub(b" ", value)
    value = value.strip(b" ")
    return name.strip(b" \t").lower() + b":" + value + b"\r\n"


def simple_field(raw: bytes) -> bytes:
    """Return a field as it is on the wire (RFC 6376 section 3.4.1)."""
    return _with_crlf(raw).removesuffix(b"\r\n") + b"\r\n"


FIELD: Final[dict[str, Callable[[bytes], bytes]]] = {
    "relaxed": relaxed_field,
    "simple": simple_field,
}


def signed_fields(headers: Headers, names: Iterable[str], form: str = "relaxed") -> bytes:
    """Return the fields of these names, the last of each name first (RFC 6376 section 5.4.2)."""
    names = list(names)
    left = {name: headers.raw_all(name) for name in set(names)}
    return b"".join(FIELD[form](left[name].pop()) for name in names if left[name])


def without_signature(raw: bytes) -> bytes:
    """Return a field of tags with an empty tag b (RFC 6376 section 3.7)."""
    name, colon, value = raw.partition(b":")
    tags = value.split(b";")
    for number, tag in enumerate(tags):
        if match := _B_TAG.match(tag):
            tags[number] = match[0]
    return name + colon + b";".join(tags)


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
        reader.seek(0)
        _skip_header(reader)
        for piece in _BODY[kind](reader):
            for length, digest in digests.items():
                digest.update(piece if length is None else piece[: max(0, length - size)])
            size += len(piece)
        found |= {(kind, length): (each.digest(), size) for length, each in digests.items()}
    return found


def _skip_header(reader: BinaryIO) -> None:
    begins = True  # a line, which may come in several pieces
    while piece := reader.readline(_ROW):
        if begins and piece in (b"\r\n", b"\n"):
            return
        begins = piece.endswith(b"\n")


def _relaxed_body(reader: BinaryIO) -> Iterator[bytes]:
    """Yield the body in the relaxed form (RFC 6376 section 3.4.4), as lines of the wire."""
    empty = True
    for text in _texts(reader, b" \t\r\n"):
        text = _wire(text)  # noqa: PLW2901 - the same on the wire
        if b"\t" in text or b"  " in text:
            text = _BLANKS.sub(b" ", text)  # noqa: PLW2901 - expensive, and most have none
        yield text.replace(b" \r\n", b"\r\n")
        empty = False
    if not empty:
        yield b"\r\n"


def _simple_body(reader: BinaryIO) -> Iterator[bytes]:
    """Yield the body in the simple form (RFC 6376 section 3.4.3), as lines of the wire."""
    for text in _texts(reader, b"\r\n"):
        yield _wire(text)
    yield b"\r\n"


_BODY: Final = {"relaxed": _relaxed_body, "simple": _simple_body}


def _texts(reader: BinaryIO, idle: bytes) -> Iterator[bytes]:
    """Yield the body in pieces that do not end with `idle` octets, which do not count at the end.

    Line ends before a text are separate pieces, and a run of blanks is one blank.
    """
    held = b""  # idle octets, which count only if text follows
    lines = 0  # and so do line ends before them
    for octets in iter(lambda: reader.read(_PIECE), b""):
        piece = held + octets
        text = piece.rstrip(idle)
        if text:
            while lines:
                yield b"\r\n" * min(lines, _ENDS)
                lines -= min(lines, _ENDS)
            yield text
        rest = piece[len(text) :]
        # A CR at the end may be half of a line end.
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
        lines += _line_ends(rest[:end])
        held = _BLANKS.sub(b" ", rest[end:])


def _line_ends(octets: bytes) -> int:
    return octets.count(b"\r") + octets.count(b"\n") - octets.count(b"\r\n")


def _wire(text: bytes) -> bytes:
    if not text.count(b"\r\n") == text.count(b"\n") == text.count(b"\r"):
        text = _with_crlf(text)  # as it will be sent
    return text


def _with_crlf(text: bytes) -> bytes:
    """Return a text with CRLF for every bare CR and bare LF."""
    # A regular expression makes an object of each line end: 6 MB for 64 KB of them.
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
