"""Which users could change a file or its path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minismtp.inspection.exposure import Trust, exposures

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a/b/file, with access for its owner only."""
    directory = tmp_path / "a" / "b"
    directory.mkdir(parents=True)
    for path in (tmp_path / "a", directory):
        path.chmod(0o700)
    file = directory / "file"
    file.touch(mode=0o600)
    return file


def found(path: Path, trust: Trust | None = None) -> list[str]:
    return list(exposures(path, trust or Trust.of()))


def test_file_of_its_own_is_safe(file: Path) -> None:
    assert found(file) == []
    assert found(file.parent / "nothing" / "here") == []


@pytest.mark.parametrize("of", ["a", "a/b", "a/b/file"])
def test_whoever_can_write_on_the_way_is_named(tmp_path: Path, file: Path, of: str) -> None:
    path = tmp_path / of
    path.chmod(path.stat().st_mode | 0o002)
    assert found(file) == [f"{path} can be written by everybody (chmod o-w)"]


def test_directory_where_only_owners_replace_is_safe(tmp_path: Path, file: Path) -> None:
    (tmp_path / "a").chmod(0o1777)
    assert found(file) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("of", ["a", "a/b", "a/b/file"])
def test_group_and_owner_of_others_are_named(tmp_path: Path, file: Path, of: str) -> None:
    path = tmp_path / of
    os.chown(path, 0, NOBODY)
    path.chmod(path.stat().st_mode | 0o020)
    assert [text.partition(" can ")[0] for text in found(file)] == [str(path)]
    assert found(file, Trust((), {NOBODY})) == []
    os.chown(path, NOBODY, 0)
    [text] = found(file)
    assert text.startswith(f"{path} belongs to ")
    assert found(file, Trust({NOBODY})) == []


def absolute(link: Path, target: Path) -> None:
    link.symlink_to(target)


def relative(link: Path, target: Path) -> None:
    link.symlink_to(Path("..") / target.parent.name / target.name)


@pytest.mark.parametrize("make", [absolute, relative])
def test_links_are_followed(tmp_path: Path, file: Path, make: Callable[[Path, Path], None]) -> None:
    """The target of a link counts, and the directories on its path."""
    place = tmp_path / "a" / "c"
    place.mkdir(mode=0o700)
    link = place / "link"
    make(link, file)
    assert found(link) == []
    file.parent.chmod(0o777)
    assert found(link) == [f"{file.parent} can be written by everybody (chmod o-w)"]
    file.parent.chmod(0o700)
    place.chmod(0o777)
    assert found(link) == [f"{place} can be written by everybody (chmod o-w)"]
    assert found(file) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_link_of_somebody_else_in_a_shared_directory_is_named(tmp_path: Path, file: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(file)
    assert found(shared / "link") == []
    os.chown(shared / "link", NOBODY, NOBODY, follow_symlinks=False)
    [text] = found(shared / "link")
    assert text.startswith(f"{shared / 'link'} belongs to ")


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert found(tmp_path / "link") == []
