from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_places import Source, key_lines, open_value

DOCUMENT = '''\
# a comment with [brackets] = 1
hostname = "mx" # "quoted"
a.b = 1
[tls]
certificate = 'c # no comment'
[[tls.sni]]
name = "a ] x"
[[plugins]]
use = "maildir"
path = """
several = "lines"
"""
users = [ # all
  "a",
  "b]", [1,
2],
  {zone = "x", k.v = [1, "y"]},
]
[[plugins]]
use = 'x'
weights = { "a.b" = 1, c = 2 }
[[plugins.rules]]
name = "r"
[[plugins.rules]]
if = { x = 1 }
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("hostname", 2),
        ("a.b", 3),
        ("tls", 4),
        ("tls.certificate", 5),
        ("tls.sni[0].name", 7),
        ("plugins[0]", 8),
        ("plugins[0].path", 10),
        ("plugins[0].users", 13),
        ("plugins[0].users[1]", 15),
        ("plugins[0].users[2][1]", 16),
        ("plugins[0].users[3].zone", 17),
        ("plugins[0].users[3].k.v[1]", 17),
        ("plugins[1]", 19),
        ('plugins[1].weights."a.b"', 21),
        ("plugins[1].weights.c", 21),
        ("plugins[1].rules[1].if.x", 25),
        ("plugins[1].missing", 19),
        ("plugins[0].users[1].deeper[2]", 15),
        ("nothing", 0),
    ],
)
def test_line_of_a_key_or_of_its_nearest_parent(key: str, line: int) -> None:
    assert Source(DOCUMENT).line(key) == line


def test_table_is_named_by_its_name_or_use() -> None:
    source = Source(DOCUMENT, tomli.loads(DOCUMENT))
    assert source.name("plugins[1].rules[0].if") == "x"
    assert source.name("tls.sni[0].name") == "a ] x"
    assert source.name("hostname") == source.name("plugins[7]") == ""


def test_array_without_an_end_is_found_where_it_begins() -> None:
    assert open_value('a = 1\nb = ["x"\nc = [1]\n') == 2
    assert open_value("a = [1]\n") == 0


VALUES = st.recursive(
    st.integers(0, 9) | st.booleans() | st.sampled_from(["x", "a]b", "# no", "a = 1", "{", "'"]),
    lambda items: st.lists(items, max_size=3),
    max_leaves=6,
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",\n".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@given(st.lists(st.tuples(st.sampled_from(["", "[[t]]"]), VALUES), max_size=6))
def test_each_key_of_a_document_is_found_on_its_line(entries: list[tuple[str, object]]) -> None:
    text, expected, table, number = "", {}, "", -1
    for index, (header, value) in enumerate(entries):
        if header:
            number += 1
            table = f"t[{number}]."
            text += f"{header}\n"
        expected[f"{table}k{index}"] = text.count("\n") + 1
        text += f"k{index} = {_toml(value)}\n"
    tomli.loads(text)
    lines = key_lines(text)
    assert {key: lines.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "text",
    ['"' * 500_000, "a=[" * 100_000, "[a." * 100_000, "a." * 200_000 + "=1", "x=[{" * 100_000],
    ids=lambda text: text[:4],
)
def test_document_that_is_no_toml_takes_linear_memory(text: str) -> None:
    lines = key_lines(text)
    assert sum(map(len, lines)) < 10 * len(text)


def test_mistakes_are_in_the_order_of_the_file() -> None:
    text = '[log]\nlevel = "x"\n[limits]\nhops = 0\n[[listeners]]\nname = "s"\n'
    with pytest.raises(ConfigError) as caught:
        Config.parse(text, Path("/etc/x.toml"))
    assert [each.line for each in caught.value.mistakes] == [2, 4, 5]
