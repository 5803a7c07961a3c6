"""The server itself: `minismtp serve`."""

from __future__ import annotations

import argparse
import sys

from minismtp.cli.common import add_config, configuration, say
from minismtp.config import Config
from minismtp.server.startup_signals import block_signals

add_options = add_config


def run(arguments: argparse.Namespace) -> int:
    """Run the server until it is told to end."""
    block_signals()  # again, for a caller that imported something before minismtp
    from minismtp.server.supervisor import serve  # noqa: PLC0415 - after the signals are blocked

    config = configuration(arguments)
    if not config.file:
        say(*_first_steps(config))
        sys.stdout.flush()  # or each child process would print it again
    return serve(config)


def _first_steps(config: Config) -> list[str]:
    address, mail = config.listeners[0].address, config.state_directory / "mail"
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
