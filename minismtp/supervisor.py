"""The parent of all processes (layer 7): listeners, workers, signals.

It starts no thread and imports no plugin, so forking from it is safe at any time; it blocks every
signal that it handles and takes them one at a time from `sigtimedwait`. Workers belong to a
generation: HUP starts a new one from the re-read configuration. When that serves, the old one
accepts no more and its sessions go on until their clients quit or the drain time has passed; when
the new one cannot serve, the old one goes on.
"""

from __future__ import annotations

import enum
import os
import signal
import socket
import time
from collections.abc import Collection
from math import inf
from pathlib import Path
from typing import Final

from minismtp import endpoint, worker
from minismtp.admission import SLOTS, Admission
from minismtp.backoff import Backoff
from minismtp.children import Child, Children
from minismtp.config import Config
from minismtp.generation import Generation, close, workers_of
from minismtp.herald import Herald
from minismtp.listen import ListenError, adopt, bound, open_listeners, open_socket
from minismtp.log import Log, bridge, complain
from minismtp.outbound import runner
from minismtp.rundir import make_control_directory, own, runtime_directory
from minismtp.scalars import SocketAddress
from minismtp.settings import ConfigError
from minismtp.worker import EXIT_CONFIG, Post

_SIGNALS: Final = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    signal.SIGCHLD,
}
_TICK: Final = 0.05  # seconds between two looks while something is under way
_QUIET_TICK: Final = 1.0
_START_TIME: Final = 60.0  # seconds that a generation has to become ready
_PATIENCE: Final = 5.0  # seconds that the first workers wait for the others, before they accept
_SHORT_LIFE: Final = 10.0  # a worker that dies younger is started again later and later
_LONGEST_PAUSE: Final = 5.0


def serve(config: Config) -> int:
    """Run the server until it is told to stop; gives the exit status."""
    log = Log(level=config.log.level, style=config.log.format, patient=False)
    bridge(log, config.log.level)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        supervisor = Supervisor(config, log)
    except ListenError as error:
        complain(f"minismtp: {error}")
        return 1
    try:
        return supervisor.run()
    finally:
        supervisor.kill()


class Role(enum.Enum):
    """The processes that there is one of."""

    ENDPOINT = "endpoint"
    RUNNER = "runner"


