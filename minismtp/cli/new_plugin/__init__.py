"""A package for a plugin of the user's own: `minismtp new-plugin`.

The package works as it is, and its author changes it. Its files are the templates beside this one.
"""

from __future__ import annotations

import argparse
import keyword
import re
from importlib.metadata import entry_points
from pathlib import Path
from string import Template
from typing import Final

import minismtp
from minismtp.cli.common import CommandError, say
from minismtp.hooks.sources import GROUP

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST: Final = 40
_FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "src/$module/__init__.py": "plugin.py",
    "tests/test_$name.py": "test.py",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("name", metavar="NAME", help="what `use` will call it, such as greylist")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="to be made; default: minismtp-NAME"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the package, and print what to do next; raise CommandError and OSError."""
    directory = make(arguments.name, arguments.directory)
    say(
        f"{directory} has a plugin that works, its test and its pyproject.toml. Next, in the"
        " environment of minismtp:",
        f"  cd {directory}",
        "  pip install -e '.[test]'",
        "  pytest",
    )
    return 0


def make(name: str, directory: Path | None = None) -> Path:
    """Write the package of a plugin and return its directory; raise CommandError and OSError.

    The default for `directory` is `minismtp-NAME` in the current one.
    """
    _check_name(name)
    project = f"minismtp-{name.replace('_', '-')}"
    directory = directory or Path(project)
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise CommandError(f"{directory} exists; expected a directory to be made") from None
    module = f"minismtp_{name}"
    values = {
        "name": name,
        "project": project,
        "module": module,
        "cls": _class_name(name),
        "version": minismtp.__version__,
    }
    for path, template in _FILES.items():
        target = directory / Template(path).substitute(values)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (Path(__file__).parent / f"{template}.template").read_text()
        target.write_text(Template(text).substitute(values))
    (directory / "src" / module / "py.typed").touch()
    return directory


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(name):
        near = "_".join(re.findall(r"[a-z0-9]+", name.lower()))
        fits = near != name and _NAME.fullmatch(near) and len(near) <= _LONGEST
        raise CommandError(
            f"{name!r}: expected a name of lower-case letters, digits and single underscores,"
            f" {_LONGEST} at most" + (f"; did you mean {near!r}?" if fits else "")
        )
    for taken in entry_points(group=GROUP, name=name):
        owner = taken.dist.name if taken.dist else taken.module
        raise CommandError(f"{name!r}: {owner} has a plugin of this name")


def _class_name(name: str) -> str:
    camel = "".join(word.capitalize() for word in name.split("_"))
    return f"{camel}Plugin" if camel in minismtp.__all__ else camel
