"""Files inside a text, in uuencode or yEnc, which mail programs show as attachments."""

import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Final

_LINE: Final = 4096  # octets; lines of yEnc have a few hundred
# begin <mode> <name> of POSIX, and =ybegin line=<n> size=<n> name=<name> (yEnc 1.3)
_BEGIN: Final = re.compile(
    rb"^(?:begin(?P<base64>-base64)?[ \t]{1,9}[0-7]{3,6}[ \t]{1,9}"
    rb"|(?P<yenc>=ybegin [^\r\n]{0,200}?\bname=))(?P<name>[^\r\n]{1,500})",
    re.MULTILINE,
)
_ESCAPED: Final = re.compile(rb"=(.)", re.DOTALL)
_SHIFTED: Final = bytes((octet - 42) % 256 for octet in range(256))


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
