"""The tree is the plan: a folder imports itself and those before it, and nothing in a circle."""

import ast
import graphlib
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "minismtp"
ORDER = ["values", "smtp", "mail", "config", "runtime", "services", "storage", "hooks"]
ORDER += [
    "session",
    "delivery",
    "mailqueue",
    "inspection",
    "server",
    "cli",
]  # and what plugin authors import


def imports(path: Path) -> set[Path]:
    """Return the files of minismtp that one imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            name = f"{getattr(node, 'module', '')}.{alias.name}".lstrip(".")
            if name.startswith("minismtp") and alias.name != "__version__":
                place = SOURCE.parent.joinpath(*name.split("."))
                files = [place.with_suffix(".py"), place / "__init__.py"]
                files += [place.parent.with_suffix(".py"), place.parent / "__init__.py"]
                found.add(next(file for file in files if file.exists()))
    return found


def test_imports_point_one_way() -> None:
    graph = {path: imports(path) for path in SOURCE.rglob("*.py")}
    list(graphlib.TopologicalSorter(graph).static_order())  # a CycleError names the circle
    rank = {path: ORDER.index([*path.relative_to(SOURCE).parts[:-1], "cli"][0]) for path in graph}
    assert not {(a, b) for a in graph for b in graph[a] if rank[b] > rank[a]}
