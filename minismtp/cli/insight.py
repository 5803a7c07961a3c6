"""The commands that show what the server does and did."""

# ruff: noqa: PLC0415 - each command imports what it needs, see `commands`
from __future__ import annotations

import argparse
import sys
from datetime import timedelta

from minismtp.cli.common import Commands, configuration, fail, say
from minismtp.server.privileges import acting_as_owner

_CLEAR = "\x1b[H\x1b[J"  # the cursor to the top left, and nothing below it


def add_to(commands: Commands) -> None:
    """Add the commands of this group."""
    sessions = commands.add("sessions", _sessions, "show the sessions that are open now")
    sessions.add_argument("--stack", action="store_true", help="and where their threads are")
    sessions.add_argument("--json", action="store_true")
    explain = commands.add(
        "explain", _explain, "tell how a message or a session was decided, step by step"
    )
    explain.add_argument(
        "id",
        metavar="ID",
        help="as in the reply, the log or a Received field; or an address, as a command had it",
    )
    explain.add_argument("--json", action="store_true")
    shadow = commands.add(
        "shadow", _shadow, "tell what plugins in shadow mode would have done, with examples"
    )
    shadow.add_argument(
        "--since",
        type=_duration,
        default="1d",
        metavar="DURATION",
        help='how long ago to begin, such as "2h"; default: 1d',
    )
    shadow.add_argument("--json", action="store_true")
    trace = commands.add(
        "trace", _trace, "show the dialogue of sessions as it happens, until Ctrl-C"
    )
    trace.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_network,
        metavar="NET",
        help="only with clients in it, such as 192.0.2.0/24; may be given again",
    )
    top = commands.add(
        "top", _top, "show rates, queue, verdicts, slow hooks and sessions, again and again"
    )
    top.add_argument("--once", action="store_true", help="one look, for scripts")
    top.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    top.add_argument("--url", default="", help="of the metrics; default: as configured")


def _sessions(arguments: argparse.Namespace) -> int:
    from minismtp.server import open_sessions as sessions

    say(sessions.run(configuration(arguments), arguments))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from minismtp.cli import explain

    config = configuration(arguments)
    with acting_as_owner(config.state_directory):
        text = explain.run(config, arguments)
    if not text:
        return fail(f"nothing is known of {arguments.id}")
    say(text)
    return 0


def _shadow(arguments: argparse.Namespace) -> int:
    from minismtp.cli import shadow

    config = configuration(arguments)
    with acting_as_owner(config.state_directory):
        say(shadow.run(config, arguments))
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from minismtp.cli import trace

    for line in trace.run(configuration(arguments), arguments):
        say(line)
        sys.stdout.flush()
    return 0


def _top(arguments: argparse.Namespace) -> int:
    from minismtp.cli import top

    for screen in top.run(configuration(arguments), arguments):
        sys.stdout.write("" if arguments.once else _CLEAR)
        say(screen)
        sys.stdout.flush()
    return 0


def _duration(text: str) -> timedelta:
    from minismtp.config.types import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _network(text: str) -> str:
    from minismtp.config.types import parse_network

    try:
        return str(parse_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
