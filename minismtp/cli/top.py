"""A view of the server that is refreshed in the terminal: `minismtp top`.

The keys are those of other programs of this name: q quits, s sorts the hooks by another column, and
p pauses.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from minismtp.cli.common import CommandError, add_config, configuration, say
from minismtp.cli.sessions import ELASTIC, HEAD, rows_of
from minismtp.cli.text import fitted, json_line, wrapped
from minismtp.config import Config
from minismtp.server.figures import HOOK_ORDERS, HookOrder, Overview, overview
from minismtp.server.health import troubles
from minismtp.server.open_sessions import survey
from minismtp.values.units import span

_CLEAR: Final = "\x1b[H\x1b[J"  # moves the cursor to the top left, and clears what is below it
_PATIENCE: Final = 10.0  # seconds for one answer
_HOOKS: Final = 8
_HEAD: Final = ("SLOWEST HOOKS", "CALLS", "SUM s", "MEAN ms", "99 % ms", "")
_REFUSALS: Final = 5


@dataclass(slots=True)
class _View:
    """The address of the metrics, what the user chose by keys, and the width of the terminal.

    Without a terminal there is no width.
    """

    url: str
    order: HookOrder = "sum"
    paused: bool = False
    width: int | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("--once", action="store_true", help="one look, for scripts")
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each interval"
    )
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--url", default="", help="of the metrics; default: as configured")


def run(arguments: argparse.Namespace) -> int:
    """Print one screen, or a new one at every interval; raise CommandError and OSError."""
    config = configuration(arguments)
    if not arguments.url and config.metrics.address is None:
        raise CommandError("there is no [metrics] address in the configuration")
    url = arguments.url or f"http://{config.metrics.address}"
    view, before, begun = _View(url), _look(url), time.monotonic()
    while arguments.once or arguments.json:
        time.sleep(arguments.interval)
        now, at = _look(url), time.monotonic()
        if arguments.json:
            say(json_line(_as_json(config, now, before, at - begun, view)))
        else:
            say(*_screen(config, now, before, at - begun, view))
        if arguments.once:
            return 0
        sys.stdout.flush()
        before, begun = now, at
    with _keys() as key_within:
        while True:
            key = key_within(arguments.interval)
            if key == "q":
                return 0
            if key == "s":
                position = HOOK_ORDERS.index(view.order) + 1
                view.order = HOOK_ORDERS[position % len(HOOK_ORDERS)]
            elif key == "p":
                view.paused = not view.paused
                sys.stdout.write("  paused" if view.paused else "")
                sys.stdout.flush()
            if not view.paused:
                now, at = _look(url), time.monotonic()
                _draw(config, now, before, at - begun, view)
                before, begun = now, at


def _draw(config: Config, now: Overview, before: Overview, seconds: float, view: _View) -> None:
    view.width, height = shutil.get_terminal_size()
    lines = _screen(config, now, before, seconds, view)[: height - 2]
    sys.stdout.write(_CLEAR)
    say(*lines, coloured=True)
    sys.stdout.write(f"q quit  s sort by {view.order}  p pause")
    sys.stdout.flush()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that returns the key pressed within some seconds, or an empty text.

    Keys come at once and are not shown, until the block ends. Without a terminal there are none.
    """

    def key_within(seconds: float) -> str:
        if not is_terminal:
            time.sleep(seconds)
            return ""
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if readable else ""

    is_terminal = sys.stdin.isatty()
    if not is_terminal:
        yield key_within
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield key_within
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\n")


def _look(url: str) -> Overview:
    with urllib.request.urlopen(f"{url}/metrics", timeout=_PATIENCE) as answer:  # noqa: S310 - ours
        return overview(text_string_to_metric_families(answer.read().decode()))


def _sentences(url: str) -> dict[str, str]:
    """Return what /readyz says of each problem."""
    try:
        with urllib.request.urlopen(f"{url}/readyz?strict", timeout=_PATIENCE) as answer:  # noqa: S310
            text = answer.read().decode()
    except urllib.error.HTTPError as error:  # not ready
        with error:
            text = error.read().decode()
    lines = (line.partition(": ") for line in text.splitlines()[1:])
    return {problem: sentence for problem, _, sentence in lines}


