"""Bodies without their transfer encoding (RFC 2045 section 6)."""

import binascii
import re
from collections.abc import Iterable, Iterator, Sequence

_PADDING = re.compile(rb"(=++)")
_MOST_PADDINGS = 100  # in one piece; with more, padding is ignored
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_LETTERS = bytes(set(range(256)) - set(_LETTERS + b"="))
UUENCODED = {"x-uuencode", "uuencode", "x-uue", "uue"}


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
