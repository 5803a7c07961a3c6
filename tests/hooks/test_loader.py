import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from textwrap import dedent
from typing import TypeAlias

import pytest
from snippets import SPAM_FLAG

from minismtp import Reject, Session, hookimpl, plugin
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.hooks import sources
from minismtp.hooks.loader import PluginSet, available, hook_names
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.testing import Dialogue

Write: TypeAlias = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a plugin's file into the plugin_path."""

    def write(name: str, text: str, directory: str = "plugins") -> Path:
        path = tmp_path / directory / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text))
        return path

    return write


def configuration(tmp_path: Path, *tables: dict[str, object], path: tuple[str, ...]) -> Config:
    document: dict[str, object] = {
        "plugin_path": [*path],
        "state_directory": "state",
        "listeners": [
            {"name": "smtp", "address": "127.0.0.1:0", "tls": "none"},
            {"name": "inside", "address": "127.0.0.1:0", "tls": "none"},
        ],
        "plugins": [*tables],
    }
    return Config.build(document, file="mini.toml", base=tmp_path)


def load(
    tmp_path: Path, *tables: dict[str, object], path: tuple[str, ...] = ("plugins",)
) -> PluginSet:
    return PluginSet.load(configuration(tmp_path, *tables, path=path))


def problem(tmp_path: Path, *tables: dict[str, object]) -> str:
    """Return the only line of the reason why a configuration is refused."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, *tables)
    text = str(refused.value)
    assert "\n" not in text
    return text


def line_of(path: Path, text: str) -> int:
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_plugin_takes_its_options_as_keywords() -> None:
    @plugin
    class Option:
        first: str
        second: int = 2

    instance = Option(first="a")
    assert (instance.first, instance.second) == ("a", 2)
    with pytest.raises(TypeError):
        Option("a")  # type: ignore[call-arg]


def test_plugins_of_equal_options_are_two_plugins() -> None:
    @plugin
    class Option:
        first: str = ""

    assert Option() != Option()
    assert len({Option(), Option()}) == 2


def test_single_file_from_plugin_path_is_used(tmp_path: Path, write: Write) -> None:
    write("spam_flag", SPAM_FLAG)
    config = configuration(
        tmp_path,
        {"use": "spam_flag", "header": "X-Bad"},
        {"use": "mailboxes", "domains": ["example.org"]},
        path=("plugins",),
    )
    dialogue = Dialogue.configured(config, "smtp")
    assert dialogue.mail("X-Bad: yes\n\nBuy!") == "550 5.7.1 message refused as spam"


def test_option_types_named_in_a_local_file_are_known(tmp_path: Path, write: Write) -> None:
    write(
        "typed",
        """
        from __future__ import annotations

        from dataclasses import dataclass
        from datetime import timedelta
        from pathlib import Path

        from minismtp import hookimpl, plugin

        @dataclass
        class Rule:
            limit: int

        @plugin
        class Typed:
            path: Path
            wait: timedelta
            rules: list[Rule]

            @hookimpl
            def on_stop(self) -> None:
                print(self.path.is_absolute(), self.wait.total_seconds(), self.rules[0].limit)
        """,
    )
    table: dict[str, object] = {
        "use": "typed",
        "path": "here",
        "wait": "5m",
        "rules": [{"limit": 3}],
    }
    assert load(tmp_path, table).order() == {"on_stop": ["typed"]}


def test_one_file_serves_two_tables_under_two_names(tmp_path: Path, write: Write) -> None:
    write("spam_flag", "print('loaded')\n" + SPAM_FLAG)
    tables: list[dict[str, object]] = [
        {"use": "spam_flag"},
        {"use": "spam_flag", "name": "other", "header": "X-Other"},
    ]
    assert load(tmp_path, *tables).order() == {"on_message": ["spam_flag", "other"]}


def test_one_file_is_executed_once_for_two_tables(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("spam_flag", "print('loaded')\n" + SPAM_FLAG)
    load(tmp_path, {"use": "spam_flag"}, {"use": "spam_flag", "name": "other"})
    assert capsys.readouterr().out == "loaded\n"


def test_only_plugins_that_are_configured_are_loaded(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("spam_flag", SPAM_FLAG)
    write("other", "print('loaded')\n" + SPAM_FLAG)
    load(tmp_path, {"use": "spam_flag"})
    problem(tmp_path, {"use": "spam"})
    assert capsys.readouterr().out == ""


def test_installed_packages_are_searched_once_for_all_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes 20 ms and more, and each worker loads all plugins."""
    searches = []

    def search(**options: str) -> list[EntryPoint]:
        searches.append(options)
        return [*entry_points(**options)]

    monkeypatch.setattr(sources, "entry_points", search)
    mail: dict[str, object] = {"use": "maildir", "path": "mail/{local}"}
    load(tmp_path, {"use": "relay"}, {"use": "early_talker"}, mail, path=())
    assert searches == [{"group": "minismtp"}]


