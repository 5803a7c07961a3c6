"""Describes the configuration file to editors and to people.

The source is the types, defaults and descriptions of the dataclasses that hold the configuration.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args, get_origin

import msgspec

from minismtp.config import Config, PluginConfig, default_hostname, default_state_directory
from minismtp.config.toml_values import (
    LISTS,
    TABLES,
    Special,
    choices,
    for_msgspec,
    is_table,
    option_types,
    shape_of,
)
from minismtp.config.types import SCALARS, Network, Scalar

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCALARS_BY_CLASS: Final[dict[type, Scalar]] = {
    get_origin(kind) or kind: scalar for kind, scalar in SCALARS.items() if kind != Network
}
_MISSING: Final = dataclasses.MISSING


class Option(NamedTuple):
    """A key of a table: its `kind`, `default` as in TOML (None = required) and `meaning`."""

    name: str
    kind: str
    default: str | None
    meaning: str = ""


def schema(plugins: Mapping[str, type | None]) -> dict[str, Any]:
    """Return the JSON Schema of the configuration file with the options of these plugins.

    A plugin without a class (one whose extra is missing) may have any options.
    """
    document = _table(Config)
    # Plugins may be installed that the machine that makes the schema does not have.
    not_listed = {"type": "string", "not": {"enum": [*plugins]}}
    other = {"title": "another plugin", "type": "object", "properties": {"use": not_listed}}
    document["properties"]["plugins"]["items"] = {
        "oneOf": [*(_plugin(name, cls) for name, cls in plugins.items()), other]
    }
    return {"$schema": _DIALECT, "title": "minismtp.toml", **document}


def options(cls: type) -> list[Option]:
    """Return the keys of a table, or the options of a plugin, in the order of definition."""
    table = _table(cls)
    found = []
    for name, value in table["properties"].items():
        default = _toml_text(value["default"]) if "default" in value else "none"
        text = None if name in table["required"] else default
        found.append(Option(name, _kind(value), text, value.get("description", "")))
    return found


def tables(cls: type = Config, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield the tables of the file as TOML writes their names, each with its dataclass."""
    for item, annotation in _fields(cls):
        bare = shape_of(annotation).bare
        is_array = get_origin(bare) in LISTS
        inner = shape_of(get_args(bare)[0]).bare if is_array else bare
        if is_table(inner):
            name = f"{path}{item.name}"
            yield (f"[[{name}]]" if is_array else f"[{name}]"), inner
            yield from tables(inner, f"{name}.")


def summary(cls: type) -> str:
    """Return the first line of a plugin's docstring, else of its module's."""
    text = cls.__doc__ or ""
    if not text or text.startswith(f"{cls.__name__}("):  # the default of dataclass
        text = getattr(inspect.getmodule(cls), "__doc__", "") or ""
    return text.strip().partition("\n")[0]


def _plugin(name: str, cls: type | None) -> dict[str, Any]:
    common = _table(PluginConfig)
    own = _table(cls) if cls else {"properties": {}, "required": []}
    return {
        "title": name,
        **({"description": summary(cls)} if cls else {}),
        "type": "object",
        "properties": {**common["properties"], "use": {"const": name}, **own["properties"]},
        "required": [*common["required"], *own["required"]],
        "additionalProperties": cls is None,
    }


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields that are options, those of a base class last."""
    options, own = option_types(cls), [*inspect.get_annotations(cls)]
    found = [(each, options[each.name]) for each in dataclasses.fields(cls) if each.name in options]
    return sorted(found, key=lambda each: [*own, each[0].name].index(each[0].name))


def _table(cls: type) -> dict[str, Any]:
    properties = {}
    required = []
    for item, annotation in _fields(cls):
        default = _default(item)
        properties[item.name] = _value(annotation)
        if default is _MISSING:
            required.append(item.name)
        elif default is not None:
            properties[item.name]["default"] = default
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _value(annotation: Any) -> dict[str, Any]:  # noqa: ANN401 - any type
    """Return the schema of one value, with the descriptions and bounds of `msgspec.Meta`."""
    try:
        return msgspec.json.schema(for_msgspec(annotation), schema_hook=_describe_special)
    except TypeError:
        return {}  # a type that no table can set


def _describe_special(kind: type) -> dict[str, Any]:
    if not isinstance(kind, Special):
        return {}
    shape, arguments = kind.shape, get_args(kind.shape.bare)
    described = [m for m in shape.metadata if isinstance(m, msgspec.Meta) and m.description]
    said = {"description": described[-1].description} if described else {}
    if shape.may_be_empty:
        return {**said, "anyOf": [_value(shape.required), {"const": ""}]}
    if shape.bare in SCALARS:
        return {"title": SCALARS[shape.bare].name, **SCALARS[shape.bare].schema, **said}
    if is_table(shape.bare):
        return {"description": summary(shape.bare), **said, **_table(shape.bare)}
    if get_origin(shape.bare) in TABLES:
        return {**said, "type": "object", "additionalProperties": _value(arguments[1])}
    return {**said, "enum": choices(shape.bare)}


def _kind(value: Mapping[str, Any]) -> str:
    """Name the type of a value as the user has to write it."""
    if "enum" in value:
        return " or ".join(_toml_text(choice) for choice in value["enum"])
    if "anyOf" in value:
        return " or ".join(_kind(each) for each in value["anyOf"] if "const" not in each)
    match value:
        case {"title": str(name)}:
            return name
        case {"type": "array", "items": dict(items)}:
            return f"list of {_kind(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"table of {_kind(values)}"
        case {"type": "object"}:
            return "table"
        case _:
            return str(value.get("type", "value"))


def _default(item: "dataclasses.Field[Any]") -> Any:  # noqa: ANN401 - any JSON
    """Return a field's default as JSON: None if TOML has no word for it, MISSING if required."""
    if item.default is not _MISSING:
        return _toml_value(item.default)
    if item.default_factory is _MISSING:
        return _MISSING
    if item.default_factory in (default_hostname, default_state_directory):
        return None  # they depend on the machine
    default = item.default_factory()
    # A table's keys have defaults of their own.
    return None if dataclasses.is_dataclass(default) else _toml_value(default)


def _toml_value(value: Any) -> Any:  # noqa: ANN401 - any JSON
    for kind, scalar in _SCALARS_BY_CLASS.items():
        if isinstance(value, kind):
            return scalar.write(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_toml_value(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=str)


def _toml_text(value: object) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's as well.
    return json.dumps(value, ensure_ascii=False)
