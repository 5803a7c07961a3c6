"""The version that is installed, and with --check the newest one: `minismtp version`.

The exit status with --check is 0 if no release is newer, 1 if there is one, and 75 if the package
index did not answer.
"""

from __future__ import annotations

import argparse
import platform

from minismtp import __version__
from minismtp.cli.common import EXIT_FAILURE, EXIT_NO_ANSWER, add_config, configuration, fail, say
from minismtp.cli.text import json_line
from minismtp.server.known_release import is_newer


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--check",
        action="store_true",
        help="ask the package index of [updates] for the newest release. Exit status 0: none is"
        " newer; 1: one is newer; 75: no answer",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the versions. Return the exit status."""
    newest = ""
    if arguments.check:
        from minismtp.services.release_index import newest_release  # noqa: PLC0415 - takes long

        try:
            newest = newest_release(configuration(arguments).updates.index).text
        except OSError as error:
            return fail(f"the newest release is not known: {error}", EXIT_NO_ANSWER)
    newer = is_newer(newest)
    if arguments.json:
        found = {"version": __version__, "python": platform.python_version()}
        more = {"newest": newest, "newer": newer} if arguments.check else {}
        say(json_line({**found, **more}))
    else:
        say(f"minismtp {__version__}, Python {platform.python_version()}")
        if newer:
            say(f"{newest} is available; upgrade in the way in which you installed this one")
        elif newest:
            say("no release is newer")
    return EXIT_FAILURE if newer else 0
