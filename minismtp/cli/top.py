"""A view of the server that refreshes in the terminal: `minismtp top`."""

from __future__ import annotations

import argparse
import shutil
import time
import urllib.request
from collections.abc import Iterator
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from minismtp.config import Config
from minismtp.server.figures import Overview, overview
from minismtp.server.open_sessions import columns, row, span, survey

_PATIENCE: Final = 10.0  # seconds for one answer
_HOOKS: Final = 8


def run(config: Config, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield one screen after the other, or only one. Raise OSError."""
    url = arguments.url or f"http://{config.metrics.address}"
    if not arguments.url and config.metrics.address is None:
        raise OSError("there is no [metrics] address in the configuration")
    before, begun = _look(url), time.monotonic()
    while True:
        time.sleep(arguments.interval)
        now, at = _look(url), time.monotonic()
        screen = _screen(config, now.since(before), at - begun)
        if arguments.once:
            yield screen
            return
        columns_, rows = shutil.get_terminal_size()
        lines = [line[:columns_] for line in screen.splitlines()[: rows - 1]]
        yield "\n".join(lines)
        before, begun = now, at


def _look(url: str) -> Overview:
    with urllib.request.urlopen(f"{url}/metrics", timeout=_PATIENCE) as answer:  # noqa: S310 - ours
        return overview(text_string_to_metric_families(answer.read().decode()))


def _screen(config: Config, change: Overview, seconds: float) -> str:
    found = survey(config.state_directory / "control")
    rates = "  ".join(f"{name} {count / seconds:.1f}/s" for name, count in change.flows.items())
    queue = "  ".join(f"{state} {count:.0f}" for state, count in change.queue.items())
    parts = [
        f"{time.strftime('%H:%M:%S')}  {config.hostname}  sessions {change.active:.0f}",
        rates,
        f"queue: {queue}  oldest {span(change.oldest)}",
        *(f"({problem})" for problem in found.problems),
        "",
        *_verdicts(change),
        "",
        *_hooks(change),
        "",
        *columns(
            [("SESSION", "PEER", "LISTENER", "STATE", "AGE", "LOGIN", "TLS", "MESSAGE", "NOW")]
            + [row(session) for session in found.sessions]
        ),
    ]
    return "\n".join(parts)


def _verdicts(change: Overview) -> list[str]:
    rows = [("PLUGIN", "VERDICTS")]
    for plugin, counts in change.verdicts.items():
        text = "  ".join(f"{verdict} {count:.0f}" for verdict, count in counts.items() if count)
        rows.append((plugin, text or "-"))
    return columns(rows)


def _hooks(change: Overview) -> list[str]:
    rows = [("SLOWEST HOOKS", "CALLS", "MEAN")]
    for (plugin, hook), each in change.slowest()[:_HOOKS]:
        rows.append((f"{plugin}.{hook}", f"{each.calls:.0f}", f"{each.mean * 1000:.1f} ms"))
    return columns(rows)
