"""Mistakes in the source of a plugin, each with its place and what to write instead.

The source is read only to explain a mistake, or when an author asks (`check`, `try`), so a plugin
that works costs nothing. Without source, the place is that of the class or method.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, Final

from minismtp.config.mistakes import did_you_mean
from minismtp.values.reply import Defer, Disconnect, Reject

#: Attributes without annotation that mean something to the server.
KNOWN: Final = ("mechanisms", "login_domain", "ignore_case", "unused_hooks", "needs", "after")
#: The attribute that @hookimpl gives to a function.
MARK: Final = "minismtp_impl"
_VERDICTS: Final = tuple(cls.__name__ for cls in (Reject, Defer, Disconnect))
_PREFIX: Final = "on_"  # what most hooks begin with


class DeclarationError(TypeError):
    """A mistake in a plugin's class; the text begins with the file and the line."""


def explained(cls: type, error: ValueError) -> Exception:
    """Return what `dataclass` refused as a message for the author."""
    for name, value in vars(cls).items():
        if name in inspect.get_annotations(cls) and type(value).__hash__ is None:
            written = _option(name, value, _written(cls, name))
            return DeclarationError(
                f"{_place_of_option(cls, name)}: the default of {name} is a {type(value).__name__},"
                f" which all instances would share; write `{written}`"
                " (with `from dataclasses import field`)"
            )
    return error


def no_annotation(cls: type, name: str) -> str:
    """Return why the attribute `name` is no option, "" if it is not an attribute like that."""
    value = inspect.getattr_static(cls, name, None)
    if name in inspect.get_annotations(cls) or not _is_plain(name, value):
        return ""
    return (
        f"{_place_of_option(cls, name)}: {name} has no annotation, so it is not an option;"
        f" write `{_option(name, value, _written(cls, name))}`"
    )


def doubts(instance: object, hooks: Mapping[str, object]) -> Iterator[str]:
    """Yield what is most likely a mistake, though the plugin loads."""
    cls = type(instance)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    known = {field.name for field in fields}
    for name in vars(cls):
        if name not in known and name not in KNOWN and (text := no_annotation(cls, name)):
            yield f"{text}, or call it {name.upper()} if it is a constant"
    for name, method in _functions(cls):
        if name in hooks:
            for kind, line in _returned_verdicts(method):
                file = inspect.unwrap(method).__code__.co_filename
                yield f"{file}:{line}: {name} returns {kind}(...); write `raise {kind}(...)`"
        elif name.startswith(_PREFIX):
            hint = did_you_mean(name, list(hooks)) or "; `minismtp hooks` lists all"
            yield f"{place(method)}: {name} is never called, because no hook has this name{hint}"


def no_hooks(instance: object, hooks: list[str]) -> str:
    """Return why a plugin without any hook does nothing."""
    cls = type(instance)
    near = [(name, did_you_mean(name, hooks)) for name, _ in _functions(cls)]
    hint = next((f"; {name}{each}" for name, each in near if each), "")
    return (
        f"{_class_place(cls)}: {cls.__name__} has no hook, so it does nothing; write @hookimpl"
        f" above a method with the name of a hook, such as on_message{hint}"
    )


def unmarked(module: ModuleType) -> str:
    """Return what to write if a class of the module has hooks, but is no plugin; else ""."""
    for cls in vars(module).values():
        own = isinstance(cls, type) and cls.__module__ == module.__name__
        if own and any(hasattr(method, MARK) for _, method in _functions(cls)):
            return f"; write @plugin above the class {cls.__name__} ({_class_place(cls)})"
    return ""


def wrong_answer(hook: str, method: Callable[..., object], result: object, allowed: object) -> str:
    """Describe a result that a hook may not return, without its value."""
    kind = type(result).__name__
    lines = [line for name, line in _returned_verdicts(method) if name == kind]
    code = getattr(inspect.unwrap(method), "__code__", None)
    at = f" ({code.co_filename}:{lines[0] if lines else code.co_firstlineno})" if code else ""
    if kind in _VERDICTS:
        return f"{hook} returned {kind}{at}; write `raise {kind}(...)`"
    types = allowed if isinstance(allowed, tuple) else (allowed,)
    names = [each.__name__ for each in types]
    if kind in names:
        return f"{hook} returned a {kind} that cannot be sent{at}"
    return f"{hook} returned {kind}{at}; expected {' or '.join([*names, 'None'])}"


