"""The sessions that are open now: `minismtp sessions`."""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

from minismtp.cli.common import add_config, configuration, say
from minismtp.cli.text import fitted, terminal_width, wrapped
from minismtp.runtime.log import complain
from minismtp.server.open_sessions import Survey, doing, survey
from minismtp.values.units import span

HEAD: Final = ("ID", "PEER", "LISTENER", "STATE", "AGE", "LOGIN", "TLS", "MESSAGE", "NOW")
ELASTIC: Final = ("PEER", "LISTENER", "LOGIN", "MESSAGE")  # columns that may be cut


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("--stack", action="store_true", help="show the stacks of their threads too")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print the sessions, and on standard error which processes did not answer; raise OSError."""
    found = survey(configuration(arguments).state_directory / "control", stack=arguments.stack)
    for problem in found.problems:
        complain(f"minismtp: {problem}")
    if arguments.json:
        say(*json.dumps(found.sessions, indent=1).split("\n"))
    else:
        width = terminal_width()
        say(*(listed(found, width) if found.sessions else ["no sessions"]))
    return 0


def listed(found: Survey, width: int | None = None) -> list[str]:
    """Return the lines of the table, each session followed by its stack if that is known.

    `width` is that of the terminal.
    """
    head, *rows = fitted(HEAD, rows_of(found, width), width, ELASTIC)
    lines = head
    for own, session in zip(rows, found.sessions, strict=True):
        place = [f"    in the plugin: {session['place']}"] if session.get("place") else []
        stack = [f"    {frame}" for frame in session.get("stack", ())]
        lines += [*own, *wrapped([*place, *stack], width)]
    return lines


def rows_of(found: Survey, width: int | None) -> list[tuple[str, ...]]:
    """Return the cells of each session, in the order of `HEAD`.

    On a terminal of that width, a message is named without the session before it.
    """
    return [_row(session, brief=width is not None) for session in found.sessions]


def _row(session: dict[str, Any], *, brief: bool) -> tuple[str, ...]:
    message = session["message"] or ""
    return (
        session["id"],
        session["peer"],
        session["listener"],
        session["state"],
        span(session["age"]),
        session.get("login") or "-",
        session.get("tls") or "-",
        (message.removeprefix(session["id"]) if brief else message) or "-",
        doing(session),
    )