def _screen(
    config: Config, now: Overview, before: Overview, seconds: float, view: _View
) -> list[str]:
    found = survey(config.state_directory / "control")
    change, width = now.since(before), view.width
    queue = "  ".join(f"{state} {count:.0f}" for state, count in now.queue.items())
    up = f"up {span(time.time() - now.begun)}  " if now.begun else ""
    said = _sentences(view.url) if now.problems else {}
    wrong = troubles(now, {}, now=time.time(), sentences=said)
    sessions = f"sessions {now.active:.0f} of {now.limit:.0f}"
    at, rows = time.strftime("%H:%M:%S"), rows_of(found, view.width)
    lines = [
        f"{at}  {config.hostname}  {up}workers {now.workers:.0f}  {sessions}",
        *(f"! {each.text}" for each in wrong),
        "  ".join(f"{name} {count / seconds:.1f}/s" for name, count in change.flows.items()),
        f"queue: {queue}  oldest {span(now.oldest)}",
        *_refusals(change, seconds),
        *(f"({problem})" for problem in found.problems),
    ]
    return [
        *wrapped(lines, width),
        "",
        *chain(*fitted(("PLUGIN", "VERDICTS"), _verdicts(change), width)),
        "",
        *chain(*fitted(_HEAD, _hooks(change, view.order), width, (_HEAD[0],))),
        "",
        *chain(*fitted(("SESSION", *HEAD[1:]), rows, width, ELASTIC)),
    ]


def _as_json(
    config: Config, now: Overview, before: Overview, seconds: float, view: _View
) -> dict[str, Any]:
    """Return the figures of an interval. Rates are per second; `time` is in epoch seconds."""
    change = now.since(before)
    said = _sentences(view.url) if now.problems else {}
    slowest = change.slowest(view.order)
    return {
        "time": time.time(),
        "hostname": config.hostname,
        "seconds": seconds,
        "begun": now.begun,
        "workers": now.workers,
        "sessions": now.active,
        "sessions_limit": now.limit,
        "troubles": [each._asdict() for each in troubles(now, {}, now=time.time(), sentences=said)],
        "rates": {name: count / seconds for name, count in change.flows.items()},
        "queue": now.queue,
        "oldest": now.oldest,
        "refusals": [
            {"stage": stage, "plugin": plugin, "reason": reason, "code": code, "count": count}
            for (stage, plugin, reason, code), count in change.refusals.items()
            if count
        ],
        "verdicts": change.verdicts,
        "hooks": [
            {"plugin": plugin, "hook": hook, "calls": each.calls, "seconds": each.seconds}
            for (plugin, hook), each in slowest
        ],
    }


def _refusals(change: Overview, seconds: float) -> Iterator[str]:
    """Yield a line of what is refused most, if anything is."""
    most = sorted(change.refusals.items(), key=lambda item: -item[1])[:_REFUSALS]
    told = [
        f"{stage} {reason} ({plugin}) {count / seconds:.1f}/s"
        for (stage, plugin, reason, _), count in most
        if count
    ]
    if told:
        yield f"refused: {', '.join(told)}"


def _verdicts(change: Overview) -> Iterator[tuple[str, str]]:
    for plugin, counts in change.verdicts.items():
        errors = change.errors.get(plugin, 0.0)
        told = {**counts, "errors": errors} if errors else counts
        text = "  ".join(f"{verdict} {count:.0f}" for verdict, count in told.items() if count)
        yield plugin, text or "-"


def _hooks(change: Overview, order: HookOrder) -> Iterator[tuple[str, ...]]:
    for (plugin, hook), each in change.slowest(order)[:_HOOKS]:
        most = "> 30000" if each.most == inf else f"<= {each.most * 1000:g}"
        mean = f"{each.mean * 1000:.1f}"
        yield f"{plugin}.{hook}", f"{each.calls:.0f}", f"{each.seconds:.2f}", mean, most, ""
