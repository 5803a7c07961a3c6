"""How the supervisor starts each kind of process, and the memory that they share."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Collection
from socket import socket
from typing import Final

from minismtp.config import Config
from minismtp.hooks.loader import PluginSet
from minismtp.mailqueue import runner
from minismtp.runtime.log import Log
from minismtp.runtime.login_backoff import Backoff
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.scoreboard import ENDPOINT_SLOT, Scoreboard
from minismtp.runtime.session_limits import Admission
from minismtp.runtime.suspects import Suspects
from minismtp.server import http_endpoint, worker
from minismtp.server.directories import make_control_directory, runtime_directory
from minismtp.server.generation import Generation
from minismtp.server.processes import Children, Role
from minismtp.server.sockets import open_socket
from minismtp.server.worker import WorkerContext

_PATIENCE: Final = 0.2  # seconds for a lock that is held for microseconds


class Launcher:
    """Forks the processes. It owns the shared memory and the directories made before any fork."""

    def __init__(
        self,
        config: Config,
        children: Children,
        close_listeners: Callable[[Collection[socket]], None],
    ) -> None:
        """Open the socket of the metrics endpoint. Raise ListenError.

        `close_listeners` closes the listeners that a child inherits, except those to keep. An
        address becomes free only when no process has its socket open any more.
        """
        limits = config.limits
        self.admission: Final = Admission(limits.sessions, limits.sessions_per_ip)
        self.scoreboard: Final = Scoreboard()
        self.suspects: Final = Suspects()
        self._backoff = Backoff(limits.login_backoff.total_seconds(), time.monotonic)
        self._children = children
        self._close_listeners = close_listeners
        address = config.metrics.address
        self.endpoint_socket: Final = (
            None if address is None else open_socket(address, config, "metrics.address")
        )

    def make_directories(self, config: Config) -> None:
        """Make empty directories for the metrics and the control sockets. Raise OSError."""
        self._metrics_directory = runtime_directory(config, "metrics")
        make_control_directory(config)

    def clean_slots(self) -> None:
        """Free the places that the sessions of dead processes held, and remove their gauges.

        Raise TimeoutError while a hanging process holds the lock of the session limits.
        """
        for slot in tuple(self._children.dead_slots):
            if slot != ENDPOINT_SLOT:
                self.suspects.clear_notes(slot)
                self.admission.forget(slot, patience=_PATIENCE)
                with contextlib.suppress(OSError):  # the state directory may be read-only
                    for path in self._metrics_directory.glob(f"gauge_live*_{slot}.db"):
                        path.unlink(missing_ok=True)
            self._children.dead_slots.discard(slot)

    def start_worker(self, generation: Generation) -> None:
        """Start a worker. Raise OSError or MemoryError."""
        slot, config = self._children.free_slot(), generation.config
        reports = generation.reporter not in {c.slot for c in self._children.of(generation)}
        if reports:
            generation.reporter = slot
        examines = reports and not generation.is_open

        def run(ready: int) -> int:
            sockets = generation.sockets_of(config.mail_listeners)
            self._close_listeners(sockets.values())
            context = WorkerContext(
                slot,
                sockets,
                self.admission,
                self._backoff,
                self.scoreboard,
                self.suspects,
                self._metrics_directory,
                ready,
                generation.gate,
                self._children.lifeline,
                generation.packages,
                reports=reports,
                examines=examines,
            )
            return worker.run(config, context)

        self._children.fork(
            "worker", slot, generation, config.user, run, affinity=config.cpu_affinity
        )

    def start_runner(self, generation: Generation) -> int:
        """Start the queue runner and return its process id. Raise OSError or MemoryError."""
        slot, config = self._children.free_slot(), generation.config
        directory, lifeline = self._metrics_directory, self._children.lifeline
        self.scoreboard.clear_beat(slot)
        begin_watches = watches_of(config)

        def run(ready: int) -> int:
            self._close_listeners(())
            context = runner.RunnerContext(
                slot,
                directory,
                ready,
                lifeline,
                self.scoreboard,
                self.suspects,
                generation.packages,
                begin_watches,
            )
            return runner.run(config, context)

        return self._children.fork(
            "queue", slot, Role.RUNNER, config.user, run, affinity=config.cpu_affinity
        )

    def start_web(self, generation: Generation) -> int:
        """Start the process of the web listeners and return its process id, 0 without any.

        Raise OSError or MemoryError.
        """
        config = generation.config
        if not config.web_listeners:
            return 0
        from minismtp.server import web_listener  # noqa: PLC0415 - see `import_for`

        slot = self._children.free_slot()
        directory, lifeline = self._metrics_directory, self._children.lifeline
        self.scoreboard.clear_beat(slot)

        def run(ready: int) -> int:
            sockets = generation.sockets_of(config.web_listeners)
            self._close_listeners(sockets.values())
            context = web_listener.WebContext(
                slot, sockets, directory, ready, lifeline, self.scoreboard
            )
            return web_listener.run(config, context)

        return self._children.fork("web", slot, Role.WEB, config.user, run)

    def start_certificates(self, config: Config) -> int:
        """Start the process that renews certificates and return its id, 0 if it has no work.

        Raise OSError or MemoryError.
        """
        if config.tls.acme is None:
            return 0
        from minismtp.server import certificate_process  # noqa: PLC0415 - see `import_for`

        slot = self._children.free_slot()
        directory, lifeline = self._metrics_directory, self._children.lifeline
        self.scoreboard.clear_beat(slot)

        def run(ready: int) -> int:
            self._close_listeners(())
            context = certificate_process.CertificateContext(
                slot, directory, ready, lifeline, self.scoreboard
            )
            return certificate_process.run(config, context)

        return self._children.fork("acme", slot, Role.CERTIFICATES, config.user, run)

    def start_endpoint(self, config: Config) -> None:
        """Start the metrics endpoint if it is configured. Raise OSError or MemoryError."""
        sock, limit = self.endpoint_socket, self.admission.limit
        directory, lifeline = self._metrics_directory, self._children.lifeline
        if sock is None:
            return

        def run(ready: int) -> int:
            self._close_listeners([sock])
            return http_endpoint.run(
                sock, self.scoreboard, directory, lifeline, ready=ready, limit=limit, config=config
            )

        self._children.fork("http", ENDPOINT_SLOT, Role.ENDPOINT, config.user, run)


def import_for(config: Config) -> None:
    """Import what the processes of a configuration need, and most servers do not.

    The supervisor does so before it forks them. So they share the memory, and a process that it
    starts after an upgrade has modules of the same release as the rest.
    """
    watches_of(config)
    names = ["minismtp.server.web_listener"] if config.web_listeners else []
    if config.tls.acme is not None:
        names += ["minismtp.server.certificate_process", "minismtp.inspection.acme_names"]
    if config.state.url:
        names.append("minismtp.services.state_redis")
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):  # of an extra; the process tells
            importlib.import_module(name)


def watches_dns(config: Config) -> bool:
    """Return whether there are records to look at: the server has a name, and is public."""
    public = any(listener.is_public for listener in config.listeners)
    return bool(config.dns.check) and public and "." in config.hostname


def watches_of(config: Config) -> Callable[[Config, PluginSet, Metrics, Log], object]:
    """Return what starts the watches of the world outside, and import their modules."""
    watches: list[Callable[[Config, PluginSet, Metrics, Log], object]] = []
    if watches_dns(config):
        from minismtp.server.dns_watch import DnsWatch  # noqa: PLC0415 - few servers need it

        watches.append(
            lambda config, plugins, metrics, log: DnsWatch(
                config, plugins.instances, metrics, log
            ).start()
        )
    if config.updates.check:
        from minismtp.server.update_watch import UpdateWatch  # noqa: PLC0415 - as above

        watches.append(lambda config, _, metrics, log: UpdateWatch(config, metrics, log).start())

    def begin(config: Config, plugins: PluginSet, metrics: Metrics, log: Log) -> None:
        for watch in watches:
            watch(config, plugins, metrics, log)

    return begin
