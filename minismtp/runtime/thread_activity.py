"""What the thread of a session is doing, and the steps that its decisions came by.

The guards note here which plugin runs and since when, and how each call ended. A look from outside
needs no lock: every change is one assignment of a value that does not change.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from time import perf_counter
from types import FrameType
from typing import Final, TypeAlias

from minismtp.runtime.log import Log

#: One call of a hook: the hook, the plugin, when it began, how many seconds it took, the verdict
#: (none, answer, reject ..., "shadow:" before it in shadow mode), and a remark: the reply, or what
#: went wrong. Times are those of `perf_counter`. Beside them stand what was said: "RCPT" and the
#: recipient; "MAIL" and a sender that was refused; "reply", the command that was refused, and code
#: and text as verdict and remark.
Step: TypeAlias = tuple[str, str, float, float, str, str]

_MOST_STEPS: Final = 500  # of one message, or of one session between its messages
_MOST_TOLD: Final = 50  # in one line of the log
_NOT_HOOKS: Final = frozenset({"MAIL", "RCPT", "reply"})


class Activity:
    """One thread's work. `running` is the plugin's hook under way: hook, plugin, since when.

    `steps` are those of the message under way, else of the session. `thread` is an identifier of
    `threading`, 0 before the start.
    """

    __slots__ = ("running", "steps", "thread")

    def __init__(self) -> None:
        self.running: tuple[str, str, float] | None = None
        self.steps: list[Step] = []
        self.thread = 0

    def note(self, step: Step) -> None:
        """Add a step; what goes on for ever is not noted to its end."""
        if len(self.steps) < _MOST_STEPS:
            self.steps.append(step)

    def note_reply(self, verb: str, code: int, text: str) -> None:
        """Add that a command was refused."""
        self.note(("reply", verb, perf_counter(), 0.0, str(code), text))

    def report(self) -> dict[str, object]:
        """Say which plugin runs, if one does, and for how many seconds."""
        hook, plugin, since = self.running or ("", "", 0.0)
        return {"hook": hook, "plugin": plugin, "seconds": perf_counter() - since if since else 0.0}

    def stack(self) -> list[str]:
        """Return the Python stack of the thread, the innermost call last, a line of text each."""
        frame = sys._current_frames().get(self.thread)  # noqa: SLF001 - the one way there is
        return [] if frame is None else _lines(frame)


class _Nobody(Activity):
    """The work of threads that have none of their own: nobody looks at it."""

    def note(self, step: Step) -> None:
        pass


class _Here(threading.local):
    activity: Activity = _Nobody()


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
    """Return what this thread works on."""
    return _here.activity


def summary(steps: list[Step]) -> str:
    """Tell the verdict of each hook's call and its microseconds, in one word for the log."""
    told = [
        f"{plugin}.{hook}:{verdict}:{int(seconds * 1e6)}"
        for hook, plugin, _, seconds, verdict, _ in steps[:_MOST_TOLD]
        if hook not in _NOT_HOOKS
    ]
    return ",".join(told if len(steps) <= _MOST_TOLD else [*told, "..."])


def _lines(frame: FrameType) -> list[str]:
    return [
        f"{call.filename}:{call.lineno} {call.name}: {call.line}"
        for call in traceback.extract_stack(frame)
    ]


def log_stacks(log: Log) -> None:
    """Log the stack of every thread as one piece, because other processes log theirs as well.

    The names of the threads come first, since `faulthandler` does not show them.
    """
    names = [f"Thread 0x{each.ident or 0:016x}: {each.name}\n" for each in threading.enumerate()]
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        file.write("".join([f"Process {os.getpid()}\n", *names]).encode())
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        log.dump(file.read().decode("utf-8", "backslashreplace"))
