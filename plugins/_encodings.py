"""The octets of a body: without its transfer encoding, and of the files inside a text.

Mail programs decode base64 and quoted-printable (RFC 2045 section 6), and show files in uuencode or
yEnc as attachments.
"""

import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_PADDING = re.compile(rb"(=++)")
_MOST_PADDINGS = 100  # in one piece; with more, padding is ignored
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_LETTERS = bytes(set(range(256)) - set(_LETTERS + b"="))
UUENCODED = {"x-uuencode", "uuencode", "x-uue", "uue"}
_LINE: Final = 4096  # octets; lines of yEnc have a few hundred
# begin <mode> <name> of POSIX, and =ybegin line=<n> size=<n> name=<name> (yEnc 1.3)
_BEGIN: Final = re.compile(
    rb"^(?:begin(?P<base64>-base64)?[ \t]{1,9}[0-7]{3,6}[ \t]{1,9}"
    rb"|(?P<yenc>=ybegin [^\r\n]{0,200}?\bname=))(?P<name>[^\r\n]{1,500})",
    re.MULTILINE,
)
_ESCAPED: Final = re.compile(rb"=(.)", re.DOTALL)
_SHIFTED: Final = bytes((octet - 42) % 256 for octet in range(256))


def decoded(encoding: str, body: Iterator[bytes]) -> Iterator[bytes]:
    """Return a body without its transfer encoding and without malformed octets."""
    if encoding == "base64":
        return _from_base64(body)
    if encoding == "quoted-printable":
        return _from_quoted_printable(body)
    return body


def is_encoded(encodings: Sequence[str]) -> bool:
    """Return whether one of these encodings changes the octets of a body."""
    return not {"base64", "quoted-printable"}.isdisjoint(encodings)


def _from_base64(body: Iterable[bytes]) -> Iterator[bytes]:
    """Decode base64; other characters are ignored, and padding at the end of a group ends it."""
    rest = b""
    for piece in body:
        letters = rest + piece.translate(None, _NO_LETTERS)
        if letters.count(b"=") > _MOST_PADDINGS:
            letters = letters.replace(b"=", b"")
        # Padding at the end may go on in the next piece.
        held = letters[len(letters.rstrip(b"=")) :]
        text = b""
        groups = letters.removesuffix(held)
        for part in _PADDING.split(groups) if b"=" in groups else [groups]:
            ends = part[:1] == b"=" and len(text) % 4 >= 2 and len(text) % 4 + len(part) >= 4  # noqa: PLR2004 - four letters
            if ends:
                yield _letters_decoded(text)
                text = b""
            elif part[:1] != b"=":
                text += part
        whole = len(text) // 4 * 4
        yield _letters_decoded(text[:whole])
        rest = text[whole:] + held
    yield _letters_decoded(rest.rstrip(b"="))


def _letters_decoded(letters: bytes) -> bytes:
    if len(letters) % 4 == 1:  # six bits are no octet
        letters = letters[:-1]
    return binascii.a2b_base64(letters + b"==")


def _from_quoted_printable(body: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in body:
        text = rest + piece
        end = text.rfind(b"\n") + 1 or text.rfind(b"=", max(0, len(text) - 2))
        end = end if end >= 0 else len(text)  # an encoded octet is not cut
        yield binascii.a2b_qp(text[:end])
        rest = text[end:]
    yield binascii.a2b_qp(rest)


def files_in_text(pieces: Iterable[bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the name and the octets of each file, which must be read before the next one."""
    text = _Text(pieces)
    while match := text.begin():
        name = match["name"].decode("utf-8", "replace").strip().strip('"')
        if match["yenc"]:
            yield name, _from_yenc(text)
        else:
            yield name, _from_lines(text, is_base64=bool(match["base64"]))


class _Text:
    """A text that is read forward, and by lines inside a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = b""
        self._place = 0

    def begin(self) -> re.Match[bytes] | None:
        """Skip to the end of the next line that begins a file, and return its match."""
        while True:
            match = None
            if self._buffer.find(b"begin", self._place) >= 0:  # faster than the pattern
                match = _BEGIN.search(self._buffer, self._place)
            if match is None:  # the last line may be the beginning of one
                last = self._buffer.rfind(b"\n", self._place) + 1
                self._place = max(self._place, last)
                if len(self._buffer) - self._place > _LINE:
                    self._place = len(self._buffer)
            elif match.end() < len(self._buffer) or not self._fill():
                self._place = match.end()
                return match
            else:
                continue
            if not self._fill():
                return None

    def line(self) -> bytes:
        """Return the next line, or 4 KiB of it, with its end; nothing at the end of the text."""
        while (end := self._buffer.find(b"\n", self._place) + 1) == 0:
            if len(self._buffer) - self._place >= _LINE or not self._fill():
                end = len(self._buffer)
                break
        line = self._buffer[self._place : end]
        self._place = end
        return line

    def _fill(self) -> bool:
        piece = next(filter(None, self._pieces), b"")
        before = max(0, self._place - 1)  # one octet stays, which may be the end of a line
        self._buffer, self._place = self._buffer[before:] + piece, self._place - before
        return bool(piece)


def _from_lines(text: _Text, *, is_base64: bool) -> Iterator[bytes]:
    text.line()  # the rest of that which begins the file
    while (line := text.line().rstrip(b"\r\n")) not in {b"", b"end", b"===="}:
        try:
            yield binascii.a2b_base64(line) if is_base64 else binascii.a2b_uu(line)
        except binascii.Error:
            if not is_base64:  # some count too many octets, as the encoder of Windows did
                yield _uu_by_its_count(line)


def _uu_by_its_count(line: bytes) -> bytes:
    length = (((line[0] - 32) & 63) * 4 + 5) // 3
    try:
        return binascii.a2b_uu(line[:length])
    except binascii.Error:
        return b""


def _from_yenc(text: _Text) -> Iterator[bytes]:
    text.line()
    while (line := text.line()) and not line.startswith(b"=yend"):
        if line.startswith(b"=ypart"):
            continue
        escaped = _ESCAPED.sub(lambda each: bytes([(each[1][0] - 64) % 256]), line.strip(b"\r\n"))
        yield escaped.translate(_SHIFTED)
