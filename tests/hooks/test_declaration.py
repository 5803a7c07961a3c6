"""Mistakes in the source of a plugin: each has its file, its line and what to write instead."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import TypeAlias

import pytest

from minismtp import Defer, Reject, hookimpl, plugin
from minismtp.cli.main import main
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.hooks import specs
from minismtp.hooks.declaration import doubts as doubts_of
from minismtp.hooks.guard import Guard, StartError
from minismtp.hooks.loader import PluginSet, hook_names
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import HookMetrics, Metrics
from minismtp.testing import Dialogue

Write: TypeAlias = Callable[[str], Path]
Capture: TypeAlias = pytest.CaptureFixture[str]

HEAD = "from minismtp import Defer, Reject, hookimpl, plugin\n"
HOOK = "    @hookimpl\n    def on_mail(self): ...\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a plugin file whose first line imports the names."""

    def write(text: str) -> Path:
        (tmp_path / "tried.py").write_text(HEAD + text)
        return tmp_path / "tried.py"

    return write


def load(path: Path, **options: object) -> PluginSet:
    document: dict[str, object] = {
        "plugin_path": ["."],
        "listeners": [{"name": "smtp", "address": "127.0.0.1:0", "tls": "none"}],
        "plugins": [{"use": "tried", **options}],
    }
    return PluginSet.load(Config.build(document, file="mini.toml", base=path.parent))


def problem(path: Path, **options: object) -> str:
    """Return why the plugin is refused, without the place in the configuration."""
    with pytest.raises(ConfigError) as refused:
        load(path, **options)
    assert refused.value.file == "mini.toml"
    return refused.value.message.replace(str(path), "FILE")


def doubts(path: Path) -> list[str]:
    return [text.replace(str(path), "FILE") for _, text in load(path).doubts()]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ('words: list[str] = ["a"]', "words: list[str] = field(default_factory=lambda: ['a'])"),
        ("words: list[str] = []", "words: list[str] = field(default_factory=list)"),
        ("seen: set[int] = {1}", "seen: set[int] = field(default_factory=lambda: {1})"),
        ("to: dict[str, str] = {}", "to: dict[str, str] = field(default_factory=dict)"),
    ],
)
def test_list_as_a_default_is_refused_with_what_to_write(
    written: str, wanted: str, write: Write
) -> None:
    text = problem(write(f"@plugin\nclass Tried:\n    {written}\n{HOOK}"))
    name, kind = wanted.partition(":")[0], wanted.partition("[")[0].partition(": ")[2]
    assert text == (
        f"plugin 'tried': FILE:4: the default of {name} is a {kind}, which all instances would"
        f" share; write `{wanted}` (with `from dataclasses import field`)"
    )


def test_list_as_a_default_is_refused_in_a_test_too() -> None:
    with pytest.raises(TypeError, match=rf"{__file__}:\d+: the default of words is a list"):

        @plugin
        class Tried:
            words: list[str] = []  # noqa: RUF012 - the mistake


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ('words = ["a"]', "words: list[str] = field(default_factory=lambda: ['a'])"),
        ("words = []", "words: list[str] = field(default_factory=list)"),
        ("limit = 3", "limit: int = 3"),
        ("limit = 60 * 60", "limit: int = 60 * 60"),
        ("text = 'no'", "text: str = 'no'"),
        ("strict = True", "strict: bool = True"),
        ("pair = (1, 'a')", "pair: tuple[int | str, ...] = (1, 'a')"),
        ("to = {'a': 1}", "to: dict[str, int] = field(default_factory=lambda: {'a': 1})"),
    ],
)
def test_option_without_annotation_is_no_option(written: str, wanted: str, write: Write) -> None:
    path, name = write(f"@plugin\nclass Tried:\n    {written}\n{HOOK}"), wanted.partition(":")[0]
    text = f"FILE:4: {name} has no annotation, so it is not an option; write `{wanted}`"
    assert problem(path, **{name: "x"}) == text
    assert doubts(path) == [f"{text}, or call it {name.upper()} if it is a constant"]


