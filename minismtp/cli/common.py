"""What all commands share: how they are added, how they speak, how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minismtp.runtime.log import complain
from minismtp.values.printable import printable

if TYPE_CHECKING:
    from minismtp.config import Config

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

Command = Callable[[argparse.Namespace], int]


class Commands:
    """The commands of a parser, which the groups add to."""

    def __init__(self, whole: argparse.ArgumentParser) -> None:
        self._parsers = whole.add_subparsers(metavar="COMMAND", required=True)

    def add(
        self, name: str, command: Command, text: str, *, config: bool = True
    ) -> argparse.ArgumentParser:
        """Add one; `text` says what it does, `config` whether it reads the configuration."""
        sub = self._parsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(command=command)
        if config:
            sub.add_argument(
                "--config",
                type=Path,
                metavar="FILE",
                help="default: $MINISMTP_CONFIG, else /etc/minismtp/minismtp.toml,"
                " else a harmless configuration for trying it out",
            )
        return sub


def say(text: str) -> None:
    """Print a line or several, in which nothing of a stranger's controls the terminal."""
    sys.stdout.write(f"{printable(text)}\n")


def fail(message: str, status: int = EXIT_FAILURE) -> int:
    """Print one line on standard error and give the exit status."""
    complain(f"minismtp: {message}")
    return status


def configuration(arguments: argparse.Namespace) -> Config:
    """Return the configuration that the command line means. Raise ConfigError."""
    from minismtp.config import Config  # noqa: PLC0415 - see `commands`

    return Config.load(arguments.config)
