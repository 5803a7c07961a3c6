"""What `minismtp new-plugin` writes: a package that works, for its author to change."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import entry_points
from pathlib import Path
from string import Template
from typing import Final

import minismtp
from minismtp.hooks.loader import GROUP

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST: Final = 40


class SkeletonError(Exception):
    """The package cannot be made, for a reason that its text gives to the author."""


def make(name: str, directory: Path | None = None) -> Path:
    """Write the package of a plugin; gives its directory. Raise SkeletonError and OSError.

    Without a `directory` it is `minismtp-NAME` in the current one.
    """
    _check_name(name)
    dashed = name.replace("_", "-")
    project = f"minismtp-{dashed}"
    directory = directory or Path(project)
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise SkeletonError(f"{directory} exists; expected a directory to be made") from None
    values = {
        "name": name,
        "project": project,
        "module": f"minismtp_{name}",
        "cls": _class_name(name),
        "version": minismtp.__version__,
    }
    for path, text in _FILES.items():
        target = directory / Template(path).substitute(values)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(text).substitute(values))
    return directory


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(name):
        near = "_".join(re.findall(r"[a-z0-9]+", name.lower()))
        fits = near != name and _NAME.fullmatch(near) and len(near) <= _LONGEST
        raise SkeletonError(
            f"{name!r}: expected a name of lower-case letters, digits and single underscores,"
            f" {_LONGEST} at most" + (f"; did you mean {near!r}?" if fits else "")
        )
    for taken in entry_points(group=GROUP, name=name):
        owner = taken.dist.name if taken.dist else taken.module
        raise SkeletonError(f"{name!r}: {owner} has a plugin of this name")


def _class_name(name: str) -> str:
    camel = "".join(word.capitalize() for word in name.split("_"))
    return f"{camel}Plugin" if camel in minismtp.__all__ else camel


_PYPROJECT: Final = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$project"
version = "0.1.0"
description = "Plugin $name for minismtp"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["minismtp>=$version"]

[project.optional-dependencies]
test = ["mypy", "pytest", "ruff"]

# The name on the left is what stands after `use =` in a configuration.
[project.entry-points.minismtp]
$name = "$module:$cls"

[tool.setuptools.package-data]
$module = ["py.typed"]

[tool.pytest.ini_options]
testpaths = ["tests"]

[tool.ruff]
line-length = 100

[tool.mypy]
files = ["src", "tests"]
strict = true
"""

_README: Final = """\
# $project

A plugin for [minismtp](https://pypi.org/project/minismtp/): refuses messages whose subject has a
word that nobody here wants to read. (Yours will do something else: change
`src/$module/__init__.py`.)

## Use

Install it into the environment of the server:

    pip install $project

and name it in the configuration, before the plugins that store mail:

    [[plugins]]
    use = "$name"
    words = ["lottery"]
    mode = "shadow"    # count its verdicts without applying them; take it out to have them count

`minismtp plugins` shows its options, `minismtp check` whether they are right.

## Work on it

In an environment that has minismtp:

    pip install -e '.[test]'
    pytest
    ruff check . && mypy

Try it on a message of yours, and on a whole Maildir:

    minismtp try $name mail.eml --set 'words=["lottery"]'
    minismtp replay ~/Maildir --plugins changed.toml
"""

_PLUGIN: Final = '''\
"""Refuse messages whose subject has a word that nobody here wants to read."""

from minismtp import Message, Reject, Session, hookimpl, plugin


@plugin
class $cls:
    """Refuse messages whose subject has one of `words`, in any case, with `text` as the reply.

    Users who have logged in write what they like.
    """

    words: list[str]
    text: str = "your message is not wanted here"

    def __post_init__(self) -> None:
        """Refuse what the types let pass; minismtp shows the text beside the option."""
        if not self.words:
            raise ValueError("words: expected at least one word")
        self._words = {word.casefold() for word in self.words}

    @hookimpl
    def on_message(self, session: Session, message: Message) -> None:
        """Judge one message; `minismtp hooks` tells of all other places for a plugin to speak."""
        if session.login is not None:
            return
        subject = message.headers.decoded("Subject").casefold()
        if self._words.intersection(subject.split()):
            raise Reject(self.text)
'''

_TEST: Final = '''\
"""The plugin in whole sessions; `dialogue` and `mailroom` are fixtures that minismtp brings."""

from importlib.metadata import entry_points

import pytest
from minismtp.testing import Dialogues, Mailroom

from $module import $cls

UNWANTED = "Subject: You won the Lottery\\n\\nSend money.\\n"
WANTED = "Subject: Dinner\\n\\nAt eight?\\n"


def test_message_with_an_unwanted_word_is_refused(dialogue: Dialogues, mailroom: Mailroom) -> None:
    reply = dialogue($cls(words=["lottery"]), mailroom).mail(UNWANTED)
    assert reply == "550 5.7.1 your message is not wanted here"
    assert mailroom.stored == {}


def test_other_message_is_stored(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue($cls(words=["lottery"]), mailroom)
    assert session.mail(WANTED, to=("me@example.org",)).startswith("250 ")
    assert mailroom.stored["me@example.org"][0].endswith(b"\\r\\n\\r\\nAt eight?\\r\\n")


def test_user_who_has_logged_in_is_left_alone(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue($cls(words=["lottery"]), mailroom, login="alice")
    assert session.mail(UNWANTED).startswith("250 ")


def test_no_words_are_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="words: expected at least one"):
        $cls(words=[])


def test_plugin_is_found_by_its_name() -> None:
    [entry] = entry_points(group="minismtp", name="$name")
    assert entry.load() is $cls
'''

_GITIGNORE: Final = """\
.venv/
build/
dist/
*.egg-info/
__pycache__/
.*_cache/
"""

_FILES: Final = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    ".gitignore": _GITIGNORE,
    "src/$module/__init__.py": _PLUGIN,
    "src/$module/py.typed": "",
    "tests/test_$name.py": _TEST,
}
