"""Turns tables of the configuration into typed values.

`build` turns a TOML table into a dataclass, for the server's own settings and for the options of
plugins alike. msgspec converts the values; `for_msgspec` marks the types that it leaves to us. Each
mistake becomes one `ConfigError` that names the file, the path of the key (`plugins[2].path`,
counted from 0) and what was expected. No value is guessed and no key is ignored.
"""

import dataclasses
import difflib
import enum
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from minismtp.config.types import SCALARS

T = TypeVar("T")

# The names in TOML of the types that msgspec names in its messages.
_TOML_NAMES = {"int": "integer", "str": "string", "bool": "boolean", "object": "table"}
LISTS = (list, Sequence, tuple, set, frozenset)
TABLES = (dict, Mapping)
_NONE = type(None)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
#: Metadata of a dataclass field that no key of the file sets.
INTERNAL = {"internal": True}
#: The same, for the one field that gets all keys that are not options of the dataclass.
OTHER_KEYS = {"internal": True, "other_keys": True}


class ConfigError(ValueError):
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

    def within(self, key: str, file: str = "") -> "ConfigError":
        """Return the same error as seen from outside the table that stands at `key`."""
        path = ".".join(part for part in (key, self.key) if part)
        return ConfigError(self.message, file=self.file or file, key=path)


def build(
    cls: type[T],
    table: Mapping[str, object],
    *,
    file: str,
    key: str,
    base: Path,
    reserved: Collection[str] = (),
) -> T:
    """Make an instance of the dataclass `cls` from a table. Raise ConfigError.

    `file` and `key` say where the table is; relative paths in it start at `base`. `reserved` are
    keys of the same table that the caller reads itself. An option with the name of one could never
    be set, so it is an error. The dataclass may refuse its values by raising ValueError in
    `__post_init__`. A text like "path: is empty" names the option in question.
    """
    try:
        return _Reader(base).table(cls, table, reserved)
    except ConfigError as error:
        raise error.within(key, file) from error


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return `; did you mean 'x'?` when a known word is similar, else an empty text."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def reason(error: OSError) -> str:
    """Describe in one line why a file or an address could not be used."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def option_types(cls: type) -> dict[str, Any]:
    """Return the options of a dataclass with their types.

    Raise ConfigError when a type cannot be looked up while the program runs.
    """
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"the types of {cls.__name__}'s options are not known while it runs: {error}"
            " (an import below TYPE_CHECKING?)"
        ) from error
    fields = [each for each in dataclasses.fields(cls) if each.init]
    return {each.name: hints[each.name] for each in fields if "internal" not in each.metadata}


class Shape(NamedTuple):
    """A type without `| None` and without Annotated, which become `optional` and `metadata`."""

    bare: Any
    optional: bool
    metadata: tuple[object, ...]

    @property
    def required(self) -> Any:  # noqa: ANN401 - any type
        """The type with its metadata, without None."""
        return Annotated[(self.bare, *self.metadata)] if self.metadata else self.bare

    @property
    def may_be_empty(self) -> bool:
        """Whether `""` stands for None: it is text, but not of this type."""
        return self.optional and (self.bare in SCALARS or self.bare in (int, float))


def shape_of(annotation: Any) -> Shape:  # noqa: ANN401 - any type
    """Take Annotated and `| None` off a type. A text in Annotated is the description of the key."""
    metadata: tuple[object, ...] = ()
    optional = False
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            more = [Meta(description=m) if isinstance(m, str) else m for m in arguments[1:]]
            annotation, metadata = arguments[0], (*more, *metadata)
        elif origin in (Union, types.UnionType) and _NONE in arguments:
            rest = tuple(item for item in arguments if item is not _NONE)
            annotation, optional = Union[rest], True  # noqa: UP007 - made at run time
        else:
            return Shape(annotation, optional, metadata)


class Special(type):
    """A type that msgspec leaves to its hooks; any value that they return is an instance of it."""

    shape: Shape

    def __instancecheck__(cls, _instance: object) -> bool:
        return True


def for_msgspec(annotation: Any) -> Any:  # noqa: ANN401 - any type
    """Return a type as msgspec takes it, with a `Special` for what only we can read.

    These are the scalars that TOML writes as text, tables (msgspec would ignore unknown keys, and
    not tell the key of a wrong value), choices (it would not list them), and numbers that may be
    empty.
    """
    shape = shape_of(annotation)
    bare, origin = shape.bare, get_origin(shape.bare)
    is_ours = bare in SCALARS or is_table(bare) or origin in TABLES or choices(bare)
    if is_ours or shape.may_be_empty:
        return Special("Special", (), {"shape": shape})
    if origin in LISTS:
        items = origin[tuple(for_msgspec(item) for item in get_args(bare))]
        return shape._replace(bare=items).required
    return shape.required


def is_table(bare: Any) -> bool:  # noqa: ANN401 - any type
    """Return whether a type is a dataclass that TOML writes as a table."""
    return dataclasses.is_dataclass(bare) and bare not in SCALARS


def choices(bare: Any) -> list[object]:  # noqa: ANN401 - any type
    """Return the only values that a Literal or an Enum allows; empty for any other type."""
    if get_origin(bare) is Literal:
        return list(get_args(bare))
    is_enum = isinstance(bare, type) and issubclass(bare, enum.Enum)
    return [member.value for member in bare] if is_enum else []


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tables whose relative paths start at `base`; keys in its errors are relative too."""

    base: Path

    def table(self, cls: type[T], table: Mapping[str, object], reserved: Collection[str] = ()) -> T:
        """Make the dataclass. Raise ConfigError."""
        options = option_types(cls)
        _check_keys(cls, table, options, reserved)
        values = {k: self.value(v, options[k], k) for k, v in table.items() if k in options}
        if holder := _other_keys_field(cls):
            values[holder] = {k: v for k, v in table.items() if k not in options}
        try:
            return cls(**values)
        except ConfigError:
            raise
        except OSError as error:
            raise ConfigError(reason(error)) from error
        except ValueError as error:
            option, colon, message = str(error).partition(": ")
            if colon and option in options:
                raise ConfigError(message, key=option) from error
            raise ConfigError(str(error)) from error

    def value(self, value: object, annotation: Any, name: str = "") -> Any:  # noqa: ANN401 - any type
        """Return the value of the key `name` as its type. Raise ConfigError."""
        key = _key_text(name)
        try:
            return msgspec.convert(value, for_msgspec(annotation), dec_hook=self._read_special)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            key += path.removesuffix("`")
            match error.__cause__:
                case ConfigError() as cause:
                    raise cause.within(key) from error
                case None:
                    message = re.sub(r"`(\w+)`", lambda m: _TOML_NAMES.get(m[1], m[1]), message)
                    if message == "Expected array, got table":  # the commonest slip
                        message = "expected an array of tables, each under [[...]] instead of [...]"
                    message = message[:1].lower() + message[1:]
                case TypeError() as cause:
                    raise cause from None  # a bug in the `__post_init__` of a nested table
            raise ConfigError(message, key=key) from error
        except TypeError as error:
            problem = f"an option cannot have the type {annotation}: {error}"
            raise ConfigError(problem, key=key) from error

    def _read_special(self, kind: type, value: object) -> Any:  # noqa: ANN401 - any type
        if not isinstance(kind, Special):
            return value  # msgspec says that it is not one
        if kind.shape.may_be_empty and value == "":
            return None
        bare, arguments = kind.shape.bare, get_args(kind.shape.bare)
        if bare in SCALARS:
            return SCALARS[bare].read(value, self.base)
        if is_table(bare):
            made = isinstance(value, bare)
            return value if made else self.table(bare, self.value(value, dict))
        if get_origin(bare) in TABLES:
            table = self.value(value, dict)
            return {name: self.value(item, arguments[1], name) for name, item in table.items()}
        if not (allowed := choices(bare)):
            return self.value(value, kind.shape.required)
        if value not in allowed:
            raise _not_among(value, allowed)
        return bare(value) if isinstance(bare, type) else value


