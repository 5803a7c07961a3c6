"""How far long work is, as a bar on the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from math import inf
from typing import Final, Self

_PATIENCE: Final = 1.0  # seconds; shorter work shows nothing
_PAUSE: Final = 0.1  # seconds between two drawings
_BAR: Final = 30  # characters
_LEAST_BAR: Final = 4
_COLUMNS: Final = 80  # of a terminal that does not tell


class Progress:
    """A bar on standard error, if that is a terminal, in work that takes longer than a second.

    It is drawn ten times a second at most, stays on one line, and is gone when the block of a
    `with` ends, also by Ctrl-C. `shown` is false where a program reads the output.
    """

    def __init__(
        self,
        what: str,
        total: int = 0,
        in_words: Callable[[int], str] = "{:,}".format,
        *,
        shown: bool = True,
    ) -> None:
        """Take `what` is done, as in "copying", and how much there is to do; `in_words` names it.

        A `total` of 0 is not known, and may be set later.
        """
        self.total = total
        self._done = 0
        self._what, self._in_words = what, in_words
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.is_shown = shown and sys.stderr.isatty() and not dumb
        self._next = time.monotonic() + _PATIENCE if self.is_shown else inf
        self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def add(self, more: int = 1) -> None:
        """Note that more is done."""
        self.show(self._done + more)

    def show(self, done: int) -> None:
        """Note how much is done, and draw the bar if it is time."""
        self._done = done
        if (now := time.monotonic()) >= self._next:
            self._next = now + _PAUSE
            self._is_drawn = True
            sys.stderr.write(f"\r\x1b[K{self._line()}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Remove the bar, so that a line can be printed in its place."""
        if self._is_drawn:
            self._is_drawn = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self) -> str:
        room, done = _columns() - 1, self._done
        if not self.total:
            return f"{self._what}: {self._in_words(done)}"[:room]
        part = min(done / self.total, 1.0)
        text = f"{self._what}: {self._in_words(done)} of {self._in_words(self.total)}"
        width = min(_BAR, room - len(text) - len("[] 100 % "))
        if width < _LEAST_BAR:
            return f"{part:4.0%} {text}"[:room]
        return f"[{'#' * int(part * width):{width}}] {part:4.0%} {text}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS
