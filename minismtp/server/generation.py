"""The workers of one configuration, and their sockets."""

from __future__ import annotations

import importlib
import os
import socket
import ssl
from collections.abc import Collection, KeysView
from dataclasses import dataclass, field
from math import inf
from typing import Final

from minismtp.config import Config, Listener
from minismtp.config.types import SocketAddress
from minismtp.hooks.sources import Packages, import_shipped, installed, uses_others
from minismtp.server.sockets import ListenError, open_socket
from minismtp.services.resolver import import_library

_FEWEST_WORKERS: Final = 2


@dataclass(slots=True, eq=False)
class Generation:
    """The workers of one configuration.

    Its processes load the plugins of `packages`, as they were installed when it began. The `pause`
    before the next start grows when workers die young. After a reload, sessions may
    continue until `drain_at`. Workers accept connections once the gate is open. A worker that began
    before the others would get all clients that connect meanwhile, on its one core.
    """

    config: Config
    sockets: dict[str, socket.socket]
    wanted: int
    begun: float
    pause: float = 0.0
    next_start: float = 0.0
    drain_at: float = inf
    packages: Packages = field(default_factory=installed)
    reporter: int = -1  # the slot of the worker that logs what concerns all of them
    gate: int = field(init=False)  # a pipe; workers read it and wait for its end
    _shut: int = field(init=False)

    def __post_init__(self) -> None:
        _prepare(self.config, self.packages)
        self.gate, self._shut = os.pipe()

    @property
    def drain(self) -> float:
        """Seconds that its sessions have to end."""
        return self.config.limits.drain.total_seconds()

    @property
    def is_open(self) -> bool:
        """Whether the workers accept connections."""
        return self._shut < 0

    def open(self) -> None:
        """Let the workers accept connections, including those that start later.

        Each child calls it too, because the gate opens only when every process has closed its end.
        """
        if self._shut >= 0:
            os.close(self._shut)
            self._shut = -1

    def close(self) -> None:
        """Close the descriptors, after the last worker was started."""
        self.open()
        os.close(self.gate)

    def sockets_of(self, listeners: Collection[Listener]) -> dict[str, socket.socket]:
        """Return the sockets of some of its listeners by name."""
        return {listener.name: self.sockets[listener.name] for listener in listeners}

    def sockets_for(self, config: Config, adopted: KeysView[str]) -> dict[str, socket.socket]:
        """Return the sockets for a new configuration, which keeps those on the same address.

        The unit decides on the address of a socket from systemd (`adopted`), not the configuration.
        Raise ListenError.
        """
        sockets = {}
        for index, listener in enumerate(config.listeners):
            same = [o.name for o in self.config.listeners if o.address == listener.address]
            if listener.name in (adopted & self.sockets.keys()):
                sockets[listener.name] = self.sockets[listener.name]
            elif same:
                # Several listeners may have port 0, and each keeps its own socket.
                name = listener.name if listener.name in same else same[0]
                sockets[listener.name] = self.sockets[name]
            else:
                key = f"listeners[{index}].address"
                sockets[listener.name] = self._opened(listener.address, config, key)
        return sockets

    def _opened(self, address: SocketAddress, config: Config, key: str) -> socket.socket:
        try:
            return open_socket(address, config, key)
        except ListenError as error:
            if address.port in {each.address.port for each in self.config.listeners} - {0}:
                raise ListenError(
                    f"{error} by this server; it moves to another address on the same port"
                    " at a restart, not at a reload"
                ) from None
            raise


def _prepare(config: Config, packages: Packages) -> None:
    """Do what each process would do for itself, so that they share the memory that it takes."""
    import_shipped(config, packages)
    if uses_others(config, packages):
        public = importlib.import_module("minismtp")  # which they may import, also after an upgrade
        for name in public.__all__:
            getattr(public, name)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # the first context initializes OpenSSL
    if config.tls.acme is not None or any(each.is_public for each in config.listeners):
        import_library()  # for the names, the policies and the hosts of strangers, and our own


def workers_of(config: Config) -> int:
    """Return how many workers a configuration asks for; by default as many as cores, at least 2."""
    return config.workers or max(_FEWEST_WORKERS, len(os.sched_getaffinity(0)))


def close(sockets: Collection[socket.socket], *, keep: Collection[socket.socket]) -> None:
    """Close sockets, except those to keep."""
    for sock in sockets:
        if sock not in keep:
            sock.close()
