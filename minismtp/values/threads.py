"""Threads that survive any exception.

Python ends a thread at the first uncaught exception, and then its work is not done any more: no
message expires, for example, or no deadline is enforced. So every thread of the server is started
here. Whatever its body raises, even MemoryError, SystemExit and KeyboardInterrupt, is counted and
logged, and after a pause the body is called again.

This module does not import the log and the metrics, because those need threads themselves. It logs
through the standard `logging`, and counts by the function passed to `count_failures`.
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
_LONGEST: Final = 5.0  # the same, for a thread that fails repeatedly
_TICK: Final = 0.005  # seconds between two checks whether everything is written
_TO_BEGIN: Final = 5.0  # seconds within which a new thread has to take its first step
_SHORTAGE: Final = 5.0  # seconds without another try after a thread did not
_log = logging.getLogger(__name__)
_here = threading.local()

Count: TypeAlias = Callable[[str, int], object]
counts: Final[list[Count]] = []  #: the last argument of `count_failures`


class Interrupted(KeyboardInterrupt):
    """The user of a command pressed Ctrl-C, which ends it.

    A plain KeyboardInterrupt comes from other code, and is a failure like any other.
    """


def count_failures(count: Count) -> None:
    """Call `count` with the name of a thread and 0 when it starts, 1 when it fails.

    The threads of libraries are called "other". Their failures are logged too.
    """
    counts[:] = [count]
    count("other", 0)
    threading.excepthook = lambda failed: report(failed.exc_value or failed.exc_type(), "other")


def start_thread(name: str, body: Callable[[], object], *, once: bool = False) -> threading.Thread:
    """Start a daemon thread that ends when `body` returns, and not when it raises.

    An exception is logged and counted in `minismtp_thread_failures_total` under `name`, which is
    one of a few fixed words. After a tenth of a second `body` is called again. The pause doubles
    with each further failure, up to 5 seconds. With `once`, a failure is logged and counted but
    ends the thread. Raise RuntimeError if the system has no more threads, or no memory in which
    the thread could begin. Then `body` is never called.
    """
    if time.monotonic() < _Started.none_before:
        raise RuntimeError("the last new thread did not begin")
    begun_or_given_up = threading.Lock()  # taken by the side that decides it

    def run() -> None:
        if not begun_or_given_up.acquire(blocking=False):
            return
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
    thread._started = _Started(begun_or_given_up)  # type: ignore[attr-defined]  # noqa: SLF001
    thread.start()
    return thread


class _Started(threading.Event):
    """The event by which a new thread tells `Thread.start` that it runs.

    If memory ends before the thread's first step, the thread ends in silence, and `Thread.start`
    waits without limit (CPython issue 140746). The loop that accepts connections would hang.
    After one such thread, no other is started for a while, because each would cost the whole wait.
    """

    none_before = 0.0  # of the monotonic clock

    def __init__(self, begun_or_given_up: threading.Lock) -> None:
        super().__init__()
        self._begun_or_given_up = begun_or_given_up

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the thread's first step. Raise RuntimeError if it does not take one in time."""
        begun = super().wait(_TO_BEGIN if timeout is None else timeout)
        if not begun and self._begun_or_given_up.acquire(blocking=False):
            _Started.none_before = time.monotonic() + _SHORTAGE
            raise RuntimeError("the new thread did not begin")
        return True


class Flag(threading.Event):
    """An event that is never cleared. A busy path reads `up` instead of calling `is_set`."""

    up = False

    def set(self) -> None:
        """Wake those that wait for the flag."""
        self.up = True
        super().set()


class WriteBehind:
    """A thread that calls `write` for everything that came within `interval` seconds.

    A caller stores its data where `write` finds it, and then calls `announce`. On a busy path it
    does so only if the thread is `idle`, which takes less time. If `write` returns False, it is
    called again after 5 seconds. An exception is logged and counted, and `write` is called again.
    """

    def __init__(self, name: str, write: Callable[[], bool | None], interval: float) -> None:
        self.idle = True  # whether nothing was announced since the last write began
        self._announced = threading.Event()
        self._name = name
        self._write = write
        self._interval = interval
        self._urgent = threading.Event()
        self._writing = threading.Lock()

    def start(self, prepare: Callable[[], object] = bool) -> None:
        """Start the thread, which first calls `prepare`."""
        start_thread(self._name, lambda: self._run(prepare))

    def announce(self) -> None:
        """Have the thread write after the interval."""
        self.idle = False
        self._announced.set()

    def hurry(self) -> None:
        """Have the thread write without waiting for the interval to pass."""
        self._urgent.set()
        self.announce()

    def flush(self) -> bool:
        """Write in the calling thread. Return False if `write` has to be called again."""
        with self._writing:
            return self._write() is not False

    def wait(self, seconds: float) -> None:
        """Block until everything is written, for some seconds at most."""
        end = time.monotonic() + seconds
        while (self._announced.is_set() or self._writing.locked()) and time.monotonic() < end:
            time.sleep(_TICK)

    def _run(self, prepare: Callable[[], object]) -> None:
        prepare()
        while True:
            self._announced.wait()
            self._urgent.wait(self._interval)
            try:
                with self._writing:  # before the flags are cleared, or `wait` would end too early
                    self._urgent.clear()
                    self._announced.clear()
                    self.idle = True
                    written = self._write()
            except BaseException:
                self.announce()
                raise
            if written is False:
                time.sleep(_LONGEST)
                self.announce()


class surviving:  # noqa: N801 - stands in a `with`, like contextlib.suppress
    """Logs and counts an exception of a block, and continues behind the block.

    It is meant for one item of many. It counts under `name`, by default that of the thread.
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
    """Log and count an unexpected exception, as `surviving` does. Never raise."""
    # Without memory this may fail too, and the thread must continue all the same.
    name = name or getattr(_here, "name", "other")
    with contextlib.suppress(BaseException):
        for count in counts:
            count(name, 1)
    with contextlib.suppress(BaseException):
        _log.error("thread failed: %s", name, exc_info=error)
