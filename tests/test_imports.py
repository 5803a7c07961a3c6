"""What each folder may import from outside: the standard library, pluggy, our public face."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minismtp

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "minismtp"
MODULES = sorted(SOURCE.rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
# The lowest two folders need nothing but Python, except where a package is the subject.
THIRD_PARTY = {
    "passwords": {"argon2"},
    "address": {"idna"},
    "commands": {"msgspec"},  # makes a value in 0.1 us instead of 1.5
    "protocol": {"msgspec"},
    "client_reply": {"msgspec"},
}


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    """Return the packages that a file imports, without what is inside them."""
    return {name.partition(".")[0] for name in imported_names(path)}


@pytest.mark.parametrize("folder", ["values", "smtp"])
def test_values_and_smtp_need_only_the_standard_library(folder: str) -> None:
    for path in (SOURCE / folder).rglob("*.py"):
        outside = packages(path) - {"minismtp"} - sys.stdlib_module_names
        assert outside <= THIRD_PARTY.get(path.stem, set()), path


def test_only_hooks_know_pluggy() -> None:
    assert {path.parent.name for path in MODULES if "pluggy" in packages(path)} == {"hooks"}


def test_server_imports_no_shipped_plugin() -> None:
    assert not [path for path in MODULES if "minismtp_plugins" in packages(path)]


@pytest.mark.parametrize(
    "path",
    [path for path in PLUGINS if "milter" not in path.stem],  # a whole protocol
    ids=lambda path: path.stem,
)
def test_shipped_plugin_is_a_small_file(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_shipped_plugin_uses_only_what_authors_may_use(path: Path) -> None:
    public = {f"minismtp.{name}" for name in minismtp.__all__}
    if path.stem == "_pytest":
        public |= {"minismtp.testing.Dialogues", "minismtp.testing.Mailroom"}
    used = {name for name in imported_names(path) if name.partition(".")[0] == "minismtp"}
    assert used <= public


def test_public_names_are_those_of_their_modules() -> None:
    """`minismtp` imports a name when it is used; type checkers read the import statements."""
    tree = ast.parse((SOURCE / "__init__.py").read_bytes())
    typed = {
        alias.name: statement.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed.keys() == {*minismtp.__all__}
    for name, module in typed.items():
        assert getattr(minismtp, name) is getattr(importlib.import_module(module or ""), name)


def test_command_imports_no_more_than_it_needs() -> None:
    """A third of a second is long for an operator, and for a script that repeats a command."""
    script = (
        "import sys; from minismtp.cli.main import main; main(['--version'])\n"
        "print({name.partition('.')[0] for name in sys.modules} & "
        "{'dns', 'idna', 'msgspec', 'pluggy', 'prometheus_client', 'ssl', 'sqlite3'})"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.endswith("set()\n")
