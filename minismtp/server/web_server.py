"""A web listener: who may connect, and one request with its TLS, its host name and its answer.

A connection has one request, by GET or HEAD, or by POST where a route expects it. The host name is
that of the target if it has one, otherwise that of the field Host (RFC 9112 section 3.2).
"""

from __future__ import annotations

import contextlib
import copy
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from prometheus_client import Counter as Metric

from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server.http_server import BoundedHandler, BoundedServer, peer_of
from minismtp.server.web_pages import Page, Request, Site
from minismtp.server.web_places import Places
from minismtp.server.web_proxy import proxy_header
from minismtp.server.web_tls import WebTls, is_checked
from minismtp.session.listener_context import RefusalLog
from minismtp.smtp.preamble import ProxyProblem

RESULTS: Final = ("served", "not_found", "refused", "slow", "limited", "failed")
_PAUSE: Final = 0.05  # seconds, if no connection can be accepted

_MOST_BODY: Final = 8192  # octets of a POST
_MOST_LINE: Final = 65536  # octets, as in the base class
_EMPTY_LINES: Final = (b"\r\n", b"\n")
_SHOWN: Final = 200  # characters of a host name, a path or a request line in the log
_HOST: Final = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{0,5})?")
_TARGET: Final = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


class Record:
    """Counts the requests to a listener by `RESULTS`, and logs those that are refused."""

    def __init__(
        self, listener: str, counter: Metric, metrics: Metrics, log: Log, refusals: RefusalLog
    ) -> None:
        self._listener = listener
        self._log = log
        self._refusals = refusals
        self._silent = False
        self._adders: Mapping[str, Callable[[float], None]] = {
            result: metrics.buffer.adder(counter.labels(listener, result)) for result in RESULTS
        }

    def count(self, result: str) -> None:
        """Count a request."""
        if not self._silent:
            self._adders[result](1.0)

    def refuse(self, result: str, peer: str, **fields: object) -> None:
        """Count a request that gets no page, and log it unless the client had enough lines."""
        self.count(result)
        if not self._silent and self._refusals.admits(self._log, peer, time.monotonic()):
            self._log.info(
                "web request refused", listener=self._listener, peer=peer, reason=result, **fields
            )

    def silent(self) -> Record:
        """Return a record that counts and logs nothing, for health checks of load balancers."""
        other = copy.copy(self)
        other._silent = True  # noqa: SLF001 - of the same class
        return other

    def settle(self) -> None:
        """Log how many refusals of past minutes had no line."""
        self._refusals.settle(self._log, time.monotonic())


