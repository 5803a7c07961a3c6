"""The status page of the metrics endpoint: a single HTML document that loads nothing.

It has no controls. All text from clients is escaped, and the browser may neither run scripts nor
fetch anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import Final

from minismtp import __version__
from minismtp.runtime.metrics import VERDICTS
from minismtp.server.figures import FLOWS, Overview
from minismtp.server.open_sessions import Survey, doing
from minismtp.values.printable import one_line
from minismtp.values.threads import start_thread
from minismtp.values.units import span

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_INTERVAL: Final = 15.0  # seconds between two points of a plot
_POINTS: Final = 240  # an hour of them
_MOST_ROWS: Final = 50
_WIDTH, _HEIGHT = 240, 48
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6673; --line: #d9dee5;
  --back: #f6f7f9; --card: #fff; --mark: #0b6bcb }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b1; --line: #2e3742;
  --back: #12161c; --card: #1a2028; --mark: #5aa9f5 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.25rem; max-width: 76rem; background: var(--back);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: 0 0 1rem }
h1 small { color: var(--soft); font-weight: 400; font-size: .9rem; white-space: nowrap }
h2 { font-size: 1rem; margin: 0 0 .6rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem; min-width: 0 }
main { display: grid; gap: 1rem; grid-template-columns: repeat(12, 1fr) }
main > * { grid-column: span 12 }
.flow { grid-column: span 6 }
@media (min-width: 760px) { .flow { grid-column: span 3 } .half { grid-column: span 6 } }
.big { font-size: 1.5rem; font-variant-numeric: tabular-nums }
.soft { color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th:last-child, td:last-child { padding-right: 0 }
tr:last-child td { border-bottom: 0 }
th { color: var(--soft); font-weight: 500 }
.n { text-align: right }
svg { display: block; width: 100%; height: 3rem; margin-top: .3rem }
polyline { fill: none; stroke: var(--mark); stroke-width: 1.5; vector-effect: non-scaling-stroke }
"""


class History:
    """The totals of the last hour, which a thread notes every 15 seconds."""

    def __init__(self, look: Callable[[], Overview]) -> None:
        self._look = look
        self._points: tuple[tuple[float, dict[str, float]], ...] = ()  # replaced whole
        self._also: Callable[[], object] = bool

    def start(self) -> None:
        """Start the thread."""
        start_thread("history", self._run)

    def also(self, action: Callable[[], object]) -> None:
        """Have the thread call `action` at each look but the first one."""
        self._also = action

    def look(self, at: float) -> None:
        """Note the current totals. `at` is the time in monotonic seconds."""
        self._points = (*self._points[-_POINTS:], (at, self._look().flows))

    def _run(self) -> None:
        while True:
            self.look(time.monotonic())
            time.sleep(_INTERVAL)
            self._also()

    def rates(self, flow: str) -> list[float]:
        """Return the rates per second between the points, the oldest first."""
        return [
            max(0.0, now[flow] - then[flow]) / (at - before)
            for (before, then), (at, now) in pairwise(self._points)
        ]


def render(figures: Overview, history: History, found: Survey, *, now: float) -> str:
    """Return the page. `now` is in epoch seconds."""
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    flows = "".join(_flow(name, figures.flows[name], history.rates(name)) for name in FLOWS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>minismtp</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="15"><style>{_STYLE}</style></head><body>'
        f"<h1>minismtp <small>{__version__} &middot; {at}</small></h1>"
        f"<main>{flows}{_half('Queue', _queue(figures))}"
        f"{_half('Messages', _counts(figures))}"
        f"{_half('Verdicts by plugin', _verdicts(figures))}"
        f"{_half('Slowest hooks', _hooks(figures))}{_sessions(figures, found)}"
        "</main></body></html>\n"
    )


def _flow(name: str, total: float, rates: Sequence[float]) -> str:
    last = f"{rates[-1]:.1f} /s" if rates else "&ndash;"
    return (
        f'<section class="flow"><h2>{name.capitalize()}</h2><div class="big">{last}</div>'
        f'<div class="soft">{total:,.0f} in all</div>{_plot(name, rates)}</section>'
    )


def _plot(name: str, rates: Sequence[float]) -> str:
    top = max(rates, default=0.0) or 1.0
    step = _WIDTH / max(len(rates) - 1, 1)
    points = " ".join(
        f"{number * step:.1f},{_HEIGHT - 2 - rate / top * (_HEIGHT - 4):.1f}"
        for number, rate in enumerate(rates)
    )
    label = f"{name} of the last hour, at most {top if rates else 0:.1f} a second"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{label}"><title>{label}</title><polyline points="{points}"/></svg>'
    )


def _half(title: str, body: str) -> str:
    return f'<section class="half"><h2>{title}</h2>{body}</section>'


def _queue(figures: Overview) -> str:
    rows = [(state, f"{count:,.0f}") for state, count in figures.queue.items()]
    return _table(("State", "Messages"), [*rows, ("oldest", span(figures.oldest))], numbers=1)


def _counts(figures: Overview) -> str:
    rows = [(outcome, f"{count:,.0f}") for outcome, count in figures.outcomes.items()]
    return _table(("Outcome", "Since the start"), rows, numbers=1)


def _verdicts(figures: Overview) -> str:
    given = [
        verdict
        for verdict in VERDICTS
        if any(counts.get(verdict) for counts in figures.verdicts.values())
    ]
    rows = [
        (plugin, *(f"{counts.get(verdict, 0):,.0f}" for verdict in given))
        for plugin, counts in figures.verdicts.items()
    ]
    return _table(("Plugin", *given), rows, numbers=len(given))


def _hooks(figures: Overview) -> str:
    rows = [
        (f"{plugin}.{hook}", f"{each.calls:,.0f}", f"{each.mean * 1000:,.1f} ms")
        for (plugin, hook), each in figures.slowest()[:10]
    ]
    return _table(("Hook", "Calls", "Mean"), rows, numbers=2)


def _sessions(figures: Overview, found: Survey) -> str:
    rows = [
        (
            session["id"],
            session["peer"],
            session["state"],
            doing(session),
            span(session["age"]),
            session["listener"],
            session.get("login") or "",
            session.get("helo") or "",
        )
        for session in found.sessions[:_MOST_ROWS]
    ]
    head = ("Session", "Peer", "State", "Now", "Age", "Listener", "Login", "HELO")
    rest = len(found.sessions) - len(rows)
    more = f'<p class="soft">and {rest} younger ones</p>' if rest else ""
    problems = "".join(f"<p>{escape(one_line(problem))}</p>" for problem in found.problems)
    table = _table(head, rows) if rows else '<p class="soft">none</p>'
    title = f"<h2>Sessions ({figures.active:.0f} open)</h2>"
    return f"<section>{title}{problems}{table}{more}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    """Return a table. Its last `numbers` columns hold numbers."""
    first = len(head) - numbers

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="n">{escape(cell)}</{tag}>'
            if number >= first
            else f"<{tag}>{escape(cell)}</{tag}>"
            for number, cell in enumerate(map(one_line, cells))
        )

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
