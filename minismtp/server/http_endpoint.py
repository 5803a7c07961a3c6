"""The process that answers Prometheus, health checks and browsers.

/metrics adds up the files of all workers. /healthz answers while the server runs, and /readyz tells
whether it accepts mail. / is a page for people. The process speaks plain HTTP and is meant for
loopback; anything else needs a reverse proxy in front of it.

The page shows which clients are connected, so it is served only under known host names. Otherwise a
web page in a browser on this machine could read it under a name of its own that points to loopback
(DNS rebinding). Few requests are answered at once, each within a deadline.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from minismtp import __version__
from minismtp.config import Config
from minismtp.mailqueue.database import QueueDatabase, Waiting
from minismtp.mailqueue.queries import Filter
from minismtp.mailqueue.reasons import Reason, reasons
from minismtp.runtime.metrics import count_thread_failures, use_slot
from minismtp.runtime.metrics_buffer import FLUSH_INTERVAL
from minismtp.runtime.process import end_with_supervisor, open_log, report_ready
from minismtp.runtime.scoreboard import ENDPOINT_SLOT, Scoreboard
from minismtp.runtime.thread_activity import log_stacks
from minismtp.server.figures import Overview, overview
from minismtp.server.history import History
from minismtp.server.http_server import BoundedHandler, BoundedServer
from minismtp.server.open_sessions import Survey, survey
from minismtp.server.process_metrics import DiskCollector, ProcessCollector, mail_directories
from minismtp.server.readiness import FATAL, WARNINGS, ProblemLog, Readiness
from minismtp.server.status_page import MOST_GROUPED, MOST_WAITING, POLICY, Status, render
from minismtp.values.peer import plain_address
from minismtp.values.threads import count_failures, start_thread

_TIMEOUT: Final = 10.0  # seconds for one request
_MOST: Final = 16  # requests at once; others wait to be accepted
_SLOT: Final = -1  # names the files for the metrics of this process itself
_PROCESSES: Final = {
    "worker": "worker",
    "outbound runner": "runner",
    "metrics endpoint": "endpoint",
    "web server": "web",
    "certificate process": "certificates",
}


def run(
    sock: socket.socket,
    scoreboard: Scoreboard,
    directory: Path,
    lifeline: int,
    *,
    ready: int,
    limit: int,
    config: Config,
) -> int:
    """Answer requests until SIGTERM or the supervisor's death, which ends the pipe `lifeline`.

    `limit` is that of the sessions of the whole server. The page is served under the host names in
    `config` and those of loopback. The process writes an octet to `ready` when it serves, and then
    beats on `scoreboard`.
    """
    log = open_log(config)
    use_slot(directory, _SLOT)
    count_failures(count_thread_failures(CollectorRegistry()))
    readiness = Readiness(scoreboard, config.state_directory, config.outbound.free_space)
    registry = CollectorRegistry()
    _WorkersCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    registry.register(_ServerCollector(scoreboard, limit, readiness))
    registry.register(ProcessCollector(scoreboard, os.getppid()))
    registry.register(DiskCollector(mail_directories(config), config.outbound.free_space))
    server = HttpServer(sock, registry, readiness, config, scoreboard, problem_log=ProblemLog(log))
    log.start()
    server.history.start()
    scoreboard.beat(ENDPOINT_SLOT)
    report_ready(ready)
    start_thread("endpoint", server.serve_forever)
    end_with_supervisor(lifeline)
    while signal.sigwait({signal.SIGTERM, signal.SIGUSR2}) == signal.SIGUSR2:
        log_stacks(log)
    return 0


def _head(path: Path, now: float) -> tuple[list[Waiting], list[Reason]]:
    """Return the oldest recipients in the queue, and why mail waits.

    Both are empty if the database cannot be read now.
    """
    if not path.exists():
        return [], []
    try:
        with contextlib.closing(QueueDatabase(path)) as database:
            oldest = database.select(Filter(), now, MOST_WAITING)
            return oldest, reasons(database.waiting_groups(MOST_GROUPED))
    except sqlite3.Error:
        return [], []


class _WorkersCollector(MultiProcessCollector):
    """The sums of the metrics of all workers, each of which has the files of its slot."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for one scrape."""
        # A new file is empty for a moment, and the library would take it for a broken one.
        files = [entry.path for entry in os.scandir(self._path) if _is_filled(entry)]
        yield from self.merge(files)  # type: ignore[no-untyped-call]


