"""The directories and files that the configuration names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError, reason
from minismtp.delivery.tls_security import Contexts
from minismtp.inspection import permissions
from minismtp.inspection.problem import Problem, error, warning
from minismtp.values.durable_files import read_file


def check_files(config: Config) -> Iterator[Problem]:
    """Yield what is wrong with directories, permissions, and files for sending."""
    yield from _directories(config)
    own = permissions.own_files(config)
    for key, problem in (*permissions.readable(config), *permissions.writable(config, own)):
        yield warning(config, key, problem)
    yield from _files_for_sending(config)


def check_plugin_files(
    config: Config, plugins: Iterable[tuple[PluginConfig, object]]
) -> Iterator[Problem]:
    """Yield what other users could change among the files that plugins have as options."""
    for key, problem in permissions.writable(config, permissions.plugin_files(plugins)):
        yield warning(config, key, problem)


def _directories(config: Config) -> Iterator[Problem]:
    for number, directory in enumerate(config.plugin_path):
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            text = f"{directory} {what}; expected a directory with a file for each plugin"
            yield warning(config, f"plugin_path[{number}]", text)
    existing = config.state_directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        yield error(config, "state_directory", f"{existing} is a file; expected a directory")
    elif not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        made = "written to" if existing == config.state_directory else f"made: {existing}"
        text = f"cannot be {made} is not writable by this user (chown it, or choose another place)"
        yield error(config, "state_directory", text)
    elif existing == config.state_directory and existing.stat().st_mode & stat.S_IRWXO:
        yield warning(config, "state_directory", f"{existing} is open to everybody (chmod o-rwx)")


def _files_for_sending(config: Config) -> Iterator[Problem]:
    if config.outbound.server_ca is not None:  # the system's take 40 ms, and cannot fail
        try:
            Contexts(config.outbound.server_ca)
        except ConfigError as problem:
            yield error(config, problem.key, problem.message)
    for key, path in permissions.password_files(config):
        try:
            if not read_file(path).decode().partition("\n")[0].strip():
                yield error(config, key, f"{path} has no password in its first line")
        except OSError as problem:
            yield error(
                config, key, f"{reason(problem)}; make it, with the password in its first line"
            )
        except ValueError as problem:
            yield error(config, key, f"{path}: {problem}")