def test_key_that_is_neither_option_nor_attribute_stays_an_unknown_key(write: Write) -> None:
    assert problem(write(f"@plugin\nclass Tried:\n{HOOK}"), words="x").startswith("unknown key")


@pytest.mark.parametrize(
    "written",
    [
        "mechanisms = ('XOAUTH2',)",
        "WORDS = ['a']",
        "_words = ['a']",
        "words: 'list[str] | None' = None",
        "from re import compile as pattern",
        "@property\n    def words(self): return 1",
        "def words(self): ...",
    ],
)
def test_attribute_that_is_no_mistake_is_not_doubted(written: str, write: Write) -> None:
    assert doubts(write(f"@plugin\nclass Tried:\n    {written}\n{HOOK}")) == []


def test_class_without_hooks_is_refused(write: Write) -> None:
    path = write("@plugin\nclass Tried:\n    def judge(self): ...\n")
    assert problem(path) == (
        "plugin 'tried': FILE:2: Tried has no hook, so it does nothing; write @hookimpl above a"
        " method with the name of a hook, such as on_message"
    )


def test_unused_hook_that_the_class_does_not_have_is_refused(write: Write) -> None:
    path = write(f"@plugin\nclass Tried:\n    unused_hooks = ('on_data',)\n{HOOK}")
    said = "plugin 'tried': unused_hooks names 'on_data', which it does not implement"
    assert problem(path).startswith(said)


def test_class_without_hooks_is_told_of_a_name_that_is_near(write: Write) -> None:
    path = write("@plugin\nclass Tried:\n    def on_mesage(self): ...\n")
    assert problem(path).endswith("; on_mesage; did you mean 'on_message'?")


def test_method_that_no_hook_calls_is_doubted(write: Write) -> None:
    path = write(f"@plugin\nclass Tried:\n{HOOK}    def on_mesage(self): ...\n")
    said = "FILE:6: on_mesage is never called, because no hook has this name"
    assert doubts(path) == [f"{said}; did you mean 'on_message'?"]


def test_class_that_is_not_marked_is_named(write: Write) -> None:
    assert problem(write(f"class Tried:\n{HOOK}")) == (
        "plugin 'tried': expected one class under @plugin, found none in FILE; write @plugin above"
        " the class Tried (FILE:2)"
    )


RETURNED = dedent(
    """
    @plugin
    class Tried:
        @hookimpl
        def on_mail(self, envelope):
            if envelope.sender:
                return Defer(
                    "later")
            raise Reject("no")
    """
)


def test_verdict_that_is_returned_is_doubted_with_its_line(write: Write) -> None:
    assert doubts(write(RETURNED)) == [
        "FILE:8: on_mail returns Defer(...); write `raise Defer(...)`"
    ]


