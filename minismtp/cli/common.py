"""What the commands share: options, output to the terminal, errors and exit statuses."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from minismtp.runtime.log import complain
from minismtp.values.printable import one_line

if TYPE_CHECKING:
    from minismtp.config import Config

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_NO_ANSWER: Final = 75  # EX_TEMPFAIL of sysexits.h
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as in shells

_COLOURS: Final = {  # numbers of ECMA-48 section 8.3.117: red, yellow and green
    **dict.fromkeys(("rejected", "reject", "refused", "failed", "failure"), 31),
    **dict.fromkeys(("deferred", "defer", "held", "quarantined"), 33),
    **dict.fromkeys(("stored", "delivered"), 32),
}
_WORDS: Final = re.compile(rf"\b(?:{'|'.join(_COLOURS)})\b")

T = TypeVar("T")


class CommandError(Exception):
    """The command cannot do what the user asked for; the text is one line for the user."""

    status = EXIT_FAILURE


class UsageError(CommandError):
    """The arguments make no sense together."""

    status = EXIT_USAGE


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the configuration file."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="default: $MINISMTP_CONFIG, else /etc/minismtp/minismtp.toml,"
        " else a harmless configuration for trying it out",
    )


def configuration(arguments: argparse.Namespace) -> Config:
    """Return the configuration that the command line names; raise ConfigError."""
    from minismtp.config import Config  # noqa: PLC0415 - takes long, and `passwd` has no use for it

    return Config.load(arguments.config)


def argument_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return a type for argparse, whose error message is that of the ValueError of `parse`."""

    def checked(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def say(*lines: str, coloured: bool = False) -> None:
    """Print lines. Every character that would act on the terminal is printed as its escape.

    This is the one place that cleans output: mail, clients and other servers choose much of it. On
    a terminal, words of trouble are `coloured`, unless $NO_COLOR is set.
    """
    text = "".join([f"{one_line(line)}\n" for line in lines])
    if coloured and has_colours():
        text = _WORDS.sub(lambda found: f"\x1b[{_COLOURS[found[0]]}m{found[0]}\x1b[0m", text)
    sys.stdout.write(text)


def has_colours() -> bool:
    """Return whether the output is a terminal that shows colours."""
    dumb = os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("NO_COLOR", "") != ""
    return sys.stdout.isatty() and not dumb


def fail(message: str, status: int = EXIT_FAILURE) -> int:
    """Print one line on standard error and return the exit status."""
    complain(f"minismtp: {message}")
    return status
