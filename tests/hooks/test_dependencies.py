"""`needs` and `after`: a plugin that lacks another is refused with what to change."""

from pathlib import Path

import pytest

from minismtp import Session, hookimpl, plugin
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.loader import PluginSet
from minismtp.testing import Dialogue

SOURCE = """
from minismtp import hookimpl, plugin

@plugin
class Tried:
    {line}
    @hookimpl
    def on_mail(self): ...
"""


def load(directory: Path, lines: dict[str, str], *tables: dict[str, object]) -> PluginSet:
    """Load plugins whose class has a line each."""
    for name, line in lines.items():
        (directory / f"{name}.py").write_text(SOURCE.format(line=line or "pass"))
    listener = {"address": "127.0.0.1:0", "tls": "none"}
    document: dict[str, object] = {
        "plugin_path": ["."],
        "listeners": [{"name": "smtp", **listener}, {"name": "lmtp", "kind": "lmtp", **listener}],
        "plugins": [*tables],
    }
    return PluginSet.load(Config.build(document, file="mini.toml", base=directory))


NEEDS = {"one": 'needs = ("two",)', "two": ""}
AFTER = {"one": 'after = ("two", "three")', "two": "", "three": ""}
ONE: dict[str, object] = {"use": "one"}
TWO: dict[str, object] = {"use": "two"}
ON_SMTP: dict[str, object] = {"listeners": ["smtp"]}
ON_LMTP: dict[str, object] = {"listeners": ["lmtp"]}


MOVE = ": move this table below that one"


@pytest.mark.parametrize(
    ("lines", "tables", "place", "problem", "remedy"),
    [
        (
            NEEDS,
            [ONE],
            "plugins[0]: plugin 'one'",
            "it needs the plugin 'two'",
            ': add a table with `use = "two"` above this one',
        ),
        (
            NEEDS,
            [ONE, TWO],
            "plugins[0]: plugin 'one'",
            "it has to come after 'two' (plugins[1])",
            MOVE,
        ),
        (
            NEEDS,
            [TWO | {"mode": "shadow"}, ONE],
            "plugins[1]: plugin 'one'",
            "it needs 'two' (plugins[0]), which is in shadow mode, so its results are not seen",
            ': set `mode = "enforce"` there',
        ),
        (
            NEEDS,
            [TWO | ON_SMTP, ONE],
            "plugins[1]: plugin 'one'",
            "it needs 'two' (plugins[0]) on the listener 'lmtp', where that does not run",
            ": add the listener there, or set `listeners` here to the same ones",
        ),
        (
            AFTER,
            [ONE | {"name": "first"}, TWO | {"name": "second"}],
            "plugins[0]: plugin 'first'",
            "it has to come after 'second' (plugins[1])",
            MOVE,
        ),
        (
            {"one": 'needs = "two"', "two": ""},
            [TWO, ONE],
            "plugins[1]: plugin 'one'",
            "needs is a text",
            '; write `needs = ("two",)` in its class',
        ),
    ],
    ids=["missing", "below", "shadow", "other listener", "after", "text"],
)
def test_unmet_dependency_is_refused_with_what_to_change(
    lines: dict[str, str],
    tables: list[dict[str, object]],
    place: str,
    problem: str,
    remedy: str,
    *,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, lines, *tables)
    assert str(refused.value) == f"mini.toml: {place}: {problem}{remedy}"


@pytest.mark.parametrize(
    ("lines", "tables"),
    [
        (NEEDS, [TWO, ONE]),
        (NEEDS, [TWO | ON_SMTP, ONE | ON_SMTP]),
        (NEEDS, [TWO | ON_SMTP, TWO | ON_LMTP | {"name": "other"}, ONE]),
        (NEEDS, [TWO | {"on_error": "ignore"}, ONE | {"mode": "shadow"}]),
        (AFTER, [ONE]),
        (AFTER, [TWO, ONE]),
        (AFTER, [ONE | ON_SMTP, TWO | ON_LMTP]),
        ({"one": 'needs: str = "two"', "two": ""}, [ONE]),
        ({"one": "after = 5", "two": ""}, [ONE, TWO]),
        ({"one": "def needs(self): ...", "two": ""}, [ONE, TWO]),
    ],
)
def test_met_dependency_is_accepted(
    lines: dict[str, str], tables: list[dict[str, object]], tmp_path: Path
) -> None:
    assert load(tmp_path, lines, *tables).order()["on_mail"]


def test_plugin_runs_alone_in_a_test() -> None:
    @plugin
    class Alone:
        needs = ("spf",)

        @hookimpl
        def on_connect(self, session: Session) -> None: ...

    assert Dialogue(Alone()).banner.startswith("220 ")


def test_dmarc_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it needs the plugin 'spf'"):
        load(tmp_path, {}, {"use": "dmarc"})
    load(tmp_path, {}, {"use": "spf"}, {"use": "dkim_verify"}, {"use": "dmarc"})


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = {
        "one": 'needs = ("two", "three", "four")',
        "two": 'after = ("three",)',
        "three": 'needs = "four"',
        "four": "option: int",
    }
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, lines, ONE, TWO, {"use": "three"})
    assert [(each.key, each.message.partition(": ")[2]) for each in caught.value.mistakes] == [
        (
            "plugins[0]",
            "it needs the plugin 'four': add a table with `use = \"four\"` above this one",
        ),
        (
            "plugins[0]",
            (
                "it has to come after 'two' (plugins[1]) and 'three' (plugins[2]):"
                " move this table below them"
            ),
        ),
        ("plugins[1]", f"it has to come after 'three' (plugins[2]){MOVE}"),
        ("plugins[2]", 'needs is a text; write `needs = ("four",)` in its class'),
    ]


def test_plugin_with_a_mistake_of_its_own_is_not_missed_by_others(tmp_path: Path) -> None:
    lines = {"one": 'needs = ("two",)\n    after = ("three",)', "two": "option: int", "three": ""}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, lines, TWO, ONE, {"use": "three"})
    assert [each.key for each in caught.value.mistakes] == ["plugins[0].option", "plugins[1]"]
