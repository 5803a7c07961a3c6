"""Which other users can read the secrets of a configuration, or change files the server trusts."""

from __future__ import annotations

import contextlib
import re
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.toml_values import reason
from minismtp.hooks.loader import PluginSet
from minismtp.server.exposure import Trust, exposures

_SECRET: Final = re.compile("(password|secret|token)s?$")


def readable(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the keys of secrets that all users can read, each with the command that helps."""
    files: dict[str, Path] = {"tls.key": config.tls.key} if config.tls.key else {}
    files |= {f"tls.sni[{number}].key": entry.key for number, entry in enumerate(config.tls.sni)}
    files |= dict(password_files(config))
    if config.file and urllib.parse.urlsplit(config.state.url).password:
        files["state.url"] = Path(config.file)
    if config.file:
        files |= {key: Path(config.file) for key in _inline_secrets(config)}
    for key, path in files.items():
        if path.exists() and path.stat().st_mode & stat.S_IROTH:
            yield key, f"{path} can be read by everybody (chmod o-r)"


def _inline_secrets(config: Config) -> Iterator[str]:
    """Yield the keys of plugins' options that hold a secret themselves."""
    for table in config.plugins:
        tables = {table.key: table.options}
        tables |= {
            f"{table.key}.{name}": value
            for name, value in table.options.items()
            if isinstance(value, dict)
        }
        for key, options in tables.items():
            for name, value in options.items():
                if isinstance(value, str) and _SECRET.search(name) and value:
                    yield f"{key}.{name}"


def own_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the files that the server runs or trusts, with the keys that name them."""
    if config.file:
        yield "", Path(config.file)
    for key, path in (
        ("tls.certificate", config.tls.certificate),
        ("tls.key", config.tls.key),
        ("tls.client_ca", config.tls.client_ca),
        ("outbound.server_ca", config.outbound.server_ca),
    ):
        if path is not None:
            yield key, path
    for number, entry in enumerate(config.tls.sni):
        yield f"tls.sni[{number}].certificate", entry.certificate
        yield f"tls.sni[{number}].key", entry.key
    yield from password_files(config)
    for number, directory in enumerate(config.plugin_path):
        for path in (directory, *sorted(directory.glob("*.py"))):
            yield f"plugin_path[{number}]", path


def plugin_files(plugins: PluginSet) -> Iterator[tuple[str, Path]]:
    """Yield the files that plugins have as options: passwords, keys, users, programs."""
    for table, instance in plugins.instances:
        for name, value in vars(instance).items():
            if not name.startswith("_"):
                yield from ((f"{table.key}.{name}", path) for path in _paths(value))


def _paths(value: object) -> Iterator[Path]:
    """Yield the files that the value of an option names, but no directories."""
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
        with contextlib.suppress(OSError, ValueError):
            if Path(value).is_file():
                yield Path(value)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, dict):
        yield from _paths([*value.values()])
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _paths([getattr(value, item.name) for item in fields(value)])


def writable(config: Config, files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
    """Yield the keys of files that other users could change, or whose path they could."""
    trust = Trust.of(config.user)
    with contextlib.suppress(OSError):  # the service's own user, where systemd names it
        trust = trust.and_owner(config.state_directory.stat())
    told = set()
    for key, path in files:
        try:
            problems = list(exposures(path, trust))
        except OSError as error:
            problems = [reason(error)]
        for problem in problems:
            if problem not in told:
                told.add(problem)
                yield key, problem


def password_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the files with passwords for other servers, with the keys that name them."""
    if config.outbound.password_file is not None:
        yield "outbound.password_file", config.outbound.password_file
    for number, route in enumerate(config.outbound.routes):
        if route.password_file is not None:
            yield f"outbound.routes[{number}].password_file", route.password_file
