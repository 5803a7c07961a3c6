"""Tables of the configuration become typed values.

`build` turns a TOML table into a dataclass, for the server's own settings and for the options of
plugins alike. Whatever is wrong becomes one `ConfigError` that names the file, the path of the key
(`plugins[2].path`, counted from 0) and what was expected; nothing is guessed and nothing ignored.
"""

import dataclasses
import difflib
import enum
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from minismtp.config.types import SCALARS, ByteSize, SocketAddress

__all__ = [
    "ByteSize",
    "ConfigError",
    "Shape",
    "SocketAddress",
    "build",
    "did_you_mean",
    "option_types",
    "reason",
    "shape_of",
]

T = TypeVar("T")

# What TOML calls the types that msgspec names in its messages.
_TOML_NAMES = {"int": "integer", "str": "string", "bool": "boolean", "object": "table"}
_LISTS = {list: list, Sequence: list, tuple: tuple, set: set, frozenset: frozenset}
_NONE = type(None)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class ConfigError(Exception):
    """A mistake in the configuration; `str()` is the whole line for the user.

    A dataclass may raise it in `__post_init__` with a `key` relative to its own table.
    """

    def __init__(self, message: str, *, file: str = "", key: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.key = key

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)


def build(
    cls: type[T],
    table: Mapping[str, object],
    *,
    file: str,
    key: str,
    base: Path,
    given: Mapping[str, object] | None = None,
    reserved: Collection[str] = (),
) -> T:
    """Make an instance of the dataclass `cls` from a table. Raise ConfigError.

    `file` and `key` say where the table stands, relative paths in it start at `base`. `given` holds
    fields that no table may set. `reserved` are keys of the same table that somebody else reads: an
    option of the same name would never be set, so it is an error. The dataclass may refuse in
    `__post_init__` by a ValueError; a text like "path: is empty" is taken to be about that option.
    """
    return _Place(file, key, base).build(cls, table, given or {}, reserved)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return `; did you mean 'x'?` when a known word is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def reason(error: OSError) -> str:
    """Say in one line why a file or an address could not be had."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def option_types(cls: type) -> dict[str, Any]:
    """Return the options of a dataclass with their types. Raise TypeError for an unknown type."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"the types of {cls.__name__}'s options are not known while it runs: {error}"
            " (an import below TYPE_CHECKING?)"
        ) from error
    return {item.name: hints[item.name] for item in dataclasses.fields(cls) if item.init}


@dataclass(frozen=True, slots=True)
class Shape:
    """A type without what surrounds it: `optional` = None may stand for it; and its metadata."""

    bare: Any
    optional: bool
    metadata: tuple[object, ...]

    @property
    def whole(self) -> Any:  # noqa: ANN401 - any type
        """The bare type with its metadata, for msgspec."""
        return Annotated[(self.bare, *self.metadata)] if self.metadata else self.bare

    @property
    def may_be_empty(self) -> bool:
        """Whether `""` says that there is no value: it is a text, but none of this type's."""
        return self.optional and (self.bare in SCALARS or self.bare in (int, float))

    @property
    def items(self) -> Any:  # noqa: ANN401 - any type
        """The type of each element when this is a list of some kind, else None."""
        arguments = get_args(self.bare)
        origin = get_origin(self.bare)
        if origin not in _LISTS or (origin is tuple and arguments[1:] != (Ellipsis,)):
            return None
        return arguments[0]

    @property
    def values(self) -> Any:  # noqa: ANN401 - any type
        """The type of each value when this is a table of any keys, else None."""
        return get_args(self.bare)[1] if get_origin(self.bare) in (dict, Mapping) else None

    @property
    def choices(self) -> list[object]:
        """The only values allowed, empty when there are others."""
        if get_origin(self.bare) is Literal:
            return list(get_args(self.bare))
        if isinstance(self.bare, type) and issubclass(self.bare, enum.Enum):
            return [member.value for member in self.bare]
        return []


