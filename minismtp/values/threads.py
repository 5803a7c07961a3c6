"""Threads that outlive what goes wrong in them.

Python ends a thread at the first exception that nobody catches, and from then on nothing does the
thread's work: no message expires any more, or no deadline ends a wait. So every thread of the
server is started here. What its body raises, MemoryError, SystemExit and KeyboardInterrupt
included, is counted and logged, and after a pause the body is called again.

This module knows neither the log nor the metrics, which need threads themselves: it speaks through
the standard `logging`, and counts with what the process has named by `count_failures`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeAlias

_SHORTEST: Final = 0.1  # seconds between a failure and the next call
_LONGEST: Final = 5.0  # the same, of a thread that fails again and again
_TICK: Final = 0.005  # seconds between two looks whether a thread has written everything
_log = logging.getLogger(__name__)
_here = threading.local()

Count: TypeAlias = Callable[[str, int], object]
counts: Final[list[Count]] = []  #: what `count_failures` was given last


class Interrupted(KeyboardInterrupt):
    """The user of a command has pressed Ctrl-C, which ends it.

    A plain KeyboardInterrupt is somebody's own, and a failure like any other.
    """


def count_failures(count: Count) -> None:
    """Call `count` from now on with the name of a thread: 0 when it starts, 1 when it fails.

    The threads that libraries start are "other"; their failures go to the log as well.
    """
    counts[:] = [count]
    count("other", 0)
    threading.excepthook = lambda failed: report(failed.exc_value or failed.exc_type(), "other")


def start_thread(name: str, body: Callable[[], object], *, once: bool = False) -> threading.Thread:
    """Start a daemon thread that ends when `body` returns, and not when it raises.

    What `body` raises is logged and counted in `minismtp_thread_failures_total`, under `name`, one
    of a few fixed words. After a tenth of a second `body` is called again; while it goes on to
    fail, after twice the time before, 5 seconds at most. With `once` a failure is logged and
    counted too, but ends the thread. Raise RuntimeError when the system has no more threads.
    """

    def run() -> None:
        _here.name = name
        pause = _SHORTEST
        while True:
            begun = time.monotonic()
            with surviving() as attempt:
                body()
            if once or not attempt.failed:
                return
            if time.monotonic() - begun >= _LONGEST:
                pause = _SHORTEST
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    for count in counts:
        count(name, 0)
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


class WriteBehind:
    """Calls `write` in a thread of its own, for all that came within `interval` seconds together.

    A caller that has something to write puts it where `write` finds it, then sets `pending`; on a
    busy path it looks first whether that is set, which is cheaper. A `write` that returns False is
    called again after 5 seconds. What it raises is logged and counted, and it is called again.
    """

    def __init__(self, name: str, write: Callable[[], bool | None], interval: float) -> None:
        self.pending: Final = threading.Event()
        self._name = name
        self._write = write
        self._interval = interval
        self._urgent = threading.Event()
        self._writing = threading.Lock()

    def start(self, prepare: Callable[[], object] = bool) -> None:
        """Start the thread, which first calls `prepare`."""
        start_thread(self._name, lambda: self._run(prepare))

    def hurry(self) -> None:
        """Have the thread write without waiting for the interval to pass."""
        self._urgent.set()
        self.pending.set()

    def flush(self) -> bool:
        """Write in the calling thread. Return False if `write` has to be called again."""
        with self._writing:
            return self._write() is not False

    def wait(self, seconds: float) -> None:
        """Block until the thread has written everything, at most for some seconds."""
        end = time.monotonic() + seconds
        while (self.pending.is_set() or self._writing.locked()) and time.monotonic() < end:
            time.sleep(_TICK)

    def _run(self, prepare: Callable[[], object]) -> None:
        prepare()
        while True:
            self.pending.wait()
            self._urgent.wait(self._interval)
            try:
                with self._writing:  # before the flags go down, or `wait` would return too early
                    self._urgent.clear()
                    self.pending.clear()
                    written = self._write()
            except BaseException:
                self.pending.set()
                raise
            if written is False:
                time.sleep(_LONGEST)
                self.pending.set()


class surviving:  # noqa: N801 - stands in a `with`, like contextlib.suppress
    """Logs and counts what a block raises, and goes on behind it: for one item of many.

    It counts under `name`, without one under that of the thread.
    """

    __slots__ = ("_name", "failed")

    def __init__(self, name: str = "") -> None:
        self._name = name
        self.failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, Interrupted):
            return False
        if error is not None:
            self.failed = True
            report(error, self._name)
        return True


def report(error: BaseException, name: str = "") -> None:
    """Log and count what nobody expected, as `surviving` does; never raises."""
    # Where memory is short, this may fail as well: the thread goes on all the same.
    name = name or getattr(_here, "name", "other")
    with contextlib.suppress(BaseException):
        for count in counts:
            count(name, 1)
    with contextlib.suppress(BaseException):
        _log.error("thread failed: %s", name, exc_info=error)
