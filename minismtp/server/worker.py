"""A worker process: it loads the plugins, serves each listener, and ends in order."""

from __future__ import annotations

import operator
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_network
from math import inf
from pathlib import Path
from typing import Any, Final

from minismtp.config import Config, Listener
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.guard import StartError
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.sources import Packages
from minismtp.hooks.specs import ServerInfo
from minismtp.inspection.doubts import log_doubts
from minismtp.runtime.control_socket import Control, Say
from minismtp.runtime.decision_log import DecisionLog
from minismtp.runtime.dialogue_trace import Outlet, Tracing
from minismtp.runtime.log import Log
from minismtp.runtime.login_backoff import Backoff
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.process import end_with_supervisor, open_log_and_metrics, report_ready
from minismtp.runtime.scoreboard import BEAT_INTERVAL, Scoreboard
from minismtp.runtime.session_limits import Admission
from minismtp.runtime.suspects import Suspects
from minismtp.runtime.thread_activity import log_stacks
from minismtp.server.listener import Server, Sessions
from minismtp.services.acme_files import ensure_certificate
from minismtp.services.tls import Certificates, first_end, server_context, stamps
from minismtp.session.listener_context import ListenerContext, RefusalLog
from minismtp.smtp.sasl import MadeUpKeys
from minismtp.storage.spool import Spool
from minismtp.values.durable_files import kept_secret, unusable_files
from minismtp.values.threads import Flag, start_thread

_SIGNALS: Final = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_TRACE_TICK: Final = (
    0.5  # seconds; how often a trace without lines checks that its reader is still there
)
# Seconds after which a thread that waits for the interpreter asks the running thread for it. With
# thousands of threads these requests take all the time. With Python's default of 5 ms, 10,000
# sessions were not open after a minute; with 20 ms they were open after 3.6 s. Most sessions
# release the interpreter much earlier anyway.
_SWITCH_INTERVAL: Final = 0.02
_TICK: Final = 0.05  # seconds between two checks whether sessions remain


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What the supervisor hands to a worker: its slot, sockets, shared memory and pipes.

    The worker writes an octet to `ready` when it can accept connections, and accepts them after the
    end of file on `gate`. The end of file on `lifeline` means that the supervisor died. One worker
    `reports` what concerns all of them. The first one of a generation `examines` the configuration.
    """

    slot: int
    sockets: dict[str, socket.socket]
    admission: Admission
    backoff: Backoff
    scoreboard: Scoreboard
    suspects: Suspects
    metrics_directory: Path
    ready: int
    gate: int
    lifeline: int
    packages: Packages
    reports: bool = True
    examines: bool = False


def run(config: Config, context: WorkerContext) -> int:
    """Serve until SIGTERM or the supervisor's death. Return the exit status."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    names = [listener.name for listener in config.mail_listeners]
    log, metrics = open_log_and_metrics(config, context.metrics_directory, context.slot, names)
    try:
        ensure_certificate(config)
        plugins = PluginSet.load(config, metrics, log, context.packages)
        worker = Worker(config, context, plugins, metrics, log)
        worker.start()
        if context.examines:
            log_doubts(config, plugins, log)
    except (ConfigError, StartError) as error:
        for mistake in _mistakes(config, error):
            log.complain(f"minismtp: {mistake}")
        log.flush()
        return os.EX_CONFIG
    worker.show_life()
    report_ready(context.ready)
    os.read(context.gate, 1)
    worker.accept()
    if worker.wait():
        worker.retire()
    worker.stop()
    return 0


def _mistakes(config: Config, error: ConfigError | StartError) -> tuple[ConfigError, ...]:
    if isinstance(error, ConfigError):
        return error.mistakes
    key = next((each.key for each in config.plugins if each.name == error.plugin), "plugins")
    return (config.locate(ConfigError(f"on_start: {error.reason}", key=key)),)