def shape_of(annotation: Any) -> Shape:  # noqa: ANN401 - any type
    """Take Annotated and `| None` off a type."""
    metadata: tuple[object, ...] = ()
    optional = False
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, metadata = arguments[0], (*arguments[1:], *metadata)
        elif origin in (Union, types.UnionType) and _NONE in arguments:
            rest = tuple(item for item in arguments if item is not _NONE)
            annotation, optional = Union[rest], True  # noqa: UP007 - made at run time
        else:
            return Shape(annotation, optional, metadata)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands; makes the value and the errors about it."""

    file: str
    key: str
    base: Path

    def below(self, name: str) -> "_Place":
        name = name if _BARE_KEY.fullmatch(name) else f'"{name}"'
        return _Place(self.file, f"{self.key}.{name}" if self.key else name, self.base)

    def item(self, index: int) -> "_Place":
        return _Place(self.file, f"{self.key}[{index}]", self.base)

    def error(self, message: str) -> ConfigError:
        return ConfigError(message, file=self.file, key=self.key)

    def build(
        self,
        cls: type[T],
        table: Mapping[str, object],
        given: Mapping[str, object],
        reserved: Collection[str],
    ) -> T:
        try:
            hints = option_types(cls)
        except TypeError as error:
            raise self.error(str(error)) from error
        options = {name: hint for name, hint in hints.items() if name not in given}
        self._check_keys(cls, table, options, reserved)
        values = {name: self.below(name).convert(table[name], options[name]) for name in table}
        try:
            return cls(**given, **values)
        except ConfigError as error:
            key = ".".join(part for part in (self.key, error.key) if part)
            raise ConfigError(error.message, file=error.file or self.file, key=key) from error
        except OSError as error:
            raise self.error(reason(error)) from error
        except ValueError as error:
            option, colon, message = str(error).partition(": ")
            if colon and option in options:
                raise self.below(option).error(message) from error
            raise self.error(str(error)) from error

    def _check_keys(
        self,
        cls: type,
        table: Mapping[str, object],
        options: Collection[str],
        reserved: Collection[str],
    ) -> None:
        for name in options:
            if name in reserved:
                raise self.below(name).error(
                    f"{cls.__name__} has an option of this name, which means something else here"
                )
        for name in table:
            if name not in options:
                known = [*options, *reserved]
                hint = did_you_mean(name, known) or f"; known are {', '.join(known) or 'none'}"
                raise self.below(name).error(f"unknown key{hint}")
        for item in dataclasses.fields(cls):
            missing = item.default is item.default_factory is dataclasses.MISSING
            if missing and item.name in options and item.name not in table:
                raise self.below(item.name).error("this key is required")

    def convert(self, value: object, annotation: Any) -> Any:  # noqa: ANN401 - any type
        """Return `value` as the type asks for. Raise ConfigError."""
        shape = shape_of(annotation)
        if shape.may_be_empty and value == "":
            return None
        if shape.bare in SCALARS:
            return self._scalar(value, shape)
        if dataclasses.is_dataclass(shape.bare):
            return self._dataclass(value, shape)
        if shape.items is not None:
            if isinstance(value, dict):  # the commonest slip with arrays of tables
                raise self.error(f"expected an array, so [[{self.key}]] instead of [{self.key}]")
            values = self._plain(value, list, shape)
            converted = [self.item(i).convert(v, shape.items) for i, v in enumerate(values)]
            return _LISTS[get_origin(shape.bare)](converted)
        if shape.values is not None:
            table = self._plain(value, dict, shape)
            return {name: self.below(name).convert(v, shape.values) for name, v in table.items()}
        if shape.choices and value not in shape.choices:
            raise self._not_among(value, shape.choices)
        return self._plain(value, shape.bare, shape)

    def _scalar(self, value: object, shape: Shape) -> Any:  # noqa: ANN401 - any type
        try:
            return SCALARS[shape.bare].read(value, self.base)
        except ValueError as error:
            raise self.error(str(error)) from error

    def _dataclass(self, value: object, shape: Shape) -> Any:  # noqa: ANN401 - any type
        if isinstance(value, shape.bare):
            return value
        return self.build(shape.bare, self._plain(value, dict, shape), {}, ())

    def _not_among(self, value: object, choices: list[object]) -> ConfigError:
        expected = ", ".join(
            f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in choices
        )
        hint = did_you_mean(str(value), [choice for choice in choices if isinstance(choice, str)])
        return self.error(f"expected one of {expected}, not {value!r}{hint}")

    def _plain(self, value: object, bare: Any, shape: Shape) -> Any:  # noqa: ANN401 - any type
        """Convert what msgspec knows how to, with the constraints of `msgspec.Meta`."""
        try:
            return msgspec.convert(value, dataclasses.replace(shape, bare=bare).whole)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            message = re.sub(r"`(\w+)`", lambda m: _TOML_NAMES.get(m[1], m[1]), message)
            place = dataclasses.replace(self, key=self.key + path.removesuffix("`"))
            raise place.error(message[:1].lower() + message[1:]) from error
        except TypeError as error:
            raise self.error(f"an option cannot have the type {bare}: {error}") from error
