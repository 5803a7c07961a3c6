"""A view of the server that is refreshed in the terminal: `minismtp top`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from minismtp.cli.common import CommandError, add_config, configuration, say
from minismtp.cli.sessions import HEAD, row
from minismtp.cli.text import table
from minismtp.config import Config
from minismtp.server.figures import Overview, overview
from minismtp.server.open_sessions import survey
from minismtp.values.units import span

_CLEAR: Final = "\x1b[H\x1b[J"  # moves the cursor to the top left, and clears what is below it
_PATIENCE: Final = 10.0  # seconds for one answer
_HOOKS: Final = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("--once", action="store_true", help="one look, for scripts")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--url", default="", help="of the metrics; default: as configured")


def run(arguments: argparse.Namespace) -> int:
    """Print one screen, or a new one at every interval; raise CommandError and OSError."""
    config = configuration(arguments)
    if not arguments.url and config.metrics.address is None:
        raise CommandError("there is no [metrics] address in the configuration")
    url = arguments.url or f"http://{config.metrics.address}"
    before, begun = _look(url), time.monotonic()
    while True:
        time.sleep(arguments.interval)
        now, at = _look(url), time.monotonic()
        screen = _screen(config, now.since(before), at - begun)
        if arguments.once:
            say(*screen)
            return 0
        width, height = shutil.get_terminal_size()
        sys.stdout.write(_CLEAR)
        say(*(line[:width] for line in screen[: height - 1]))
        sys.stdout.flush()
        before, begun = now, at


def _look(url: str) -> Overview:
    with urllib.request.urlopen(f"{url}/metrics", timeout=_PATIENCE) as answer:  # noqa: S310 - ours
        return overview(text_string_to_metric_families(answer.read().decode()))


def _screen(config: Config, change: Overview, seconds: float) -> list[str]:
    found = survey(config.state_directory / "control")
    queue = "  ".join(f"{state} {count:.0f}" for state, count in change.queue.items())
    return [
        f"{time.strftime('%H:%M:%S')}  {config.hostname}  sessions {change.active:.0f}",
        "  ".join(f"{name} {count / seconds:.1f}/s" for name, count in change.flows.items()),
        f"queue: {queue}  oldest {span(change.oldest)}",
        *(f"({problem})" for problem in found.problems),
        "",
        *table(("PLUGIN", "VERDICTS"), _verdicts(change)),
        "",
        *table(("SLOWEST HOOKS", "CALLS", "MEAN"), _hooks(change)),
        "",
        *table(("SESSION", *HEAD[1:]), map(row, found.sessions)),
    ]


def _verdicts(change: Overview) -> Iterator[tuple[str, str]]:
    for plugin, counts in change.verdicts.items():
        text = "  ".join(f"{verdict} {count:.0f}" for verdict, count in counts.items() if count)
        yield plugin, text or "-"


def _hooks(change: Overview) -> Iterator[tuple[str, str, str]]:
    for (plugin, hook), each in change.slowest()[:_HOOKS]:
        yield f"{plugin}.{hook}", f"{each.calls:.0f}", f"{each.mean * 1000:.1f} ms"