def place(method: Callable[..., object]) -> str:
    """Return the file and the line of a method."""
    code = inspect.unwrap(method).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def place_of_failure(error: BaseException) -> str:
    """Return the last line of the plugin's own file that led to the error, "" if none did.

    The first frame of the traceback is the plugin's, unless it could not even be called.
    """
    step = error.__traceback__
    file = step.tb_frame.f_code.co_filename if step else ""
    found = ""
    while step and Path(file).parent != Path(__file__).parent:
        if step.tb_frame.f_code.co_filename == file:
            found = f"{file}:{step.tb_lineno}"
        step = step.tb_next
    return found


def _is_plain(name: str, value: object) -> bool:
    """Return whether an attribute looks like an option: a lower-case name, a value of data."""
    return (
        name.islower()
        and not name.startswith("_")
        and isinstance(value, str | bool | int | float | list | dict | set | tuple)
    )


def _option(name: str, value: object, written: tuple[str, str]) -> str:
    """Return the line that declares an option with this default."""
    annotation, default = written
    default = default or repr(value)
    if type(value).__hash__ is not None:
        return f"{name}: {annotation or _annotation(value)} = {default}"
    default = f"lambda: {default}" if value else type(value).__name__
    return f"{name}: {annotation or _annotation(value)} = field(default_factory={default})"


def _annotation(value: object) -> str:
    items: Any = next(iter(value.items())) if isinstance(value, dict) and value else value
    if isinstance(value, list | dict | set | tuple):
        kinds = dict.fromkeys(type(each).__name__ for each in items) or ["str"]
        inside = ", ".join(kinds) if isinstance(value, dict) else " | ".join(kinds)
        return f"{type(value).__name__}[{inside}{', ...' if isinstance(value, tuple) else ''}]"
    return type(value).__name__


def _functions(cls: type) -> Iterator[tuple[str, Callable[..., object]]]:
    for name, value in vars(cls).items():
        if inspect.isfunction(value):
            yield name, value


def _written(cls: type, name: str) -> tuple[str, str]:
    """Return the annotation and the default of an attribute as its author wrote them."""
    node = _assignment(cls, name)
    annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    return annotation, ast.unparse(node.value) if node is not None and node.value else ""


def _place_of_option(cls: type, name: str) -> str:
    node = _assignment(cls, name)
    if node is None:
        return _class_place(cls)
    return f"{inspect.getfile(cls)}:{node.lineno}"


def _class_place(cls: type) -> str:
    try:
        return f"{inspect.getfile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return cls.__qualname__


def _assignment(cls: type, name: str) -> ast.Assign | ast.AnnAssign | None:
    """Return the statement that assigns an attribute in the class, with its line in the file."""
    for node in _statements(cls):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if any(isinstance(each, ast.Name) and each.id == name for each in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)  # noqa: S101 - it has targets
            return node
    return None


def _statements(thing: type | Callable[..., object]) -> list[ast.stmt]:
    """Return the body of a class or function, with lines of its file; [] without source."""
    try:
        lines, first = inspect.getsourcelines(thing)
        [node] = ast.parse(dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return []
    ast.increment_lineno(node, first - 1)
    return getattr(node, "body", [])


@lru_cache(64)
def _returned_verdicts(method: Callable[..., object]) -> list[tuple[str, int]]:
    """Return the verdicts that a method returns instead of raising them, each with its line."""
    names = getattr(getattr(inspect.unwrap(method), "__code__", None), "co_names", ())
    if not {*_VERDICTS}.intersection(names):
        return []
    nodes = [node for each in _statements(inspect.unwrap(method)) for node in ast.walk(each)]
    calls = [
        (node.value.func.id, node.lineno)
        for node in nodes
        if isinstance(node, ast.Return)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
    ]
    return [(name, line) for name, line in calls if name in _VERDICTS]
