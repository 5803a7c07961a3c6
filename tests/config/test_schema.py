import json
import re
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import tomli

from minismtp.config.schema import Option, options, schema, summary
from minismtp.config.types import ByteSize

ROOT = Path(__file__).parents[2]


@dataclass
class Part:
    """One option."""

    size: ByteSize


@dataclass
class Example:
    """Show every kind of option.

    And more about it.
    """

    path: Path
    networks: list[IPv4Network | IPv6Network] = field(default_factory=list)
    wait: timedelta = timedelta(minutes=90)
    size: ByteSize = ByteSize(1 << 20)  # noqa: RUF009 - immutable
    pattern: re.Pattern[str] = re.compile("a+")
    optional: Path | None = None
    headers: dict[str, list[str]] = field(default_factory=dict)
    mode: Literal["on", "off"] = "on"
    share: float = 0.5
    either: int | str = 3
    limit: Annotated[int | None, msgspec.Meta(ge=1), "of things"] = None
    parts: list[Part] = field(default_factory=list)
    made: list[str] = field(default_factory=lambda: ["a", "b"])
    trusted: tuple[IPv4Network, ...] = (IPv4Network("10.0.0.0/8"),)
    strange: object = field(default=IPv4Network, repr=False)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found = schema({"example": Example, "without_extra": None})
    json.dumps(found)
    return found


def plugin_schema(document: dict[str, Any], title: str) -> dict[str, Any]:
    alternatives = document["properties"]["plugins"]["items"]["oneOf"]
    found: dict[str, Any] = next(item for item in alternatives if item["title"] == title)
    return found


def keys(node: dict[str, Any], path: str = "") -> set[str]:
    """Return the path of every key that a schema describes."""
    found = set()
    for name, value in node.get("properties", {}).items():
        found |= {path + name, *keys(value, f"{path}{name}.")}
        found |= keys(value.get("items", {}), f"{path}{name}.")
    return found


def used_keys(table: dict[str, Any], path: str = "") -> set[str]:
    """Return the path of every key that a document has."""
    found = set()
    for name, value in table.items():
        found.add(path + name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                found |= used_keys(item, f"{path}{name}.")
    return found


def test_every_key_of_the_example_configuration_is_described(document: dict[str, Any]) -> None:
    text = (ROOT / "etc" / "minismtp.toml").read_text()
    with_defaults = re.sub(r"^# ([a-z_]+ = )", r"\1", text, flags=re.MULTILINE)
    table = tomli.loads(with_defaults)
    del table["plugins"]
    assert used_keys(table) <= keys(document)


def test_only_keys_of_the_file_are_described(document: dict[str, Any]) -> None:
    assert not keys(document) & {"file", "base"}
    assert not keys(plugin_schema(document, "example")) & {"options", "key"}


def test_every_key_has_a_description(document: dict[str, Any]) -> None:
    def undescribed(node: dict[str, Any]) -> list[str]:
        found = []
        for name, value in node.get("properties", {}).items():
            found += [] if "description" in value else [name]
            found += undescribed(value) + undescribed(value.get("items", {}))
        return found

    assert not undescribed(document)


def test_defaults_are_written_as_in_the_file(document: dict[str, Any]) -> None:
    limits = document["properties"]["limits"]["properties"]
    assert limits["message_size"]["default"] == "25MiB"
    assert limits["command_timeout"]["default"] == "5m"
    assert limits["recipients"]["default"] == 100
    assert document["properties"]["outbound"]["properties"]["retry"]["default"][0] == "1m"
    assert document["properties"]["metrics"]["properties"]["address"]["default"] == "127.0.0.1:9925"


def test_defaults_that_depend_on_the_machine_are_left_out(document: dict[str, Any]) -> None:
    assert "default" not in document["properties"]["hostname"]
    assert "default" not in document["properties"]["state_directory"]


def test_tables_allow_no_other_keys(document: dict[str, Any]) -> None:
    assert document["additionalProperties"] is False
    assert document["properties"]["limits"]["additionalProperties"] is False
    assert plugin_schema(document, "example")["additionalProperties"] is False


def test_plugin_is_described_with_its_own_and_the_common_options(document: dict[str, Any]) -> None:
    found = plugin_schema(document, "example")
    properties = found["properties"]
    assert found["description"] == "Show every kind of option."
    assert found["required"] == ["use", "path"]
    assert properties["use"] == {"const": "example"}
    assert properties["on_error"]["enum"] == ["defer", "ignore"]
    network = {"title": "network", "type": "string"}
    assert properties["networks"] == {"type": "array", "items": network, "default": []}
    assert properties["wait"]["default"] == "1h30m"
    assert properties["size"]["type"] == ["integer", "string"]
    assert properties["mode"] == {"enum": ["on", "off"], "default": "on"}
    assert properties["optional"] == {"anyOf": [{"title": "path", "type": "string"}, {"const": ""}]}
    assert properties["parts"]["items"]["required"] == ["size"]
    assert properties["headers"]["additionalProperties"]["items"] == {"type": "string"}
    assert properties["trusted"]["default"] == ["10.0.0.0/8"]
    number = {"description": "of things", "type": "integer", "minimum": 1}
    assert properties["limit"] == {
        "description": "of things",
        "anyOf": [number, {"const": ""}],
    }
    assert {entry["type"] for entry in properties["either"]["anyOf"]} == {"integer", "string"}


def test_plugin_without_its_extra_may_have_any_options(document: dict[str, Any]) -> None:
    assert plugin_schema(document, "without_extra")["additionalProperties"] is True


def test_plugin_that_is_not_installed_here_is_accepted(document: dict[str, Any]) -> None:
    other = plugin_schema(document, "another plugin")
    assert other["properties"]["use"]["not"] == {"enum": ["example", "without_extra"]}
    assert "additionalProperties" not in other


@pytest.mark.parametrize(
    ("size", "valid"),
    [("25MiB", True), ("10kB", True), ("5 B", True), ("5", True), ("5mb", False), ("x", False)],
)
def test_editors_check_sizes(size: str, valid: bool, document: dict[str, Any]) -> None:
    pattern = document["properties"]["limits"]["properties"]["message_size"]["pattern"]
    assert bool(re.search(pattern, size)) is valid


def test_options_are_listed_with_kind_and_default() -> None:
    assert options(Example) == [
        Option("path", "path", None),
        Option("networks", "list of network", "[]"),
        Option("wait", "duration", '"1h30m"'),
        Option("size", "size", '"1MiB"'),
        Option("pattern", "regular expression", '"a+"'),
        Option("optional", "path", "none"),
        Option("headers", "table of list of string", "{}"),
        Option("mode", '"on" or "off"', '"on"'),
        Option("share", "number", "0.5"),
        Option("either", "integer or string", "3"),
        Option("limit", "integer", "none", "of things"),
        Option("parts", "list of table", "[]"),
        Option("made", "list of string", '["a", "b"]'),
        Option("trusted", "list of network", '["10.0.0.0/8"]'),
        Option("strange", "value", "\"<class 'ipaddress.IPv4Network'>\""),
    ]


def test_class_without_a_docstring_is_summed_up_by_its_module() -> None:
    @dataclass
    class Bare:
        x: int = 0

    Bare.__module__ = "minismtp.config.types"
    assert summary(Bare).startswith("Values that TOML can only write")