class Supervisor:
    """Starts, watches and stops the processes."""

    def __init__(self, config: Config, log: Log) -> None:
        self._log = log
        self._children: Children[Generation | Role] = Children(log)
        self._admission = Admission(config.limits.sessions, config.limits.sessions_per_ip)
        self._herald = Herald(log, self._admission)
        backoff = config.limits.login_backoff.total_seconds()
        self._backoff = Backoff(backoff, time.monotonic)
        self._endpoint_socket = _endpoint_socket(config)
        self._next_endpoint = 0.0
        self._runner = 0  # its process id
        self._runner_pause = 0.0
        self._next_runner = 0.0
        adopted = adopt(dict(os.environ), os.getpid())
        sockets = open_listeners(config.listeners, adopted, file=config.file)
        self._adopted = adopted.keys()
        # After the sockets: a second server that finds them taken leaves the first one's files.
        self._metrics_directory = runtime_directory(config, "metrics")
        own(config, config.state_directory)
        make_control_directory(config)
        self._current = Generation(config, sockets, workers_of(config), time.monotonic())
        self._coming: Generation | None = None
        self._reload_wanted = False
        self._started = False  # whether a worker has ever served
        self._status: int | None = None
        self._stop_by = 0.0

    def run(self) -> int:
        """Loop until all processes have ended after a stop."""
        self._start_worker(self._current)
        while self._status is None or self._children:
            busy = self._coming or self._status is not None or not self._herald.ready
            received = signal.sigtimedwait(_SIGNALS, _TICK if busy else _QUIET_TICK)
            if received is not None:
                self._act(received.si_signo)
            self._tend()
            self._log.flush()
        self._log.info("stopped")
        return self._status

    def kill(self) -> None:
        """End every process at once; nothing acknowledged is lost by it."""
        self._children.kill()

    def _act(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                if self._status is not None:
                    self._log.warning("stopping at once")
                    self.kill()
                else:
                    self._stop(0)
            case signal.SIGHUP:
                self._reload_wanted = True
            case signal.SIGUSR2:
                for pid, _ in self._children:
                    os.kill(pid, signal.SIGUSR2)
            case _:
                pass

    def _tend(self) -> None:
        """Look after the children: who died, who is ready, who is missing."""
        for pid, child, status in self._children.reap():
            self._bury(pid, child, status)
        self._children.hear()
        if self._is_time_to_open(self._current):
            self._current.open()
        self._started = self._started or self._is_ready(self._current)
        if self._status is None:
            if self._coming is not None:
                self._tend_reload(self._coming)
            elif self._reload_wanted:
                self._reload_wanted = False
                self._reload()
            self._fill(self._coming or self._current)
            self._fill_endpoint()
            self._fill_runner()
        elif time.monotonic() > self._stop_by:
            self.kill()
        self._end_overdue()
        if self._herald.tell(self._state(), self._serving(), self._current.wanted):
            self._announce()

    def _is_time_to_open(self, generation: Generation) -> bool:
        ready = [child.started for child in self._children.of(generation) if child.serving]
        first = min(ready, default=inf)
        return len(ready) >= generation.wanted or time.monotonic() - first > _PATIENCE

    def _is_ready(self, generation: Generation) -> bool:
        return any(child.serving for child in self._children.of(generation))

    def _serving(self) -> dict[int, int]:
        """Give the processes that serve the present configuration, with their slots."""
        return {
            pid: child.slot
            for pid, child in self._children
            if child.serving and child.group is self._current and self._current.is_open
        }

    def _state(self) -> str:
        if self._status is not None:
            return "Stopping"
        return "Reloading" if self._coming else "Serving" if self._started else "Starting"

    def _announce(self) -> None:
        for listener in self._current.config.listeners:
            sock = self._current.sockets[listener.name]
            address = bound(sock, listener.address)
            self._log.info("listening", listener=listener.name, address=address, kind=listener.kind)
        if self._endpoint_socket is not None:
            address = bound(self._endpoint_socket, SocketAddress())
            self._log.info("serving metrics", address=address)

    def _bury(self, pid: int, child: Child[Generation | Role], status: int) -> None:
        if child.group is Role.ENDPOINT:
            if self._status is None:
                self._log.error("metrics endpoint died", pid=pid, status=status)
            return
        self._admission.forget(child.slot)
        for path in self._metrics_directory.glob(f"gauge_live*_{child.slot}.db"):
            path.unlink(missing_ok=True)
        generation = child.group
        if generation is Role.RUNNER:
            self._bury_runner(pid, child, status)
            return
        if self._status is not None or generation not in {self._current, self._coming}:
            return
        assert isinstance(generation, Generation)  # noqa: S101 - one of the two
        self._log.error("worker died", pid=pid, slot=child.slot, status=status)
        if generation is self._coming:
            self._give_up_reload("a worker of the new generation cannot start")
        elif not self._started:
            self._stop(EXIT_CONFIG if status == EXIT_CONFIG else 1)
        else:
            generation.pause = pause(generation.pause, time.monotonic() - child.started)
            generation.next_start = time.monotonic() + generation.pause

    def _bury_runner(self, pid: int, child: Child[Generation | Role], status: int) -> None:
        if pid != self._runner:
            return  # one that a reload has replaced
        self._runner = 0
        self._runner_pause = pause(self._runner_pause, time.monotonic() - child.started)
        self._next_runner = time.monotonic() + self._runner_pause
        if self._status is None:
            self._log.error("outbound runner died", pid=pid, status=status)

    def _fill(self, generation: Generation) -> None:
        """Start missing workers; the second and later ones once the first has shown that it can."""
        workers = self._children.of(generation)
        if workers and not self._is_ready(generation):
            return
        if time.monotonic() >= generation.next_start:
            free = SLOTS - len(self._children)
            for _ in range(min(generation.wanted - len(workers), free)):
                self._start_worker(generation)

    def _fill_endpoint(self) -> None:
        """Start the endpoint when it is missing; again and again, but not without a breath."""
        now = time.monotonic()
        if not self._children.of(Role.ENDPOINT) and now >= self._next_endpoint:
            self._next_endpoint = now + _QUIET_TICK
            self._start_endpoint()

    def _fill_runner(self) -> None:
        """Start the runner when workers serve; one that a reload has replaced may still drain."""
        if not self._runner and self._started and time.monotonic() >= self._next_runner:
            self._start_runner()

    def _end_overdue(self) -> None:
        """Hurry old generations, and kill what was told to end and has not.

        A plugin may hang in `on_stop`.
        """
        now = time.monotonic()
        for generation in self._generations():
            if now > generation.hurry_at:
                self._hurry(generation)
        for pid, child in self._children:
            if isinstance(child.group, Generation) and now > child.group.end_by:
                os.kill(pid, signal.SIGKILL)

    def _reload(self) -> None:
        file = self._current.config.file
        self._herald.reloading()
        try:
            config = Config.load(Path(file) if file else None)
            sockets = self._current.sockets_for(config, self._adopted)
        except (ConfigError, ListenError) as error:
            self._give_up_reload(str(error))
            return
        now = time.monotonic()
        self._coming = Generation(config, sockets, workers_of(config), now)
        self._log.info("reloading")

    def _tend_reload(self, coming: Generation) -> None:
        workers = self._children.of(coming)
        if len(workers) == coming.wanted and all(child.serving for child in workers):
            old, self._current, self._coming = self._current, coming, None
            coming.open()
            old.close()
            close(old.sockets.values(), keep=coming.sockets.values())
            for generation in self._generations() - {old, coming}:
                self._hurry(generation)
            self._signal_workers(signal.SIGUSR1, old)
            if self._runner:
                os.kill(self._runner, signal.SIGTERM)
                self._runner = 0
            old.hurry_at = time.monotonic() + old.config.limits.drain.total_seconds()
            self._herald.reloaded()
        elif time.monotonic() - coming.begun > _START_TIME:
            self._give_up_reload("the new generation did not become ready in time")

    def _give_up_reload(self, reason: str) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            self._signal_workers(signal.SIGKILL, coming)
            coming.close()
            close(coming.sockets.values(), keep=self._current.sockets.values())
        self._herald.reload_failed(reason)

    def _stop(self, status: int) -> None:
        self._status = status
        drain = self._current.config.limits.drain.total_seconds()
        self._stop_by = time.monotonic() + drain + _SHORT_LIFE
        self._herald.stopping(len(self._children), drain + 2 * _SHORT_LIFE)
        # Nobody shall wait in a queue that nobody serves.
        self._let_go(keep=())
        for generation in self._generations():
            self._hurry(generation)
        for pid, child in self._children:
            if isinstance(child.group, Role):
                os.kill(pid, signal.SIGTERM)

    def _generations(self) -> set[Generation]:
        groups = {child.group for _, child in self._children}
        return {group for group in groups if isinstance(group, Generation)}

    def _hurry(self, generation: Generation) -> None:
        """Have a generation drain; only once, for a second TERM would cut its sessions."""
        if generation.end_by == inf:
            drain = generation.config.limits.drain.total_seconds()
            generation.end_by = time.monotonic() + drain + _SHORT_LIFE
            self._signal_workers(signal.SIGTERM, generation)

    def _signal_workers(self, number: int, generation: Generation) -> None:
        for pid, child in self._children:
            if child.group is generation:
                os.kill(pid, number)

    def _start_endpoint(self) -> None:
        sock = self._endpoint_socket
        if sock is not None:
            lifeline, limit = self._children.lifeline, self._admission.limit
            directory = self._metrics_directory

            def run(_: int) -> int:
                self._let_go(keep=())
                return endpoint.run(
                    sock,
                    self._herald.board,
                    directory,
                    lifeline,
                    sessions=limit,
                    control=directory.parent / "control",
                    config=self._current.config.log,
                    hosts=(self._current.config.hostname, *self._current.config.metrics.hosts),
                )

            self._children.fork("http", -1, Role.ENDPOINT, self._current.config.user, run)

    def _start_runner(self) -> None:
        slot, config = self._children.free_slot(), self._current.config
        directory, lifeline = self._metrics_directory, self._children.lifeline

        def run(ready: int) -> int:
            self._let_go(keep=())
            if self._endpoint_socket is not None:
                self._endpoint_socket.close()
            return runner.run(
                config, runner.Desk(slot, directory, ready, lifeline, self._herald.board)
            )

        self._runner = self._children.fork(
            "queue", slot, Role.RUNNER, config.user, run, affinity=config.cpu_affinity
        )

    def _start_worker(self, generation: Generation) -> None:
        slot, config = self._children.free_slot(), generation.config

        def run(ready: int) -> int:
            # An address is free again when no process has a copy of its socket any more.
            self._let_go(keep=generation.sockets.values())
            if self._endpoint_socket is not None:
                self._endpoint_socket.close()
            post = Post(
                slot,
                generation.sockets,
                self._admission,
                self._backoff,
                self._herald.pulses,
                self._metrics_directory,
                ready,
                generation.gate,
                self._children.lifeline,
            )
            return worker.run(config, post)

        self._children.fork(
            "worker", slot, generation, config.user, run, affinity=config.cpu_affinity
        )

    def _let_go(self, *, keep: Collection[socket.socket]) -> None:
        """Close the listeners but those to keep, and hold no gate."""
        for generation in (self._current, self._coming):
            if generation is not None:
                generation.open()
                close(generation.sockets.values(), keep=keep)


def pause(before: float, lived: float) -> float:
    """Give the seconds until a dead worker is replaced, after a life and the pause before it.

    They grow while workers live short lives, but not for long: mail waits meanwhile.
    """
    return 0.0 if lived >= _SHORT_LIFE else min(max(before * 2, 1.0), _LONGEST_PAUSE)


def _endpoint_socket(config: Config) -> socket.socket | None:
    if config.metrics.address is None:
        return None
    return open_socket(config.metrics.address, key="metrics.address", file=config.file)