def test_earlier_directory_of_plugin_path_wins(tmp_path: Path, write: Write) -> None:
    first = write("spam_flag", SPAM_FLAG, "first")
    write("spam_flag", "this is no Python", "second")
    load(tmp_path, {"use": "spam_flag"}, path=("first", "second", "missing"))
    found = {item.name: item for item in available([tmp_path / "first", tmp_path / "second"])}
    assert found["spam_flag"].source == str(first)


def test_local_file_comes_before_an_installed_plugin(tmp_path: Path, write: Write) -> None:
    installed = load(tmp_path, {"use": "mailboxes", "domains": ["example.org"]})
    assert installed.order()["route"] == ["mailboxes"]
    write("mailboxes", SPAM_FLAG)
    assert load(tmp_path, {"use": "mailboxes"}).order() == {"on_message": ["mailboxes"]}


def test_installed_plugins_are_available() -> None:
    found = {item.name: item for item in available([])}
    assert found["maildir"].factory is not None
    assert found["maildir"].source.startswith("minismtp ")
    assert not found["maildir"].problem


def test_file_with_an_underscore_is_no_plugin(tmp_path: Path, write: Write) -> None:
    write("_helper", "raise ValueError")
    assert "_helper" not in [item.name for item in available([tmp_path / "plugins"])]


def test_order_of_calls_is_the_order_of_the_configuration(tmp_path: Path, write: Write) -> None:
    for name in ("zulu", "alpha", "mike"):
        write(name, SPAM_FLAG)
    loaded = load(tmp_path, {"use": "zulu"}, {"use": "alpha"}, {"use": "mike"})
    assert loaded.order() == {"on_message": ["zulu", "alpha", "mike"]}


def test_plugin_runs_only_on_its_listeners(tmp_path: Path, write: Write) -> None:
    write(
        "refusing",
        """
        from minismtp import Reject, hookimpl, plugin

        @plugin
        class Refusing:
            @hookimpl
            def on_connect(self) -> None:
                raise Reject("not here")
        """,
    )
    config = configuration(
        tmp_path, {"use": "refusing", "listeners": ["inside"]}, path=("plugins",)
    )
    assert Dialogue.configured(config, "inside").banner.startswith("554")
    assert Dialogue.configured(config, "smtp").banner.startswith("220")


# Every mistake is one line that names the plugin, the file and the line.


def test_unknown_plugin_is_refused_with_a_guess(tmp_path: Path, write: Write) -> None:
    write("spam_flag", SPAM_FLAG)
    assert problem(tmp_path, {"use": "spamflag"}) == (
        "mini.toml: plugins[0].use: no plugin is called 'spamflag'; did you mean 'spam_flag'?"
    )
    assert "did you mean 'maildir'?" in problem(tmp_path, {"use": "mail_dir"})


def test_unknown_option_is_refused_with_a_guess(tmp_path: Path, write: Write) -> None:
    write("spam_flag", SPAM_FLAG)
    assert problem(
        tmp_path, {"use": "spam_flag"}, {"use": "spam_flag", "name": "b", "haeder": ""}
    ) == ("mini.toml: plugins[1].haeder: unknown key; did you mean 'header'?")


