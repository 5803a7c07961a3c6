"""Turns tables of the configuration into typed values.

`build` turns a TOML table into a dataclass, for the server's own settings and for the options of
plugins alike. msgspec converts the values; `for_msgspec` marks the types that it leaves to us. Each
mistake becomes one `ConfigError` that names the file, the path of the key (`plugins[2].path`,
counted from 0) and what was expected. No value is guessed and no key is ignored. A mistake does not
hide the next one, except that values are compared only within tables without mistakes.
"""

import dataclasses
import enum
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from minismtp.config.mistakes import ConfigError, combined, did_you_mean, reason, remedy
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
#: The same, for a field that gets the path of the table itself, such as `plugins[2]`.
OWN_KEY = {"internal": True, "own_key": True}
#: The same, for the one field that gets all keys that are not options of the dataclass.
OTHER_KEYS = {"internal": True, "other_keys": True}


def build(
    cls: type[T],
    table: Mapping[str, object],
    *,
    file: str,
    key: str,
    base: Path,
    reserved: Collection[str] = (),
) -> T:
    """Make an instance of the dataclass `cls` from a table. Raise ConfigError for all mistakes.

    `file` and `key` say where the table is; relative paths in it start at `base`. `reserved` are
    keys of the same table that the caller reads itself. An option with the name of one could never
    be set, so it is an error. The dataclass may refuse its values by raising ValueError in
    `__post_init__`. A text like "path: is empty" names the option in question.
    """
    reader = _Reader(base)
    made = reader.table(cls, table, "", reserved)
    if reader.mistakes or made is None:
        raise combined(reader.mistakes).within(key, file)
    return made


def values_that_are_right(
    cls: type, table: Mapping[str, object], *, base: Path
) -> tuple[dict[str, Any], list[ConfigError]]:
    """Return the values of the keys without mistakes, as arguments of the dataclass `cls`.

    Return the mistakes too. Items of arrays of tables are left out if they have one.
    """
    reader = _Reader(base)
    return reader.values(cls, table, ""), reader.mistakes


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


