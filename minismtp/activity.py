"""What the thread of a session is doing, for other threads to look at (layer 2).

The guards note here which plugin runs and since when. A look from outside needs no lock: every
change is one assignment of a value that does not change.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Iterator
from time import perf_counter
from types import FrameType


class Activity:
    """One thread's work. `running` is the plugin's hook under way: hook, plugin, since when.

    That is a time of `perf_counter`; `thread` is an identifier of `threading`, 0 before the start.
    """

    __slots__ = ("running", "thread")

    def __init__(self) -> None:
        self.running: tuple[str, str, float] | None = None
        self.thread = 0

    def report(self) -> dict[str, object]:
        """Say which plugin runs, if one does, and for how many seconds."""
        hook, plugin, since = self.running or ("", "", 0.0)
        return {"hook": hook, "plugin": plugin, "seconds": perf_counter() - since if since else 0.0}

    def stack(self) -> list[str]:
        """Give the Python stack of the thread, the innermost call last, a line of text each."""
        frame = sys._current_frames().get(self.thread)  # noqa: SLF001 - the one way there is
        return [] if frame is None else _lines(frame)


class _Here(threading.local):
    activity = Activity()  # of threads that have none of their own; nobody looks at it


_here = _Here()


@contextlib.contextmanager
def taken_up(activity: Activity) -> Iterator[None]:
    """Let this thread work on `activity` for as long as a block."""
    before = _here.activity
    _here.activity = activity
    activity.thread = threading.get_ident()
    try:
        yield
    finally:
        activity.thread = 0
        _here.activity = before


def current() -> Activity:
    """Give what this thread works on."""
    return _here.activity


def _lines(frame: FrameType) -> list[str]:
    return [
        f"{call.filename}:{call.lineno} {call.name}: {call.line}"
        for call in traceback.extract_stack(frame)
    ]
