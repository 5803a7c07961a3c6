"""The targets of an alias: addresses, and what only Postfix can deliver to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from minismtp.cli.import_postfix.alias_graph import Place
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.lookup_table import Pair
from minismtp.cli.postfix_files.text import BLANKS, PostfixError, logical_lines, read_text, unusable
from minismtp.values.address import Address

_INCLUDE: Final = ":include:"
_MOST: Final = 100_000  # targets of one alias


def origin_domain(migration: Migration) -> str:
    """Return the domain of addresses that have none; it may be in a file such as /etc/mailname."""
    value = migration.value("myorigin")
    if not value.startswith("/"):
        return value.lower()
    try:
        text = read_text(migration.directory.locate(value))
    except PostfixError:
        return migration.value("myhostname").lower()
    return text.partition("\n")[0].strip().lower()


def targets_of(migration: Migration, name: str, pair: Pair) -> Iterator[Place]:
    """Yield the targets of an alias that are addresses.

    Others are reported: programs, files and lists, which /etc/aliases may have.
    """
    origin = origin_domain(migration)
    for count, text in enumerate(_texts(migration, pair.value)):
        if count == _MOST:
            migration.by_hand(name, f"{pair.key} has more than {_MOST} targets", pair.place)
            return
        plain = text[1:-1] if text[:2] in {'"|', '"/', '":'} and text[-1] == '"' else text
        if plain[:1] in ("|", "/", ":"):
            migration.by_hand(name, _advice(pair.key, plain), pair.place)
            continue
        try:
            yield _place(plain.removeprefix("\\"), origin)
        except ValueError:
            migration.by_hand(name, f"{pair.key}: {plain!r} is no address", pair.place)


def _place(text: str, origin: str) -> Place:
    if text.startswith("@"):
        return Place("", Address.parse(f"x{text}").ascii_domain)
    quoted = text.startswith('"')
    has_domain = "@" in (text.rpartition('"')[2] if quoted else text)
    address = Address.parse(text if has_domain else f"{text}@{origin}")
    return Place(address.local, address.ascii_domain)


def _advice(key: str, target: str) -> str:
    if target == "/dev/null":
        return f"{key}: mail for it was thrown away; the plugin rules has the action discard"
    if target[0] == "|":
        return f"{key}: {target} is a program; the plugin pipe runs one for each copy"
    return f"{key}: {target} cannot be a target"


def _texts(migration: Migration, value: str) -> Iterator[str]:
    """Yield the targets between commas outside of quotes, and those of a file in :include:."""
    for text in split_targets(value):
        plain = text.strip('"')
        if not plain.startswith(_INCLUDE):
            yield text
            continue
        try:
            content = read_text(migration.directory.locate(plain.removeprefix(_INCLUDE)))
        except PostfixError:
            yield text
            continue
        for line in logical_lines(content):
            if not unusable(line.text):
                yield from split_targets(line.text)


def split_targets(value: str) -> list[str]:
    """Split a list of targets at commas that are not in quotes, and at blanks between addresses."""
    found: list[str] = []
    word: list[str] = []
    in_quotes = escaped = False
    for sign in value:
        if sign == "," and not in_quotes:
            found.append("".join(word))
            word.clear()
            continue
        word.append(sign)
        in_quotes ^= sign == '"' and not escaped
        escaped = sign == "\\" and not escaped
    found.append("".join(word))
    return [target for text in found for target in _between_blanks(text.strip(BLANKS))]


def _between_blanks(text: str) -> list[str]:
    """Return the addresses in a text, as Postfix does; other targets may have blanks in them."""
    has_phrase = any(sign in text for sign in '"<(')
    return [text] if has_phrase or text[:1] in ("|", "/", ":") else text.split()