def _is_filled(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.name.endswith(".db") and entry.stat().st_size > 0
    except FileNotFoundError:  # the gauges of a worker that ended
        return False


class _ServerCollector:
    """The metrics of the whole server, as opposed to those of a worker."""

    def __init__(self, scoreboard: Scoreboard, limit: int, readiness: Readiness) -> None:
        self._scoreboard = scoreboard
        self._readiness = readiness
        self._limit = limit

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for one scrape."""
        build = GaugeMetricFamily(
            "minismtp_build_info", "The version of the server.", labels=["version", "python"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        replaced = CounterMetricFamily(
            "minismtp_process_replacements",
            "Processes that died or hung and were replaced.",
            labels=["process", "reason"],
        )
        for (kind, reason), count in self._scoreboard.replacements().items():
            replaced.add_metric([_PROCESSES[kind], reason], count)
        yield replaced
        status = self._scoreboard.workers()
        for name, text, value in (
            ("workers", "Worker processes that serve.", status.workers),
            ("sessions_limit", "Sessions that may be open at once.", self._limit),
            (
                "config_last_reload_successful",
                "Whether the last reload of the configuration succeeded.",
                status.reload_ok,
            ),
            (
                "config_last_reload_success_timestamp_seconds",
                "When the configuration was last loaded successfully.",
                status.reloaded_at,
            ),
        ):
            yield GaugeMetricFamily(f"minismtp_{name}", text, value=float(value))
        problems = GaugeMetricFamily(
            "minismtp_problem", "Whether something is wrong, as /readyz says.", labels=["problem"]
        )
        found = self._readiness.problems()
        for problem in (*FATAL, *WARNINGS):
            problems.add_metric([problem], float(problem in found))
        yield problems


class HttpServer(BoundedServer):
    """Answers requests, each in a thread, and has what they need."""

    def __init__(
        self,
        sock: socket.socket,
        registry: CollectorRegistry,
        readiness: Readiness,
        config: Config,
        scoreboard: Scoreboard,
        *,
        problem_log: ProblemLog,
    ) -> None:
        super().__init__(sock, _Handler)
        self.seconds = _TIMEOUT
        self.registry = registry
        self._readiness = readiness
        self._problem_log = problem_log
        self.control = config.state_directory / "control"
        self.queue = config.state_directory / "spool" / "queue.db"
        self.hostname = config.hostname
        self.hosts = (config.hostname, *config.metrics.hosts)
        self.history = History(self.figures)
        self.history.also(self._note_problems)
        self._scoreboard = scoreboard
        self._places = threading.BoundedSemaphore(_MOST)

    def service_actions(self) -> None:
        """Beat; `serve_forever` calls this at each turn of its loop."""
        self._scoreboard.beat(ENDPOINT_SLOT)

    def admits(self, peer: str) -> bool:  # noqa: ARG002 - all are equal here
        """Wait until fewer than `_MOST` requests are under way."""
        return self._places.acquire()

    def leave(self, peer: str) -> None:  # noqa: ARG002
        """Let the next request begin."""
        self._places.release()

    def figures(self) -> Overview:
        """Return the current figures."""
        families = [*self.registry.collect()]
        self._readiness.observe(families)
        return overview(families)

    def problems(self) -> dict[str, str]:
        """Return the problems of now, and log those that the log does not know yet.

        A server that starts may have no worker for a moment, which is no problem to log.
        """
        found = self._readiness.problems()
        if self.history.seconds:
            self._problem_log.note(found)
        return found

    def _note_problems(self) -> None:
        self._problem_log.note(self._readiness.problems())


class _Handler(BoundedHandler):
    server: HttpServer
    thread_name = "endpoint"

    def do_GET(self) -> None:  # noqa: N802 - the base class looks for this name
        """Answer one request."""
        match self.path.partition("?")[0]:
            case "/metrics":
                # Workers write their metrics every FLUSH_INTERVAL, so after it none is missing.
                time.sleep(FLUSH_INTERVAL * 1.2)
                self._answer(
                    HTTPStatus.OK, generate_latest(self.server.registry), CONTENT_TYPE_LATEST
                )
            case "/healthz":
                self._answer(HTTPStatus.OK, b"ok\n")
            case "/readyz":
                self._say_readiness(strict=self.path.endswith("?strict"))
            case "/" if not self._leads_here(self.headers.get("Host", "")):
                self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"see `hosts` in [metrics]\n")
            case "/":
                self._answer(HTTPStatus.OK, self._page(), "text/html; charset=utf-8")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"/ /metrics /healthz /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def _leads_here(self, host: str) -> bool:
        """Return whether a Host field names loopback, the local address, or a configured host.

        See RFC 9110 section 15.5.20. Browsers always send the field, so it may be missing.
        """
        name = host.strip().lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        name = name.strip("[]").rstrip(".")
        if not host or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            called = plain_address(self.connection.getsockname()[0])
            named = plain_address(name)
            return ip_address(named).is_loopback or named == called
        except ValueError:
            return name in self.server.hosts

    def _say_readiness(self, *, strict: bool) -> None:
        server = self.server
        server.figures()  # notes the current counts
        found = server.problems()
        wrong = {problem for problem in found if strict or problem in FATAL}
        lines = ["not ready" if wrong else "ready"]
        for problem, sentence in found.items():
            lines.append(f"{'' if problem in wrong else 'warning: '}{problem}: {sentence}")
        status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
        self._answer(status, "".join(f"{line}\n" for line in lines).encode())

    def _page(self) -> bytes:
        server = self.server
        time.sleep(FLUSH_INTERVAL * 1.2)  # as for /metrics
        try:
            found = survey(server.control)
        except FileNotFoundError as error:  # no worker has started yet
            found = Survey([], [str(error)])
        now, sentences = time.time(), server.problems()
        waiting, why = _head(server.queue, now)
        status = Status(
            hostname=server.hostname,
            figures=server.figures(),
            history=server.history,
            found=found,
            now=now,
            waiting=waiting,
            reasons=why,
            sentences=sentences,
        )
        return render(status).encode()

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.connection.settimeout(_TIMEOUT)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
