"""Tables, durations, sizes, dates and JSON, as the commands print them."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from minismtp.values.printable import one_line

_RIGHT: Final = frozenset({"AGE", "SIZE"})  # columns whose cells stand at the right


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, `head` first; the last column may be of any width."""
    cells = [tuple(map(one_line, row)) for row in rows]  # escaped first, because escapes take room
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    form = "  ".join(
        f"{{:{'>' if name in _RIGHT else '<'}{width}}}"
        for name, width in zip(head[:-1], widths[:-1], strict=True)
    )
    return [f"{form}  {{}}".format(*row).rstrip() for row in (head, *cells)]


def cut(lines: Iterable[str]) -> list[str]:
    """Cut lines at the edge of the terminal; where the output is no terminal they stay whole."""
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return [line[:edge] for line in lines]


def detail(name: str, value: str, indent: str = "  ") -> str:
    """Return a line with a name and a value; the values of several lines are aligned."""
    return f"{indent}{name:<10} {value}"


def date(seconds: float) -> str:
    """Return a time in epoch seconds as ISO 8601 in UTC."""
    return _date(int(seconds))


@lru_cache(10_000)  # a queue of 50,000 messages has far fewer different times
def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def moment(seconds: float) -> str:
    """Return a time in epoch seconds as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def plural(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def spaced(blocks: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of blocks, with an empty line between two of them."""
    return [line for block in blocks for line in ("", *block)][1:]


def json_line(value: object) -> str:
    """Return a value as JSON on one line."""
    return msgspec.json.encode(value).decode()


def json_lines(value: object) -> list[str]:
    """Return the lines of a value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value)).decode().split("\n")


def json_list(items: Iterable[dict[str, Any]]) -> list[str]:
    """Return the lines of a JSON list with each item on a line of its own."""
    return f"[{f',{chr(10)} '.join(map(json_line, items))}]".split("\n")
