"""How long a virtual machine stood still: a shared host may take its cores away for a while."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_STEP: Final = 0.005  # seconds
_LONGEST: Final = 0.05  # seconds that a busy machine may let a thread of high priority wait


class Pauses(threading.Thread):
    """Adds up the pauses of the machine while the `with` block runs.

    A thread sleeps 5 ms again and again. When it wakes more than 50 ms late, nothing ran meanwhile.
    `elapsed` and `paused` are seconds.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.elapsed = self.paused = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        """Watch the clock until the block ends."""
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        before = time.monotonic()
        while not self._end.is_set():
            time.sleep(_STEP)
            now = time.monotonic()
            if now - before > _LONGEST:
                self.paused += now - before - _STEP
            before = now

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.elapsed = time.monotonic() - self._start
        self._end.set()
        self.join()
