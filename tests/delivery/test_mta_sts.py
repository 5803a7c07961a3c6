"""MTA-STS (RFC 8461): reading policies, and fetching them from servers of every kind."""

from __future__ import annotations

import contextlib
import http.server
import os
import ssl
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar
from unittest.mock import Mock

import pytest
import trustme

from minismtp.config.types import SocketAddress
from minismtp.delivery import mta_sts
from minismtp.delivery.mta_sts import FetchError, Policies, PolicyFetcher, StsPolicy
from minismtp.delivery.mx import HostFinder
from minismtp.delivery.tls_security import Contexts, matches
from minismtp.runtime.log import Log
from minismtp.services.resolver import Found, Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GOOD = "version: STSv1\nmode: enforce\nmx: mx.example.net\nmx: *.example.org\nmax_age: 86400\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.rstrip("\n"),
        GOOD.replace(": ", " :\t"),
        GOOD + "future_field: whatever it says\n",
        GOOD + "mode: none\nmax_age: 1\n",  # RFC 8461 section 3.2: the first field counts
        GOOD.replace("mx.example.net", "MX.Example.NET."),
    ],
)
def test_policy_is_read_as_it_is_meant(text: str) -> None:
    assert StsPolicy.parse(text) == StsPolicy("enforce", ("mx.example.net", "*.example.org"), 86400)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no version"),
        ("<html>\n", "not a field: '<html>'"),
        (GOOD.replace("STSv1", "STSv2"), "no version: STSv1"),
        (GOOD.replace("enforce", "enforced"), "unknown mode 'enforced'"),
        (GOOD.replace("max_age: 86400\n", ""), "no max_age"),
        (GOOD.replace("86400", "-1"), "no max_age"),
        (GOOD.replace("86400", "1e9"), "no max_age"),
        (GOOD.replace("86400", "9" * 5000), "no max_age"),
        (GOOD.replace("mx: ", "xm: "), "no mx"),
        (GOOD.replace("*.example.org", "mx.*.org"), "no host name"),
        (GOOD.replace("*.example.org", "*"), "no host name"),
    ],
)
def test_what_is_no_policy_is_told_apart(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")):
        StsPolicy.parse(text)


def test_a_policy_holds_for_a_year_at_most() -> None:
    assert StsPolicy.parse(GOOD.replace("86400", "9999999999")).max_age == 31_557_600


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("mx.example.net", "mx.example.net", True),
        ("MX.example.net", "mx.Example.net", True),
        ("*.example.net", "mx.example.net", True),
        ("*.example.net", "a.mx.example.net", False),  # one label only
        ("*.example.net", "example.net", False),
        ("*.example.net", ".example.net", True),  # no host has such a name
        ("mx.example.net", "mx.example.net.evil.example", False),
        ("*x.example.net", "mx.example.net", False),
        ("*.", "mx.", False),
    ],
)
def test_a_pattern_stands_for_one_label(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) == fits


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as a test wants."""

    answer: ClassVar[Callable[[http.server.BaseHTTPRequestHandler], None]]

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            type(self).answer(self)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Ignores clients that close the connection."""

    def handle_error(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Yield a function that fetches from a server that answers so."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    defaults = Resolver.lookup.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "seconds", 0.1)  # /etc/hosts knows localhost
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    resolver = Resolver([SocketAddress("127.0.0.1", 9)])
    with contextlib.ExitStack() as stack:

        def fetch(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
            handler = type("Answering", (Handler,), {"answer": answer})
            server = Server(("127.0.0.1", 0), handler)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            directory = HostFinder(resolver, hostname="here.example", own=[], port=25)
            contexts = Contexts(tmp_path / "ca.pem")
            web = PolicyFetcher(directory, contexts, server.server_address[1])
            return web.get("localhost", "/policy")

        yield fetch


def reply(
    status: int = 200, body: bytes = b"hello", **headers: str
) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/plain")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def test_a_text_comes_from_the_web(fetch: Callable[..., str]) -> None:
    assert fetch(reply(Content_Type="text/plain; charset=us-ascii")) == "hello"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(404, Content_Type="text/plain"), "says 404"),
        (reply(302, Location="https://localhost/other"), "says 302"),  # RFC 8461 section 3.3
        (reply(Content_Type="text/html"), "has text/html, not text/plain"),
        (reply(), "not text/plain"),
        (reply(body=b"x" * 70_000, Content_Type="text/plain"), "more than 65536 octets"),
        (reply(body=b"\xff", Content_Type="text/plain"), "utf-8"),
        (drip, "the web server is too slow"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "nonsense"),
        (lambda handler: handler.connection.close(), "."),
    ],
)
def test_a_text_that_is_none_is_refused(
    fetch: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[http.server.BaseHTTPRequestHandler], None],
    reason: str,
) -> None:
    monkeypatch.setattr(mta_sts, "_SECONDS", 2.0)
    with pytest.raises(FetchError, match=reason):
        fetch(answer)


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop", "rubbish"])
def test_what_is_no_policy_on_disk_hinders_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "example.net"
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "rubbish":
            path.write_bytes(b"\xff")
    names = Mock(lookup=Mock(return_value=Found((), "")))
    assert Policies(names, Mock(), tmp_path, Log(level="error")).of("example.net") is None


class Published(Resolver):
    """Every domain publishes a policy."""

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        del kind, seconds
        return Found((SimpleNamespace(strings=(b"v=STSv1; id=1",)),), name)


class Offered(PolicyFetcher):
    """Every domain has the same policy, of many hosts."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked = 0

    def get(self, host: str, path: str) -> str:
        del host, path
        self.asked += 1
        return self.text


def kept_in(directory: Path, web: PolicyFetcher) -> Policies:
    return Policies(Published(), web, directory, Log(level="error"))


def test_policies_on_disk_are_bounded_by_octets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.delivery.mta_sts._MOST_OCTETS", 100_000)
    policies = kept_in(tmp_path, Offered(GOOD + "mx: mx.example.org\n" * 200))
    for number in range(100):
        assert policies.of(f"d{number}.example") is not None
    assert 20_000 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000
    assert (tmp_path / "d99.example").exists()
    assert not (tmp_path / "d0.example").exists()


@pytest.mark.parametrize("ahead", [86_400.0, 10 * 365 * 86_400.0])
def test_policy_that_was_fetched_while_the_clock_was_ahead_holds_and_is_renewed(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Offered(GOOD)
    policies = kept_in(tmp_path, web)
    monkeypatch.setattr("minismtp.delivery.mta_sts.steady_time", lambda: time.time() + ahead)
    assert policies.of("a.example") == StsPolicy.parse(GOOD)
    monkeypatch.undo()
    web.text = ""  # a policy that cannot be renewed stays valid
    assert policies.of("a.example") == StsPolicy.parse(GOOD)
    policies = kept_in(tmp_path, web)
    web.text = GOOD.replace("enforce", "testing")
    renewed = policies.of("a.example")
    assert renewed is not None
    assert renewed.mode == "testing"
    asked = web.asked
    assert policies.of("a.example") == renewed
    assert web.asked == asked


@pytest.mark.parametrize("damage", [b"", b"\0" * 500, b"\xff", b"[" * 10_000, b'{"id": 1}'])
def test_damaged_policy_on_disk_is_fetched_again(damage: bytes, tmp_path: Path) -> None:
    web = Offered(GOOD)
    (tmp_path / "a.example").write_bytes(damage)
    assert kept_in(tmp_path, web).of("a.example") == StsPolicy.parse(GOOD)
    assert web.asked == 1
