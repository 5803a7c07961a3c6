"""What each thread is doing, and the steps that led to its decisions.

The guards note here which plugin runs since when, and how each call ended. Other threads read this
without a lock, because every change assigns one immutable value.
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
from typing import Final, TypeAlias

from minismtp.runtime.log import Log

#: A call of a hook: the hook, the plugin, when it began, the seconds it took, the verdict (none,
#: answer, reject ..., in shadow mode after "shadow:"), and a remark: the reply, or what went wrong.
#: Times are those of `perf_counter`. Other steps are commands: "RCPT" and the recipient; "MAIL" and
#: a refused sender; "reply" and a refused command, with the code and text of the reply as verdict
#: and remark.
Step: TypeAlias = tuple[str, str, float, float, str, str]

_MOST_STEPS: Final = 500  # of a message, or of a session between its messages
GUARD: Final = "guarded"  #: the function of `hooks.guard` that calls a plugin
_MOST_TOLD: Final = 50  # in a line of the log
_NOT_HOOKS: Final = frozenset({"MAIL", "RCPT", "reply"})


class Activity:
    """The work of a thread during a `with` block. Only one thread at a time enters it.

    `running` is the current hook, its plugin, and when it began. `phase` is what else the thread
    does or waits for, such as a phase of a delivery, and when that began. `steps` are those of the
    current message, or of the session between messages, and no more than `most_steps`. `thread` is
    the identifier of the thread, 0 outside the block.
    """

    __slots__ = ("_before", "most_steps", "phase", "running", "steps", "thread")

    def __init__(self, most_steps: int = _MOST_STEPS) -> None:
        self.running: tuple[str, str, float] | None = None
        self.phase: tuple[str, float] | None = None
        self.steps: list[Step] = []
        self.most_steps = most_steps
        self.thread = 0

    def __enter__(self) -> None:
        self._before = here.activity
        here.activity = self
        self.thread = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.thread = 0
        here.activity = self._before

    def note(self, step: Step) -> None:
        """Add a step, up to a maximum."""
        if len(self.steps) < self.most_steps:
            self.steps.append(step)

    def report(self) -> dict[str, object]:
        """Return which plugin runs and which phase, if any, and each for how many seconds."""
        now = perf_counter()
        hook, plugin, since = self.running or ("", "", now)
        phase, begun = self.phase or ("", now)
        return {
            "hook": hook,
            "plugin": plugin,
            "seconds": now - since,
            "phase": phase,
            "phase_seconds": now - begun,
        }

    def stack(self) -> dict[str, object]:
        """Return the Python stack of the thread, one line for each call, the innermost last.

        `place` is the line of the plugin that runs, or empty.
        """
        frame = sys._current_frames().get(self.thread)  # noqa: SLF001 - the one way there is
        calls = [] if frame is None else [*traceback.extract_stack(frame)]
        guards = [number for number, call in enumerate(calls) if call.name == GUARD]
        own = calls[guards[-1] + 1 :] if guards else []
        place = next((call for call in own[::-1] if call.filename == own[0].filename), None)
        lines = [f"{each.filename}:{each.lineno} {each.name}: {each.line}" for each in calls]
        return {
            "stack": lines,
            "place": lines[calls.index(place)] if place else "",
        }

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Show `phase` as what the thread does during a `with` block."""
        self.phase = (phase, perf_counter())
        try:
            yield
        finally:
            self.phase = None


class _Here(threading.local):
    #: What this thread works on. Threads without an activity of their own keep no steps.
    activity = Activity(most_steps=0)


here: Final = _Here()


def summary(steps: list[Step]) -> str:
    """Return the verdict and the microseconds of each call of a hook, as one word for the log."""
    told = [
        f"{plugin}.{hook}:{verdict}:{int(seconds * 1e6)}"
        for hook, plugin, _, seconds, verdict, _ in steps[:_MOST_TOLD]
        if hook not in _NOT_HOOKS
    ]
    return ",".join(told if len(steps) <= _MOST_TOLD else [*told, "..."])


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