@dataclass(slots=True)
class _Reader:
    """Reads tables whose relative paths start at `base`, and notes the mistakes in them."""

    base: Path
    mistakes: list[ConfigError] = field(default_factory=list)

    def table(
        self, cls: type[T], table: Mapping[str, object], key: str, reserved: Collection[str] = ()
    ) -> T | None:
        """Make the dataclass from the table at `key`, or return None after a mistake."""
        before = len(self.mistakes)
        try:
            values = self.values(cls, table, key, reserved)
        except ConfigError as error:
            self._note(error, key)
            return None
        if len(self.mistakes) > before:
            return None
        try:
            return cls(**values)
        except ConfigError as error:
            self._note(error, key)
        except OSError as error:
            named = [k for k, v in values.items() if str(v) == str(error.filename)]
            problem = ConfigError(reason(error) + remedy(error), key=(named or [""])[0])
            self._note(problem, key)
        except ValueError as error:
            option, colon, message = str(error).partition(": ")
            known = colon and option in option_types(cls)
            found = ConfigError(message, key=option) if known else ConfigError(str(error))
            self._note(found, key)
        return None

    def values(
        self, cls: type, table: Mapping[str, object], key: str, reserved: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return the values of the options without a mistake."""
        options = option_types(cls)
        for mistake in _mistakes_of_keys(cls, table, options, reserved):
            self._note(mistake, key)
        values: dict[str, Any] = {}
        for name in [name for name in table if name in options]:
            before, place = len(self.mistakes), _join(key, _key_text(name))
            found = self.value(table[name], options[name], place)
            if len(self.mistakes) == before or (isinstance(found, list) and found):
                values[name] = found
        for item in dataclasses.fields(cls):
            if "other_keys" in item.metadata:
                values[item.name] = {k: v for k, v in table.items() if k not in options}
            elif "own_key" in item.metadata:
                values[item.name] = key
        return values

    def value(self, value: object, annotation: Any, key: str) -> Any:  # noqa: ANN401 - any type
        """Return the value at `key` as its type. After a mistake it is incomplete or None."""
        shape = shape_of(annotation)
        bare, origin, arguments = shape.bare, get_origin(shape.bare), get_args(shape.bare)
        if is_table(bare) and isinstance(value, dict):
            return self.table(bare, value, key)
        if origin in TABLES and isinstance(value, dict):
            return {
                name: self.value(item, arguments[1], _join(key, _key_text(name)))
                for name, item in value.items()
            }
        before = len(self.mistakes)
        if origin is list and isinstance(value, list) and is_table(shape_of(arguments[0]).bare):
            value = [self.value(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value)]
            value = [item for item in value if is_table(type(item))]
        try:
            if len(self.mistakes) == before:
                return self._convert(value, annotation)
        except ConfigError as error:
            if origin in LISTS and isinstance(value, list) and origin is not tuple:
                for number, item in enumerate(value):
                    self.value(item, arguments[0], f"{key}[{number}]")
            if len(self.mistakes) == before:
                self._note(error, key)
        return value

    def _note(self, error: ConfigError, key: str) -> None:
        self.mistakes += error.within(key).mistakes

    def _convert(self, value: object, annotation: Any) -> Any:  # noqa: ANN401 - any type
        try:
            return msgspec.convert(value, for_msgspec(annotation), dec_hook=self._read_special)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            key = path.removesuffix("`")
            match error.__cause__:
                case ConfigError() as cause:
                    raise cause.within(key) from error
                case None:
                    message = _in_words(message, value if not key else None)
                case TypeError() as cause:
                    raise cause from None  # a bug in the `__post_init__` of a nested table
            raise ConfigError(message, key=key) from error
        except TypeError as error:
            problem = f"an option cannot have the type {annotation}: {error}"
            raise ConfigError(problem) from error

    def _read_special(self, kind: type, value: object) -> Any:  # noqa: ANN401 - any type
        if not isinstance(kind, Special):
            return value  # msgspec says that it is not one
        if kind.shape.may_be_empty and value == "":
            return None
        bare = kind.shape.bare
        if bare in SCALARS:
            return SCALARS[bare].read(value, self.base)
        if is_table(bare) or get_origin(bare) in TABLES:
            if is_table(bare) and isinstance(value, bare):
                return value
            inner = _Reader(self.base)
            made = inner.value(self._convert(value, dict), bare, "")
            if inner.mistakes:
                raise combined(inner.mistakes)
            return made
        if not (allowed := choices(bare)):
            return self._convert(value, kind.shape.required)
        if value not in allowed:
            raise _not_among(value, allowed)
        return bare(value) if isinstance(bare, type) else value


def _mistakes_of_keys(
    cls: type, table: Collection[str], options: Collection[str], reserved: Collection[str]
) -> Iterator[ConfigError]:
    others = any("other_keys" in each.metadata for each in dataclasses.fields(cls))
    for name in options:
        if name in reserved:
            taken = f"{cls.__name__} has an option of this name, which means something else here"
            yield ConfigError(f"{taken}; rename it there", key=name)
    meant = ""
    for name in table:
        if name not in options and not others:
            known = [*options, *reserved]
            near = did_you_mean(name, known)
            meant += near
            hint = near or f"; known are {', '.join(known)}"
            yield ConfigError(f"unknown key{hint if known else ''}", key=_key_text(name))
    for item in dataclasses.fields(cls):
        missing = item.default is item.default_factory is dataclasses.MISSING
        absent = item.name not in table and f"{item.name!r}" not in meant
        if missing and absent and item.name in options:
            yield ConfigError(f"this key is required; add {item.name} = ...", key=item.name)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _in_words(message: str, value: object) -> str:
    """Return what msgspec says in the words of TOML. `value` is the value that it refused."""
    message = re.sub(r"`(\w+)`", lambda m: _TOML_NAMES.get(m[1], m[1]), message)
    help_ = ""
    match message, value:
        case "Expected array, got table", _:  # the commonest slip
            return "expected an array of tables, each under [[...]] instead of [...]"
        case "Expected array, got string", str():
            help_ = f"; write [{_quoted(value)}]"
        case "Expected boolean, got string", _:
            help_ = "; write true or false, without quotes"
        case ("Expected integer, got string", str()) if value.isdecimal():
            help_ = f"; write {value}, without quotes"
        case (("Expected string, got integer" | "Expected string, got float"), _):
            help_ = f'; write "{value}", in quotes'
    return message[:1].lower() + message[1:] + help_


def _quoted(text: str) -> str:
    return f'"{text}"' if text.isprintable() and '"' not in text else "..."


def _key_text(key: str) -> str:
    """Return a key as TOML writes it."""
    return key if not key or _BARE_KEY.fullmatch(key) else f'"{key}"'


def _not_among(value: object, allowed: list[object]) -> ConfigError:
    texts = [choice for choice in allowed if isinstance(choice, str)]
    expected = ", ".join(f'"{each}"' if each in texts else str(each) for each in allowed)
    hint = did_you_mean(str(value), texts)
    return ConfigError(f"expected one of {expected}, not {value!r}{hint}")
