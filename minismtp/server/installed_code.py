"""Whether the code that is installed is still that which runs.

A module is imported when it is first needed. That may be at a reload, or in a process that is
started again, after an upgrade and before the restart. It would then be of another release than the
modules that are imported already, so it is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Final

from minismtp.config.mistakes import ConfigError

_OWN: Final = ("minismtp", "minismtp_plugins")


class InstalledCode:
    """The code of packages as it is installed when this is made.

    That is the content of each file of our own packages, because the same release may be installed
    again with an extra; and the first file of any other package, whose content may stay the same.
    """

    def __init__(self, *packages: str) -> None:
        """Take the packages besides our own. Those that are not installed are left out."""
        self._files: dict[str, str] = {}
        for name in (*_OWN, *packages):
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin is not None:
                self._files[name] = spec.origin
        self._seen = self._look()

    def is_replaced(self) -> bool:
        """Return whether any of it was installed again since then."""
        return self._look() != self._seen

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Refuse to import more of it in the block, if it was replaced.

        Raise ConfigError at the end of a block that needed a module, even if the block went on.
        """
        if not self.is_replaced():
            yield
            return
        refusal = _Refusal(frozenset(self._files))
        sys.meta_path.insert(0, refusal)
        try:
            with contextlib.suppress(_RefusedError):
                yield
        finally:
            sys.meta_path.remove(refusal)
        if refusal.names:
            raise ConfigError(
                f"the server was installed again since it started, so {refusal.names[0]} may be of"
                " another release; restart the server"
            )

    def _look(self) -> int:
        return hash(
            tuple(
                sorted(
                    (str(path), _version(path, own=name in _OWN))
                    for name, first in self._files.items()
                    for path in _files(name, first)
                )
            )
        )


class _RefusedError(ImportError):
    """A module would be of another release."""


class _Refusal(MetaPathFinder):
    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages
        self.names: list[str] = []

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raise ImportError for a module of the packages; the next finder has the others."""
        del path, target
        if fullname.partition(".")[0] in self._packages:
            self.names.append(fullname)
            raise _RefusedError(fullname)


def _files(name: str, first: str) -> Iterator[Path]:
    """Yield the files of a package that count."""
    if name not in _OWN:
        yield Path(first)
        return
    for directory, _, files in os.walk(Path(first).parent):
        yield from (Path(directory, file) for file in files if file.endswith(".py"))


def _version(path: Path, *, own: bool) -> int:
    """Return a number that differs for another version of a file."""
    try:
        if own:
            return hash(path.read_bytes())
        status = path.stat()
    except OSError:  # it is being replaced
        return 0
    return hash((status.st_ino, status.st_mtime_ns, status.st_size))
