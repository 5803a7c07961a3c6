"""Where plugins come from: files of `plugin_path`, and entry points of installed packages.

Nothing here loads a plugin. The supervisor uses this module to prepare what all its processes need.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeGuard

if TYPE_CHECKING:
    from minismtp.config import Config

GROUP: Final = "minismtp"  #: of the entry points
SHIPPED: Final = "minismtp_plugins"  #: the package of the shipped plugins
#: The entry points of the plugins in installed packages.
Packages: TypeAlias = Sequence[EntryPoint]


def installed() -> Packages:
    """Return the entry points of the plugins in installed packages.

    This takes 20 ms and 1 MB of memory, so the supervisor does it once for all its processes.
    """
    return tuple(entry_points(group=GROUP))


def sources_of(
    plugin_path: list[Path], packages: Packages | None = None
) -> dict[str, Path | EntryPoint]:
    """Return the file or entry point of each plugin by its name. Local files come first.

    `packages` are what `installed` returned, if the caller searched already.
    """
    found: dict[str, Path | EntryPoint] = {}
    for directory in plugin_path:
        for path in sorted(directory.glob("*.py")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    for entry in installed() if packages is None else packages:
        found.setdefault(entry.name, entry)
    return found


def import_shipped(config: Config, packages: Packages) -> None:
    """Import the modules of those shipped plugins that a configuration names.

    The supervisor does so, because its processes share the memory of what it imported. Also, a
    process that it starts after an upgrade has plugins of the same release as the server. The
    plugins of others are not imported, because they may start threads, and are new at each reload.
    A module may have a function `before_fork` for what else its processes can share. A module that
    cannot be imported is left to the processes, which tell why.
    """
    for source in _used(config, packages):
        if _is_shipped(source):
            with suppress(Exception, SystemExit):
                module = importlib.import_module(source.module)
                if prepare := getattr(module, "before_fork", None):
                    prepare()


def uses_others(config: Config, packages: Packages) -> bool:
    """Return whether a configuration names plugins that are not shipped."""
    return not all(_is_shipped(source) for source in _used(config, packages))


def _used(config: Config, packages: Packages) -> list[Path | EntryPoint]:
    sources = sources_of(config.plugin_path, packages)
    return [sources[use] for use in {table.use for table in config.plugins} if use in sources]


def _is_shipped(source: Path | EntryPoint) -> TypeGuard[EntryPoint]:
    return isinstance(source, EntryPoint) and source.module.partition(".")[0] == SHIPPED
