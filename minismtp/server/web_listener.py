"""The process of the web listeners (`kind = "web"`).

It serves a few small answers over HTTP and HTTPS: see `server.web_pages` for which, and
docs/web.md for whom. It is a process of its own, so what happens here does not touch mail. It runs
as the server's user, and gets its sockets from the supervisor, so it may serve ports below 1024. A
reload starts another one on the same sockets.

Anybody may connect. At most 256 requests are answered at once, 16 for a single client, and a
connection beyond that is closed. A request may take 10 s and have 64 KiB.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from minismtp.config import Config, Listener
from minismtp.config.mistakes import ConfigError
from minismtp.inspection.dns_records import dns_zone
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.process import end_with_supervisor, open_log_and_metrics, report_ready
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.runtime.thread_activity import log_stacks
from minismtp.server.http_server import BoundedServer
from minismtp.server.web_places import Places
from minismtp.server.web_server import Record, WebServer
from minismtp.server.web_site import site_of
from minismtp.server.web_tls import WebTls
from minismtp.services.acme_challenges import Challenges
from minismtp.services.acme_files import ensure_certificate
from minismtp.services.acme_tls_challenges import TlsChallenges
from minismtp.services.tls import Certificates, first_end
from minismtp.session.listener_context import RefusalLog
from minismtp.values.threads import start_thread, surviving

_MOST: Final = 256  # requests at once
_MOST_OF_ONE: Final = 16  # of these from one client, unless it is a proxy on this machine
_LONGEST_QUESTION: Final = 30  # seconds for all plugins together to tell their domains
_TICK: Final = 0.5  # seconds between two turns of a loop that waits for connections


@dataclass(frozen=True, slots=True)
class WebContext:
    """What the supervisor gives this process, as `WorkerContext` is for a worker."""

    slot: int
    sockets: dict[str, socket.socket]
    metrics_directory: Path
    ready: int
    lifeline: int
    scoreboard: Scoreboard


def run(config: Config, context: WebContext) -> int:
    """Answer requests until SIGTERM or the supervisor's death; return the exit status."""
    log, metrics = open_log_and_metrics(config, context.metrics_directory, context.slot)
    places = Places(_MOST, _MOST_OF_ONE)
    try:
        ensure_certificate(config)
        servers = _servers(config, context, places, metrics, log)
    except ConfigError as error:
        log.complain(f"minismtp: {error}")
        log.flush()
        return os.EX_CONFIG
    log.start()
    metrics.buffer.start()
    context.scoreboard.beat(context.slot)
    report_ready(context.ready)
    for server in servers:
        start_thread("web", partial(server.serve_forever, _TICK))
    end_with_supervisor(context.lifeline)
    while signal.sigwait({signal.SIGTERM, signal.SIGUSR2}) == signal.SIGUSR2:
        log_stacks(log)
    for server in servers:
        server.shutdown()
        server.socket.close()
    places.wait(BoundedServer.seconds)
    metrics.buffer.flush()
    log.flush()
    return 0


def _servers(
    config: Config, context: WebContext, places: Places, metrics: Metrics, log: Log
) -> list[WebServer]:
    """Return a server for each listener. Raise ConfigError for a wrong certificate."""
    counter = metrics.counter("web_requests", "Requests to web listeners.", ["listener", "result"])
    refusals = RefusalLog(config.log.refusals)
    site = site_of(config, Challenges(config.state_directory), domains(config, log))
    beat = partial(context.scoreboard.beat, context.slot)
    pulse = Pulse(beat, len(config.web_listeners))
    return [
        WebServer(
            context.sockets[listener.name],
            site,
            None if listener.tls == "none" else _tls(config, listener, metrics, log),
            places,
            record=Record(listener.name, counter, metrics, log, refusals),
            turn=partial(pulse.turn, number),
            is_behind=listener.is_behind,
        )
        for number, listener in enumerate(config.web_listeners)
    ]


def domains(config: Config, log: Log) -> dict[str, bool]:
    """Return the domains whose mail comes here, and whether they have users here.

    A child process asks the plugins. This process, which strangers talk to, neither loads their
    code nor reads the private keys that some of them have.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reader)
            signal.alarm(_LONGEST_QUESTION)  # which kills it
            with surviving("web"), open(writer, "wb") as pipe:  # noqa: PTH123 - a descriptor
                pipe.write(msgspec.json.encode(_asked(config, log)))
                status = 0
            log.flush()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not status:
        return msgspec.json.decode(answer, type=dict[str, bool])
    problem = f"the process that asks them ended with status {status}"
    if status == -signal.SIGALRM:
        problem = f"the plugins did not tell them within {_LONGEST_QUESTION} s"
    log.error("no pages for domains are served", error=problem)
    return {}


def _asked(config: Config, log: Log) -> dict[str, bool]:
    try:
        return dns_zone(config).receiving
    except ConfigError as error:  # challenges are answered all the same
        log.error("no pages for domains are served", error=str(error))
        return {}


def _tls(config: Config, listener: Listener, metrics: Metrics, log: Log) -> WebTls:
    challenges = TlsChallenges(config.state_directory)
    return WebTls(_certificates(config, listener, metrics, log), challenges)


def _certificates(config: Config, listener: Listener, metrics: Metrics, log: Log) -> Certificates:
    def report(problem: str) -> None:
        if problem:
            log.error("certificate not reloaded, the old one stays", error=problem)
        else:
            log.info("certificate loaded", listener=listener.name)
        end = None if problem else first_end(config.tls)
        metrics.certificate(listener.name, loaded=not problem, not_after=end)

    certificates = Certificates(
        config.tls,
        ask_client=False,
        file=config.file,
        clock=time.monotonic,
        report=report,
        ciphers=listener.suites,
    )
    report("")
    return certificates


class Pulse:
    """Beats if the loops of all listeners have turned since the last beat."""

    def __init__(self, beat: Callable[[], None], loops: int) -> None:
        self._beat = beat
        self._loops = loops
        self._turned: set[int] = set()
        self._lock = threading.Lock()

    def turn(self, loop: int) -> None:
        """Note a turn of a loop."""
        with self._lock:
            self._turned.add(loop)
            if len(self._turned) == self._loops:
                self._turned.clear()
                self._beat()
