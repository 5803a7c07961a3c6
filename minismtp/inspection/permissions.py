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

from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import reason
from minismtp.inspection.exposure import Trust, exposures

_SECRET: Final = re.compile(r"(password|secret|token)s?$")
_SECRET_FILE: Final = re.compile(r"\.(key|password_file)$")


def readable(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the keys of secrets that all users can read, each with the command that helps."""
    files = [each for each in _named_files(config) if _SECRET_FILE.search(each[0])]
    if config.file:
        files += [(key, Path(config.file)) for key in _inline_secrets(config)]
    for key, path in files:
        if path.exists() and path.stat().st_mode & stat.S_IROTH:
            yield key, f"{path} can be read by everybody (chmod o-r)"


def _inline_secrets(config: Config) -> Iterator[str]:
    """Yield the keys of options that hold a secret themselves."""
    if urllib.parse.urlsplit(config.state.url).password:
        yield "state.url"
    for table in config.plugins:
        for key, value in _options(table.key, table.options):
            if isinstance(value, str) and _SECRET.search(key) and value:
                yield key


def password_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the files with passwords for other servers, with the keys that name them."""
    return (each for each in _named_files(config) if each[0].endswith("password_file"))


def own_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the files that the server runs or trusts, with the keys that name them."""
    if config.file:
        yield "", Path(config.file)
    yield from _named_files(config)
    for number, directory in enumerate(config.plugin_path):
        for path in (directory, *sorted(directory.glob("*.py"))):
            yield f"plugin_path[{number}]", path


def plugin_files(
    instances: Iterable[tuple[PluginConfig, object]],
) -> Iterator[tuple[str, Path]]:
    """Yield the files that plugins have as options: passwords, keys, users, programs."""
    for table, instance in instances:
        shown = {name: value for name, value in vars(instance).items() if name[:1] != "_"}
        for key, value in _options(table.key, shown):
            if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
                with contextlib.suppress(OSError, ValueError):
                    if Path(value).is_file():
                        yield key, Path(value)


def _named_files(config: Config) -> Iterator[tuple[str, Path]]:
    for key, value in (*_options("tls", config.tls), *_options("outbound", config.outbound)):
        if isinstance(value, Path):
            yield key, value


def _options(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the options of a table and of all tables and arrays in it, with their keys."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, dict):
        parts = {f"{key}.{name}": part for name, part in value.items()}
    elif isinstance(value, (list, tuple)):
        parts = {f"{key}[{number}]": part for number, part in enumerate(value)}
    else:
        yield key, value
        return
    for name, part in parts.items():
        yield from _options(name, part)


def named_paths(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the absolute paths in the configuration; of a pattern the part before its fields."""
    yield from _named_files(config)
    for table in config.plugins:
        for key, value in _options(table.key, table.options):
            if isinstance(value, str) and value.startswith("/"):
                yield key, Path(value.partition("{")[0])


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
