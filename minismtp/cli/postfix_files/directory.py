"""A Postfix configuration directory, perhaps a copy from another host."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minismtp.cli.postfix_files.main_cf import MainCf
from minismtp.cli.postfix_files.master_cf import Service, read_services
from minismtp.cli.postfix_files.text import (
    PostfixError,
    Problem,
    logical_lines,
    read_text,
    unusable,
    words,
)

_USUAL: Final = Path("/etc/postfix")
_NESTED: Final = 10  # files in lists that name files
_MOST_FILES: Final = 100  # for one list
_MOST_WORDS: Final = 1_000_000


@dataclass(slots=True)
class PostfixDirectory:
    """main.cf and master.cf of a directory, and the place of the files that they name."""

    path: Path
    main: MainCf
    services: list[Service]
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> PostfixDirectory:
        """Read a directory. Raise PostfixError if it has no usable main.cf."""
        if not path.is_dir():
            raise PostfixError(f"{path} is no directory")
        main = MainCf.read(path / "main.cf")
        found = cls(path, main, [], list(main.problems))
        try:
            found.services, problems = read_services(read_text(path / "master.cf"), "master.cf")
            found.problems += problems
        except PostfixError as error:
            found.problems.append(Problem("master.cf", f"{error}; the listeners are the usual"))
        return found

    def locate(self, name: str) -> Path:
        """Return where a file that the configuration names by its absolute path is.

        If the directory is a copy, so is the file: below the root that the directory has
        (`copy/etc/postfix`), or in the directory itself.
        """
        path = Path(os.path.normpath(name))
        here = self.path.absolute()
        if path.is_relative_to(_USUAL):
            return here / path.relative_to(_USUAL)
        if here.parts[-2:] == _USUAL.parts[-2:]:
            return Path(*here.parts[:-2], *path.parts[1:])
        beside = here / path.name
        return path if path.exists() or not beside.exists() else beside

    def items(self, text: str) -> Iterator[str]:
        """Yield the items of a list; a file in it stands for its lines (match_list).

        An item that does not fit begins with "!". Raise PostfixError for a file that cannot be
        read, and for files that name each other without an end.
        """
        opened: list[Path] = []
        for count, item in enumerate(self._items(text, (), "", opened)):
            if count > _MOST_WORDS:
                raise PostfixError(f"the list has more than {_MOST_WORDS} entries")
            yield item

    def _items(
        self, text: str, files: tuple[Path, ...], sign: str, opened: list[Path]
    ) -> Iterator[str]:
        for word in words(text):
            name = word.lstrip("!")
            negated = (len(word) - len(name) + len(sign)) % 2
            if not name.startswith("/"):
                yield f"{'!' * negated}{name}"
                continue
            path = self.locate(name)
            opened.append(path)
            if path in files or len(files) > _NESTED or len(opened) > _MOST_FILES:
                raise PostfixError(f"{path} contains itself, or too many files contain others")
            for line in logical_lines(read_text(path)):
                if not unusable(line.text):
                    yield from self._items(line.text, (*files, path), "!" * negated, opened)
