"""The status page of the metrics endpoint: a single HTML document that loads nothing.

It has no controls. All text from clients is escaped, and the browser may neither run scripts nor
fetch anything. On a narrow screen the rows of wide tables become cards, so no column is cut.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import inf
from typing import Final, Literal

from minismtp import __version__
from minismtp.mailqueue.database import Waiting
from minismtp.mailqueue.reasons import Reason
from minismtp.mailqueue.recipient import QUEUE_STATES
from minismtp.runtime.metrics import VERDICTS
from minismtp.server.figures import FLOWS, Counts, HookFigures, Overview
from minismtp.server.health import troubles
from minismtp.server.history import History
from minismtp.server.open_sessions import Survey, doing
from minismtp.server.status_style import STYLE
from minismtp.values.printable import one_line
from minismtp.values.units import octets, span

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
MOST_WAITING: Final = 6  # recipients at the head of the queue
MOST_GROUPED: Final = 10_000  # recipients whose reasons are counted
_MOST_ROWS: Final = 50
_MOST_REASONS: Final = 12
_MOST_WHY: Final = 8
_MOST_DESTINATIONS: Final = 3
_WIDTH, _HEIGHT = 240, 48
_TITLES: Final = {"deliveries": "Delivery attempts"}
_SHORT: Final = 20  # characters that stay on one line, if the screen is wide
#: Columns in which a number is trouble.
_BAD: Final = frozenset({"errors", "last hour"})
#: Words in tables that mean trouble.
_COLOURS: Final = {
    **dict.fromkeys(("failure", "disk_full", "system", "error"), "bad"),
    **dict.fromkeys(("deferred", "held"), "warn"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the page shows. `now` is in epoch seconds.

    `waiting` is the head of the queue, `reasons` say why its oldest `MOST_GROUPED` recipients wait,
    and `sentences` what the problems of /readyz are.
    """

    hostname: str
    figures: Overview
    history: History
    found: Survey
    now: float
    waiting: Sequence[Waiting] = ()
    reasons: Sequence[Reason] = ()
    sentences: Mapping[str, str] = field(default_factory=dict)


def render(status: Status) -> str:
    """Return the page."""
    figures, history = status.figures, status.history
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status.now))
    up = f" &middot; up {span(status.now - figures.begun)}" if figures.begun else ""
    version = f"{__version__} ({figures.newer_release} is available)"
    version = escape(one_line(version)) if figures.newer_release else __version__
    host = escape(one_line(status.hostname))
    flows = "".join(_flow(name, status) for name in FLOWS)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{host}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="15"><style>{STYLE}</style></head><body>'
        f"<h1>{host} <small>minismtp {version}{up} &middot; {at}</small></h1>"
        f"{_health(status)}<main>{flows}{_queue(status)}"
        f"{_half('Messages since the start', _counts(figures))}"
        f"{_half('Refusals since the start', _refusals(figures))}"
        f"{_half('Plugins since the start', _plugins(figures, history))}"
        f"{_half('Slowest hooks since the start', _hooks(figures))}"
        f"{_third('Logins since the start', _logins(figures))}"
        f"{_third('Processes', _processes(figures))}"
        f"{_third('Disk', _disk(figures))}"
        f"{_sessions(status)}</main></body></html>\n"
    )


def _health(status: Status) -> str:
    figures = status.figures
    found = troubles(
        figures, status.history.errors(figures), now=status.now, sentences=status.sentences
    )
    if not found:
        return '<p class="well">All is well: configuration, certificates, disk, workers, queue.</p>'
    rows = "".join(
        f'<li class="{"fatal" if each.fatal else "warn"}">{_with_code(each.text)}</li>'
        for each in found
    )
    return f'<ul class="trouble">{rows}</ul>'


def _with_code(text: str) -> str:
    """Return a sentence whose commands, between backticks, look like commands."""
    parts = [escape(part) for part in one_line(text).split("`")]
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


def _flow(name: str, status: Status) -> str:
    rates = status.history.rates(name)
    last = f"{rates[-1]:.1f}" if rates else "0.0"
    total = f"{status.figures.flows[name]:,.0f}"
    return (
        f'<section class="flow"><h2>{_TITLES.get(name, name.capitalize())}</h2>'
        f'<div class="big">{last}<small> per second</small></div>'
        f'<div class="soft">{total} since the start</div>{_plot(name, rates, status)}</section>'
    )


