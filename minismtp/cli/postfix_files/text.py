"""Logical lines and lists of words, which all files of Postfix share (postconf(5))."""

from __future__ import annotations

import codecs
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from minismtp.config.mistakes import reason

BLANKS: Final = " \t\n\v\f\r"
_SEPARATORS: Final = ", \t\r\n"
_LARGEST: Final = 16 << 20  # octets of a file
_TOKEN: Final = re.compile(r"[{}]|[, \t\r\n]+")


class PostfixError(Exception):
    """A file or a value cannot be used; the text says why, in one line."""


class Line(NamedTuple):
    """A logical line, with the number of its first physical line."""

    number: int
    text: str


class Problem(NamedTuple):
    """What cannot be used, and why: `place` is the file, with a line if there is one."""

    place: str
    text: str


def read_text(path: Path) -> str:
    """Return the text of a file; octets that are not UTF-8 become surrogates.

    A byte order mark, which only an editor can have added, is left out. Raise PostfixError if the
    file cannot be read, or has more than 16 MiB.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PostfixError(f"{path} is no regular file")
        if status.st_size > _LARGEST:
            raise PostfixError(f"{path} has more than {_LARGEST >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise PostfixError(reason(error)) from None
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def logical_lines(text: str) -> Iterator[Line]:
    """Yield logical lines: a line that begins with a blank continues the one before.

    Comments and empty lines are left out, also inside of a logical line.
    """
    number = 0
    pieces: list[str] = []
    for count, physical in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        inner = physical.lstrip(BLANKS)
        if not inner or inner[0] == "#":
            continue
        if inner != physical and pieces:
            pieces.append(physical)
            continue
        if pieces:
            yield Line(number, "".join(pieces))
        # A first line that begins with a blank continues nothing, and Postfix ignores it.
        number, pieces = count, [physical] if inner == physical else []
    if pieces:
        yield Line(number, "".join(pieces))


def unusable(text: str) -> str:
    """Return why a line cannot be used, or ""."""
    if text.replace("\t", " ").isprintable():
        return ""
    raw = any("\udc80" <= sign <= "\udcff" for sign in text)
    what = "an octet that is not UTF-8" if raw else "a control character"
    return f"the line has {what}, so it is left out"


def name_and_value(text: str) -> tuple[str, str]:
    """Split `name = value`. Raise PostfixError."""
    name, equals, value = text.strip(BLANKS).partition("=")
    words = name.split(None, 1)
    if not equals or len(words) != 1:
        raise PostfixError("expected `name = value`")
    return words[0], value.strip(BLANKS)


def words(text: str, separators: str = _SEPARATORS) -> list[str]:
    """Split a list at commas and blanks outside of braces. A word with # ends it, as a comment."""
    found: list[str] = []
    word: list[str] = []
    level = end = 0
    for token in _TOKEN.finditer(text):
        word.append(text[end : token.start()])
        end = token.end()
        if token[0] == "{":
            level += 1
        elif token[0] == "}":
            level = max(level - 1, 0)
        elif not level and token[0].strip(separators) == "":
            found.append("".join(word))
            word.clear()
            continue
        word.append(token[0])
    found.append("".join([*word, text[end:]]))
    kept = [each for each in found if each]
    comment = next((number for number, each in enumerate(kept) if each[0] == "#"), len(kept))
    return kept[:comment]


def unbraced(text: str) -> str:
    """Return the text inside of `{...}`, or the whole text."""
    return text[1:-1].strip(BLANKS) if text[:1] == "{" and text[-1:] == "}" else text
