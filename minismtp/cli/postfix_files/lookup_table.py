"""Lookup tables (`type:name`), as far as their content can be listed.

Those of a source text (hash, btree, lmdb, cdb, dbm, texthash) are read from that text, as postmap
reads it, and never from the file that postmap made. Databases and directories have no list here:
their settings are kept, for a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.text import (
    BLANKS,
    PostfixError,
    Problem,
    logical_lines,
    name_and_value,
    read_text,
    unbraced,
    unusable,
    words,
)

_TEXT: Final = frozenset({"hash", "btree", "lmdb", "cdb", "dbm", "sdbm", "texthash"})
_PATTERNS: Final = frozenset({"regexp", "pcre"})
_OUTSIDE: Final = frozenset({"mysql", "pgsql", "ldap", "sqlite", "mongodb", "memcache", "redis"})
_KEY: Final = re.compile(r'(?:\\.|"(?:\\.|[^"\\])*+"|[^"\\ \t\n\v\f\r])++', re.DOTALL)
_ALIAS: Final = re.compile(r'[ \t]*+("(?:\\.|[^"\\])*+"|[^":\s][^":]*+)[ \t]*+:')
_PATTERN: Final = re.compile(r"(?s)(!*)[ \t]*([^\sA-Za-z0-9\\])((?:\\.|(?!\2).)*+)\2([a-zA-Z]*)")


class Pair(NamedTuple):
    """A key, its value, and the file and line."""

    key: str
    value: str
    place: str


class Pattern(NamedTuple):
    """A regular expression with its flags, and the value for a text that matches."""

    expression: str
    flags: str
    value: str
    place: str
    is_simple: bool  # neither negated, nor inside of if and endif


@dataclass(frozen=True, slots=True)
class LookupTable:
    """What a table says. Only one of the fields is in use; `trouble` says why none is."""

    name: str
    pairs: tuple[Pair, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    constant: str = ""
    outside: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def kind(self) -> str:
        """The type of the table, such as hash."""
        return self.name.partition(":")[0]

    @property
    def is_listed(self) -> bool:
        """Whether all keys are known."""
        return not (self.trouble or self.patterns or self.constant or self.outside)


def open_table(
    name: str, directory: PostfixDirectory, place: str, *, aliases: bool = False
) -> LookupTable:
    """Return a table; with `aliases` its text has the format of /etc/aliases.

    `place` is where the name of the table is written.
    """
    plain = name.removeprefix("proxy:")
    kind, _, rest = plain.partition(":")
    try:
        if kind == "static" and rest:
            return LookupTable(plain, constant=unbraced(rest))
        if kind == "inline" and rest[:1] == "{":
            return LookupTable(plain, tuple(_inline(unbraced(rest), place)))
        if kind in _TEXT | _PATTERNS | _OUTSIDE | {"cidr"}:
            if not rest.startswith("/"):
                raise PostfixError(f"{rest!r} is no absolute path")  # noqa: TRY301 - as the readers do
            return _from_file(plain, kind, rest, directory, aliases=aliases)
    except PostfixError as error:
        return LookupTable(plain, trouble=str(error))
    if kind == "unix":
        return LookupTable(plain, trouble="it is the list of accounts of the machine")
    what = f"tables of type {kind} have no list" if rest else "it has no type, such as hash:"
    return LookupTable(plain, trouble=what)


def _from_file(
    name: str, kind: str, path: str, directory: PostfixDirectory, *, aliases: bool
) -> LookupTable:
    text = read_text(directory.locate(path))
    problems: list[Problem] = []
    if kind in _OUTSIDE:
        return LookupTable(name, outside=_settings(text, path) or {"file": path})
    if kind in _PATTERNS:
        patterns = tuple(_patterns(text, path, problems))
        return LookupTable(name, patterns=patterns, problems=tuple(problems))
    pairs = _alias_pairs if aliases else _pairs
    return LookupTable(name, tuple(pairs(text, path, problems)), problems=tuple(problems))


def _usable(text: str, file: str, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Yield the lines that can be used, each with its place."""
    for number, line in logical_lines(text):
        if problem := unusable(line):
            problems.append(Problem(f"{file}:{number}", problem))
        else:
            yield f"{file}:{number}", line


def _pairs(text: str, file: str, problems: list[Problem]) -> Iterator[Pair]:
    """Yield `key whitespace value`."""
    for place, line in _usable(text, file, problems):
        key = _KEY.match(line)
        value = line[key.end() :].strip(BLANKS) if key else ""
        if key is None or not value or line[key.end()] not in BLANKS:
            problems.append(Problem(place, "expected a key, a blank and a value"))
        else:
            yield Pair(key[0], value, place)


def _alias_pairs(text: str, file: str, problems: list[Problem]) -> Iterator[Pair]:
    """Yield `key: value`."""
    for place, line in _usable(text, file, problems):
        key = _ALIAS.match(line)
        value = line[key.end() :].strip(BLANKS) if key else ""
        if key is None or not value:
            problems.append(Problem(place, "expected `alias: target, target`"))
        else:
            yield Pair(key[1].strip(BLANKS), value, place)


def _patterns(text: str, file: str, problems: list[Problem]) -> Iterator[Pattern]:
    """Yield `/pattern/flags value`."""
    depth = 0
    for place, line in _usable(text, file, problems):
        start = line.split(None, 1)[0].lower()
        if start == "endif":
            depth = max(depth - 1, 0)
            continue
        if start == "if":
            depth += 1
            continue
        found = _PATTERN.match(line)
        value = line[found.end() :].strip(BLANKS) if found else ""
        if found is None or not value:
            problems.append(Problem(place, "expected `/pattern/flags value`"))
        else:
            yield Pattern(found[3], found[4], value, place, not (found[1] or depth))


def _settings(text: str, file: str) -> dict[str, str]:
    """Return the settings of a database. Those that cannot be read are left out."""
    found = {}
    for _, line in _usable(text, file, []):
        try:
            name, value = name_and_value(line)
        except PostfixError:
            continue
        found[name] = value
    return found


def _inline(text: str, place: str) -> Iterator[Pair]:
    for word in words(text):
        key, value = name_and_value(unbraced(word))
        yield Pair(key, value, place)