class Worker:
    """The running parts of one worker."""

    def __init__(
        self, config: Config, context: WorkerContext, plugins: PluginSet, metrics: Metrics, log: Log
    ) -> None:
        self._config = config
        self._context = context
        self._plugins = plugins
        self._metrics = metrics
        self._log = log
        self._decision_log = DecisionLog(config.state_directory, config.log.chronicle, log)
        self._refusals = RefusalLog(config.log.refusals)
        self._tracing = Tracing()
        self._queue = Spool(config.state_directory / "spool", config.outbound.free_space)
        self._suspects = context.suspects.of(context.slot)
        self._draining = Flag()
        self._sessions = Sessions(time.monotonic)
        self._made_up_keys = MadeUpKeys(_secret(config, log))
        self._told: tuple[str, object] = ("", None)  # about the certificate
        self._servers = [self._server(listener) for listener in config.mail_listeners]
        for listener in config.web_listeners:
            if listener.tls != "none":  # their process cannot stop the start, but a worker can
                server_context(config.tls, file=config.file, ciphers=listener.suites)
        self._accepting: list[threading.Thread] = []
        self._turns: list[int] = []
        self._control = Control(
            config.state_directory / "control",
            str(context.slot),
            {
                "sessions": self._report,
                "status": self._tell_status,
                "trace": self._trace,
                "flush": lambda _, __: self._decision_log.flush(),
            },
        )

    def start(self) -> None:
        """Start the plugins and all threads except those that accept. Raise StartError."""
        self._queue.prepare()
        self._plugins.hooks().on_start(ServerInfo.of(self._config, "worker", self._context.slot))
        self._log.start()
        self._decision_log.start()
        self._metrics.buffer.start()
        self._sessions.start_watch()
        self._control.start()

    def accept(self) -> None:
        """Begin to accept connections."""
        for server in self._servers:
            self._accepting.append(start_thread("accept", server.serve_forever))

    def show_life(self) -> None:
        """Start to beat. The supervisor kills a worker that falls silent."""
        self._context.scoreboard.beat(self._context.slot)
        start_thread("pulse", self._beat_on)

    def wait(self) -> bool:
        """Block until a signal ends this worker. USR2 logs the stack of every thread.

        Return whether a new generation took over, so that this worker may `retire`.
        """
        end_with_supervisor(self._context.lifeline)
        while (number := signal.sigwait(_SIGNALS)) == signal.SIGUSR2:
            log_stacks(self._log)
        return number == signal.SIGUSR1

    def retire(self) -> None:
        """Stop accepting, and let the sessions continue until all have ended or TERM comes."""
        self._close_servers()
        while self._sessions:
            time.sleep(_TICK)
            # Without a timeout: one that ran out during a SIGSTOP returns a random number.
            received = signal.sigtimedwait(_SIGNALS, 0)
            if received is not None and received.si_signo == signal.SIGTERM:
                return
            if received is not None and received.si_signo == signal.SIGUSR2:
                log_stacks(self._log)

    def stop(self) -> None:
        """Stop accepting, let the sessions end within the drain time, and stop the plugins."""
        start_thread("signals", _stop_at_once_on_second_term)
        self._close_servers()
        self._draining.set()
        timeout = self._config.limits.drain.total_seconds()
        if not self._sessions.drain(timeout):
            self._log.warning("sessions cut after the drain time", sessions=len(self._sessions))
        self._plugins.hooks().on_stop()
        self._metrics.buffer.flush()
        self._refusals.settle(self._log, inf)
        self._decision_log.flush()
        self._log.flush()

    def _trace(self, question: dict[str, Any], say: Say) -> None:
        """Send every line of the dialogues until the reader closes the connection."""
        networks = tuple(ip_network(network) for network in question["peers"])
        outlet = Outlet(networks, question.get("sessions", ()))
        self._tracing.open(outlet)
        try:
            while True:
                line = outlet.get(patience=_TRACE_TICK)
                say({"lost": outlet.lost} if line is None else line)
        finally:
            self._tracing.close(outlet)

    def _beat_on(self) -> None:
        while True:
            time.sleep(BEAT_INTERVAL)
            self._beat()

    def _beat(self) -> None:
        """Beat if every thread that all sessions depend on has turned since the last beat."""
        self._metrics.unusable_files.set(unusable_files())
        servers = self._servers if self._accepting else []
        turns = [self._sessions.turns, *(server.turns for server in servers)]
        if not any(map(operator.eq, turns, self._turns)):
            self._turns = turns
            self._context.scoreboard.beat(self._context.slot)

    def _report(self, question: dict[str, Any], say: Say) -> None:
        for session in self._sessions.reports(stack=bool(question.get("stack"))):
            say(session)

    def _tell_status(self, _: dict[str, Any], say: Say) -> None:
        say(asdict(self._context.scoreboard.workers()) | {"supervisor": os.getppid()})

    def _close_servers(self) -> None:
        for server in self._servers:
            server.stop()
        for thread, server in zip(self._accepting, self._servers, strict=True):
            thread.join()
            server.server_close()
        self._servers, self._accepting = [], []

    def _server(self, listener: Listener) -> Server:
        config = self._config
        context = replace(
            ListenerContext.of(config, listener, self._plugins, self._metrics, self._log),
            draining=self._draining,
            backoff=self._context.backoff,
            queue=self._queue,
            decision_log=self._decision_log,
            refusal_log=self._refusals,
            tracing=self._tracing,
            made_up_keys=self._made_up_keys,
            suspects=self._suspects,
        )
        return Server(
            listener,
            self._context.sockets[listener.name],
            context,
            self._sessions,
            self._context.admission,
            slot=self._context.slot,
            certificates=None if listener.tls == "none" else self._certificates(listener),
        )

    def _certificates(self, listener: Listener) -> Certificates:
        settings = self._config.tls

        def report(problem: str) -> None:
            self._tell_certificate(problem)
            end = None if problem else first_end(settings)
            self._metrics.certificate(listener.name, loaded=not problem, not_after=end)

        certificates = Certificates(
            settings,
            ask_client=listener.client_certificates,
            file=self._config.file,
            clock=time.monotonic,
            report=report,
            ciphers=listener.suites,
        )
        report("")
        return certificates

    def _tell_certificate(self, problem: str) -> None:
        """Log that the files were loaded or not, once for all listeners and workers."""
        seen = (problem, stamps(self._config.tls))
        if not self._context.reports or seen == self._told:
            return
        self._told = seen
        if problem:
            self._log.error("certificate not reloaded, the old one stays", error=problem)
        else:
            named = [each.name for each in self._config.mail_listeners if each.tls != "none"]
            self._log.info("certificate loaded", listener=",".join(named))


def _secret(config: Config, log: Log) -> bytes:
    """Return the secret from which all workers make up keys; it survives a restart."""
    try:
        return kept_secret(config.state_directory / "secret")
    except OSError as error:
        log.warning("no secret is kept", file=str(error.filename), error=error.strerror or "")
        return b""


def _stop_at_once_on_second_term() -> None:
    signal.sigwait({signal.SIGTERM})
    os._exit(1)