def _check_keys(
    cls: type, table: Collection[str], options: Collection[str], reserved: Collection[str]
) -> None:
    takes_others = _other_keys_field(cls)
    for name in options:
        if name in reserved:
            problem = f"{cls.__name__} has an option of this name, which means something else here"
            raise ConfigError(problem, key=name)
    for name in table:
        if name not in options and not takes_others:
            known = [*options, *reserved]
            hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
            raise ConfigError(f"unknown key{hint if known else ''}", key=_key_text(name))
    for item in dataclasses.fields(cls):
        missing = item.default is item.default_factory is dataclasses.MISSING
        if missing and item.name in options and item.name not in table:
            raise ConfigError("this key is required", key=item.name)


def _other_keys_field(cls: type) -> str:
    names = [each.name for each in dataclasses.fields(cls) if "other_keys" in each.metadata]
    return names[0] if names else ""


def _key_text(key: str) -> str:
    """Return a key as TOML writes it."""
    return key if not key or _BARE_KEY.fullmatch(key) else f'"{key}"'


def _not_among(value: object, allowed: list[object]) -> ConfigError:
    texts = [choice for choice in allowed if isinstance(choice, str)]
    expected = ", ".join(f'"{each}"' if each in texts else str(each) for each in allowed)
    hint = did_you_mean(str(value), texts)
    return ConfigError(f"expected one of {expected}, not {value!r}{hint}")
