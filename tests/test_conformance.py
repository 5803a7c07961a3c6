"""docs/conformance.md names tests that exist, and the codes that the server uses."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "conformance.md").read_text()
NAMED: Final = set(re.findall(r"`(test_\w+)::(test_\w+)`", PAGE))
SUITE: Final = [*ROOT.glob("tests/session/test_rfc*.py"), ROOT / "tests" / "test_smuggling.py"]


def functions_of(path: Path) -> set[str]:
    """Return the names of the test functions in a file."""
    nodes = ast.parse(path.read_text()).body
    return {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_exist(file: str) -> None:
    named = {test for of, test in NAMED if of == file}
    [path] = (ROOT / "tests").rglob(f"{file}.py")
    assert named <= functions_of(path)


@pytest.mark.parametrize("path", sorted(SUITE), ids=lambda path: path.stem)
def test_every_test_by_rfc_proves_a_clause(path: Path) -> None:
    assert functions_of(path) <= {test for of, test in NAMED if of == path.stem}


def test_every_row_names_a_test() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    for heading in set(headings) - {"The codes we use"}:
        assert rows(heading)
        for row in rows(heading):
            assert len(row) == 3, row
            assert re.fullmatch(r"(?:`test_\w+::test_\w+`(?: |$))+", row[2]), row


def literal_codes() -> Iterator[tuple[int, str]]:
    """Yield each reply code of the source with its enhanced code."""
    for path in (ROOT / "minismtp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name("Reply"), args=[code, _, ast.Constant(str(enhanced))]):
                    for part in ast.walk(code):
                        if isinstance(part, ast.Constant) and isinstance(part.value, int):
                            yield part.value, enhanced


USED: Final = {(int(row[1]), row[0].strip("`")) for row in rows("The codes we use")}


def test_reply_has_a_registered_code() -> None:
    # RFC 5248: the page has each pair, with what the registry says of it
    assert set(literal_codes()) <= USED


def test_every_code_of_the_page_is_used() -> None:
    source = "".join(path.read_text() for path in (ROOT / "minismtp").rglob("*.py"))
    for code, enhanced in USED - set(literal_codes()):
        assert f'"{enhanced}"' in source, (code, enhanced)
