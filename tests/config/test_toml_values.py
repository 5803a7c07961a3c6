import enum
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest

from minismtp.config.mistakes import ConfigError, did_you_mean, reason
from minismtp.config.toml_values import INTERNAL, OTHER_KEYS, build
from minismtp.config.types import ByteSize

BASE = Path("/etc/minismtp")


def make(cls: type[Any], table: dict[str, object], **more: Any) -> Any:  # noqa: ANN401 - any class
    return build(cls, table, file="x.toml", key="plugins[2]", base=BASE, **more)


def problem(cls: type[Any], table: dict[str, object], **more: Any) -> str:  # noqa: ANN401 - passed on
    with pytest.raises(ConfigError) as caught:
        make(cls, table, **more)
    return str(caught.value)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    path: Path
    depth: int = 1


@dataclass
class Everything:
    text: str = ""
    number: int = 0
    part: float = 0.0
    flag: bool = False
    anything: Any = None
    choice: Literal["on", "off", 3] = "on"
    colour: Colour = Colour.RED
    either: int | str = 0
    optional_text: str | None = None
    optional_path: Path | None = None
    optional_part: float | None = 1.0
    paths: list[Path] = field(default_factory=list)
    waits: tuple[timedelta, ...] = ()
    pair: tuple[int, str] = (0, "")
    names: frozenset[str] = frozenset()
    sequence: Sequence[ByteSize] = ()
    networks: list[IPv4Network | IPv6Network] = field(default_factory=list)
    optional_network: IPv4Network | IPv6Network | None = None
    patterns: dict[str, re.Pattern[str]] = field(default_factory=dict)
    mapping: Mapping[str, list[int]] = field(default_factory=dict)
    inner: Inner = field(default_factory=lambda: Inner(Path()))
    optional_inner: Inner | None = None
    inners: list[Inner] = field(default_factory=list)
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    few: Annotated[list[str], msgspec.Meta(max_length=2)] = field(default_factory=list)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("text", "x", "x"),
        ("number", 5, 5),
        ("part", 5, 5.0),
        ("flag", True, True),
        ("anything", [1, {"a": 2}], [1, {"a": 2}]),
        ("choice", "off", "off"),
        ("choice", 3, 3),
        ("colour", "blue", Colour.BLUE),
        ("either", "x", "x"),
        ("optional_text", "", ""),
        ("optional_path", "x", BASE / "x"),
        ("optional_path", "", None),
        ("optional_part", 2, 2.0),
        ("optional_part", "", None),
        ("paths", ["a", "/b"], [BASE / "a", Path("/b")]),
        ("waits", ["1m", "2m"], (timedelta(minutes=1), timedelta(minutes=2))),
        ("pair", [1, "x"], (1, "x")),
        ("names", ["a", "a"], frozenset({"a"})),
        ("sequence", [1, "1KiB"], [1, 1024]),
        ("networks", ["10.0.0.0/8", "::1"], [IPv4Network("10.0.0.0/8"), IPv6Network("::1")]),
        ("optional_network", "10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        ("patterns", {"x": "a+"}, {"x": re.compile("a+")}),
        ("mapping", {"x": [1]}, {"x": [1]}),
        ("inner", {"path": "p"}, Inner(BASE / "p")),
        ("inner", Inner(Path("made"), 7), Inner(Path("made"), 7)),
        ("optional_inner", {"path": "p", "depth": 2}, Inner(BASE / "p", 2)),
        ("inners", [{"path": "p"}], [Inner(BASE / "p")]),
        ("count", 3, 3),
        ("few", ["a"], ["a"]),
    ],
    ids=str,
)
def test_toml_value_becomes_the_type_of_its_field(
    option: str, value: object, expected: object
) -> None:
    found = getattr(make(Everything, {option: value}), option)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"text": 5}, "text: expected string, got integer"),
        ({"number": "5"}, "number: expected integer, got string"),
        ({"number": True}, "number: expected integer, got boolean"),
        ({"flag": 1}, "flag: expected boolean, got integer"),
        ({"choice": "of"}, 'choice: expected one of "on", "off", 3, not \'of\'; did you mean'),
        ({"choice": ["on"]}, "choice: expected one of"),
        ({"colour": "rot"}, 'colour: expected one of "red", "blue", not'),
        ({"paths": "a"}, "paths: expected array, got string"),
        ({"paths": ["a", 5]}, "paths[1]: expected a string"),
        ({"paths": [""]}, "paths[0]: expected a path"),
        ({"pair": [1, 2]}, "pair[1]: expected string, got integer"),
        ({"patterns": {"a b": "("}}, 'patterns."a b": expected a regular expression'),
        ({"mapping": {"x": ["y"]}}, "mapping.x[0]: expected integer, got string"),
        ({"mapping": 5}, "mapping: expected table, got integer"),
        ({"inner": 5}, "inner: expected table, got integer"),
        ({"inner": {}}, "inner.path: this key is required"),
        ({"inner": {"path": "x", "dept": 1}}, "inner.dept: unknown key; did you mean 'depth'?"),
        ({"inners": [{"path": "x"}, {"path": 5}]}, "inners[1].path: expected a string"),
        (
            {"inners": {"path": "x"}},
            "inners: expected an array of tables, each under [[...]] instead",
        ),
        ({"count": 0}, "count: expected integer >= 1"),
        ({"few": ["a", "b", "c"]}, "few: expected array of length <= 2"),
        ({"nmber": 1}, "nmber: unknown key; did you mean 'number'?"),
    ],
    ids=str,
)
def test_mistake_is_told_with_file_and_key_path(table: dict[str, object], expected: str) -> None:
    assert problem(Everything, table).startswith(f"x.toml: plugins[2].{expected}")


