"""The parent of all processes: it opens the listeners, starts workers and handles signals.

It starts no thread, and imports no plugin but the shipped ones, so it can fork safely at any time.
It blocks the signals that it handles and takes them one at a time. Workers belong to a generation.
On HUP it reads the configuration again and starts a new generation. Once the new one serves, the
old one accepts no more connections, and its sessions continue until their clients quit or the drain
time is over. If the new generation cannot serve, the old one continues.

A step of the loop that fails does not stop the others. It is logged and tried again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from minismtp import __version__
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import SocketAddress
from minismtp.runtime.log import Log, bridge, complain, describe
from minismtp.runtime.session_limits import SLOTS
from minismtp.runtime.suspects import FATAL
from minismtp.server.directories import lock_state_directory
from minismtp.server.generation import Generation, close, workers_of
from minismtp.server.installed_code import InstalledCode
from minismtp.server.launch import Launcher, import_for
from minismtp.server.processes import Child, Children, Role, forbid_core_dumps
from minismtp.server.respawn import SHORT_LIFE, Respawn, pause
from minismtp.server.signals import SIGNALS, ending_signals, next_signal
from minismtp.server.sockets import ListenError, adopt, bound, open_listeners
from minismtp.server.status import StatusReporter
from minismtp.server.watchdog import DUMP_SIGNAL, Watchdog

_STDERR: Final = 2
_TICK: Final = 0.05  # seconds between two looks while something is under way
_QUIET_TICK: Final = 1.0
_START_TIME: Final = 60.0  # seconds in which a process must become ready
_PATIENCE: Final = 5.0  # seconds that the first workers wait for the others, before they accept


def serve(config: Config) -> int:
    """Run the server until a signal stops it, and return the exit status. Raise ConfigError."""
    gc.freeze()  # a collection would take pages from the memory that it shares with its children
    log = Log(level=config.log.level, style=config.log.format, patient=False)
    bridge(log, config.log.level)
    forbid_core_dumps()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    faulthandler.enable(_STDERR)  # children inherit both
    faulthandler.register(DUMP_SIGNAL, _STDERR)
    try:
        supervisor = Supervisor(config, log)
    except ListenError as error:
        for line in str(error).splitlines():
            complain(f"minismtp: {line}")
        return 1
    try:
        return supervisor.run()
    finally:
        supervisor.kill()


class Supervisor:
    """Starts, watches and stops the processes."""

    def __init__(self, config: Config, log: Log) -> None:
        self._log = log
        self._code = InstalledCode()
        self._lock = lock_state_directory(config)
        self._children = Children(log)
        self._launcher = Launcher(config, self._children, self._close_listeners)
        self._reporter = StatusReporter(log, self._launcher.admission, self._launcher.scoreboard)
        self._watchdog = Watchdog(log, self._launcher.scoreboard)
        self._next_endpoint = 0.0
        self._runner = Respawn(self._start_runner)
        self._web = Respawn(self._start_web)
        self._certificates = Respawn(self._start_certificates)
        adopted = adopt(dict(os.environ), os.getpid())
        sockets = open_listeners(config, adopted)
        self._adopted = adopted.keys()
        # After the sockets: a second server fails there and leaves the files of the first alone.
        self._launcher.make_directories(config)
        import_for(config)
        self._current = Generation(config, sockets, workers_of(config), time.monotonic())
        self._coming: Generation | None = None
        self._reload_wanted = False
        self._started = False  # whether a worker has ever served
        self._status: int | None = None
        self._stop_by = inf
        self._ending = ending_signals()
        self._retry_at: dict[str, float] = {}  # when a step that failed is tried again

    def run(self) -> int:
        """Loop until all processes have ended after a stop."""
        self._log.info("starting", version=__version__, python=platform.python_version())
        self._attempt(self._start_workers, "workers")
        while self._status is None or self._children:
            with contextlib.suppress(Exception):  # even logging a failure may have failed
                self._turn()
                self._log.flush()
        self._log.info("stopped")
        return self._status

    def _turn(self) -> None:
        busy = self._coming or self._status is not None or not self._reporter.ready
        number = next_signal(_TICK if busy else _QUIET_TICK)
        self._retry_at.pop("signal", None)  # a new signal does not wait for the last one to succeed
        self._attempt(partial(self._act, number), "signal")
        self._step()

    def kill(self) -> None:
        """Kill every process at once. No acknowledged message is lost by that."""
        self._children.kill_and_wait()

    def _act(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT | signal.SIGHUP if number in self._ending:
                if self._status is not None:
                    self._log.warning("stopping at once")
                    self._children.kill()
                else:
                    self._stop(0)
            case signal.SIGHUP | signal.SIGUSR1:
                self._reload_wanted = True
            case signal.SIGUSR2:
                for pid, _ in self._children:
                    os.kill(pid, signal.SIGUSR2)
            case _:
                pass

    def _step(self) -> None:
        """Reap, check and start child processes once."""
        self._attempt(self._reap_all, "reap")
        self._attempt(self._check_ready, "hear")
        if self._status is None:
            self._attempt(self._step_reload, "reload")
            self._attempt(self._start_workers, "workers")
            self._attempt(self._start_endpoint, "endpoint")
            for name, single in (
                ("runner", self._runner),
                ("web", self._web),
                ("certificates", self._certificates),
            ):
                self._attempt(partial(self._start, single.step, name), name)
        self._attempt(self._end_overdue, "end")
        self._attempt(self._tell, "tell")

    def _attempt(self, step: Callable[[], None], name: str) -> None:
        """Do one step of the loop. A step that failed is tried again after a second."""
        try:
            if time.monotonic() >= self._retry_at.get(name, 0.0):
                step()
        except Exception as error:  # noqa: BLE001 - the server must not end with its supervisor
            self._retry_at[name] = time.monotonic() + _QUIET_TICK
            self._log.exception("supervisor failed, it tries again", error, step=name)

    def _reap_all(self) -> None:
        try:
            for pid, child, status in self._children.reap():
                self._reap(pid, child, status)
        finally:
            self._launcher.clean_slots()

    def _check_ready(self) -> None:
        self._children.check_ready()
        if self._is_time_to_open(self._current):
            self._current.open()
        self._started = self._started or self._is_ready(self._current)

    def _tell(self) -> None:
        serving = self._serving()
        silent = len(serving.intersection(self._watchdog.silent))
        if self._reporter.tell(self._state(), len(serving), self._current.wanted, silent=silent):
            self._announce()

    def _is_time_to_open(self, generation: Generation) -> bool:
        ready = [child.started for child in self._children.of(generation) if child.serving]
        first = min(ready, default=inf)
        return len(ready) >= generation.wanted or time.monotonic() - first > _PATIENCE

    def _is_ready(self, generation: Generation) -> bool:
        return any(child.serving for child in self._children.of(generation))

    def _serving(self) -> set[int]:
        """Return the process ids of the workers that serve the current configuration."""
        return {
            pid
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
        if self._launcher.endpoint_socket is not None:
            address = bound(self._launcher.endpoint_socket, SocketAddress())
            self._log.info("serving metrics", address=address)

    def _reap(self, pid: int, child: Child, status: int) -> None:
        """Log and count the end of a process, and decide what follows from it."""
        running = self._watchdog.forget(pid)
        if self._status is not None or child.end_by < inf:
            expected = True
        else:
            expected = child.group not in {self._current, self._coming, *Role} and not status
        if not expected:
            self._launcher.scoreboard.count_replacement(
                child.kind, "died" if running is None else "hung"
            )
            slot = {} if isinstance(child.group, Role) else {"slot": child.slot}
            self._log.error(f"{child.kind} died", pid=pid, **slot, status=status)
        now = time.monotonic()
        lived = now - child.started
        failed = not expected or (status and self._status is None and now < child.end_by)
        if failed and child.group is not Role.ENDPOINT:  # which handles no mail
            self._blame(child, running)
        for single in (self._runner, self._web, self._certificates):
            single.ended(pid, now, lived)
        if not expected and isinstance(child.group, Generation):
            self._reap_worker(child.group, lived, status)

    def _blame(self, child: Child, threads: Collection[int] | None) -> None:
        """Log the messages that a process was handling when it died, and count that for each."""
        for text, deaths in self._launcher.suspects.blame(child.slot, threads):
            if child.group is Role.RUNNER:
                self._log.warning("a runner died while at work", work=text, deaths=deaths)
            else:
                self._log.error(
                    "message was under way when a worker died",
                    **dict(zip(("id", "peer", "sender"), text.split("\n"), strict=False)),
                    deaths=deaths,
                    next="set aside" if deaths >= FATAL else "tried again",
                )

    def _reap_worker(self, generation: Generation, lived: float, status: int) -> None:
        if generation is self._coming:
            self._give_up_reload("a worker of the new generation cannot start")
        elif generation is self._current and not self._started:
            self._stop(os.EX_CONFIG if status == os.EX_CONFIG else 1)
        else:
            generation.pause = pause(generation.pause, lived)
            generation.next_start = time.monotonic() + generation.pause

    def _start_workers(self) -> None:
        """Start missing workers: one at first, and the others once that one serves."""
        generation = self._coming or self._current
        workers = self._children.of(generation)
        scout = not self._is_ready(generation)
        if (scout and workers) or time.monotonic() < generation.next_start:
            return
        missing = min(generation.wanted - len(workers), SLOTS - len(self._children))
        for _ in range(min(missing, 1) if scout else missing):
            self._start(partial(self._launcher.start_worker, generation), "workers")

    def _start_endpoint(self) -> None:
        """Start the metrics endpoint if it is missing, at most once a second."""
        now = time.monotonic()
        if not self._children.of(Role.ENDPOINT) and now >= self._next_endpoint:
            self._next_endpoint = now + _QUIET_TICK
            self._start(partial(self._launcher.start_endpoint, self._current.config), "endpoint")

    def _start_runner(self) -> int:
        """Start the queue runner once workers serve. One that a reload replaced may still drain."""
        return self._launcher.start_runner(self._current) if self._started else 0

    def _start_web(self) -> int:
        return self._launcher.start_web(self._current)

    def _start_certificates(self) -> int:
        """Start the process that renews certificates once workers serve."""
        return self._launcher.start_certificates(self._current.config) if self._started else 0

    def _start(self, start: Callable[[], None], name: str) -> None:
        """Start a process. If the system has no resources for it, try again in a second."""
        try:
            start()
        except (OSError, MemoryError) as error:
            self._retry_at[name] = time.monotonic() + _QUIET_TICK
            self._log.error("process not started, tried again", process=name, error=str(error))

    def _end_overdue(self) -> None:
        """Drain old generations, and kill processes that hang or did not end when asked to.

        A plugin may hang in `on_stop`, for example.
        """
        now = time.monotonic()
        for generation in self._generations():
            if now > generation.drain_at:
                self._drain(generation)
        for pid, child in self._children:
            if now > min(child.end_by, self._stop_by):
                os.kill(pid, signal.SIGKILL)
        patience = self._current.config.limits.hang_timeout.total_seconds()
        self._watchdog.look(self._children, patience)
        if self._started and self._coming is None:
            self._watchdog.kill_late_starts(self._children, _START_TIME)

    def _step_reload(self) -> None:
        """Begin a reload if one was requested, or continue the one under way."""
        coming = self._coming
        if coming is None:
            if self._reload_wanted and self._started:
                self._reload_wanted = False
                self._reload()
            return
        workers = self._children.of(coming)
        if len(workers) == coming.wanted and all(child.serving for child in workers):
            self._switch_to(coming)
        elif time.monotonic() - coming.begun > _START_TIME:
            self._give_up_reload("the new generation did not become ready in time")

    def _reload(self) -> None:
        file = self._current.config.file
        self._reporter.reloading()
        try:
            config = Config.load(Path(file) if file else None)
            with self._code.guarding():
                import_for(config)
                sockets = self._current.sockets_for(config, self._adopted)
                self._coming = Generation(config, sockets, workers_of(config), time.monotonic())
        except Exception as error:  # noqa: BLE001 - in any case the old configuration serves
            if isinstance(error, ConfigError):
                self._give_up_reload("; ".join(map(str, error.mistakes)))
            else:
                known = isinstance(error, ListenError | OSError)
                self._give_up_reload(str(error) if known else describe(error))
            return
        self._log.info("reloading")

    def _switch_to(self, coming: Generation) -> None:
        """Let the new generation accept connections, and the old one end its sessions."""
        old, self._current, self._coming = self._current, coming, None
        coming.open()
        old.close()
        close(old.sockets.values(), keep=coming.sockets.values())
        for generation in self._generations() - {old, coming}:
            self._drain(generation)
        self._children.send_signal(old, signal.SIGUSR1)
        for role, single in (
            (Role.RUNNER, self._runner),
            (Role.WEB, self._web),
            (Role.CERTIFICATES, self._certificates),
        ):
            self._children.end(role, old.drain + SHORT_LIFE)
            single.replace()
        old.drain_at = time.monotonic() + old.drain
        self._launcher.suspects.clear_all()  # the new plugins may handle those messages
        self._reporter.reloaded()

    def _give_up_reload(self, reason: str) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            self._children.end(coming, 0.0, signal.SIGKILL)
            coming.close()
            close(coming.sockets.values(), keep=self._current.sockets.values())
        self._reporter.reload_failed(reason)

    def _stop(self, status: int) -> None:
        self._status = status
        drain = self._current.drain
        self._stop_by = time.monotonic() + drain + SHORT_LIFE
        self._reporter.stopping(len(self._children), drain + 2 * SHORT_LIFE)
        # Clients must not wait in the queue of a socket that no process accepts from.
        self._close_listeners(())
        for generation in self._generations():
            self._drain(generation)
        for role in Role:
            self._children.end(role, drain + SHORT_LIFE)

    def _generations(self) -> set[Generation]:
        groups = {child.group for _, child in self._children}
        return {group for group in groups if isinstance(group, Generation)}

    def _drain(self, generation: Generation) -> None:
        self._children.end(generation, generation.drain + SHORT_LIFE)

    def _close_listeners(self, keep: Collection[socket.socket]) -> None:
        """Close the listeners except those to keep, and this process's end of each gate."""
        for generation in (self._current, self._coming):
            if generation is not None:
                generation.open()
                close(generation.sockets.values(), keep=keep)
        if self._launcher.endpoint_socket is not None:
            close([self._launcher.endpoint_socket], keep=keep)
