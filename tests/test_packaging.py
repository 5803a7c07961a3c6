"""The content of the wheel and the source distribution, all from pyproject.toml."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from machine import constraints
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source import ROOT, copy_source, source_files

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS: dict[str, str] = PYPROJECT["project"]["entry-points"]["minismtp"]
SETUPTOOLS: dict[str, Any] = PYPROJECT["tool"]["setuptools"]


@dataclass(frozen=True)
class Distributions:
    """The built files, and the names of what is in them (without the sdist's top directory)."""

    wheel: Path
    in_wheel: frozenset[str]
    in_sdist: frozenset[str]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build both as a release does, the wheel from the sdist, in a copy of the source tree."""
    source = tmp_path_factory.mktemp("packaging") / "source"
    copy_source(source)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "."],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    [wheel] = source.glob("dist/*.whl")
    [sdist] = source.glob("dist/*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = frozenset(name.partition("/")[2] for name in archive.getnames())
    with zipfile.ZipFile(wheel) as archive:
        return Distributions(wheel, frozenset(archive.namelist()), in_sdist)


def files_below(directory: str, pattern: str = "*") -> set[str]:
    return {
        name.as_posix()
        for name in source_files()
        if name.is_relative_to(directory) and name.match(pattern)
    }


def test_packages_are_the_directories_with_python_files() -> None:
    modules = files_below("minismtp", "*.py") | files_below("plugins", "*.py")
    directories = {Path(name).parent.as_posix() for name in modules}
    directory_of = SETUPTOOLS["package-dir"]
    named = set()
    for package in SETUPTOOLS["packages"]:
        top, *rest = package.split(".")
        named.add("/".join([directory_of[top], *rest]))
    assert named == directories


def test_every_package_is_a_regular_one() -> None:
    modules = files_below("minismtp", "*.py") | files_below("plugins", "*.py")
    directories = {Path(name).parent for name in modules}
    assert {
        directory for directory in directories if not (ROOT / directory / "__init__.py").exists()
    } == set()


def test_every_plugin_file_has_its_entry_point() -> None:
    plugins = {path.stem for path in (ROOT / "plugins").glob("[!_]*.py")}
    assert set(ENTRY_POINTS) == plugins


@pytest.mark.parametrize(("name", "target"), ENTRY_POINTS.items(), ids=ENTRY_POINTS.keys())
def test_entry_point_names_a_class_of_its_file(name: str, target: str) -> None:
    module, _, class_name = target.partition(" ")[0].partition(":")  # an extra may follow
    assert module == f"minismtp_plugins.{name}"
    body = ast.parse((ROOT / "plugins" / f"{name}.py").read_bytes()).body
    assert class_name in {node.name for node in body if isinstance(node, ast.ClassDef)}


def test_wheel_holds_both_packages_with_their_types(distributions: Distributions) -> None:
    plugins = {name.replace("plugins/", "minismtp_plugins/", 1) for name in files_below("plugins")}
    assert files_below("minismtp") | plugins <= distributions.in_wheel
    assert {"minismtp/py.typed", "minismtp_plugins/py.typed"} <= distributions.in_wheel


def test_wheel_holds_nothing_else(distributions: Distributions) -> None:
    tops = {name.partition("/")[0] for name in distributions.in_wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "minismtp",
        "minismtp_plugins",
    }


@pytest.mark.parametrize("directory", ["docs", "etc", "minismtp", "plugins", "systemd", "tests"])
def test_sdist_holds_the_whole_directory(directory: str, distributions: Distributions) -> None:
    files = files_below(directory)
    assert files
    assert files <= distributions.in_sdist


@pytest.mark.parametrize(
    "name",
    ["CHANGELOG.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "pyproject.toml"],
)
def test_sdist_holds_the_file(name: str, distributions: Distributions) -> None:
    assert name in distributions.in_sdist


def test_entry_points_load_from_the_wheel(distributions: Distributions) -> None:
    script = """
import importlib.metadata, inspect
for point in importlib.metadata.distribution("minismtp").entry_points:
    print(point.group, point.name, inspect.getfile(point.load()))
"""
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=os.environ | {"PYTHONPATH": str(distributions.wheel)},
        cwd=distributions.wheel.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [line.split(" ", 2) for line in loaded.stdout.splitlines()]
    assert {(group, name) for group, name, _ in lines} == {
        ("console_scripts", "minismtp"),
        ("pytest11", "minismtp"),
        *(("minismtp", name) for name in ENTRY_POINTS),
    }
    assert all(file.startswith(str(distributions.wheel)) for _, _, file in lines)


@pytest.mark.parametrize("part", list(constraints()))
def test_constraints_have_what_the_project_needs_with_hashes(part: str) -> None:
    """`make constraints` writes them; `make install` accepts no other package."""
    needed = {
        "build": PYPROJECT["build-system"]["requires"],
        "core": PYPROJECT["project"]["dependencies"],
        **PYPROJECT["project"]["optional-dependencies"],
    }[part]
    pins = {}
    for line in constraints()[part]:
        pin, *hashes = line.split()
        name, _, version = pin.partition("==")
        pins[canonicalize_name(name)] = version
        assert hashes
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
    waiting, seen = [Requirement(each) for each in needed], set()
    assert {canonicalize_name(each.name) for each in waiting} <= pins.keys()
    waiting = [each for each in waiting if not each.marker or each.marker.evaluate()]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pins[name]), requirement
        if name not in seen:
            seen.add(name)
            more = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
            waiting += [
                each for each in more if not each.marker or each.marker.evaluate({"extra": ""})
            ]
    assert seen <= pins.keys()


def test_extras_of_a_service_are_all_in_the_constraints() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"]) - {
        *("bench", "test", "fuzz", "release")
    }
    assert {"build", "core", *extras} == constraints().keys()


def test_script_that_installs_takes_no_package_without_a_hash() -> None:
    script = (ROOT / "systemd" / "install").read_text()
    calls = [line for line in script.splitlines() if "$pip install" in line]
    assert calls
    assert all(
        "--require-hashes" in call or "--no-deps --no-build-isolation" in call for call in calls
    )
