"""`$name` in values of Postfix, with its conditions: `${name?{a}:{b}}`, `${{a} == {b} ? {c}}`.

The names are looked up one in the other, as Postfix does it. It allows 100 levels; here the whole
work for one value is bounded too, because a few lines can name each other a billion times.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from minismtp.cli.postfix_files.text import PostfixError

#: Returns the raw value of a parameter, or None if there is no such parameter.
Lookup: TypeAlias = Callable[[str], str | None]

_LEVELS: Final = 100
_WORK: Final = 1 << 20  # characters that may be looked at for one value
_SPACE: Final = " \t\r\n"
_DOLLAR: Final = re.compile(r"\$(?:(\$)|([({])|([A-Za-z0-9_]*))")
_NAME: Final = re.compile(r"[ \t\r\n]*([A-Za-z0-9_]*)[ \t\r\n]*")
_OPERATOR: Final = re.compile(r"(==|!=|<=|>=|<|>)(level)?[ \t\r\n]*")
_BRACES: Final = {"{": re.compile(r"[{}]"), "(": re.compile(r"[()]")}
_DIGITS: Final = re.compile(r"[0-9]+")


def expanded(text: str, lookup: Lookup) -> str:
    """Return a value with all names replaced. Raise PostfixError."""
    return _Expansion(lookup).of(text)


class _Expansion:
    """The replacement of one value."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._left = _WORK
        self._level = 0

    def of(self, text: str) -> str:
        """Return a text with its names replaced."""
        self._left -= len(text) + 1
        if self._level > _LEVELS or self._left < 0:
            raise PostfixError("names that contain each other, without an end")
        self._level += 1
        found, end = [], 0
        while match := _DOLLAR.search(text, end):
            found.append(text[end : match.start()])
            end = match.end()
            if match[1]:
                found.append("$")
            elif match[2]:
                inside, end = _balanced(text, end - 1)
                found.append(self._expression(inside))
            else:
                found.append(self._named(match[3]))
        found.append(text[end:])
        self._level -= 1
        return "".join(found)

    def _named(self, name: str) -> str:
        if not name:
            raise PostfixError("a $ without a name")
        return self.of(self._lookup(name) or "")

    def _expression(self, text: str) -> str:
        """Return the value of the text inside of `${...}`."""
        self._left -= len(text)
        if text.lstrip(_SPACE)[:1] == "{":
            tested, rest = self._comparison(text.lstrip(_SPACE))
        else:
            match = _NAME.match(text)
            assert match is not None  # noqa: S101 - it matches every text
            name, rest = match[1], text[match.end() :]
            if not rest:
                return self._named(name)
            tested = self._lookup(name) or ""
        if not rest:
            return self.of(tested)
        if rest[0] not in "?:":
            raise PostfixError(f"`${{{text[:40]}` has something else than ? or : after the name")
        return self._chosen(rest, wanted=bool(tested))

    def _chosen(self, rest: str, *, wanted: bool) -> str:
        """Return the value of `?{a}:{b}`, `?a`, `:{b}` or `:b`."""
        result = ""
        for sign in "?:":
            if rest[:1] != sign:
                continue
            part = rest[1:]
            if part.lstrip(_SPACE)[:1] == "{":
                part = part.lstrip(_SPACE)
                operand, end = _balanced(part, 0)
                rest = part[end:].lstrip(_SPACE)
            else:
                operand, rest = part, ""
            if wanted == (sign == "?"):
                result = self.of(operand)
        if rest:
            raise PostfixError(f"unexpected text {rest[:40]!r} after a condition")
        return result

    def _comparison(self, text: str) -> tuple[str, str]:
        """Return "true" or "" for `{a} == {b}`, and the rest."""
        left, end = _balanced(text, 0)
        operator = _OPERATOR.match(text, end + len(text[end:]) - len(text[end:].lstrip(_SPACE)))
        if operator is None or text[operator.end() : operator.end() + 1] != "{":
            raise PostfixError("expected a comparison such as `{$a} == {b}`")
        right, end = _balanced(text, operator.end())
        order = _order(self.of(left), self.of(right), by_level=bool(operator[2]))
        is_true = {
            "==": order == 0,
            "!=": order != 0,
            "<": order < 0,
            "<=": order <= 0,
            ">": order > 0,
            ">=": order >= 0,
        }[operator[1]]
        return "true" if is_true else "", text[end:].lstrip(_SPACE)


def _balanced(text: str, start: int) -> tuple[str, int]:
    """Return the text inside of the brace at `start`, and the place after its end."""
    level = 0
    for match in _BRACES[text[start]].finditer(text, start):
        level += 1 if match[0] in "({" else -1
        if level == 0:
            return text[start + 1 : match.start()], match.end()
    raise PostfixError(f"`{text[start : start + 40]}` has no end")


def _order(left: str, right: str, *, by_level: bool) -> int:
    """Compare two numbers, levels such as 3.6, or other texts. Return -1, 0 or 1."""
    if by_level:
        first, second = ([int(each) for each in _DIGITS.findall(text)] for text in (left, right))
        longest = max(len(first), len(second))
        first += [0] * (longest - len(first))
        second += [0] * (longest - len(second))
        return (first > second) - (first < second)
    if _DIGITS.fullmatch(left) and _DIGITS.fullmatch(right):
        one, other = left.lstrip("0"), right.lstrip("0")
        numbers = (len(one), one), (len(other), other)
        return (numbers[0] > numbers[1]) - (numbers[0] < numbers[1])
    return (left > right) - (left < right)
