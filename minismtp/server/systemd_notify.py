"""Notifications of the supervisor to systemd: sd_notify(3) without its library.

Each message is a datagram of `NAME=value` lines to the socket that `$NOTIFY_SOCKET` names. Outside
systemd there is no such socket, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

_STATUS_INTERVAL: Final = 2.0  # seconds; each status wakes systemd and its listeners
_FEEDS: Final = 4  # of the watchdog, within the time after which it would kill the server
_PATIENCE: Final = 1.0  # seconds for systemd to take a message


class Notifier:
    """Sends notifications. It takes its variables out of the environment.

    So a program that a plugin starts cannot send notifications for the server.
    """

    def __init__(
        self,
        environment: MutableMapping[str, str],
        pid: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        path = environment.pop("NOTIFY_SOCKET", "")
        # "@" means the zero octet that begins the name of an abstract socket.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        microseconds = environment.pop("WATCHDOG_USEC", "0")
        ours = environment.pop("WATCHDOG_PID", str(pid)) == str(pid)
        self._watchdog = int(microseconds) / 1e6 if ours else 0.0
        self._next_feed = 0.0
        self._status = ""
        self._next_status = 0.0

    def ready(self) -> None:
        """Notify that the server serves, after its start and after a reload."""
        self._next_status = 0.0
        self._send("READY=1")

    def reloading(self) -> None:
        """Notify that the server reads a new configuration. A call of `ready` must follow."""
        self._next_status = 0.0
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """Notify that the server stops, which takes `seconds` at most."""
        self._next_status = 0.0
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def tell(self, status: str, *, answering: bool) -> None:
        """Send a changed status, and feed the watchdog if `answering`. Call this every second."""
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
        # While systemd restarts (daemon-reexec), sending fails, which must not end the server.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.settimeout(_PATIENCE)
            sock.sendto("\n".join(lines).encode(), self._address)