def test_verdict_that_was_returned_is_told_with_its_line(
    write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(RETURNED)
    [(table, instance)] = load(path).instances
    dialogue = Dialogue((table, type(instance)()))
    dialogue.send("EHLO client.example")
    assert dialogue.send("MAIL FROM:<a@b.example>").startswith("451 4.3.0")
    assert f"on_mail returned Defer ({path}:8); write `raise Defer(...)`" in capfd.readouterr().err


def hook_that_returns(hook: str, value: object) -> str:
    """Return the error of a hook whose answer is wrong, without its place."""
    said: list[str] = []

    def method() -> object:
        return value

    guard = Guard(PluginConfig(use="tested"), Log(descriptor=-1), lambda it: said.append(it.error))
    with pytest.raises(Defer):
        guard.wrap(hook, method, HookMetrics(Metrics(), "tested", hook))()
    line = method.__code__.co_firstlineno
    return said[0].replace(f"{__file__}:{line}", "HERE")


@pytest.mark.parametrize(
    ("hook", "value", "said"),
    [
        ("route", "me@example.org", "str (HERE); expected Local or Relay or Several or None"),
        ("on_mail", True, "bool (HERE); expected None"),
        ("authenticate", 1, "int (HERE); expected str or None"),
        ("authenticate", "", "a str that cannot be sent (HERE)"),
        ("on_data", Reject("no"), "Reject (HERE); write `raise Reject(...)`"),
    ],
)
def test_wrong_answer_is_told_with_what_was_expected(hook: str, value: object, said: str) -> None:
    assert hook_that_returns(hook, value) == f"TypeError: {hook} returned {said}"


STARTING = dedent(
    """
    @plugin
    class Tried:
        @hookimpl
        def on_start(self):
            self.open()
        def open(self):
            open("/no/such/file")
    """
)


def test_failure_of_on_start_names_file_and_line(
    write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(STARTING)
    with pytest.raises(StartError) as refused:
        load(path).hooks().on_start(None)  # type: ignore[arg-type]  # it takes no argument
    assert str(refused.value) == (
        f"plugin 'tried' ({path}:9): on_start: FileNotFoundError: [Errno 2] No such file or"
        " directory: '/no/such/file'"
    )
    assert "guard.py" not in capfd.readouterr().err


def test_failure_inside_a_library_names_the_line_of_the_plugin(write: Write) -> None:
    body = '\n@plugin\nclass Tried:\n    @hookimpl\n    def on_start(self):\n        int("x" * 2)\n'
    path = write(body.replace('int("x" * 2)', "__import__('json').loads('{')"))
    with pytest.raises(StartError, match=rf"\({path}:7\): on_start: JSONDecodeError"):
        load(path).hooks().on_start(None)  # type: ignore[arg-type]


def test_try_shows_mistakes_and_a_traceback_in_its_lines(
    write: Write, tmp_path: Path, capfd: Capture
) -> None:
    crash = "    @hookimpl\n    def on_mail(self):\n        self.missing()\n"
    path = write(f"@plugin\nclass Tried:\n    words = ['a']\n{crash}")
    (tmp_path / "mail.eml").write_text("Subject: x\n\ny\n")
    assert main(["try", str(path), str(tmp_path / "mail.eml")]) == 1
    error = capfd.readouterr().err
    assert f"warning: {path}:4: words has no annotation" in error
    assert "\nTraceback (most recent call last):\n" in error
    assert f'  File "{path}", line 7, in on_mail\n    self.missing()\n' in error
    assert "guard.py" not in error


def test_check_warns_of_doubts_with_the_plugin(
    write: Write, tmp_path: Path, capsys: Capture
) -> None:
    write(RETURNED)
    (tmp_path / "mini.toml").write_text(
        'plugin_path = ["."]\n[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
        'tls = "none"\n[[plugins]]\nuse = "tried"\n'
    )
    main(["check", "--config", str(tmp_path / "mini.toml")])
    assert "plugins[0] tried, line 6: " in capsys.readouterr().err


def test_plugin_without_source_is_explained_by_its_name() -> None:
    namespace: dict[str, type] = {}
    exec(f"{HEAD}@plugin\nclass Tried:\n    words = ['a']\n{HOOK}", namespace)  # noqa: S102
    loaded = PluginSet(Metrics(), Log(descriptor=-1))
    loaded.add(PluginConfig(use="tried"), namespace["Tried"]())
    [(_, text)] = loaded.doubts()
    assert text.startswith("Tried: words has no annotation")


def test_shipped_plugins_have_no_doubts() -> None:
    hooks = {name: getattr(specs, name) for name in hook_names()}
    for entry in entry_points(group="minismtp"):
        cls = entry.load()
        assert [*doubts_of(cls.__new__(cls), hooks)] == []


def test_source_of_shipped_plugins_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 1 MB of the memory of a worker."""
    monkeypatch.setattr("minismtp.hooks.loader.doubts", lambda *_: ["a doubt"])
    loaded = PluginSet.load(Config.embedded())
    assert [table.use for table, _ in loaded.instances] == ["mailboxes", "maildir"]
    assert [*loaded.doubts()] == []


def test_hook_without_annotations_still_works() -> None:
    @plugin
    class Old:
        @hookimpl
        def on_mail(self, envelope):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            raise Reject(envelope.sender)

    dialogue = Dialogue(Old())
    dialogue.send("EHLO client.example")
    assert dialogue.send("MAIL FROM:<a@b.example>") == "550 5.7.1 a@b.example"
