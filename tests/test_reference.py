"""Every hook has documentation and an example; every shipped plugin has a page and tests."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from minismtp.config import Config
from minismtp.hooks import specs
from minismtp.hooks.loader import hook_names

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "docs" / "examples"
HOOKS: Final = (ROOT / "docs" / "hooks.md").read_text()
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED: Final = sorted(PYPROJECT["project"]["entry-points"]["minismtp"])
PAGES: Final = ROOT / "docs" / "plugins"
LISTENERS: Final = "".join(
    f'\n[[listeners]]\nname = "{name}"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    for name in ("smtp", "submission", "submissions", "lmtp")
)


def section(hook: str) -> str:
    """Return the section of a hook in the reference."""
    return HOOKS.partition(f"\n## {hook}\n")[2].partition("\n## ")[0]


def plugin_methods(path: Path) -> Iterator[str]:
    """Yield the hooks that the plugins in a file implement."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ClassDef) and _has_decorator(node, "plugin"):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and _has_decorator(item, "hookimpl"):
                    yield item.name


def _has_decorator(node: ast.ClassDef | ast.FunctionDef, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in node.decorator_list)


# What plugins are given

API: Final[dict[str, Any]] = runpy.run_path(str(ROOT / "docs" / "api.py"))
GIVEN: Final[dict[str, tuple[type, ...]]] = API["CLASSES"]


@pytest.mark.parametrize("hook", hook_names())
def test_what_a_hook_is_given_is_described(hook: str) -> None:
    signature = inspect.signature(getattr(specs, hook))
    kinds = {str(each.annotation) for each in signature.parameters.values()} - {"str", "Event"}
    assert kinds <= {cls.__name__ for classes in GIVEN.values() for cls in classes}


@pytest.mark.parametrize("heading", GIVEN)
def test_example_uses_what_it_is_for(heading: str) -> None:
    text = (EXAMPLES / "api" / f"api_{heading.lower()}.py").read_text()
    names = [cls.__name__ for cls in GIVEN[heading]]
    assert any(re.search(rf"(?i)\b{name}\b", text) for name in names)
    assert "\ndef test_" in text


def test_attribute_without_a_text_is_an_error() -> None:
    class Untold:
        told: str
        """A text."""
        untold: str

    with pytest.raises(LookupError, match=r"Untold\.untold has no text below it"):
        list(API["attributes"](Untold))


def test_drawing_has_every_hook_in_the_order_of_a_session() -> None:
    drawn = re.findall(r"^.{34}(\w+)$", API["drawing"](), re.MULTILINE)
    assert drawn.index("on_connect") < drawn.index("on_mail") < drawn.index("on_message")
    assert set(drawn) >= {*hook_names()} - {"observe", "destination", "on_send"}


# Hooks


@pytest.mark.parametrize("hook", hook_names())
def test_hook_is_documented_with_its_exact_arguments(hook: str) -> None:
    signature = inspect.signature(getattr(specs, hook))
    arguments = [f"{each.name}: {each.annotation}" for each in signature.parameters.values()]
    shown = re.search(r"^```python\n(.+)\n```$", section(hook), re.MULTILINE)
    assert shown is not None
    assert shown[1] == (
        f"def {hook}({', '.join(['self', *arguments])}) -> {signature.return_annotation}"
    )


@pytest.mark.parametrize("hook", hook_names())
def test_hook_has_an_example_that_pytest_runs(hook: str) -> None:
    path = EXAMPLES / f"{hook}.py"
    assert hook in plugin_methods(path)
    names = {node.name for node in ast.parse(path.read_bytes()).body if hasattr(node, "name")}
    assert any(name.startswith("test_") for name in names)
    assert f"```python {hook}.py\n{path.read_text()}```" in section(hook)


def test_examples_are_among_the_tests_and_belong_to_hooks() -> None:
    options = PYPROJECT["tool"]["pytest"]
    assert "docs/examples" in options["testpaths"]
    assert "docs/examples/*.py" in options["python_files"]
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*hook_names()}


@pytest.mark.parametrize("hook", hook_names())
def test_hook_is_implemented_by_a_plugin_of_a_test(hook: str) -> None:
    assert any(hook in plugin_methods(path) for path in (ROOT / "tests").rglob("test_*.py"))


# Shipped plugins


def tables_of(page: Path) -> list[str]:
    """Return the blocks of TOML on a page."""
    return re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_plugin_has_its_page_and_its_tests(name: str) -> None:
    page = PAGES / f"{name}.md"
    assert page.read_text().startswith(f"# {name}\n")
    assert any(f'use = "{name}"' in text for text in tables_of(page))
    assert (ROOT / "tests" / "plugins" / f"test_plugin_{name}.py").exists()


def test_pages_are_those_of_shipped_plugins() -> None:
    assert sorted(page.stem for page in PAGES.glob("[!R]*.md")) == SHIPPED


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_tables_on_a_page_are_a_configuration(page: Path, tmp_path: Path) -> None:
    for text in tables_of(page):
        whole = text if "[[listeners]]" in text else text + LISTENERS
        config = Config.parse(whole, tmp_path / "minismtp.toml")
        assert bool(config.plugins) == ("[[plugins]]" in text)


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_links_on_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https:)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (PAGES / target).exists()] == []


def test_index_lists_every_page_once() -> None:
    index = (PAGES / "README.md").read_text()
    linked = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \|", index, re.MULTILINE)
    assert sorted(linked) == [(page.stem, page.stem) for page in sorted(PAGES.glob("[!R]*.md"))]