METHODS = {
    "misspelt hook": (
        "@hookimpl\n    def on_mial(self): ...",
        "no hook is called 'on_mial'; did you mean 'on_mail'?",
    ),
    "misspelt argument": (
        "@hookimpl\n    def on_mail(self, envlope): ...",
        "on_mail has no argument 'envlope'; it offers session, envelope",
    ),
    "argument of a hook without any": (
        "@hookimpl\n    def on_stop(self, server): ...",
        "on_stop has no argument 'server'; it offers no argument",
    ),
    "argument of a static method": (
        "@hookimpl\n    @staticmethod\n    def on_mail(envlope): ...",
        "on_mail has no argument 'envlope'; it offers session, envelope",
    ),
    "any arguments": (
        "@hookimpl\n    def on_mail(self, **all): ...",
        "on_mail has no argument 'all'; it offers session, envelope",
    ),
    "default": (
        "@hookimpl\n    def on_mail(self, session=None): ...",
        "argument 'session' of on_mail must be an ordinary one without a default",
    ),
    "keyword only": (
        "@hookimpl\n    def on_mail(self, *, session): ...",
        "argument 'session' of on_mail must be an ordinary one without a default",
    ),
    "no marker": ("def on_mail(self): ...", "on_mail lacks @hookimpl"),
    "wrapper": (
        "@hookimpl(wrapper=True)\n    def on_mail(self):\n        yield",
        "on_mail is a wrapper; expected an ordinary hook, which sees no other answers",
    ),
    "old wrapper": (
        "@hookimpl(hookwrapper=True)\n    def on_mail(self):\n        yield",
        "on_mail is a wrapper; expected an ordinary hook, which sees no other answers",
    ),
    "order of its own": (
        "@hookimpl(tryfirst=True)\n    def on_mail(self): ...",
        "@hookimpl takes no options; the order of on_mail is that of the configuration",
    ),
    "other name": (
        "@hookimpl(specname='on_rcpt')\n    def on_mail(self): ...",
        "@hookimpl takes no options; the order of on_mail is that of the configuration",
    ),
    "coroutine": (
        "@hookimpl\n    async def on_mail(self): ...",
        "on_mail is a coroutine or generator; hooks are ordinary functions",
    ),
    "generator": (
        "@hookimpl\n    def on_mail(self):\n        yield",
        "on_mail is a coroutine or generator; hooks are ordinary functions",
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_wrong_method_is_refused(name: str, tmp_path: Path, write: Write) -> None:
    method, message = METHODS[name]
    path = write(
        "wrong",
        f"from minismtp import hookimpl, plugin\n\n@plugin\nclass Wrong:\n    {method}\n",
    )
    assert problem(tmp_path, {"use": "wrong"}) == (
        f"mini.toml: plugins[0].use: plugin 'wrong' ({path}:5): {message}"
    )


FILES = {
    "syntax error": ("a = 1\ndef b(:\n", 2, "invalid syntax"),
    "missing module": (
        "a = 1\n\nimport no_such_module\n",
        3,
        "ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "error while loading": ("a = 1\nb = a / 0\n", 2, "ZeroDivisionError: division by zero"),
    "error deeper down": (
        "import json\njson.loads('')\n",
        2,
        "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ),
    "exit": ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_that_does_not_load_is_refused(name: str, tmp_path: Path, write: Write) -> None:
    text, line, message = FILES[name]
    path = write("wrong", text)
    assert problem(tmp_path, {"use": "wrong"}) == (
        f"mini.toml: plugins[0].use: plugin 'wrong': {path}:{line}: {message}"
    )
    assert [item.problem for item in available([path.parent]) if item.name == "wrong"] == [
        f"plugin 'wrong': {path}:{line}: {message}"
    ]


def test_file_that_cannot_be_read_is_refused(tmp_path: Path, write: Write) -> None:
    path = write("wrong", "")
    path.unlink()
    path.mkdir()
    text = problem(tmp_path, {"use": "wrong"})
    assert text.startswith(f"mini.toml: plugins[0].use: plugin 'wrong': {path}: ")


def test_file_with_two_plugins_is_refused(tmp_path: Path, write: Write) -> None:
    path = write("wrong", SPAM_FLAG + "\n@plugin\nclass Second:\n    pass\n")
    first = line_of(path, "class SpamFlag") - 1
    second = line_of(path, "class Second") - 1
    assert problem(tmp_path, {"use": "wrong"}) == (
        "mini.toml: plugins[0].use: plugin 'wrong': expected one class under @plugin,"
        f" found SpamFlag ({path}:{first}), Second ({path}:{second})"
    )


def test_file_without_a_plugin_is_refused(tmp_path: Path, write: Write) -> None:
    path = write("wrong", "class Forgotten:\n    pass\n")
    assert problem(tmp_path, {"use": "wrong"}) == (
        "mini.toml: plugins[0].use: plugin 'wrong': expected one class under @plugin,"
        f" found none in {path}"
    )


def test_second_name_of_the_same_class_is_no_second_plugin(tmp_path: Path, write: Write) -> None:
    write("spam_flag", SPAM_FLAG + "\nAlias = SpamFlag\n")
    load(tmp_path, {"use": "spam_flag"})


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise ValueError('limit: is too small')", "plugins[0].limit: is too small"),
        ("raise KeyError('key')", "plugins[0]: plugin 'wrong': {path}:7: KeyError: 'key'"),
        ("raise SystemExit(1)", "plugins[0]: plugin 'wrong': {path}:7: SystemExit: 1"),
    ],
    ids=["option", "fault", "exit"],
)
def test_plugin_that_refuses_its_options_is_one_line(
    statement: str, message: str, tmp_path: Path, write: Write
) -> None:
    path = write(
        "wrong",
        "from minismtp import plugin\n\n@plugin\nclass Wrong:\n    limit: int = 1\n"
        f"    def __post_init__(self):\n        {statement}\n",
    )
    assert problem(tmp_path, {"use": "wrong"}) == f"mini.toml: {message.format(path=path)}"


@pytest.mark.parametrize(
    ("option", "table", "expected"),
    [
        ("timeout", {}, "plugins[0].timeout: Taken has an option of this name, which means"),
        (
            "limit",
            {"on_eror": "ignore"},
            "plugins[0].on_eror: unknown key; did you mean 'on_error'?",
        ),
    ],
    ids=["same name", "misspelt"],
)
def test_keys_of_every_plugin_are_told_from_its_options(
    option: str, table: dict[str, object], expected: str, tmp_path: Path, write: Write
) -> None:
    code = f"from minismtp import plugin\n\n@plugin\nclass Taken:\n    {option}: int = 1\n"
    write("taken", code)
    assert problem(tmp_path, {"use": "taken", **table}).startswith(f"mini.toml: {expected}")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that installs a distribution with one entry point and its module."""

    def install(module: str, value: str) -> None:
        information = tmp_path / "site" / "minismtp_extra-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Name: minismtp-extra\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[minismtp]\nextra = {value}\n")
        (tmp_path / "site" / "minismtp_extra.py").write_text(module)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(sys.modules, "minismtp_extra", raising=False)

    return install


def test_plugin_of_another_distribution_is_found(
    tmp_path: Path, installed: Callable[[str, str], None]
) -> None:
    installed(SPAM_FLAG, "minismtp_extra:SpamFlag")
    assert load(tmp_path, {"use": "extra"}).order() == {"on_message": ["extra"]}
    assert [item.source for item in available([]) if item.name == "extra"] == ["minismtp-extra 1.0"]


@pytest.mark.parametrize(
    ("module", "value", "message"),
    [
        (
            "import no_such_module",
            "minismtp_extra:Plugin [fast]",
            (
                "plugin 'extra' needs the module 'no_such_module'; run"
                f" `{sys.executable} -m pip install 'minismtp-extra[fast]'`"
            ),
        ),
        (
            "import no_such_module",
            "minismtp_extra:Plugin",
            "plugin 'extra' needs the module 'no_such_module'",
        ),
        (
            "\n1 / 0",
            "minismtp_extra:Plugin",
            "plugin 'extra': {path}:2: ZeroDivisionError: division by zero",
        ),
        (
            "raise SystemExit(1)",
            "minismtp_extra:Plugin",
            "plugin 'extra': {path}:1: SystemExit: 1",
        ),
        (
            SPAM_FLAG + "\nclass Sub(SpamFlag): pass",
            "minismtp_extra:Sub",
            "plugin 'extra': minismtp_extra:Sub is not a class under @plugin",
        ),
        (
            "thing = 1",
            "minismtp_extra:thing",
            "plugin 'extra': minismtp_extra:thing is not a class under @plugin",
        ),
    ],
    ids=["extra missing", "module missing", "fault", "exit", "subclass", "no class"],
)
def test_installed_plugin_that_does_not_load_is_refused(
    module: str,
    value: str,
    message: str,
    tmp_path: Path,
    installed: Callable[[str, str], None],
) -> None:
    installed(module, value)
    expected = message.format(path=tmp_path / "site" / "minismtp_extra.py")
    assert problem(tmp_path, {"use": "extra"}) == f"mini.toml: plugins[0].use: {expected}"


def test_property_of_a_plugin_is_not_run_by_loading_it() -> None:
    @plugin
    class Lazy:
        @property
        def connection(self) -> object:
            raise RuntimeError("not started")

        @hookimpl
        def on_connect(self) -> None:
            raise Reject("no")

    assert Dialogue(Lazy()).banner.startswith("554")


def test_hooks_may_be_static_and_class_methods() -> None:
    seen: list[str] = []

    @plugin
    class Several:
        @hookimpl
        @staticmethod
        def on_connect(session: Session) -> None:
            seen.append(session.peer)

        @hookimpl
        @classmethod
        def on_helo(cls, session: Session) -> None:
            seen.append(f"{cls.__name__} {session.helo}")

    Dialogue(Several()).send("EHLO client.example")
    assert seen == ["192.0.2.1", "Several client.example"]


def test_plugins_of_one_set_have_names_of_their_own() -> None:
    @plugin
    class Stopped:
        @hookimpl
        def on_stop(self) -> None: ...

    loaded = PluginSet(Metrics(), Log())
    loaded.add(PluginConfig(use="stopped"), Stopped())
    loaded.add(PluginConfig(use="stopped", name="other"), Stopped())
    loaded.close()
    assert loaded.order() == {"on_stop": ["stopped", "other"]}


def test_hooks_are_listed_in_the_order_of_a_session() -> None:
    names = hook_names()
    assert names.index("on_connect") < names.index("on_mail") < names.index("on_message")
