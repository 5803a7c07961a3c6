"""The process that answers Prometheus and health checks (layer 6).

/metrics adds up the files of all workers; /healthz says that the server lives; /readyz that it
takes mail; / is a page for people. Plain HTTP, meant for loopback: put a reverse proxy before it
for anything else.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import platform
import signal
import socket
import socketserver
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from minismtp import __version__, stacks
from minismtp import log as logging
from minismtp.board import Board
from minismtp.insight.overview import Overview, overview
from minismtp.insight.page import POLICY, History, render
from minismtp.insight.sessions import Survey, survey
from minismtp.log import Log
from minismtp.metrics import count_thread_failures, use_slot
from minismtp.sections import LogConfig
from minismtp.tally import FLUSH_INTERVAL
from minismtp.threads import count_failures, start_thread, surviving

_TIMEOUT: Final = 10.0  # seconds for one request
_SLOT: Final = -1  # whose files hold what this process itself counts


def run(
    sock: socket.socket,
    board: Board,
    directory: Path,
    lifeline: int,
    *,
    sessions: int,
    control: Path,
    config: LogConfig,
) -> int:
    """Answer requests until SIGTERM, or end of file on `lifeline`: the supervisor has died.

    `sessions` is the limit of the whole server; `control` is where its processes can be asked;
    `config` says how to log.
    """
    logging.bridge(Log(level=config.level, style=config.format), config.level)
    use_slot(directory, _SLOT)
    count_failures(count_thread_failures(CollectorRegistry()))
    server = _HttpServer(sock, _registry(board, directory, sessions), board, control)
    server.history.start()
    start_thread("endpoint", server.serve_forever)
    start_thread("lifeline", lambda: _watch(lifeline))
    while signal.sigwait({signal.SIGTERM, signal.SIGUSR2}) == signal.SIGUSR2:
        stacks.dump()
    return 0


def _watch(lifeline: int) -> None:
    if not os.read(lifeline, 1):
        os.kill(os.getpid(), signal.SIGTERM)


def _registry(board: Board, directory: Path, sessions: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    _WorkersCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    registry.register(_ServerCollector(board, sessions))
    return registry


class _WorkersCollector(MultiProcessCollector):
    """The sum of what the workers have counted, each in the files of its slot."""

    def collect(self) -> Iterator[Metric]:
        """Give the families for one scrape."""
        # A file that its worker has just made is empty, which the library takes for a broken one.
        files = [str(path) for path in Path(self._path).glob("*.db") if _size(path)]
        yield from self.merge(files)  # type: ignore[no-untyped-call]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the gauges of a worker that has ended
        return 0


class _ServerCollector:
    """What belongs to the whole server and not to a worker."""

    def __init__(self, board: Board, sessions: int) -> None:
        self._board = board
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Give the families for one scrape."""
        build = GaugeMetricFamily(
            "minismtp_build_info", "Version of the server.", labels=["version", "python"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        standing = self._board.read()
        yield GaugeMetricFamily(
            "minismtp_workers", "Worker processes that serve.", value=standing.workers
        )
        yield GaugeMetricFamily(
            "minismtp_sessions_limit", "Sessions that may be open at once.", value=self._sessions
        )
        yield GaugeMetricFamily(
            "minismtp_config_last_reload_successful",
            "Whether the last reload of the configuration succeeded.",
            value=float(standing.reload_ok),
        )
        yield GaugeMetricFamily(
            "minismtp_config_last_reload_success_timestamp_seconds",
            "When the configuration was last loaded with success.",
            value=standing.reloaded_at,
        )


class _HttpServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(
        self, sock: socket.socket, registry: CollectorRegistry, board: Board, control: Path
    ) -> None:
        socketserver.BaseServer.__init__(self, sock.getsockname(), _Handler)
        self.socket = sock
        self.registry = registry
        self.board = board
        self.control = control
        self.history = History(self.figures)

    def figures(self) -> Overview:
        """Give what the metrics say now."""
        return overview(self.registry.collect())

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a scraper that hangs up is its own affair."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _HttpServer
    timeout = _TIMEOUT

    def handle(self) -> None:
        """Answer the requests of one connection; a scraper that hangs up is its own affair."""
        with surviving("endpoint"), contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        """Answer one request."""
        match self.path.partition("?")[0]:
            case "/metrics":
                # Workers add up what happened every FLUSH_INTERVAL: after it, nothing is missing.
                time.sleep(FLUSH_INTERVAL * 1.2)
                self._answer(
                    HTTPStatus.OK, generate_latest(self.server.registry), CONTENT_TYPE_LATEST
                )
            case "/healthz":
                self._answer(HTTPStatus.OK, b"ok\n")
            case "/readyz":
                if self.server.board.read().ready:
                    self._answer(HTTPStatus.OK, b"ready\n")
                else:
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
            case "/":
                self._answer(HTTPStatus.OK, self._page(), "text/html; charset=utf-8")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"/ /metrics /healthz /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep scrapes out of the log."""

    def _page(self) -> bytes:
        server = self.server
        time.sleep(FLUSH_INTERVAL * 1.2)  # as for /metrics
        try:
            found = survey(server.control)
        except FileNotFoundError as error:  # no worker has come so far
            found = Survey([], [str(error)])
        return render(server.figures(), server.history, found, now=time.time()).encode()

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
