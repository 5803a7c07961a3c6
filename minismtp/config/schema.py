"""What may stand in a configuration, told to editors and to people.

Made from the types, defaults and descriptions of the same dataclasses as the configuration itself.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, get_origin

import msgspec

from minismtp.config import Config, PluginConfig, default_hostname, default_state_directory
from minismtp.config.toml_values import Shape, option_types, shape_of
from minismtp.config.types import SCALARS, Network, Scalar

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# Fields that the program sets; no keys of the configuration.
_INTERNAL: Final[dict[type, set[str]]] = {
    Config: {"file", "base"},
    PluginConfig: {"options", "key"},
}
_SCALARS_BY_CLASS: Final[dict[type, Scalar]] = {
    get_origin(kind) or kind: scalar for kind, scalar in SCALARS.items() if kind != Network
}
_MISSING: Final = dataclasses.MISSING


class Option(NamedTuple):
    """A key of a table: `kind` of value, `default` as in TOML (None: required), and `meaning`."""

    name: str
    kind: str
    default: str | None
    meaning: str = ""


def schema(plugins: Mapping[str, type | None]) -> dict[str, Any]:
    """Return the JSON Schema of the configuration file, with the options of these plugins.

    A plugin without a class (one whose extra is missing) may have any options.
    """
    document = _table(Config)
    document["properties"]["plugins"]["items"] = {
        "oneOf": [*(_plugin(name, cls) for name, cls in plugins.items()), _other(list(plugins))]
    }
    return {"$schema": _DIALECT, "title": "minismtp.toml", **document}


def options(cls: type) -> list[Option]:
    """Return the keys of a table or a plugin in the order of their definition."""
    found = []
    for item, annotation in _fields(cls):
        default, shape = _default(item), shape_of(annotation)
        text = None if default is _MISSING else "none" if default is None else _toml(default)
        meaning = _said(shape).get("description", "")
        found.append(Option(item.name, _kind(shape), text, meaning))
    return found


def tables(cls: type = Config, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield the tables of the file as TOML writes their names, each with its dataclass."""
    for item, annotation in _fields(cls):
        shape = shape_of(annotation)
        inner = shape if shape.items is None else shape_of(shape.items)
        if _kind(inner) == "table":
            name = f"{path}{item.name}"
            yield (f"[{name}]" if shape.items is None else f"[[{name}]]"), inner.bare
            yield from tables(inner.bare, f"{name}.")


def summary(cls: type) -> str:
    """Return the first line of a plugin's docstring, else of its module's."""
    text = cls.__doc__ or ""
    if not text or text.startswith(f"{cls.__name__}("):  # what dataclass puts where there is none
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


def _other(names: list[str]) -> dict[str, Any]:
    """Let an editor accept plugins that are not installed where the schema was made."""
    other = {"type": "string", "not": {"enum": names}}
    return {"title": "another plugin", "type": "object", "properties": {"use": other}}


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    types = option_types(cls)
    internal = _INTERNAL.get(cls, set())
    return [
        (item, types[item.name])
        for item in dataclasses.fields(cls)
        if item.name in types and item.name not in internal
    ]


def _table(cls: type) -> dict[str, Any]:
    properties = {}
    required = []
    for item, annotation in _fields(cls):
        default = _default(item)
        properties[item.name] = _value(shape_of(annotation))
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


def _value(shape: Shape) -> dict[str, Any]:
    """Return the schema of one value; what `msgspec.Meta` says of it is kept."""
    said = _said(shape)
    if shape.may_be_empty:
        present = dataclasses.replace(shape, optional=False)
        return {**said, "anyOf": [_value(present), {"const": ""}]}
    if shape.bare in SCALARS:
        return {**said, **SCALARS[shape.bare].schema}
    if isinstance(shape.bare, type) and dataclasses.is_dataclass(shape.bare):
        return {"description": summary(shape.bare), **said, **_table(shape.bare)}
    if shape.items is not None:
        return {**said, "type": "array", "items": _value(shape_of(shape.items))}
    if shape.values is not None:
        values = _value(shape_of(shape.values))
        return {**said, "type": "object", "additionalProperties": values}
    if shape.choices:
        return {**said, "enum": shape.choices}
    return _plain(shape)


def _said(shape: Shape) -> dict[str, Any]:
    said = [m.description for m in shape.metadata if isinstance(m, msgspec.Meta) and m.description]
    return {"description": said[-1]} if said else {}


def _kind(shape: Shape) -> str:
    """Name a type as the user has to write it."""
    if shape.bare in SCALARS:
        return SCALARS[shape.bare].name
    if dataclasses.is_dataclass(shape.bare):
        return "table"
    if shape.items is not None:
        return f"list of {_kind(shape_of(shape.items))}"
    if shape.values is not None:
        return f"table of {_kind(shape_of(shape.values))}"
    if shape.choices:
        return " or ".join(_toml(choice) for choice in shape.choices)
    found = _plain(shape)
    kinds = [entry.get("type", "value") for entry in found.get("anyOf", [found])]
    return " or ".join(kinds)


def _plain(shape: Shape) -> dict[str, Any]:
    try:
        return msgspec.json.schema(shape.whole)
    except TypeError:
        return {}  # a type that no table can set


def _default(item: "dataclasses.Field[Any]") -> Any:  # noqa: ANN401 - any JSON
    """Return a field's default as JSON: None if TOML has no word for it, MISSING if required."""
    if item.default is not _MISSING:
        return _written(item.default)
    if item.default_factory is _MISSING:
        return _MISSING
    if item.default_factory in (default_hostname, default_state_directory):
        return None  # they depend on the machine
    default = item.default_factory()
    # A table's keys have defaults of their own.
    return None if dataclasses.is_dataclass(default) else _written(default)


def _written(value: Any) -> Any:  # noqa: ANN401 - any JSON
    for kind, scalar in _SCALARS_BY_CLASS.items():
        if isinstance(value, kind):
            return scalar.write(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_written(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=str)


def _toml(value: object) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's as well.
    return json.dumps(value, ensure_ascii=False)