def test_unknown_key_unlike_any_other_lists_those_that_there_are() -> None:
    assert problem(Inner, {"path": "x", "zzz": 1}).endswith("unknown key; known are path, depth")


def test_unknown_key_of_a_table_without_options_is_told() -> None:
    @dataclass
    class Nothing:
        pass

    assert problem(Nothing, {"x": 1}).endswith("x: unknown key")


def test_misspelt_key_is_told_before_the_missing_one_that_it_was_meant_to_be() -> None:
    assert "pth: unknown key; did you mean 'path'?" in problem(Inner, {"pth": "x"})


def test_misspelt_common_key_is_recognized() -> None:
    message = problem(Inner, {"path": "x", "on_eror": "ignore"}, reserved=["on_error", "mode"])
    assert "did you mean 'on_error'?" in message


def test_option_that_shares_its_name_with_a_common_key_is_refused() -> None:
    message = problem(Inner, {}, reserved=["path"])
    assert message.startswith("x.toml: plugins[2].path: Inner has an option of this name")


def test_internal_fields_are_no_keys() -> None:
    @dataclass
    class Placed:
        depth: int = 1
        file: str = field(default="", metadata=INTERNAL)

    assert make(Placed, {"depth": 9}).file == ""
    assert "file: unknown key" in problem(Placed, {"file": "x"})


def test_one_field_may_take_the_keys_that_are_no_options() -> None:
    @dataclass
    class Open:
        depth: int = 1
        options: dict[str, object] = field(default_factory=dict, metadata=OTHER_KEYS)

    made = make(Open, {"depth": 9, "zzz": 1, "options": 2})
    assert (made.depth, made.options) == (9, {"zzz": 1, "options": 2})


def test_fields_outside_init_are_no_options() -> None:
    @dataclass
    class Counting:
        limit: int = 1
        _: KW_ONLY
        unit: str = "s"
        shared: ClassVar[int] = 0
        seen: int = field(default=0, init=False)

    made = make(Counting, {"limit": 2, "unit": "m"})
    assert (made.limit, made.unit) == (2, "m")
    assert "seen: unknown key" in problem(Counting, {"seen": 1})
    assert "shared: unknown key" in problem(Counting, {"shared": 1})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("both are empty"), "x.toml: plugins[2]: both are empty"),
        (ValueError("path: is empty"), "x.toml: plugins[2].path: is empty"),
        (ValueError("note: is empty"), "x.toml: plugins[2]: note: is empty"),
        (ConfigError("is empty", key="path"), "x.toml: plugins[2].path: is empty"),
        (ConfigError("is empty"), "x.toml: plugins[2]: is empty"),
        (ConfigError("is empty", file="y.toml"), "y.toml: plugins[2]: is empty"),
        (
            FileNotFoundError(2, "No such file", "users"),
            "x.toml: plugins[2]: users: No such file; make it, or correct the path",
        ),
    ],
    ids=repr,
)
def test_refusal_by_the_dataclass_itself_gets_its_place(error: Exception, expected: str) -> None:
    @dataclass
    class Picky:
        path: str = ""

        def __post_init__(self) -> None:
            raise error

    assert problem(Picky, {}) == expected


def test_text_annotations_are_resolved_in_the_module_of_the_class() -> None:
    module = types.ModuleType("local_plugin")
    sys.modules["local_plugin"] = module
    code = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "@dataclass\n"
        "class Late:\n"
        "    path: Path | None = None\n"
    )
    try:
        exec(code, vars(module))  # noqa: S102 - as a plugin's file is run
        assert make(module.Late, {"path": "x"}).path == BASE / "x"
    finally:
        del sys.modules["local_plugin"]


def test_type_that_exists_only_for_the_type_checker_is_explained() -> None:
    @dataclass
    class Typed:
        path: "Unheard"  # type: ignore[name-defined] # noqa: F821 - the subject

    message = problem(Typed, {"path": "x"})
    assert message.startswith("x.toml: plugins[2]: the types of Typed's options are not known")
    assert "'Unheard'" in message


def test_option_of_a_type_that_toml_cannot_write_is_explained() -> None:
    @dataclass
    class Strange:
        thing: Path | int | timedelta

    assert "plugins[2].thing: an option cannot have the type" in problem(Strange, {"thing": []})


def test_init_only_fields_are_no_options() -> None:
    @dataclass
    class Initial:
        clock: InitVar[int] = 0

    assert "clock: unknown key" in problem(Initial, {"clock": 1})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("no", file="f", key="a.b"), "f: a.b: no"),
        (ConfigError("no", file="f"), "f: no"),
        (ConfigError("no"), "no"),
    ],
)
def test_error_leaves_out_what_is_not_known(error: ConfigError, expected: str) -> None:
    assert str(error) == expected


def test_only_a_near_word_is_suggested() -> None:
    assert did_you_mean("lisener", ["listeners", "limits"]) == "; did you mean 'listeners'?"
    assert did_you_mean("zebra", ["listeners", "limits"]) == ""
    assert did_you_mean("listeners" * 20, ["listeners" * 20]) == ""  # too long to compare


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError("strange"), "strange"),
    ],
)
def test_reason_is_one_line(error: OSError, expected: str) -> None:
    assert reason(error) == expected
