"""Encoded words of header fields, as mail programs show them (RFC 2047, RFC 2231).

Mail programs, like browsers, read a charset's name as senders mean it (WHATWG Encoding Standard
section 4.2): iso-8859-1 is windows-1252, and gb2312 is gbk. They also decode words that the grammar
forbids, inside other words or with blanks and question marks. Time is linear.
"""

from __future__ import annotations

import binascii
import re
from encodings.aliases import aliases
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# encoded-word = "=?" charset ["*" language] "?" encoding "?" encoded-text "?="
_BEGIN: Final = re.compile(r"=\?([^?*=]{0,60}+)(?:\*[^?=]{0,60}+)?\?([BbQq])\?")
_QUOTED_OCTET: Final = re.compile(rb"=([0-9A-Fa-f]{2})")
_NO_LETTER: Final = re.compile("[^a-z0-9]")
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NO_BASE64: Final = bytes(set(range(256)) - set(_BASE64))

# Only these charsets are looked up, because Python remembers each unknown name forever and has
# codecs of quadratic time, such as punycode. Punctuation is ignored.
_CODECS: Final = {
    **{_NO_LETTER.sub("", name): codec for name, codec in aliases.items()},
    **{_NO_LETTER.sub("", codec): codec for codec in aliases.values()},
    **dict.fromkeys(["unicode11utf8", "unicode20utf8"], "utf_8"),
    **dict.fromkeys(["unicode", "ucs2", "iso10646ucs2", "unicodefeff"], "utf_16_le"),
    **dict.fromkeys(["iso88598i", "iso88598e", "logical", "visual"], "iso8859_8"),
    **dict.fromkeys(["iso88596i", "iso88596e"], "iso8859_6"),
    **dict.fromkeys(["koi", "koi8"], "koi8_r"),
    **dict.fromkeys(["koi8u", "koi8ru"], "koi8_u"),
    **dict.fromkeys(["cp874", "windows874", "dos874"], "cp874"),
    **dict.fromkeys(["gb2312", "gb231280", "csgb2312"], "gb2312"),
    **dict.fromkeys(["ksc5601", "ksc56011989", "isoir149", "windows949"], "cp949"),
    **dict.fromkeys(["cnbig5", "xbig5"], "big5"),
    **dict.fromkeys(["mac", "macroman"], "mac_roman"),
    "unicodefffe": "utf_16_be",
    "suneugreek": "iso8859_7",
    "isolatin9": "iso8859_15",
    "macukrainian": "mac_cyrillic",
    "windows31j": "cp932",
    "eucpkdfmtjapanese": "euc_jp",
    "koi8t": "koi8_t",
    "iso2022cn": "gb18030",
}
_NEVER: Final = {
    *("utf_7", "rot_13", "hex_codec", "uu_codec", "zlib_codec", "bz2_codec", "mbcs"),
    *("base64_codec", "quopri_codec"),
}
_MEANT: Final = {
    **dict.fromkeys(["ascii", "latin_1"], "cp1252"),
    **dict.fromkeys(["iso8859_11", "tis_620"], "cp874"),
    **dict.fromkeys(["gb2312", "gbk"], "gb18030"),
    "iso8859_9": "cp1254",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
}
# Codecs to try where the first one fails: most Japanese mail has characters of NEC.
_OTHERS: Final = {
    "euc_jp": ("euc_jis_2004",),
    "iso2022_jp": ("iso2022_jp_ext", "iso2022_jp_2004"),
}
# Names that stand for an unknown charset; the octets are read like ones that are not encoded.
_UNKNOWN: Final = {"", "unknown8bit", "xunknown", "unknown", "8bit", "xuserdefined", "default"}
_WINDOWS: Final = {
    octet: char
    for octet in range(0x80, 0xA0)
    if (char := bytes([octet]).decode("cp1252", "ignore"))
}


def decoded_words(octets: bytes) -> str:
    """Return a value as a mail program shows it; words that cannot be decoded stay as they are.

    Neighbouring words of one charset are decoded together, because senders split characters.
    """
    value, written = octets_as_text(octets)
    pieces: list[str] = []
    run: list[bytes] = []
    run_charset, end = "", 0
    for match, stop in _words(value):
        text = value[match.end() : stop].encode(written, "replace")
        charset, content = _codec(match[1]), _octets(match[2], text)
        if charset is None or content is None:
            continue
        gap = _shown(value[end : match.start()], written)
        # RFC 2047 section 6.2: white space between two encoded words is not shown.
        neighbours = bool(run) and not gap.strip(" \t")
        if not neighbours or charset != run_charset:
            pieces += (
                _decode(b"".join(run), run_charset),
                "" if neighbours else gap,
            )
            run = []
        run.append(content)
        run_charset, end = charset, stop + len("?=")
    pieces += (_decode(b"".join(run), run_charset), _shown(value[end:], written))
    return "".join(pieces).replace("\r", " ").replace("\n", " ")


def decoded_text(octets: bytes, charset: str) -> str:
    """Return octets in a charset as text; without a known charset, as mail programs guess."""
    return _decode(octets, _codec(charset) or "")


def _words(value: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yield the begin of each word and the end of its text, except for words that are cut off."""
    stop, last = 0, None
    for match in _BEGIN.finditer(value):
        if last is not None and stop <= match.start():
            yield last, stop
        if stop < match.end():
            stop = value.find("?=", match.end())
        if stop < 0:
            return
        last = match
    if last is not None:
        yield last, stop


def _text_of(octets: bytes) -> str:
    """Return octets of an unknown charset as UTF-8, else as windows-1252, as mail programs do."""
    return _shown(*octets_as_text(octets))


def octets_as_text(octets: bytes) -> tuple[str, str]:
    """Return octets as text, and the codec that encodes it to the same octets again."""
    try:
        return octets.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return octets.decode("latin-1"), "latin-1"


def _shown(text: str, written: str) -> str:
    return text.translate(_WINDOWS) if written == "latin-1" else text


def _octets(encoding: str, text: bytes) -> bytes | None:
    if encoding in "Qq":
        text = text.replace(b"_", b" ")
        return _QUOTED_OCTET.sub(lambda match: binascii.unhexlify(match[1]), text)
    # Some senders encode piece by piece, with padding in the middle; others omit padding.
    pieces = text.translate(None, _NO_BASE64).split(b"=")
    try:
        return b"".join(binascii.a2b_base64(piece + b"==") for piece in pieces if piece)
    except binascii.Error:
        return None


def _codec(label: str) -> str | None:
    """Return the codec for a charset, "" for an unknown charset, None for a wrong name."""
    name = _NO_LETTER.sub("", label.lower())
    if name in _UNKNOWN:
        return ""
    for prefix in ("", "x", "cs"):
        codec = _CODECS.get(name.removeprefix(prefix))
        if codec is not None and codec not in _NEVER:
            return _MEANT.get(codec, codec)
    return None


def _decode(octets: bytes, charset: str) -> str:
    if not octets:
        return ""
    if not charset:
        return _text_of(octets)
    for codec in (charset, *_OTHERS.get(charset, ())):
        try:
            # The sets of 2004 and 1983 have different escape sequences for the same characters.
            new = octets.replace(b"\x1b$B", b"\x1b$(Q") if codec == "iso2022_jp_2004" else octets
            return new.decode(codec).encode("utf-8", "replace").decode("utf-8")
        except (LookupError, ValueError):
            continue
    try:
        text = octets.decode(charset, "replace")
    except (LookupError, ValueError):  # a missing codec, or one that cannot replace
        text = _text_of(octets)
    return text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
