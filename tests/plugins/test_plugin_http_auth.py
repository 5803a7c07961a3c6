"""Logins that a web service decides: a real web server, and fakes that fail."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest
from fakes import FAILURES, Talk, drip, listen, nobody_there, saying, serving
from minismtp_plugins.http_auth import HttpAuth

from minismtp import Credentials, RemoteError, Session
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.mail.session import TlsInfo
from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from conftest import TlsFiles

SECURE: Final = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
ALICE: Final = Credentials("PLAIN", "Alice", "s\u00e4cret&=x", "bob")


class Accounts(ThreadingHTTPServer):
    """A web service that knows alice; `seen` has its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/login?from=smtp"


class _Handler(BaseHTTPRequestHandler):
    server: Accounts

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        kind = self.headers["Content-Type"]
        fields = json.loads(body) if "json" in kind else dict(urllib.parse.parse_qsl(body))
        self.server.seen.append((f"{self.path} {kind}", fields))
        right = fields["username"].lower() == "alice" and fields["password"] == ALICE.password
        answer = b'{"identity": "alice"}' if right else b"{}"
        self.send_response(200 if right else 401)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web(tls: TlsFiles | None = None) -> Iterator[Accounts]:
    with Accounts() as server:
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tls.certificate, tls.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def accounts() -> Iterator[Accounts]:
    with web() as server:
        yield server


def session(tls: TlsInfo | None = SECURE) -> Session:
    return Session(
        id="1",
        listener="submission",
        kind="submission",
        hostname="mx.example.org",
        peer="192.0.2.1",
        tls=tls,
    )


def log_in(plugin: HttpAuth, password: str = ALICE.password) -> str | None:
    return plugin.authenticate(session(), Credentials("PLAIN", "Alice", password))


@pytest.mark.parametrize(
    ("user", "password", "ignore_case", "asked"),
    [
        ("bob", "x", True, [("bob", "x")]),
        ("Bob", "x", True, [("Bob", "x"), ("bob", "x")]),
        ("Bob", "x", False, [("Bob", "x")]),
        (
            "\uff22O\u0308B@Stra\u00dfe.example",
            "x",
            True,
            [("\uff22O\u0308B@Stra\u00dfe.example", "x"), ("b\u00f6b@xn--strae-oqa.example", "x")],
        ),
        ("bob", "e\u0301", False, [("bob", "e\u0301"), ("bob", "\u00e9")]),
        ("Alice", ALICE.password, True, [("Alice", ALICE.password)]),
        (
            "Alice",
            "sa\u0308cret&=x",
            True,
            [("Alice", "sa\u0308cret&=x"), ("Alice", ALICE.password)],
        ),
    ],
    ids=ascii,
)
def test_service_is_asked_about_other_spellings_of_who_is_refused(
    accounts: Accounts, user: str, password: str, asked: list[tuple[str, str]], *, ignore_case: bool
) -> None:
    plugin = HttpAuth(url=accounts.url, ignore_case=ignore_case)
    plugin.authenticate(session(), Credentials("PLAIN", user, password))
    assert [(said["username"], said["password"]) for _, said in accounts.seen] == asked


