"""What the fields of a part say, and bodies without their encoding."""

import binascii
import re
import urllib.parse
from collections.abc import Iterable, Iterator

from minismtp import Headers

from ._budget import TooMuchError

_LONGEST_BOUNDARY = 250  # RFC 2046 section 5.1.1 allows 70
_LONGEST_FIELD = 4096  # characters; what is longer is too much
_MOST_FIELDS = 4  # of one name: mail programs differ in which of them they take
_KIND = re.compile(r"\s*([^\s/;()]+/[^\s;()]+)")
# parameter := attribute "=" value, with the sections and charsets of RFC 2231
_PARAMETER = re.compile(
    r';\s*+([^\s=;"*]++)(?:\*([0-9]{1,3}))?(\*)?\s*+=\s*+("(?:[^"\\]|\\.)*+"?|[^;]*+)', re.DOTALL
)
_QUOTED = re.compile(r"\\(.)", re.DOTALL)
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_LETTERS = bytes(set(range(256)) - set(_LETTERS))


def type_of(headers: Headers, *, digest: bool) -> str:
    """Give the declared type in lower case; `digest` says that the part is one of a digest."""
    match = _KIND.match(headers.get("Content-Type"))
    default = "message/rfc822" if digest else "text/plain"  # RFC 2046 section 5.1.5
    return match[1].lower() if match else default


def encoding_of(headers: Headers) -> str:
    """Give the transfer encoding in lower case, "" for none."""
    return headers.get("Content-Transfer-Encoding").lower()


def boundary_of(headers: Headers) -> bytes:
    """Return the boundary of a multipart, b"" when there is none; raises TooMuchError."""
    value = _parameters(headers.get("Content-Type")).get("boundary", "").rstrip()
    try:
        headers.raw("Content-Type").decode()
        boundary = value.encode()
    except UnicodeDecodeError:  # then it was read octet by octet
        boundary = value.encode("latin-1", "replace")
    if len(boundary) > _LONGEST_BOUNDARY:
        raise TooMuchError(f"a boundary of more than {_LONGEST_BOUNDARY} octets")
    return boundary


def names_of(headers: Headers) -> list[str]:
    """Return all that some mail program would call the file, decoded (RFC 2231, RFC 2047).

    Raises TooMuchError.
    """
    found: dict[str, None] = {}
    for field, parameter in (("Content-Disposition", "filename"), ("Content-Type", "name")):
        values = headers.get_all(field)
        if len(values) > _MOST_FIELDS:
            raise TooMuchError(f"more than {_MOST_FIELDS} fields {field} in a part")
        for value in values:
            if name := _parameters(value).get(parameter):
                found[Headers([f"N: {name}".encode()]).decoded("N")] = None
    return list(found)


def decoded(headers: Headers, body: Iterator[bytes]) -> Iterator[bytes]:
    """Give a body without its transfer encoding; what is broken in it is left out."""
    match encoding_of(headers):
        case "base64":
            return _from_base64(body)
        case "quoted-printable":
            return _from_quoted_printable(body)
        case _:
            return body


def _parameters(value: str) -> dict[str, str]:
    """Read the parameters of a field, the first one of each name; raises TooMuchError."""
    if len(value) > _LONGEST_FIELD:
        raise TooMuchError(f"a field of a part of more than {_LONGEST_FIELD} characters")
    sections: dict[str, dict[int, str]] = {}
    encoded: set[str] = set()
    for name, section, extended, text in _PARAMETER.findall(value):
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
