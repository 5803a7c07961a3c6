"""Where each key of a TOML document stands.

The TOML library gives values without lines, so this scanner finds them, in a document that the
library has already read. It goes over the text once and keeps no more than one number for each key
and each item of an array. It takes no step back, and paths have a longest length, so its time is
linear in the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from minismtp.config.mistakes import ConfigError, combined

# One token: a comment, a string of one of the four kinds, which may lack its end, punctuation, or a
# bare word.
_TOKEN = re.compile(
    r"""(?P<skip>\#[^\n]*+|[ \t\r]++)
      | (?P<text>\"\"\"(?:[^"\\]|\\.|"{1,2}+(?!"))*+"{0,5}+
      | '''(?:[^']|'{1,2}+(?!'))*+'{0,5}+
      | "(?:[^"\\\n]|\\.)*+"?+ | '[^'\n]*+'?+)
      | (?P<mark>[\n\[\]{}=,.])
      | (?P<bare>[^\s\[\]{}=,.\#"']++)
      | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_PATH = 300  # characters; what is deeper gets the line of its parent
_NAMES = ("name", "use", "domain")  # keys that name the table they stand in


class Source:
    """The text of a configuration file, and the table that the TOML library made of it."""

    def __init__(self, text: str = "", table: Mapping[str, object] | None = None) -> None:
        self._text = text
        self._table = table or {}

    @cached_property
    def _lines(self) -> dict[str, int]:
        return key_lines(self._text)

    def line(self, key: str) -> int:
        """Return the line of a key such as `plugins[3].path`, else that of the table; 0 if none."""
        if key not in self._lines:
            key = key[: 2 * _LONGEST_PATH]  # since the search for its parent is quadratic
        while key not in self._lines:
            shorter = re.sub(r"(?:\.?(?:\"[^\"]*\"|[^.\[\"]+)|\[[0-9]+\])\Z", "", key)
            if not shorter or shorter == key:
                return 0
            key = shorter
        return self._lines[key]

    def name(self, key: str) -> str:
        """Return the name of the `[[...]]` table that a key is in, or "" if it has none."""
        place: object = self._table
        name = ""
        for match in re.finditer(r"([\w-]+)(?:\[([0-9]{1,9})\])?", key):
            part, number = match.groups()
            place = place.get(part) if isinstance(place, dict) else None
            if number:
                whole = place if isinstance(place, list) else []
                place = whole[int(number)] if int(number) < len(whole) else None
                name = name or _name_of(place)
        return name

    def locate(self, error: ConfigError) -> ConfigError:
        """Return the same error with the lines of its mistakes, where this text has them."""
        return combined(self._located(each) for each in error.mistakes)

    def _located(self, error: ConfigError) -> ConfigError:
        line = error.line or self.line(error.key)
        name = error.name or self.name(error.key)
        return ConfigError(error.message, file=error.file, key=error.key, line=line, name=name)


def _name_of(table: object) -> str:
    found = (table.get(key) for key in _NAMES) if isinstance(table, dict) else ()
    return next((value for value in found if isinstance(value, str) and value.isprintable()), "")


def key_lines(text: str) -> dict[str, int]:
    """Return the line, counted from 1, of each key, table and array item of a valid document."""
    return _Scanner().scan(text)


def open_value(text: str) -> int:
    """Return the line of the key whose array or inline table is still open at the end, or 0."""
    scanner = _Scanner()
    scanner.scan(text)
    return scanner.lines.get(scanner.levels[0].key, 0) if scanner.levels else 0


@dataclass(slots=True)
class _Level:
    """An array or inline table that is open: what it is the value of, and how many items it had."""

    key: str
    is_array: bool
    count: int = 0
    waits: bool = True  # for an item of the array, or for a key


@dataclass(slots=True)
class _Scanner:
    """The place that the scan has reached."""

    lines: dict[str, int] = field(default_factory=dict)
    table: str = ""
    line: int = 1
    counts: Counter[str] = field(default_factory=Counter)  # of tables in each array of tables
    levels: list[_Level] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # of a key or header that is being read
    header: int = 0  # brackets that opened a header
    value: str = ""  # the key whose value is being read

    def scan(self, text: str) -> dict[str, int]:
        """Go over the text."""
        for kind, piece in _tokens(text):
            if self.header:
                self._in_header(kind, piece)
            elif self.levels:
                self._in_value(kind, piece)
            elif self.value:
                self._after_key(piece)
            else:
                self._in_key(kind, piece)
            self.line += piece.count("\n")
        return self.lines

    def _in_key(self, kind: str, piece: str) -> None:
        if piece == "[" and not self.words:
            self.header = 1
        elif piece == "=":
            self.value = self._note_words(self.table)
        elif kind in {"bare", "text"}:
            self.words.append(_plain(kind, piece))
        elif piece == "\n":
            self.words.clear()

    def _in_header(self, kind: str, piece: str) -> None:
        if piece == "[":
            self.header += 1
        elif kind in {"bare", "text"}:
            self.words.append(_plain(kind, piece))
        elif piece in {"]", "\n"} and self.words:
            self._open_table(is_array=self.header > 1)
        elif piece == "\n":
            self.header = 0

    def _open_table(self, *, is_array: bool) -> None:
        """Begin the table of a header. Its parents that are arrays stand for their last table."""
        path = ""
        for number, word in enumerate(self.words, 1):
            path = _joined(path, word)
            if is_array and number == len(self.words):
                self.counts[path] += 1
                self.lines.setdefault(path, self.line)
            if path in self.counts:
                path = f"{path}[{self.counts[path] - 1}]"
        self.lines.setdefault(path, self.line)
        self.table, self.header = path, 0
        self.words.clear()

    def _after_key(self, piece: str) -> None:
        if piece in {"[", "{"}:
            self.levels.append(_Level(self.value, is_array=piece == "["))
        elif piece == "\n":
            self.value = ""

    def _in_value(self, kind: str, piece: str) -> None:
        level = self.levels[-1]
        if piece in {"]", "}"}:
            self.levels.pop()
        elif piece == ",":
            level.waits, level.count = True, level.count + 1
        elif piece == "=" and not level.is_array:
            self.words, words = [], self.words
            level.waits = False
            path = level.key
            for word in words:
                path = _joined(path, word)
            self.lines.setdefault(path, self.line)
            self.value = path
        elif piece in {"[", "{"}:
            self.levels.append(_Level(self._item(level), is_array=piece == "["))
        elif kind in {"bare", "text"} and level.is_array:
            self._item(level)
        elif kind in {"bare", "text"} and level.waits:
            self.words.append(_plain(kind, piece))

    def _item(self, level: _Level) -> str:
        """Note an item of an array. Return its path, or that of a value in an inline table."""
        if not level.is_array:
            return self.value
        if len(level.key) > _LONGEST_PATH:
            return level.key
        path = f"{level.key}[{level.count}]"
        self.lines.setdefault(path, self.line)
        return path

    def _note_words(self, table: str) -> str:
        path = table
        for word in self.words:
            path = _joined(path, word)
            self.lines.setdefault(path, self.line)
        self.words.clear()
        return path


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(text):
        if match.lastgroup is not None and match.lastgroup != "skip":
            yield match.lastgroup, match[0]


def _plain(kind: str, piece: str) -> str:
    return piece[1:-1] if kind == "text" else piece


def _joined(path: str, word: str) -> str:
    """Return the path of a key in a table, as messages write it."""
    if len(path) > _LONGEST_PATH:
        return path
    word = word if _BARE_KEY.fullmatch(word) else f'"{word}"'
    return f"{path}.{word}" if path else word
