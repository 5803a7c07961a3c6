"""What the server says once when it starts or is reloaded, because mail may not work with it."""

from __future__ import annotations

from collections.abc import Iterator

from minismtp.config import Config
from minismtp.config.mistakes import combined
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.plugin_check import Facts
from minismtp.inspection.certificates import check_certificates
from minismtp.inspection.files import check_files, check_plugin_files
from minismtp.inspection.listeners import check_listeners
from minismtp.inspection.plugins import check_plugins
from minismtp.inspection.problem import Problem
from minismtp.runtime.log import Log


def log_doubts(config: Config, plugins: PluginSet, log: Log) -> None:
    """Log a line for each doubt. Raise ConfigError for what is certain to keep mail from working.

    No other server is asked, so that the start does not wait for one.
    """
    problems = list(_problems(config, plugins))
    for severity, mistake in problems:
        if severity == "warning":
            line = {"line": mistake.line} if mistake.line else {}
            name = {"table": mistake.name} if mistake.name else {}
            log.warning("doubtful", key=mistake.key, **name, **line, problem=mistake.message)
    errors = [mistake for severity, mistake in problems if severity == "error"]
    if errors:
        raise combined(errors)


def _problems(config: Config, plugins: PluginSet) -> Iterator[Problem]:
    yield from check_listeners(config)
    yield from check_certificates(config)
    yield from check_files(config)
    yield from check_plugin_files(config, plugins.instances)
    if config.tls.acme is not None:
        # Few servers need the memory of this module.
        from minismtp.inspection.acme_names import check_acme_names  # noqa: PLC0415

        yield from check_acme_names(config, plugins.instances)
    yield from check_plugins(config, "worker", plugins, Facts())