class WebServer(BoundedServer):
    """One listener."""

    def __init__(
        self,
        sock: socket.socket,
        site: Site,
        tls: WebTls | None,
        places: Places,
        *,
        record: Record,
        turn: Callable[[], None],
        is_behind: Callable[[str], bool] = lambda _: False,
    ) -> None:
        super().__init__(sock, WebHandler)
        self.site = site
        self.tls = tls
        self.record = record
        self.is_behind = is_behind  # whether a peer is a load balancer
        self.places = places
        self._turn = turn

    def service_actions(self) -> None:
        """Show that the loop runs; `serve_forever` calls this at each turn."""
        self._turn()
        self.record.settle()

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept a connection. Wait a moment if there are too few descriptors. Raise OSError."""
        try:
            return super().get_request()
        except BlockingIOError:  # another process was faster, or the client hung up
            raise
        except OSError:
            time.sleep(_PAUSE)
            raise

    def admits(self, peer: str) -> bool:
        """Return whether there is a place for this client, or for one behind a load balancer."""
        if self.places.enter(self._counted(peer)):
            return True
        self.record.refuse("limited", peer)
        return False

    def leave(self, peer: str) -> None:
        """Free the place of a client."""
        self.places.leave(self._counted(peer))

    def _counted(self, peer: str) -> str:
        return "" if self.is_behind(peer) else peer


class BadRequestError(ValueError):
    """A request that HTTP forbids, as the text says."""


class RefusedError(Exception):
    """A connection that is closed without an answer, as the log says."""


class WebHandler(BoundedHandler):
    """Answers one request, counts it, and logs it if it is refused."""

    server: WebServer
    raw_requestline: bytes
    protocol_version = "HTTP/1.1"
    thread_name = "web"

    def setup(self) -> None:
        """Learn who the client is, and make the TLS handshake, in the time for the request.

        Raise OSError and RefusedError.
        """
        self.due = time.monotonic() + self.server.seconds
        self.record, self._client = self.server.record, ""
        try:
            if self.server.is_behind(peer_of(self.client_address)):
                self._read_proxy_header()
            if self.server.tls is not None:
                self.request = self.server.tls.secured(self.request, self.due)
            super().setup()
        except BaseException as error:
            self._forget_client()
            hung_up = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
            if isinstance(error, ssl.SSLError) and not hung_up:
                text = error.reason or str(error)
                self.record.refuse("failed", peer_of(self.client_address), error=text)
            elif isinstance(error, OSError):
                self.record.count("failed")
            raise

    def _read_proxy_header(self) -> None:
        """Learn who the client of the load balancer is. Raise RefusedError and OSError."""
        try:
            header = proxy_header(self.request, self.due)
        except ProxyProblem as problem:
            self.record.refuse("refused", peer_of(self.client_address), error=str(problem))
            raise RefusedError from problem
        if header.local:
            self.record = self.record.silent()
        elif header.peer:
            self.client_address = (header.peer, header.peer_port)
            if not self.server.places.identify(header.peer):
                self.record.refuse("limited", header.peer)
                raise RefusedError
            self._client = header.peer

    def _forget_client(self) -> None:
        if self._client:
            self.server.places.forget(self._client)
            self._client = ""

    def handle(self) -> None:
        """Answer a request, unless the handshake was the answer (RFC 8737 section 3)."""
        if is_checked(self.connection):
            self.record.count("served")
        else:
            super().handle()

    def finish(self) -> None:
        """Send what is left, and end TLS without waiting for the client."""
        self._forget_client()
        with contextlib.suppress(OSError):
            super().finish()
        if self.server.tls is not None:
            with contextlib.suppress(OSError, ValueError):  # the latter without TLS
                self.connection.settimeout(0)
                self.connection.unwrap()  # type: ignore[attr-defined]
            self.connection.close()

    def handle_one_request(self) -> None:
        """Answer one request, the only one of its connection."""
        super().handle_one_request()
        self.close_connection = True

    def parse_request(self) -> bool:
        """Read the request. One empty line may stand before it (RFC 9112 section 2.2)."""
        if self.raw_requestline in _EMPTY_LINES:
            self.raw_requestline = self.rfile.readline(_MOST_LINE + 1)
        if self.raw_requestline in _EMPTY_LINES:
            self.command, self.requestline = "", ""
            self.request_version = self.default_request_version
            self._refuse(HTTPStatus.BAD_REQUEST, "expected a request line")
            return False
        return super().parse_request()

    def do_GET(self) -> None:  # noqa: N802 - the base class looks for this name
        """Answer a request without a body."""
        self._answer(b"")

    do_HEAD = do_GET  # noqa: N815 - as above

    def do_POST(self) -> None:  # noqa: N802 - as above
        """Read the body, if it has one that is not too long, and answer."""
        lengths = {*self.headers.get_all("Content-Length", [""])}
        length = lengths.pop()
        path = _TARGET.sub("", self.path, count=1).partition("?")[0]
        if path not in self.server.site.posts:
            self._refuse_body(HTTPStatus.METHOD_NOT_ALLOWED)
        elif lengths:  # RFC 9112 section 6.3
            self._refuse(HTTPStatus.BAD_REQUEST, "expected one Content-Length")
            self._drop_rest()
        elif not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            self._refuse_body(HTTPStatus.LENGTH_REQUIRED)
        elif len(length) > len(str(_MOST_BODY)) or int(length) > _MOST_BODY:
            self._refuse_body(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self._answer(body)
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "the client ended within the body")

    def _refuse_body(self, status: HTTPStatus) -> None:
        self.send_error(status)
        self._drop_rest()

    def version_string(self) -> str:
        """Return the name of the server, without a version."""
        return "minismtp"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse the request in one line, count and log that."""
        del message, explain  # they may contain what the client sent
        self._refuse(HTTPStatus(code))

    def _refuse(self, status: HTTPStatus, error: str = "") -> None:
        """Refuse the request, and let the log say why if the status does not."""
        result = "not_found" if status is HTTPStatus.NOT_FOUND else "refused"
        self._refused(result, status=status.value, **({"error": error} if error else {}))
        self._send(status, Page("text/plain; charset=utf-8", f"{status.phrase}\n".encode()))

    def log_error(self, format: str, *args: object) -> None:  # noqa: A002, ARG002 - as the base
        """Count a client that was too slow; the base class calls this only for that."""
        self._refused("slow")

    def _answer(self, body: bytes) -> None:
        try:
            request = _request(self.path, self.headers.get_all("Host", []), self.request_version)
        except BadRequestError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        asked = Request(request.host, request.path, request.query, body)
        page = self.server.site.page(asked)
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.record.count("served")
        self._send(HTTPStatus.OK, page)

    def _send(self, status: HTTPStatus, page: Page) -> None:
        self.close_connection = True
        if self.request_version == self.default_request_version:
            self.request_version = "HTTP/1.0"  # else the base class would leave out the status
        self.connection.settimeout(self.server.seconds)
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        if page.filename:
            field = f'attachment; filename="{page.filename}"'  # ASCII, as a domain is
            self.send_header("Content-Disposition", field)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")  # RFC 9110 section 15.5.6
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def _refused(self, result: str, **fields: object) -> None:
        headers = getattr(self, "headers", None)
        if headers is not None:
            fields["host"] = str(headers.get("Host", ""))[:_SHOWN]
            fields["path"] = str(getattr(self, "path", ""))[:_SHOWN]
        elif line := getattr(self, "requestline", ""):  # it was not understood
            fields["request"] = str(line)[:_SHOWN]
        self.record.refuse(result, peer_of(self.client_address), **fields)


def _request(target: str, hosts: list[str], version: str) -> Request:
    """Return the request for a target and the fields Host. Raise BadRequestError."""
    if len(hosts) > 1 or (not hosts and version not in {"HTTP/0.9", "HTTP/1.0"}):
        raise BadRequestError("expected exactly one field Host")  # RFC 9112 section 3.2
    host = hosts[0].strip() if hosts else ""
    if absolute := _TARGET.match(target):
        host, target = absolute[1], target[absolute.end() :] or "/"
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise BadRequestError("expected a path")
    if not host:
        return Request("", path, query)
    found = _HOST.fullmatch(host)
    if found is None:
        raise BadRequestError("expected a host name")
    return Request(found[1].lower().removesuffix("."), path, query)
