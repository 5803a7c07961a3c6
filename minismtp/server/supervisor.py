"""The parent of all processes: listeners, workers, signals.

It starts no thread and imports no plugin, so forking from it is safe at any time; it blocks every
signal that it handles and takes them one at a time. Workers belong to a generation: HUP starts a
new one from the re-read configuration. When that serves, the old one accepts no more and its
sessions go on until their clients quit or the drain time has passed; when the new one cannot serve,
the old one goes on.

Nothing that fails in one step of its loop ends the others: the step is logged and tried again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.toml_values import ConfigError
from minismtp.config.types import SocketAddress
from minismtp.runtime.log import Log, bridge, complain, describe
from minismtp.runtime.session_limits import SLOTS
from minismtp.runtime.suspects import FATAL
from minismtp.server.directories import lock_state_directory
from minismtp.server.generation import Generation, close, workers_of
from minismtp.server.launch import Launcher
from minismtp.server.processes import Child, Children, Role
from minismtp.server.sockets import ListenError, adopt, bound, open_listeners
from minismtp.server.status import StatusReporter
from minismtp.server.watchdog import DUMP_SIGNAL, Watchdog

SIGNALS: Final = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGCHLD, signal.SIGALRM),
}
_STDERR: Final = 2
_TICK: Final = 0.05  # seconds between two looks while something is under way
_QUIET_TICK: Final = 1.0
_START_TIME: Final = 60.0  # seconds that a process has to become ready
_PATIENCE: Final = 5.0  # seconds that the first workers wait for the others, before they accept
_SHORT_LIFE: Final = 10.0  # a worker that dies younger is started again later and later
_LONGEST_PAUSE: Final = 5.0


def serve(config: Config) -> int:
    """Run the server until it is told to stop; return the exit status. Raise ConfigError."""
    log = Log(level=config.log.level, style=config.log.format, patient=False)
    bridge(log, config.log.level)
    _leave_no_core()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    faulthandler.enable(_STDERR)  # children inherit both
    faulthandler.register(DUMP_SIGNAL, _STDERR)
    try:
        supervisor = Supervisor(config, log)
    except ListenError as error:
        complain(f"minismtp: {error}")
        return 1
    try:
        return supervisor.run()
    finally:
        supervisor.kill()


def _leave_no_core() -> None:
    """Leave no dump of memory, with mail and keys in it, when a process dies.

    For one to look at: `prlimit --core=unlimited --pid PID`.
    """
    with contextlib.suppress(OSError, ValueError):  # a unit may forbid the call, and has LimitCORE
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))


class Supervisor:
    """Starts, watches and stops the processes."""

    def __init__(self, config: Config, log: Log) -> None:
        self._log = log
        self._lock = lock_state_directory(config)
        self._children: Children[Generation | Role] = Children(log)
        self._launcher = Launcher(config, self._children)
        self._reporter = StatusReporter(log, self._launcher.admission, self._launcher.scoreboard)
        self._watchdog = Watchdog(log, self._launcher.scoreboard)
        self._next_endpoint = 0.0
        self._runner = 0  # its process id
        self._runner_pause = 0.0
        self._next_runner = 0.0
        adopted = adopt(dict(os.environ), os.getpid())
        sockets = open_listeners(config.listeners, adopted, file=config.file)
        self._adopted = adopted.keys()
        # After the sockets: a second server that finds them taken leaves the first one's files.
        self._launcher.make_directories(config)
        self._current = Generation(config, sockets, workers_of(config), time.monotonic())
        self._coming: Generation | None = None
        self._reload_wanted = False
        self._started = False  # whether a worker has ever served
        self._status: int | None = None
        self._stop_by = inf
        self._retry_at: dict[str, float] = {}  # when a step that failed is tried again

    def run(self) -> int:
        """Loop until all processes have ended after a stop."""
        self._attempt(self._start_workers, "workers")
        while self._status is None or self._children:
            with contextlib.suppress(Exception):  # where even the log of a failure has failed
                self._turn()
                self._log.flush()
        self._log.info("stopped")
        return self._status

    def _turn(self) -> None:
        busy = self._coming or self._status is not None or not self._reporter.ready
        number = next_signal(_TICK if busy else _QUIET_TICK)
        self._retry_at.pop("signal", None)  # another one counts whatever became of the last
        self._attempt(partial(self._act, number), "signal")
        self._step()

    def kill(self) -> None:
        """End every process at once; nothing acknowledged is lost by it."""
        self._children.kill_and_wait()

    def _act(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                if self._status is not None:
                    self._log.warning("stopping at once")
                    self._children.kill()
                else:
                    self._stop(0)
            case signal.SIGHUP:
                self._reload_wanted = True
            case signal.SIGUSR2:
                for pid, _ in self._children:
                    os.kill(pid, signal.SIGUSR2)
            case _:
                pass

    def _step(self) -> None:
        """Look after the children: who died, who is ready, who is missing."""
        self._attempt(self._reap_all, "reap")
        self._attempt(self._check_ready, "hear")
        if self._status is None:
            self._attempt(self._step_reload, "reload")
            self._attempt(self._start_workers, "workers")
            self._attempt(self._start_endpoint, "endpoint")
            self._attempt(self._start_runner, "runner")
        self._attempt(self._end_overdue, "end")
        self._attempt(self._tell, "tell")

    def _attempt(self, step: Callable[[], None], name: str) -> None:
        """Do one step of the loop; one that fails waits a second before it is tried again."""
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
        """Return the processes that serve the present configuration."""
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

    def _reap(self, pid: int, child: Child[Generation | Role], status: int) -> None:
        """Take note of the end of a process."""
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
        lived = time.monotonic() - child.started
        if pid == self._runner:
            self._runner = 0
            self._runner_pause = pause(self._runner_pause, lived)
            self._next_runner = time.monotonic() + self._runner_pause
        elif not expected and isinstance(child.group, Generation):
            self._blame(child.slot, running)
            self._reap_worker(child.group, lived, status)

    def _blame(self, slot: int, threads: Collection[int] | None) -> None:
        """Name the messages that a worker had in hand when it died, and remember them."""
        for suspect in self._launcher.suspects.blame(slot, threads):
            self._log.error(
                "message was under way when a worker died",
                **suspect.message,
                deaths=suspect.deaths,
                next="set aside" if suspect.deaths >= FATAL else "tried again",
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
        """Start missing workers; the second and later ones once the first has shown that it can."""
        generation = self._coming or self._current
        workers = self._children.of(generation)
        scout = not self._is_ready(generation)
        if (scout and workers) or time.monotonic() < generation.next_start:
            return
        missing = min(generation.wanted - len(workers), SLOTS - len(self._children))
        for _ in range(min(missing, 1) if scout else missing):
            self._start(
                lambda: self._launcher.start_worker(generation, self._close_inherited), "workers"
            )

    def _start_endpoint(self) -> None:
        """Start the endpoint when it is missing; again and again, but not without a breath."""
        now = time.monotonic()
        if not self._children.of(Role.ENDPOINT) and now >= self._next_endpoint:
            self._next_endpoint = now + _QUIET_TICK
            config = self._current.config
            self._start(
                lambda: self._launcher.start_endpoint(config, self._close_inherited), "endpoint"
            )

    def _start_runner(self) -> None:
        """Start the runner when workers serve; one that a reload has replaced may still drain."""
        if not self._runner and self._started and time.monotonic() >= self._next_runner:
            self._start(self._fork_runner, "runner")

    def _fork_runner(self) -> None:
        self._runner = self._launcher.start_runner(self._current.config, self._close_inherited)

    def _start(self, start: Callable[[], None], name: str) -> None:
        """Start a process; where the system has no room for one, try again in a second."""
        try:
            start()
        except (OSError, MemoryError) as error:
            self._retry_at[name] = time.monotonic() + _QUIET_TICK
            self._log.error("process not started, tried again", process=name, error=str(error))

    def _end_overdue(self) -> None:
        """Hurry old generations, and kill what hangs and what was told to end and has not.

        A plugin may hang in `on_stop`.
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
        """Begin the reload that is wanted, or see how the one under way goes on."""
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
            sockets = self._current.sockets_for(config, self._adopted)
            self._coming = Generation(config, sockets, workers_of(config), time.monotonic())
        except Exception as error:  # noqa: BLE001 - whatever it is, the old configuration serves
            known = isinstance(error, ConfigError | ListenError | OSError)
            self._give_up_reload(str(error) if known else describe(error))
            return
        self._log.info("reloading")

    def _switch_to(self, coming: Generation) -> None:
        """Let the new generation accept, and the old one end its sessions."""
        old, self._current, self._coming = self._current, coming, None
        coming.open()
        old.close()
        close(old.sockets.values(), keep=coming.sockets.values())
        for generation in self._generations() - {old, coming}:
            self._drain(generation)
        self._children.send_signal(old, signal.SIGUSR1)
        self._children.end(Role.RUNNER, old.drain + _SHORT_LIFE)
        self._runner = 0
        old.drain_at = time.monotonic() + old.drain
        self._launcher.suspects.forgive()  # plugins may have been mended
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
        self._stop_by = time.monotonic() + drain + _SHORT_LIFE
        self._reporter.stopping(len(self._children), drain + 2 * _SHORT_LIFE)
        # Nobody shall wait in a queue that nobody serves.
        self._close_inherited(())
        for generation in self._generations():
            self._drain(generation)
        for role in Role:
            self._children.end(role, drain + _SHORT_LIFE)

    def _generations(self) -> set[Generation]:
        groups = {child.group for _, child in self._children}
        return {group for group in groups if isinstance(group, Generation)}

    def _drain(self, generation: Generation) -> None:
        self._children.end(generation, generation.drain + _SHORT_LIFE)

    def _close_inherited(self, keep: Collection[socket.socket]) -> None:
        """Close the listeners but those to keep, and hold no gate."""
        for generation in (self._current, self._coming):
            if generation is not None:
                generation.open()
                close(generation.sockets.values(), keep=keep)


def next_signal(patience: float) -> int:
    """Return the signal that came, SIGALRM after `patience` seconds.

    Python's `sigtimedwait` returns a random number when the process was stopped and its time is up.
    """
    signal.setitimer(signal.ITIMER_REAL, patience)
    return signal.sigwait(SIGNALS)


def pause(before: float, lived: float) -> float:
    """Return the seconds until a dead worker is replaced, after a life and the pause before it.

    They grow while workers live short lives, but not for long: mail waits meanwhile.
    """
    return 0.0 if lived >= _SHORT_LIFE else min(max(before * 2, 1.0), _LONGEST_PAUSE)
