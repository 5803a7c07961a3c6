"""Time grows with the size of the input, never with its square."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import minismtp_plugins
import pytest
from pumps import grows_too_fast, pumps

import minismtp

_METHODS: Final = frozenset(
    {"search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
)
_LENGTH: Final = 1000  # characters

_NO_PATTERN: Final = frozenset({"escape", "purge"})
#: Functions that build a pattern, and why its text is not a stranger's, or is harmless.
_MADE: Final = {
    "minismtp.config.types._pattern": "the operator's, in the configuration",
    "minismtp.cli.import_postfix.header_checks._checked": "the operator's, only compiled",
    "minismtp.runtime.decision_log.mentions": "the operator's, and literals",
    "minismtp.mail.cleanup._fields_called": "the operator's names, at the beginnings of lines",
    "minismtp_plugins.rules._compiled": "the operator's, of a module that stops when told",
    "minismtp_plugins._spf_record.expand": "one class",
    "minismtp_plugins._part_reader._compiled": "literals of 250 octets at most",
}


@dataclass(frozen=True)
class Found:
    """A pattern in the source, and the methods that are called on it, or all if unknown."""

    name: str
    pattern: re.Pattern[Any]
    methods: frozenset[str]


def _modules() -> Iterator[ModuleType]:
    for package in (minismtp, minismtp_plugins):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not info.name.endswith("__main__"):
                yield importlib.import_module(info.name)


def _source(module: ModuleType) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))


def _in_value(value: object, depth: int = 3) -> Iterator[re.Pattern[Any]]:
    """Find patterns in a value, in containers and classes too."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth and isinstance(value, dict):
        for each in (*value, *value.values()):
            yield from _in_value(each, depth - 1)
    elif depth and isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from _in_value(each, depth - 1)
    elif depth and isinstance(value, type) and value.__module__.startswith("minismtp"):
        for each in vars(value).values():
            yield from _in_value(each, depth - 1)


def _called(tree: ast.Module) -> dict[str, set[str]]:
    """Return the names in a module, and what is called on each, or on a part of it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value = node.value.value if isinstance(node.value, ast.Subscript) else node.value
            if isinstance(value, ast.Name):
                found.setdefault(value.id, set()).add(node.attr)
    return found


def _calls(module: ModuleType, tree: ast.Module) -> Iterator[tuple[str, ast.Call, str]]:
    """Yield the calls of functions of `re` and `regex`: the function around, the call, its name."""
    functions = []
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            functions.append(node)  # those inside others come later
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value, name = node.func.value, node.func.attr
            if (
                isinstance(value, ast.Name)
                and value.id in {"re", "regex"}
                and name not in _NO_PATTERN
            ):
                calls.append((node, name))
    for call, name in calls:
        around = [
            each.name
            for each in functions
            if each.lineno <= call.lineno <= (each.end_lineno or each.lineno)
        ]
        yield f"{module.__name__}.{around[-1]}" if around else "", call, name


def _inline(module: ModuleType, tree: ast.Module) -> Iterator[Found]:
    """Find the patterns in calls such as `re.sub("x+", ...)`."""
    for place, call, method in _calls(module, tree):
        if method != "compile" and isinstance(call.args[0], ast.Constant):
            flags = [*call.args[{"sub": 3, "subn": 3}.get(method, 2) :]]
            flags += [each.value for each in call.keywords if each.arg == "flags"]
            value = sum(eval(ast.unparse(each), {"re": re}) for each in flags)  # noqa: S307 - ours
            pattern: re.Pattern[Any] = re.compile(str(call.args[0].value), value)
            if isinstance(call.args[0].value, bytes):
                pattern = re.compile(call.args[0].value, value)
            yield Found(f"{place}:{call.lineno}", pattern, frozenset({method}))


def _patterns() -> list[Found]:
    found: dict[str, Found] = {}
    for module in _modules():
        tree = _source(module)
        called = _called(tree)
        for name, value in vars(module).items():
            for number, pattern in enumerate(_in_value(value)):
                methods = _METHODS
                if isinstance(value, re.Pattern | dict):
                    methods = _METHODS.intersection(called.get(name, ())) or _METHODS
                place = f"{module.__name__}.{name}" + (f"[{number}]" if number else "")
                found[place] = Found(place, pattern, methods)
        found |= {each.name: each for each in _inline(module, tree)}
    return list(found.values())


def _slow(
    pattern: re.Pattern[Any], methods: frozenset[str], size: int = _LENGTH
) -> Iterator[tuple[str, ...]]:
    """Yield the methods and texts for which this pattern needs more than linear time."""
    for prefix, piece, tail in pumps(pattern):
        for method in methods:

            def work(
                length: int,
                prefix: str = prefix,
                piece: str = piece,
                tail: str = tail,
                method: str = method,
            ) -> Callable[[], object]:
                text: Any = prefix + piece * (length // len(piece)) + tail
                if isinstance(pattern.pattern, bytes):
                    text = text.encode("latin-1", "replace")
                if method in {"sub", "subn"}:
                    return lambda: pattern.sub(lambda match: match[0], text)
                if method == "finditer":
                    return lambda: list(pattern.finditer(text))
                return lambda: getattr(pattern, method)(text)

            if grows_too_fast(work, size):
                yield method, prefix, piece, tail


@pytest.mark.parametrize("found", _patterns(), ids=lambda found: found.name)
def test_no_pattern_takes_more_than_linear_time(found: Found) -> None:
    assert next(_slow(found.pattern, found.methods), None) is None


def test_every_pattern_is_seen_by_the_test_above() -> None:
    made = {
        place
        for module in _modules()
        for place, call, method in _calls(module, _source(module))
        if place and (method == "compile" or not isinstance(call.args[0], ast.Constant))
    }
    assert made == set(_MADE)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r'"(?:[^"\\]|\\.)*+"', "sub"),
        (r'([\w./-]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s"]++))', "finditer"),
        (r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})[ \t]*:[ \t]*(.*?)[ \t]*", "fullmatch"),
        (rb"[ \t]*[^ \t]+", "findall"),
        (r"<[^>]*>", "sub"),
        (r"/\*.*?\*/", "sub"),
        (r"x*y", "search"),
    ],
)
def test_slow_patterns_are_found(pattern: str | bytes, method: str) -> None:
    compiled: re.Pattern[Any] = re.compile(pattern, re.DOTALL)
    # Of the usual length, some would take less time than is looked at twice.
    assert next(_slow(compiled, frozenset({method}), 4 * _LENGTH), None) is not None
