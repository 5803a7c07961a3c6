"""Lists of tags, as signatures and keys of DKIM and ARC are (RFC 6376 section 3.2)."""

import binascii
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Final

_TAG: Final = re.compile(r"[ \t\r\n]*([A-Za-z]\w*)[ \t\r\n]*=[ \t\r\n]*(.*)", re.ASCII | re.DOTALL)
_LENIENT_TAG: Final = re.compile(r"[ \t\r\n]*([^ \t\r\n=]+)[ \t\r\n]*=[ \t\r\n]*(.*)", re.DOTALL)
_NO_LETTER: Final = re.compile(r"[^A-Za-z0-9+/]+")


def read_tags(text: str, *, lenient: bool = False) -> dict[str, str]:
    """Read a list of tags (RFC 6376 section 3.2). Raise ValueError.

    If `lenient`, semicolons may be doubled, and unknown tags may have any name.
    """
    specs = text.split(";")
    if lenient:
        specs = [spec for spec in specs if spec.strip()]
    elif not specs[-1].strip():
        specs.pop()
    tags: dict[str, str] = {}
    for spec in specs:
        match = _LENIENT_TAG.fullmatch(spec) if lenient else _TAG.fullmatch(spec)
        if match is None or match[1] in tags:
            raise ValueError(f"{spec.strip()[:40]!r} is no tag, or there twice")
        tags[match[1]] = match[2].rstrip()
    return tags


def without_blanks(text: str) -> str:
    """Return a value without its folding white space (RFC 6376 section 2.8)."""
    return text.replace(" ", "").replace("\t", "").replace("\r", "").replace("\n", "")


def plain_base64(text: str) -> str:
    """Return base64 with only its letters, as most verifiers read it, and with full padding.

    A text without such letters is returned as it is.
    """
    letters = _NO_LETTER.sub("", text.partition("=")[0])
    return letters + "=" * (-len(letters) % 4) or text


def octets_of(text: str) -> bytes:
    """Decode base64 with blanks in it. Raise ValueError."""
    try:
        return b64decode(without_blanks(text).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"{text[:40]!r} is no base64") from None


#: How the values of tags are spelled alike, where other verifiers are lenient.
SPELLED: Final[dict[str, Callable[[str], str]]] = {
    **dict.fromkeys("aclqtvx", lambda text: without_blanks(text).lower()),
    **dict.fromkeys(["b", "bh"], plain_base64),
    "d": lambda text: text.removesuffix("."),
}
