"""What the supervisor tells systemd: sd_notify(3) without its library.

Each message is a datagram of `NAME=value` lines to the socket that `$NOTIFY_SOCKET` names. Without
one, as outside of systemd, nothing is said.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

_STATUS_INTERVAL: Final = 2.0  # seconds: every status wakes the manager and all that listen to it
_FEEDS: Final = 4  # within the time after which the watchdog bites
_PATIENCE: Final = 1.0  # seconds for a manager that does not take what it is told


class Notifier:
    """The way to the service manager. Takes its variables out of the environment.

    So a program that a plugin starts cannot speak in our name.
    """

    def __init__(
        self,
        environment: MutableMapping[str, str],
        pid: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        path = environment.pop("NOTIFY_SOCKET", "")
        # "@" stands for the zero octet of an abstract socket's name.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        microseconds = environment.pop("WATCHDOG_USEC", "0")
        ours = environment.pop("WATCHDOG_PID", str(pid)) == str(pid)
        self._watchdog = int(microseconds) / 1e6 if ours else 0.0
        self._next_feed = 0.0
        self._status = ""
        self._next_status = 0.0

    def ready(self) -> None:
        """Say that the server serves: at the start, and at the end of a reload."""
        self._next_status = 0.0
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a new configuration is being taken on; `ready` must follow."""
        self._next_status = 0.0
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """Say that the server ends, and how long that may take at most."""
        self._next_status = 0.0
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def tell(self, status: str, *, answering: bool) -> None:
        """Show the status, and feed the watchdog if all are `answering`; call it every second."""
        now = self._clock()
        if answering and self._watchdog and now >= self._next_feed:
            self._next_feed = now + self._watchdog / _FEEDS
            self._send("WATCHDOG=1")
        if status != self._status and now >= self._next_status:
            self._next_status = now + _STATUS_INTERVAL
            self._status = status
            self._send(f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A manager that is away for a moment (daemon-reexec) must not end the server.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.settimeout(_PATIENCE)
            sock.sendto("\n".join(lines).encode(), self._address)
