"""The parts of a message, one after the other, without ever holding the message.

The parser of the standard library builds all parts in memory, several times the size of the
message, and takes seconds for what an attacker has made. This one reads forward by pieces, and
hands out each body as it passes. Where mail programs differ it takes what any of them might: a line
that begins with a delimiter is one, and a part behind the end of its multipart is a part.
"""

import binascii
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from minismtp import Headers

MOST_PARTS = 1000
DEEPEST = 30  # multiparts and messages inside each other
MOST_HEADERS = 1024 * 1024  # octets of a header section, and of all fields that describe parts
_PIECE = 65536
_LONGEST_BOUNDARY = 250  # RFC 2046 section 5.1.1 allows 70
_LONGEST_FIELD = 4096  # characters that are looked at
_MOST_FIELDS = 4  # of one name: mail programs differ in which of them they take
_MOST_DELIMITERS = 3 * MOST_PARTS  # those at the end of multiparts included
_DESCRIPTION = re.compile(rb"(?i)^content-[^\n]*+(?:\n[ \t][^\n]*+)*+\n?", re.MULTILINE)
_HEADER_END = re.compile(rb"\n\r?\n")
_KIND = re.compile(r"\s*([^\s/;()]+/[^\s;()]+)")
# parameter := attribute "=" value, with the sections and charsets of RFC 2231
_PARAMETER = re.compile(
    r';\s*+([^\s=;"*]++)(?:\*([0-9]{1,3}))?(\*)?\s*+=\s*+("(?:[^"\\]|\\.)*+"?|[^;]*+)', re.DOTALL
)
_QUOTED = re.compile(r"\\(.)", re.DOTALL)
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_LETTERS = bytes(set(range(256)) - set(_LETTERS))


class TooMuchError(ValueError):
    """There is more of something than will be looked at, as the text says."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message; `kind` is the declared type in lower case, such as image/png.

    `headers` are those fields that describe the part, Content-Type and the like.
    `body` is to be read before the next part is asked for; what is left of it is skipped. It is
    empty for parts that consist of parts, and for messages, whose parts come next.
    """

    headers: Headers
    kind: str
    body: Iterator[bytes]

    @property
    def names(self) -> list[str]:
        """All that some mail program would call the file, decoded (RFC 2231, RFC 2047)."""
        found: dict[str, None] = {}
        for field, parameter in (("Content-Disposition", "filename"), ("Content-Type", "name")):
            for value in self.headers.get_all(field)[:_MOST_FIELDS]:
                if name := _parameters(value).get(parameter):
                    found[Headers([f"N: {name}".encode()]).decoded("N")] = None
        return list(found)

    def decoded(self) -> Iterator[bytes]:
        """Give the body without its transfer encoding; what is broken in it is left out."""
        encoding = _encoding(self.headers)
        if encoding == "base64":
            return _from_base64(self.body)
        return _from_quoted_printable(self.body) if encoding == "quoted-printable" else self.body


def parts_of(message: BinaryIO) -> Iterator[Part]:
    """Walk through the parts, outer ones before those inside; raises TooMuchError."""
    reader = _Reader(message)
    boundaries: list[bytes] = []
    digests: set[bytes] = set()
    messages = 0
    for _ in range(MOST_PARTS):
        headers = reader.header(boundaries)
        kind = _kind(headers, digest=reader.delimiter in digests)
        boundary = _boundary(headers) if kind.startswith("multipart/") else b""
        inside = kind == "message/rfc822" and _encoding(headers) != "base64"
        if boundary:
            boundaries.append(boundary)
            if kind == "multipart/digest":
                digests.add(boundary)
        body = iter(()) if inside else reader.body(boundaries)
        yield Part(headers, kind, iter(()) if boundary else body)
        messages += inside
        if len(boundaries) + messages > DEEPEST:
            raise TooMuchError(f"parts inside each other, more than {DEEPEST} deep")
        if inside:
            continue  # the next header is that of the message
        _skip(body)
        while reader.closing:
            _skip(reader.body(boundaries))
        if not reader.delimiter:
            return
        del boundaries[boundaries.index(reader.delimiter) + 1 :]
    raise TooMuchError(f"more than {MOST_PARTS} parts")


