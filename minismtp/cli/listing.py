"""How the queue looks on an operator's screen, and as JSON."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

import msgspec

from minismtp.mailqueue.database import Waiting
from minismtp.values.printable import one_line

_HEAD: Final = ("ID", "AGE", "SIZE", "FROM", "TO", "STATE", "NEXT")
_JSON: Final = msgspec.json.Encoder()
_SPANS: Final = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_REMEMBERED: Final = 10_000  # texts: a queue of 50,000 messages has few different ones
_STATES: Final = ("queued", "deferred", "held")


def table(found: Sequence[Waiting], now: float) -> str:
    """Return a line for each recipient, under a heading, and a summary below.

    The reason stands last: on a terminal it is cut at the edge, else it is whole.
    """
    if not found:
        return "the queue is empty"
    lines = grid(_HEAD, [_cells(each, now) for each in found], map(reason, found))
    return "\n".join([*lines, "", _summary(found)])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], reasons: Iterable[str]) -> list[str]:
    """Return the lines of a table; each row has a reason at its end."""
    rows = [tuple(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    form = "  ".join(
        f"{{:{'>' if name in {'AGE', 'SIZE'} else '<'}{width}}}"
        for name, width in zip(head, widths, strict=True)
    )
    lines = [f"{form.format(*head)}  REASON"]
    for row, why in zip(rows, reasons, strict=True):
        lines.append(f"{form.format(*row)}  {one_line(why)}".rstrip())
    if sys.stdout.isatty():
        edge = shutil.get_terminal_size().columns
        lines = [line[:edge] for line in lines]
    return lines


def details(found: Sequence[Waiting], contents: dict[str, dict[str, str]], now: float) -> str:
    """Return all that is known of messages; `contents` has what their files say."""
    blocks = [
        "\n".join(_message(list(rows), contents.get(name, {}), now))
        for name, rows in groupby(found, lambda each: each.message)
    ]
    return "\n\n".join(blocks)


def as_json(found: Sequence[Waiting], contents: dict[str, dict[str, str]], now: float) -> str:
    """Return a list of messages, each with its recipients, and each on a line of its own."""
    messages = [
        _object(list(rows), now) | contents.get(name, {})
        for name, rows in groupby(found, lambda each: each.message)
    ]
    lines = ",\n ".join([_JSON.encode(each).decode() for each in messages])
    return f"[{lines}]"


def state(each: Waiting) -> str:
    """Name the state of a recipient: deferred is what was tried, or would have been, in vain."""
    tried = each.attempts or each.closed_until
    return "deferred" if each.state == "queued" and tried else each.state


def reason(each: Waiting) -> str:
    """Return why a recipient waits: its last reply, or what is wrong with its destination."""
    if each.reply:
        return f"{each.host}: {each.reply}" if each.host else each.reply
    return each.closed_reply


def span(seconds: float) -> str:
    """Return a duration in its two largest units."""
    return _span(max(0, round(seconds)))


@lru_cache(_REMEMBERED)
def _span(seconds: int) -> str:
    for size, unit, smaller, smaller_unit in _SPANS:
        if seconds >= size:
            rest = seconds % size // smaller
            return (
                f"{seconds // size}{unit}{rest}{smaller_unit}"
                if rest
                else f"{seconds // size}{unit}"
            )
    return f"{seconds}s"


@lru_cache(_REMEMBERED)
def octets(count: int) -> str:
    """Return a size for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"  # noqa: PLR2004
        size /= 1024
    return f"{size:.1f} GiB"


def _cells(each: Waiting, now: float) -> tuple[str, ...]:
    return (
        each.message,
        span(now - each.arrived),
        octets(each.size),
        f"<{each.sender}>",
        each.address,
        state(each),
        _next(each, now),
    )


def _next(each: Waiting, now: float) -> str:
    if each.state != "queued":
        return "-"
    when = max(each.next, each.closed_until)
    return "now" if when <= now else f"in {span(when - now)}"


def _summary(found: Iterable[Waiting]) -> str:
    states = Counter(map(state, found))
    messages = len({each.message for each in found})
    parts = ", ".join(f"{states[name]} {name}" for name in _STATES if states[name])
    return f"{plural(messages, 'message')}, {plural(states.total(), 'recipient')}: {parts}"


def plural(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _message(rows: list[Waiting], content: dict[str, str], now: float) -> Iterator[str]:
    first = rows[0]
    yield one_line(first.message)
    yield _line("from", f"<{first.sender}>")
    yield _line("arrived", f"{date(first.arrived)}, {span(now - first.arrived)} ago")
    yield _line("size", octets(first.size))
    for name, value in content.items():
        if value:
            yield _line(name, value)
    for each in rows:
        yield f"  to <{one_line(each.address)}>: {state(each)}"
        if each.attempts:
            last = f"the last {span(now - each.tried)} ago, {date(each.tried)}"
            yield _line("attempts", f"{each.attempts}, {last}", "    ")
            yield _line("reply", reason(each), "    ")
        else:
            yield _line("attempts", "none", "    ")
        yield from (_line(name, text, "    ") for name, text in _why(each, now))


def _why(each: Waiting, now: float) -> Iterator[tuple[str, str]]:
    """Say when a recipient is tried next and what that depends on."""
    if each.state == "held":
        yield "next", "not before `minismtp queue release`"
        return
    when = max(each.next, each.closed_until)
    yield "next", "now" if when <= now else f"in {span(when - now)}, {date(when)}"
    if each.closed_until:
        yield "waits for", f"{each.destination}, which could not be reached: {each.closed_reply}"
    elif each.attempts:
        yield "waits for", "the time that `retry` in the configuration gives it"
    else:
        yield "waits for", f"a delivery to {each.destination} to become free"


def _line(name: str, value: str, indent: str = "  ") -> str:
    return f"{indent}{name:<10} {one_line(value)}"


def _object(rows: list[Waiting], now: float) -> dict[str, Any]:
    first = rows[0]
    return {
        "id": first.message,
        "sender": first.sender,
        "arrived": date(first.arrived),
        "age": round(now - first.arrived),
        "size": first.size,
        "recipients": [
            {
                "address": each.address,
                "state": state(each),
                "attempts": each.attempts,
                "last_attempt": date(each.tried) if each.tried else None,
                "next_attempt": date(max(each.next, each.closed_until))
                if each.state == "queued"
                else None,
                "destination": each.destination,
                "host": each.host,
                "reply": each.reply or each.closed_reply,
            }
            for each in rows
        ],
    }


def date(seconds: float) -> str:
    """Return a wall time as ISO 8601 in UTC."""
    return _date_of(int(seconds))


@lru_cache(_REMEMBERED)
def _date_of(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
