"""Tables, dates and JSON, as the commands print them.

On a terminal nothing is wider than it: the columns of a table shrink, its last one moves below, and
other lines are wrapped. Where the output is no terminal, lines stay whole for other programs.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from minismtp.values.printable import one_line

# Columns whose cells stand at the right.
_RIGHT: Final = frozenset({"AGE", "SIZE", "CALLS", "SUM s", "MEAN ms", "99 % ms"})


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, `head` first; the last column may be of any width."""
    cells = [tuple(map(one_line, row)) for row in rows]  # escaped first, because escapes take room
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    form = "  ".join(
        f"{{:{'>' if name in _RIGHT else '<'}{width}}}"
        for name, width in zip(head[:-1], widths[:-1], strict=True)
    )
    return [f"{form}  {{}}".format(*row).rstrip() for row in (head, *cells)]


def terminal_width() -> int | None:
    """Return the columns of the terminal, or None if the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    elastic: Collection[str] = (),
) -> list[list[str]]:
    """Return the lines of `head`, then those of each row, no wider than `width`.

    If a table is too wide, the cells of its last column stand below their rows, and the `elastic`
    columns are cut. Without a width nothing is changed.
    """
    cells = [tuple(map(one_line, row)) for row in rows]
    whole = table(head, cells)
    if width is None or all(len(line) <= width for line in whole):
        return [[line] for line in whole]
    widths = _shrunk(head[:-1], [row[:-1] for row in cells], width, elastic)
    first, *others = table(head[:-1], [list(map(_cut, row[:-1], widths)) for row in cells])
    lines = [[first]]
    for line, row in zip(others, cells, strict=True):
        lines.append([line, *_below(row[-1], width)])
    return lines


@lru_cache(1000)  # many recipients wait for one reason
def _below(cell: str, width: int) -> list[str]:
    """Return the lines for a cell below its row; none for a dash."""
    parts = textwrap.wrap(cell, max(width - 4, 1)) if cell != "-" else []
    return [f"    {part}" for part in parts]


def _shrunk(
    head: Sequence[str], rows: Iterable[Sequence[str]], width: int, elastic: Collection[str]
) -> list[int]:
    """Return the widths of columns whose elastic ones shrink, the widest first."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        wide = [n for n, name in enumerate(head) if name in elastic and widths[n] > len(name) + 2]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}\u2026"


def wrapped(lines: Iterable[str], width: int | None) -> list[str]:
    """Return lines no wider than `width`; the rest of a line stands below it, indented by 4."""
    found: list[str] = []
    for line in lines:
        if width is None or len(line) <= width:
            found.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        found += textwrap.wrap(
            line, max(width, len(indent) + 20), subsequent_indent=indent, break_on_hyphens=False
        )
    return found


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
