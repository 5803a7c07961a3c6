"""Authentication-Results fields, read and written (RFC 8601 section 2.2); also those of ARC."""

import re
from collections.abc import Iterable
from typing import Final

from minismtp import Address, AuthResult

_LINE: Final = 77  # characters and a semicolon: 78, RFC 5322 section 2.1.1
_DELIMITER: Final = re.compile(r'\\.|["()]', re.DOTALL)
_SEGMENT: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*+"?|[^";])++', re.DOTALL)
_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*+)"|([^\s"]++)', re.DOTALL)
# methodspec, reasonspec, propspec: something "=" something
_PAIR: Final = re.compile(
    r'(?<![\w./-])([\w./-]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s"]++))', re.DOTALL
)
# authserv-id [CFWS authres-version], in which a quoted-string may be an authserv-id
_ID: Final = re.compile(r'\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s"]++))(?:\s++[0-9]++)?+\s*+', re.DOTALL)
_BETWEEN_NAMES: Final = re.compile(r"[<>,/=]++")
_READABLE: Final = re.compile(r"[!-~]++")
_TSPECIAL: Final = re.compile(r"[()<>@,;:\\/\[\]?=]")  # in no token, RFC 2045 section 5.1
_ENCODED: Final = "=?"  # begins an encoded word, which has no place here (RFC 2047 section 5)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def written(authserv_id: str, results: Iterable[AuthResult]) -> str:
    """Return the value of a field, folded, with a line or more for each result, or "none"."""
    lines = [authserv_id]
    for result in results:
        lines[-1] += ";"
        lines += _folded(f"\t{result}")
    if len(lines) == 1:
        return f"{authserv_id}; none"
    return "\r\n".join(lines)


def read(value: str) -> tuple[str, list[AuthResult]]:
    """Read an unfolded value as far as possible: the authserv-id in A-labels, and results."""
    first, *rest = _SEGMENT.findall(without_comments(value)) or [""]
    match = _WORD.search(first)
    name = Address("", _text(*match.groups())).ascii_domain if match else ""
    return name, [result for text in rest if (result := _read_result(text))]


def claims(value: str, name: str) -> bool:
    """Return whether a reader could take a field for one of the server `name`, in A-labels.

    Its authserv-id is that name in some spelling, or readers disagree about it.
    """
    if not is_closed(value):
        return True
    first = _SEGMENT.match(without_comments(value))
    match = first and _ID.fullmatch(first[0])
    if not match:
        return True
    quoted, plain = match.groups()
    if plain and _TSPECIAL.search(plain):
        return True
    text = _text(quoted, plain)
    words = {Address("", word.rstrip(".")).ascii_domain for word in _BETWEEN_NAMES.split(text)}
    words.discard("")
    readable = words and all(map(_READABLE.fullmatch, words)) and _ENCODED not in text
    return name in words or not readable


def _read_result(text: str) -> AuthResult | None:
    pairs = [(match[1].lower(), _text(match[2], match[3])) for match in _PAIR.finditer(text)]
    if not pairs:
        return None
    method, result = pairs[0][0].partition("/")[0], pairs[0][1].lower()
    found = dict(pairs[1:])
    return AuthResult(method, result, found.pop("reason", ""), found)


def _text(quoted: str | None, plain: str | None) -> str:
    return plain or _ESCAPED.sub(r"\1", quoted or "")


def is_closed(value: str) -> bool:
    """Return whether all comments end, so that text after the value is kept."""
    return without_comments(f"{value},").endswith(",")


def without_comments(value: str) -> str:
    """Remove comments, which may be nested, and in which quotes have no meaning."""
    kept: list[str] = []
    depth, quoted, begin = 0, False, 0
    for match in _DELIMITER.finditer(value):
        piece = match[0]
        if depth:
            depth += {"(": 1, ")": -1}.get(piece, 0)
            begin = match.end()
        elif piece == "(" and not quoted:
            kept += (value[begin : match.start()], " ")
            depth = 1
        else:
            quoted ^= piece == '"'
    if not depth:
        kept.append(value[begin:])
    return "".join(kept)


def _folded(text: str) -> list[str]:
    if len(text) <= _LINE:
        return [text]
    lines: list[str] = []
    line, *words = text.split(" ")
    for word in words:
        if word and len(line) + len(word) >= _LINE:
            lines.append(line)
            line = ""
        line += f" {word}"
    return [*lines, line]