class _Reader:
    """Reads forward. The buffer begins with the line feed in front of the next line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = b"\n"
        self._delimiters = self._described = 0
        self.delimiter = b""  # where the last body ended; none at the end of the message
        self.closing = False

    def header(self, boundaries: Sequence[bytes]) -> Headers:
        """Read a header section; a delimiter ends it too, and is left for the body to end at."""
        pattern = _delimiters(tuple(boundaries))
        while True:
            end = _HEADER_END.search(self._buffer)
            stop = end.start() + 1 if end else len(self._buffer)
            delimiter = pattern.search(self._buffer, 0, stop)
            if stop > MOST_HEADERS:
                raise TooMuchError("a header section of more than 1 MiB")
            if end or delimiter or not self._fill():
                break
        if delimiter:
            stop = delimiter.start() + 1
        fields = _DESCRIPTION.findall(self._buffer[1:stop])
        self._described += sum(map(len, fields))
        if self._described > MOST_HEADERS:
            raise TooMuchError("more than 1 MiB that describes parts")
        self._buffer = self._buffer[end.end() - 1 if end and not delimiter else stop - 1 :]
        return Headers(fields)

    def body(self, boundaries: Sequence[bytes]) -> Iterator[bytes]:
        """Read up to the next delimiter, and past its line."""
        pattern = _delimiters(tuple(boundaries))
        held = max(map(len, boundaries), default=0) + len(b"\r\n----")
        self.delimiter, self.closing = b"", False
        first = 1  # the line feed in front is none of the body's octets
        while True:
            match = pattern.search(self._buffer)
            if match and (match.end() + len(b"--") <= len(self._buffer) or not self._fill()):
                yield self._buffer[first : match.start()]
                self._pass(match)
                return
            if match:
                continue
            cut = len(self._buffer) - held
            if cut > first:
                yield self._buffer[first:cut]
                self._buffer, first = self._buffer[cut:], 0
            if not self._fill():
                yield self._buffer[first:]
                self._buffer = b""
                return

    def _pass(self, match: re.Match[bytes]) -> None:
        self._delimiters += 1
        if self._delimiters > _MOST_DELIMITERS:
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


@lru_cache(maxsize=64)
def _delimiters(boundaries: tuple[bytes, ...]) -> re.Pattern[bytes]:
    if not boundaries:
        return re.compile(rb"(?!)")
    longest_first = sorted(boundaries, key=len, reverse=True)
    return re.compile(rb"\n--(" + b"|".join(map(re.escape, longest_first)) + rb")")


def _skip(body: Iterable[bytes]) -> None:
    for _ in body:
        pass


def _kind(headers: Headers, *, digest: bool) -> str:
    match = _KIND.match(headers.get("Content-Type"))
    default = "message/rfc822" if digest else "text/plain"  # RFC 2046 section 5.1.5
    return match[1].lower() if match else default


def _encoding(headers: Headers) -> str:
    return headers.get("Content-Transfer-Encoding").lower()


def _boundary(headers: Headers) -> bytes:
    value = _parameters(headers.get("Content-Type")).get("boundary", "").rstrip()
    try:
        headers.raw("Content-Type").decode()
        boundary = value.encode()
    except UnicodeDecodeError:  # then it was read octet by octet
        boundary = value.encode("latin-1", "replace")
    return boundary if len(boundary) <= _LONGEST_BOUNDARY else b""


def _parameters(value: str) -> dict[str, str]:
    """Read the parameters of a field, the first one of each name."""
    sections: dict[str, dict[int, str]] = {}
    encoded: set[str] = set()
    for name, section, extended, text in _PARAMETER.findall(value[:_LONGEST_FIELD]):
        key = name.lower()
        plain = _QUOTED.sub(r"\1", text[1:].removesuffix('"')) if text[:1] == '"' else text.strip()
        if extended and not int(section or 0):
            encoded.add(key)
            plain = plain.rpartition("'")[2]  # behind charset and language
        sections.setdefault(key, {}).setdefault(int(section or 0), plain)
    found = {}
    for key, texts in sections.items():
        whole = "".join(text for _, text in sorted(texts.items()))
        found[key] = _percent_decoded(whole) if key in encoded else whole
    return found


def _percent_decoded(text: str) -> str:
    """Decode; what matters in a name is ASCII in every charset that is in use."""
    octets = urllib.parse.unquote_to_bytes(text)
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def _from_base64(body: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in body:
        letters = rest + piece.translate(None, _NO_LETTERS)
        whole = len(letters) // 4 * 4
        yield binascii.a2b_base64(letters[:whole])
        rest = letters[whole:]
    if len(rest) > 1:  # padding was left out with all that is no letter
        yield binascii.a2b_base64(rest + b"==")


def _from_quoted_printable(body: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in body:
        text = rest + piece
        end = text.rfind(b"\n") + 1 or len(text)
        yield binascii.a2b_qp(text[:end])
        rest = text[end:]
    yield binascii.a2b_qp(rest)
