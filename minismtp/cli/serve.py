"""The server itself: `minismtp serve`."""

from __future__ import annotations

import argparse
import sys

from minismtp.cli.common import add_config, configuration, say
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError, combined
from minismtp.hooks.loader import PluginSet
from minismtp.server.signals import block_signals

add_options = add_config


def run(arguments: argparse.Namespace) -> int:
    """Run the server until it is told to end."""
    block_signals()  # again, for a caller that imported something before minismtp
    from minismtp.server.supervisor import serve  # noqa: PLC0415 - after the signals are blocked

    try:
        config = configuration(arguments)
    except ConfigError as error:
        raise combined([error, *_mistakes_of_plugins(arguments)]) from None
    if not config.file:
        say(*_first_steps(config))
        sys.stdout.flush()  # or each child process would print it again
    return serve(config)


def _mistakes_of_plugins(arguments: argparse.Namespace) -> tuple[ConfigError, ...]:
    """Return the mistakes in the tables of plugins, beside those that were found already."""
    file = Config.file_to_read(arguments.config)
    try:
        config = Config.read(file) if file else Config.embedded()
    except ConfigError:  # the file cannot be read at all, which was found already
        return ()
    try:
        PluginSet.load(config)
    except ConfigError as error:
        return error.mistakes
    return ()


def _first_steps(config: Config) -> list[str]:
    address, mail = config.mail_listeners[0].address, config.state_directory / "mail"
    curl = (
        f"curl --url smtp://{address} --mail-from me@example.org --mail-rcpt me@localhost"
        " --upload-file -"
    )
    return [
        "No configuration file: a harmless server for trying it out.",
        f"Mail for anybody at localhost or {config.hostname} is stored below {mail}",
        f"Metrics are at http://{config.metrics.address}/metrics",
        "Send the first mail:",
        rf"  printf 'Subject: Hello\r\n\r\nIt works.\r\n' | {curl}",
    ]