def http(status: str, body: bytes = b"") -> Talk:
    return saying(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def test_service_lets_in_and_gives_the_identity(accounts: Accounts) -> None:
    plugin = HttpAuth(url=accounts.url)
    assert log_in(plugin) == "alice"
    assert log_in(plugin, "wrong") is None


@pytest.mark.parametrize(
    ("form", "kind", "tls"),
    [("json", "application/json", True), ("form", "application/x-www-form-urlencoded", "true")],
)
def test_service_is_told_who_it_is_and_from_where(
    accounts: Accounts, form: Literal["json", "form"], kind: str, tls: object
) -> None:
    assert HttpAuth(url=accounts.url, format=form).authenticate(session(), ALICE) == "alice"
    [(request, fields)] = accounts.seen
    assert request == f"/login?from=smtp {kind}"
    assert fields == {
        "username": "Alice",
        "password": "s\u00e4cret&=x",
        "peer": "192.0.2.1",
        "tls": tls,
        "authorization": "bob",
    }


def test_service_is_told_of_clear_text(accounts: Accounts) -> None:
    for form in ("json", "form"):
        plugin = HttpAuth(url=accounts.url, format=form)
        plugin.authenticate(session(tls=None), ALICE)
    assert [fields["tls"] for _, fields in accounts.seen] == [False, "false"]


def test_https_wants_a_certificate_that_the_authorities_vouch_for(tls_files: TlsFiles) -> None:
    with web(tls_files) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        assert log_in(HttpAuth(url=url, ca=tls_files.authority)) == "alice"
        with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
            log_in(HttpAuth(url=url))
        assert len(server.seen) == 1


@pytest.mark.parametrize("status", ["401 No", "403 Never"])
def test_refusal_is_no_opinion(status: str) -> None:
    with serving(http(status)) as address:
        assert log_in(HttpAuth(url=f"http://{address}/")) is None


FAULTS: Final = {
    "moved": http("302 Found"),
    "not found": http("404 Not Found"),
    "too many": http("429 Slow down"),
    "broken": http("500 Oops"),
    "no content": http("204 Fine"),
    "empty": http("200 OK"),
    "a portal": http("200 OK", b"<html>Please log in</html>"),
    "no identity": http("200 OK", b'{"user": "alice"}'),
    "empty identity": http("200 OK", b'{"identity": ""}'),
    "number": http("200 OK", b'{"identity": 1}'),
    "control": http("200 OK", b'{"identity": "a\\nb"}'),
    "list": http("200 OK", b'["identity"]'),
    "deep": http("200 OK", b"[" * 100_000),
    "not UTF-8": http("200 OK", b'{"identity": "\xff"}'),
    "half": saying(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"identity": "alice"}'),
    **{name: talk for name, talk in FAILURES.items() if name != "slow"},
}


@pytest.mark.parametrize("talk", FAULTS.values(), ids=FAULTS.keys())
def test_all_other_answers_are_failures(talk: Talk) -> None:
    with serving(talk) as address:
        plugin = HttpAuth(url=f"http://{address}/")
        with pytest.raises(RemoteError):
            log_in(plugin)


@pytest.mark.parametrize("talk", [listen, drip], ids=["silence", "drip"])
def test_slow_service_is_waited_for_no_longer_than_patience(talk: Talk) -> None:
    with serving(talk) as address:
        plugin = HttpAuth(url=f"http://{address}/", patience=timedelta(milliseconds=100))
        with pytest.raises(RemoteError, match=r"too slow|no HTTP"):
            log_in(plugin)


def test_client_keeps_its_password_while_the_service_is_away(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    dialogue = Dialogue(HttpAuth(url=f"http://{nobody_there()}/"), tls=True)
    dialogue.send("EHLO client.example")
    secret = base64.b64encode(b"\0alice\0hunter2").decode()
    assert dialogue.send(f"AUTH PLAIN {secret}").startswith("454 4.7.0 ")
    said = caplog.text + "".join(capfd.readouterr())
    assert "Connection refused" in said
    assert "hunter2" not in said
    assert secret not in said


@pytest.mark.parametrize(("user", "password"), [("alice", ""), ("\udc80", "x"), ("a" * 1001, "x")])
def test_what_could_only_harm_is_not_asked(user: str, password: str) -> None:
    plugin = HttpAuth(url=f"http://{nobody_there()}/")
    assert plugin.authenticate(session(), Credentials("PLAIN", user, password)) is None


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"url": "http://accounts.example/"}, "url: expected https"),
        ({"url": "http://192.0.2.1:8080/"}, "url: expected https"),
        ({"url": "ftp://accounts.example/"}, "url: expected a URL"),
        ({"url": "https://a.example/", "ca": "nowhere.pem"}, "ca: .*nowhere.pem: No such file"),
        ({"url": "https://a.example/", "ca": "empty.pem"}, "ca: .*empty.pem: "),
        ({"url": "https://a.example/", "patience": "0s"}, "patience: expected more"),
    ],
    ids=["host", "address", "scheme", "no file", "no certificates", "no patience"],
)
def test_bad_option_is_named(table: dict[str, object], problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ConfigError, match=rf"plugins\[0\]\.{problem}"):
        build(HttpAuth, table, file="c", key="plugins[0]", base=tmp_path)


@pytest.mark.parametrize("url", ["http://localhost/", "http://[::1]:8080/x", "http://127.0.0.2/"])
def test_plain_http_is_for_this_machine(url: str) -> None:
    HttpAuth(url=url)


def test_plain_http_elsewhere_must_be_allowed() -> None:
    HttpAuth(url="http://accounts.example/", allow_http=True)
