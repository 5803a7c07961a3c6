"""A script that completes commands and options in a shell: `minismtp completion`."""

from __future__ import annotations

import argparse
import sys

_SHELLS = ("bash", "zsh", "fish")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab  # noqa: PLC0415 - no other command needs it

    from minismtp.cli.main import parser  # noqa: PLC0415 - which imports this module

    whole = parser()
    for command in _parsers(whole):
        for action in command._actions:  # noqa: SLF001 - argparse shows them in no other way
            if action.metavar in {"FILE", "MAILDIR", "DIRECTORY"}:
                action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(whole, shell=arguments.shell))
    return 0


def _parsers(whole: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parser of each command."""
    actions = whole._actions  # noqa: SLF001 - argparse shows them in no other way
    return [
        command
        for action in actions
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 - the same
        for command in action.choices.values()
    ]
