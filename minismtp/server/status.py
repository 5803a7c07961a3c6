"""Reports the status of the server to its own processes, to systemd, and in the log."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard, WorkersStatus
from minismtp.runtime.session_limits import Admission
from minismtp.server.systemd_notify import Notifier
from minismtp.values.clock import steady_time


class StatusReporter:
    """Reports for the supervisor, which names each change and calls `tell` every second."""

    def __init__(self, log: Log, admission: Admission, scoreboard: Scoreboard) -> None:
        self.scoreboard = scoreboard
        self._log = log
        self._admission = admission
        self._notifier = Notifier(os.environ, os.getpid())
        self._status = WorkersStatus(reloaded_at=time.time())

    @property
    def ready(self) -> bool:
        """Whether the server accepted mail at the last `tell`."""
        return self._status.ready

    def tell(self, state: str, serving: int, wanted: int, *, silent: int = 0) -> bool:
        """Report the state, how many of the wanted workers serve, and how many of those hang.

        Return whether the server became ready. The watchdog of systemd is fed while any worker
        answers, and while no worker serves, because the supervisor itself replaces workers.
        """
        steady_time()  # logs a jump of the clock, and keeps time for later children
        answering = serving - silent
        ready = answering > 0 and state != "Stopping"
        begins = ready and not self.ready
        self._post(replace(self._status, ready=ready, workers=answering))
        if begins:
            self._notifier.ready()
        self._notifier.tell(
            self._describe(state, answering, wanted),
            # While the server stops, its workers end, and systemd kills it if that takes too long.
            answering=answering > 0 or not serving or state == "Stopping",
        )
        return begins

    def reloading(self) -> None:
        """Report that a new configuration is being read."""
        self._notifier.reloading()

    def reloaded(self) -> None:
        """Report that the new configuration is in force."""
        self._log.info("reloaded")
        reloads = self._status.reloads + 1
        status = replace(self._status, reload_ok=True, reloaded_at=time.time(), reloads=reloads)
        self._post(status)
        self._notifier.ready()

    def reload_failed(self, reason: str) -> None:
        """Report that the old configuration stays in force."""
        self._log.error("reload failed, the old configuration goes on", reason=reason)
        self._post(replace(self._status, reload_ok=False, reloads=self._status.reloads + 1))
        self._notifier.ready()

    def stopping(self, processes: int, seconds: float) -> None:
        """Report that the server stops within `seconds`."""
        self._log.info("stopping", workers=processes)
        self._notifier.stopping(seconds)

    def _post(self, status: WorkersStatus) -> None:
        if status != self._status:
            self._status = status
            self.scoreboard.post_workers(status)

    def _describe(self, state: str, serving: int, wanted: int) -> str:
        """Return the line that `systemctl status` shows."""
        failed = "" if self._status.reload_ok else "; the last reload failed"
        return (
            f"{state}: workers {serving}/{wanted}, sessions {self._admission.sessions},"
            f" queue {self.scoreboard.queue().messages}{failed}"
        )
