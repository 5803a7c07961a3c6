"""The answers to Prometheus and to health checks."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from snippets import CLEAR, listener

from minismtp.config import Config
from minismtp.runtime.log import Log
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.server.http_endpoint import HttpServer
from minismtp.server.readiness import ProblemLog, Readiness

if TYPE_CHECKING:
    from conftest import Configure, Running, Start


def test_promtool_has_nothing_to_say_about_the_metrics(
    server: Running, require_program: Callable[[str], str]
) -> None:
    promtool = require_program("promtool")
    status, metrics = server.http("/metrics")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False
    )
    assert (status, checked.returncode, checked.stdout, checked.stderr) == (200, 0, "", "")


def test_server_that_takes_mail_is_healthy_and_ready(server: Running) -> None:
    assert server.http("/healthz") == (200, "ok\n")
    assert server.http("/readyz") == (200, "ready\n")


def test_other_paths_are_not_found(server: Running) -> None:
    assert server.http("/nothing")[0] == 404


def test_head_is_answered_without_a_body(server: Running) -> None:
    assert server.http("/healthz", "HEAD") == (200, "")


def series(metrics: str) -> set[str]:
    """Return the names and labels of a scrape, without the values."""
    return {line.rpartition(" ")[0] for line in metrics.splitlines() if not line.startswith("#")}


def test_file_that_a_worker_has_just_made_does_not_spoil_a_scrape(server: Running) -> None:
    before = server.http("/metrics")[1]
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in server.tree())
    counters = re.search(r"/.*/metrics/counter_(?=\d+\.db$)", maps, re.MULTILINE)
    assert counters is not None
    empty = Path(f"{counters[0]}99.db")
    empty.touch()
    status, metrics = server.http("/metrics")
    empty.unlink()
    assert status == 200
    assert series(before) <= series(metrics)


def ask(server: Running, host: str | None, path: str = "/") -> int:
    """Ask the endpoint for this host name, and return the status."""
    port = int(server.wait_for_log(r" serving metrics address=127\.0\.0\.1:(\d+)")[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        field = "" if host is None else f"Host: {host.replace('PORT', str(port))}\r\n"
        sock.sendall(f"GET {path} HTTP/1.1\r\n{field}\r\n".encode())
        return int(sock.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "localhost:PORT", "LOCALHOST.", "x.localhost:80")),
        *(
            (host, 200)
            for host in ("127.0.0.1", "127.0.0.1:PORT", "127.9.9.9", "[::1]:PORT", "[::1]")
        ),
        *((host, 200) for host in ("mx.example.org", "MX.example.org:PORT")),  # our own
        (None, 200),
        *((host, 421) for host in ("evil.example", "evil.example:PORT", "localhost.evil.example")),
        *((host, 421) for host in ("192.0.2.1", "[2001:db8::1]:PORT", "127.0.0.1.evil.example")),
        *((host, 421) for host in ("notlocalhost", "a@localhost:x", ":", "mx.example.org.evil")),
    ],
)
def test_status_page_answers_names_that_lead_here(
    server: Running, host: str | None, status: int
) -> None:
    """RFC 9110 section 15.5.20; otherwise a name that points to loopback could read it."""
    assert ask(server, host) == status
    for path in ("/healthz", "/readyz", "/metrics"):  # for probes and Prometheus, under any name
        assert ask(server, host, path) == 200


def test_status_page_answers_hosts_of_the_configuration(configure: Configure, start: Start) -> None:
    metrics = '[metrics]\naddress = "127.0.0.1:0"\nhosts = ["status.example.org"]\n'
    server = start(configure(metrics=metrics))
    assert ask(server, "status.example.org") == 200
    assert ask(server, "other.example.org") == 421


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Run an endpoint for at most two requests of 0.3 s, and return its address."""
    monkeypatch.setattr("minismtp.server.http_endpoint._MOST", 2)
    monkeypatch.setattr("minismtp.server.http_endpoint._TIMEOUT", 0.3)
    listening = socket.create_server(("127.0.0.1", 0))
    readiness = Readiness(Scoreboard(), tmp_path, 0)
    config = replace(
        Config.parse(listener("smtp", CLEAR), tmp_path / "minismtp.toml"), state_directory=tmp_path
    )
    server = HttpServer(
        listening,
        CollectorRegistry(),
        readiness,
        config,
        Scoreboard(),
        problem_log=ProblemLog(Log()),
    )
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield listening.getsockname()
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_at_once_are_few_and_silent_ones_end(endpoint: tuple[str, int]) -> None:
    before = threading.active_count()
    silent = [socket.create_connection(endpoint, timeout=60) for _ in range(40)]
    with socket.create_connection(endpoint, timeout=60) as last:
        last.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert threading.active_count() <= before + 2
        assert last.makefile("rb").readline().startswith(b"HTTP/1.0 200")
    assert [sock.recv(1) for sock in silent] == [b""] * 40
    for sock in silent:
        sock.close()


def test_request_that_trickles_in_ends_at_its_deadline(endpoint: tuple[str, int]) -> None:
    with socket.create_connection(endpoint, timeout=60) as sock:
        sock.settimeout(0.02)
        for _ in range(2000):
            try:
                sock.sendall(b"x")
                assert sock.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                pass
            return
    pytest.fail("it may go on for ever")
