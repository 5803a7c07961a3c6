"""The command `minismtp`.

Exit status: 0 done, 1 failure, 2 usage, 78 a mistake in the configuration. A user's mistake is one
line on standard error, never a traceback. The commands themselves are in `commands`.
"""

import argparse
import os
import signal
import sys
from typing import Final

from minismtp import __version__
from minismtp.cli import authoring, insight, operation
from minismtp.cli.common import (
    EXIT_CONFIG,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    Command,
    Commands,
    fail,
)
from minismtp.config.toml_values import ConfigError, reason
from minismtp.values.threads import Interrupted

_LAST_STREAM: Final = 2  # the descriptor of standard error


def main(argv: list[str] | None = None) -> int:
    """Run a command and give its exit status."""
    open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as end:  # argparse has said all
        return end.code if isinstance(end.code, int) else EXIT_FAILURE
    command: Command = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return fail(str(error), EXIT_CONFIG)
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        return fail(reason(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _interrupt(*_: object) -> None:
    raise Interrupted


def parser() -> argparse.ArgumentParser:
    """Return the whole command line; its manual is made from it."""
    whole = argparse.ArgumentParser(
        prog="minismtp",
        description="An SMTP server whose plugins are plain Python.",
        epilog="Exit status: 0 done, 1 failure, 2 usage, 78 a mistake in the configuration.",
    )
    whole.add_argument("--version", action="version", version=f"minismtp {__version__}")
    commands = Commands(whole)
    for group in (operation, insight, authoring):
        group.add_to(commands)
    return whole


def open_standard_streams() -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise the next file or socket would get its descriptor, and with it the lines of the log.
    Programs that plugins start inherit them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
