"""A web listener in this process, and requests to it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minismtp.config import TlsConfig
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server.web_listener import Pulse
from minismtp.server.web_pages import Site
from minismtp.server.web_places import Places
from minismtp.server.web_server import Record, WebServer
from minismtp.server.web_tls import WebTls
from minismtp.services.acme_tls_challenges import TlsChallenges
from minismtp.services.tls import Certificates
from minismtp.session.listener_context import RefusalLog

if TYPE_CHECKING:
    from conftest import TlsFiles

HOST: Final = "Host: mx.example.org\r\n"


def ask(port: int, request: str | bytes, context: ssl.SSLContext | None = None) -> str:
    """Send octets, and return all that comes back, "" for nothing."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
        if context is not None:
            sock = stack.enter_context(context.wrap_socket(sock, server_hostname="mx.example.org"))
        sock.sendall(request.encode() if isinstance(request, str) else request)
        answer = b""
        try:
            while data := sock.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer.decode()


def status(answer: str) -> int:
    return int(answer.split(" ")[1]) if answer else 0


def get(path: str, fields: str = HOST) -> str:
    return f"GET {path} HTTP/1.1\r\n{fields}\r\n"


def web_tls(files: TlsFiles, challenges: TlsChallenges) -> WebTls:
    """Return what makes handshakes, with an ordinary certificate and those of challenges."""
    settings = TlsConfig(certificate=files.certificate, key=files.key)
    certificates = Certificates(
        settings, ask_client=False, file="", clock=time.monotonic, report=lambda _: None
    )
    return WebTls(certificates, challenges)


@contextmanager
def serving(
    site: Site,
    tmp_path: Path,
    *,
    most: int = 10,
    most_of_one: int = 10,
    seconds: float = 60.0,
    tls: WebTls | None = None,
    port: int = 0,
    behind: str = "",
) -> Iterator[tuple[int, Path, Metrics]]:
    """Serve a site in this process; yield the port, the file of the log, and the metrics.

    `behind` is the address of a load balancer.
    """
    metrics, file = Metrics(), tmp_path / "log"
    with file.open("ab") as log_file:
        log = Log(descriptor=log_file.fileno())
        counter = metrics.counter("web_requests", "Requests.", ["listener", "result"])
        record = Record("web", counter, metrics, log, RefusalLog(100))
        sock = socket.create_server(("127.0.0.1", port))
        places, pulse = Places(most, most_of_one), Pulse(lambda: None, 1)
        server = WebServer(
            sock,
            site,
            tls,
            places,
            record=record,
            turn=lambda: pulse.turn(0),
            is_behind=lambda peer: peer == behind,
        )
        server.seconds = seconds
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield sock.getsockname()[1], file, metrics
        finally:
            server.shutdown()
            thread.join()
            places.wait(60)
            server.server_close()


def counted(metrics: Metrics, result: str) -> float:
    metrics.buffer.flush()
    labels = {"listener": "web", "result": result}
    return metrics.registry.get_sample_value("minismtp_web_requests_total", labels) or 0.0