def _plot(name: str, rates: Sequence[float], status: Status) -> str:
    """Return a plot with its scale at the top and the times below."""
    if len(rates) < 2:  # noqa: PLR2004 - a line needs two points
        return _empty("the plot begins in a minute")
    top = max(rates) or 1.0
    step = _WIDTH / max(len(rates) - 1, 1)
    points = " ".join(
        f"{number * step:.1f},{_HEIGHT - 2 - rate / top * (_HEIGHT - 4):.1f}"
        for number, rate in enumerate(rates)
    )
    first, last = (
        time.strftime("%H:%M", time.gmtime(status.now - age))
        for age in (status.history.seconds, 0.0)
    )
    label = f"{name} from {first} to {last} UTC, at most {max(rates):.1f} per second"
    return (
        f'<div class="scale"><span>{max(rates):.1f}</span></div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{label}"><title>{label}</title><path d="M0 2H{_WIDTH}M0 {_HEIGHT - 2}'
        f'H{_WIDTH}"/><polyline points="{points}"/></svg>'
        f'<div class="scale times"><span>{first}</span><span>{last} UTC</span></div>'
    )


def _half(title: str, body: str) -> str:
    return f'<section class="half"><h2>{title}</h2>{body}</section>'


def _third(title: str, body: str) -> str:
    return f'<section class="third"><h2>{title}</h2>{body}</section>'


def _empty(text: str) -> str:
    return f'<p class="soft">{text}</p>'


def _queue(status: Status) -> str:
    figures, now = status.figures, status.now
    counts = " &middot; ".join(
        f"<b>{figures.queue[state]:,.0f}</b> {state}"
        for state in QUEUE_STATES
        if state in figures.queue
    )
    waits = sum(count for state, count in figures.queue.items() if state != "active")
    if not figures.queue:
        counts = "the process that delivers has not reported yet"
    oldest = f" &middot; the oldest waits for {span(figures.oldest)}" if waits else ""
    rows = [
        (
            each.address,
            each.state,
            span(now - each.arrived),
            _next(each, now),
            _reason(each),
            each.message,
        )
        for each in status.waiting
    ]
    head = ("To", "State", "Age", "Next", "Reason", "Message")
    table = _table(head, rows, stack="stack") if rows else _empty("no message waits for delivery")
    more = _empty("<code>minismtp queue list</code> shows all") if rows else ""
    if rows and (why := _why(status)):
        table = f"{why}<h3>The oldest recipients</h3>{table}"
    return f"<section><h2>Queue</h2><p>{counts}{oldest}</p>{table}{more}</section>"


def _why(status: Status) -> str:
    """Return the table of the reasons for which mail waits."""
    shown = status.reasons[:_MOST_WHY]
    rows = [
        (
            each.text,
            _destinations(each.destinations),
            f"{each.recipients:,.0f}",
            span(status.now - each.oldest),
        )
        for each in shown
    ]
    if not rows:
        return ""
    notes = []
    if rest := len(status.reasons) - len(shown):
        notes.append(f"and {rest} rarer {'reasons' if rest > 1 else 'reason'}")
    if sum(each.recipients for each in status.reasons) >= MOST_GROUPED:
        notes.append(f"only the oldest {MOST_GROUPED:,} recipients are counted")
    more = _empty("; ".join(notes)) if notes else ""
    head = ("Reason", "Destinations", "Recipients", "Oldest")
    return f"<h3>Why mail waits</h3>{_table(head, rows, numbers=2, stack='stack')}{more}"


def _destinations(counts: Mapping[str, int]) -> str:
    """Return the destinations with the most recipients."""
    most = sorted(counts, key=lambda name: (-counts[name], name))
    rest = len(most) - _MOST_DESTINATIONS
    more = f" and {rest:,} more" if rest > 0 else ""
    return f"{', '.join(most[:_MOST_DESTINATIONS])}{more}"


def _next(each: Waiting, now: float) -> str:
    if each.state == "held":
        return "when released"
    when = max(each.next, each.closed_until)
    return "now" if when <= now else f"in {span(when - now)}"


def _reason(each: Waiting) -> str:
    return each.reply or each.closed_reply or "not tried yet"


def _counts(figures: Overview) -> str:
    rows = [(outcome, f"{count:,.0f}") for outcome, count in figures.outcomes.items()]
    if not any(figures.outcomes.values()):
        return _empty("no message came yet")
    return _table(("Outcome", "Number"), rows, numbers=1)


