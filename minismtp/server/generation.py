"""The workers of one configuration, and their sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, KeysView
from dataclasses import dataclass, field
from math import inf
from typing import Final

from minismtp.config import Config
from minismtp.server.sockets import open_socket

_FEWEST_WORKERS: Final = 4


@dataclass(slots=True, eq=False)
class Generation:
    """The workers of one configuration.

    `pause` before the next start grows with short lives. After a reload its sessions may go on
    until `drain_at`. Workers accept once its gate is `open`: a worker that began alone would keep
    all clients that come meanwhile, on one core.
    """

    config: Config
    sockets: dict[str, socket.socket]
    wanted: int
    begun: float
    pause: float = 0.0
    next_start: float = 0.0
    drain_at: float = inf
    gate: int = field(init=False)  # to be read; its end is what workers wait for
    _shut: int = field(init=False)

    def __post_init__(self) -> None:
        self.gate, self._shut = os.pipe()

    @property
    def drain(self) -> float:
        """How many seconds its sessions may take to end."""
        return self.config.limits.drain.total_seconds()

    @property
    def is_open(self) -> bool:
        """Whether workers accept."""
        return self._shut < 0

    def open(self) -> None:
        """Let workers accept, those that start later as well.

        A child calls it for itself: the gate is shut as long as anybody holds it so.
        """
        if self._shut >= 0:
            os.close(self._shut)
            self._shut = -1

    def close(self) -> None:
        """Close the descriptors once the last worker is started."""
        self.open()
        os.close(self.gate)

    def sockets_for(self, config: Config, adopted: KeysView[str]) -> dict[str, socket.socket]:
        """Return the sockets of a new configuration; those on the same address are kept.

        The address of a socket from systemd, `adopted`, is what its unit says, whatever the
        configuration does. Raise ListenError.
        """
        sockets = {}
        for index, listener in enumerate(config.listeners):
            same = [o.name for o in self.config.listeners if o.address == listener.address]
            if listener.name in (adopted & self.sockets.keys()):
                sockets[listener.name] = self.sockets[listener.name]
            elif same:
                # Several listeners may be on "port 0": each keeps its own.
                name = listener.name if listener.name in same else same[0]
                sockets[listener.name] = self.sockets[name]
            else:
                key = f"listeners[{index}].address"
                sockets[listener.name] = open_socket(listener.address, key=key, file=config.file)
        return sockets


def workers_of(config: Config) -> int:
    """Return how many workers a configuration asks for; by default twice the cores, at least 4."""
    return config.workers or max(_FEWEST_WORKERS, 2 * len(os.sched_getaffinity(0)))


def close(sockets: Collection[socket.socket], *, keep: Collection[socket.socket]) -> None:
    """Close all but those to keep."""
    for sock in sockets:
        if sock not in keep:
            sock.close()