def _logins(figures: Overview) -> str:
    rows = [(result, f"{count:,.0f}") for result, count in figures.logins.items() if count]
    return _table(("Result", "Number"), rows, numbers=1) if rows else _empty("nobody logged in")


def _refusals(figures: Overview) -> str:
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    for (stage, plugin, reason, _), count in figures.refusals.items():
        sums[stage, reason, plugin] += count
    most = sorted(sums.items(), key=lambda item: -item[1])[:_MOST_REASONS]
    rows = [(*names, f"{count:,.0f}") for names, count in most if count]
    if not rows:
        return _empty("nothing was refused")
    return _table(("Stage", "Reason", "By", "Number"), rows, numbers=1)


def _plugins(figures: Overview, history: History) -> str:
    given = [
        verdict
        for verdict in VERDICTS
        if any(counts.get(verdict) for counts in figures.verdicts.values())
    ]
    recent = history.errors(figures)
    rows = [
        (
            plugin,
            *(f"{counts.get(verdict, 0):,.0f}" for verdict in given),
            f"{figures.errors.get(plugin, 0.0):,.0f}",
            f"{recent.get(plugin, 0.0):,.0f}",
        )
        for plugin, counts in figures.verdicts.items()
    ]
    if not rows:
        return _empty("no plugin was called")
    head = ("Plugin", *given, "errors", "last hour")
    return _table(head, rows, numbers=len(given) + 2, stack="brief")


def _hooks(figures: Overview) -> str:
    rows = [
        (f"{plugin}.{hook}", f"{each.calls:,.0f}", f"{each.seconds:,.1f}", *_milliseconds(each))
        for (plugin, hook), each in figures.slowest("sum")[:10]
    ]
    if not rows:
        return _empty("no hook was called")
    return _table(
        ("Hook", "Calls", "Sum, s", "Mean, ms", "99 %, ms"), rows, numbers=4, stack="brief"
    )


def _milliseconds(each: HookFigures) -> tuple[str, str]:
    most = "> 30,000" if each.most == inf else f"\u2264 {each.most * 1000:,.1f}"
    return f"{each.mean * 1000:,.1f}", most


def _processes(figures: Overview) -> str:
    memory: Counts = defaultdict(float)
    number: dict[str, int] = defaultdict(int)
    for (process, _), size in figures.memory.items():
        memory[process] += size
        number[process] += 1
    rows = [(process, str(number[process]), octets(size)) for process, size in memory.items()]
    if not rows:
        return _empty("no process has reported yet")
    return _table(("Process", "Number", "Memory"), rows, numbers=2)


def _disk(figures: Overview) -> str:
    if "state" not in figures.free:
        return _empty("the state directory is not there")
    rows = [
        (directory, octets(free), octets(figures.size.get(directory, 0.0)))
        for directory, free in figures.free.items()
    ]
    kept = f"with less than {octets(figures.reserve)} for the state directory, mail is refused"
    return f"{_table(('Directory', 'Free', 'Size'), rows, numbers=2)}{_empty(kept)}"


def _sessions(status: Status) -> str:
    found = status.found
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
    problems = "".join(
        f'<p class="warn">{escape(one_line(problem))}</p>' for problem in found.problems
    )
    table = _table(head, rows, stack="stack") if rows else _empty("no client is connected")
    title = f"<h2>Sessions ({status.figures.active:.0f} open)</h2>"
    return f"<section>{title}{problems}{table}{more}</section>"


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: int = 0,
    stack: Literal["", "stack", "brief"] = "",
) -> str:
    """Return a table. Its last `numbers` columns hold numbers.

    On a narrow screen, a row of "stack" becomes a card with a line for each cell, and a row of
    "brief" one with its first cell above the others.
    """
    first = len(head) - numbers

    def cell(number: int, text: str, tag: str) -> str:
        kinds = ["n"] if number >= first else []
        if tag == "td":
            kinds += [_COLOURS[text]] if number and text in _COLOURS else []
            kinds += ["bad"] if head[number] in _BAD and text != "0" else []
            kinds += ["short"] if len(text) <= _SHORT else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        name = f' data-name="{escape(head[number])}"' if stack and tag == "td" else ""
        return f"<{tag}{kind}{name}>{escape(text)}</{tag}>"

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(cell(number, text, tag) for number, text in enumerate(map(one_line, cells)))

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    kind = f' class="{stack}"' if stack else ""
    return f"<table{kind}><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
