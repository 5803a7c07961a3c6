"""Listeners of kind web: what they serve, and what they bear."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from ports import free_port
from snippets import CLEAR, MX, listener
from web_service import HOST, ask, counted, get, serving, status

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.runtime.log import Log
from minismtp.server import web_listener
from minismtp.server.web_listener import Pulse
from minismtp.server.web_pages import Page, Request, Site
from minismtp.server.web_places import Places
from minismtp.services.acme_challenges import Challenges

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Configure, Running, Start, TlsFiles

TOKEN: Final = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"  # noqa: S105 - of RFC 8555
ANSWER: Final = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
PATH: Final = f"/.well-known/acme-challenge/{TOKEN}"
WEB: Final = listener("web", 'kind = "web"')
TOO_LARGE: Final = f"{HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase}\n"  # changed with Python 3.13
BOTH: Final = listener("smtp", CLEAR) + WEB


# the configuration


@pytest.mark.parametrize(
    ("address", "line", "tls"),
    [
        ("*:443", "", "implicit"),
        ("*:80", "", "none"),
        ("127.0.0.1:8443", "", "none"),
        ("*:8443", 'tls = "implicit"', "implicit"),
        ("127.0.0.1:443", 'tls = "none"', "none"),
    ],
)
def test_web_listener_speaks_tls_by_default_on_port_443_alone(
    tls_files: TlsFiles, tmp_path: Path, address: str, line: str, tls: str
) -> None:
    web = listener("web", 'kind = "web"', line, address=address)
    config = Config.parse(MX + web + tls_files.table, tmp_path / "minismtp.toml")
    assert [each.tls for each in config.listeners] == ["starttls", tls]
    assert [each.name for each in config.mail_listeners] == ["smtp"]
    assert [each.name for each in config.web_listeners] == ["web"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (MX + listener("web", 'kind = "web"', 'tls = "starttls"'), "tls: HTTP knows"),
        (
            MX + listener("web", 'kind = "web"', "match_from = true"),
            "match_from: a web listener has no such key",
        ),
        (MX + listener("web", 'kind = "web"', 'proxy_protocol = ["x"]'), "proxy_protocol[0]"),
        (WEB, "listeners, line 2: expected at least one [[listeners]] table for mail"),
        (
            BOTH + '[[plugins]]\nuse = "mailboxes"\ndomains = ["a.example"]\nlisteners = ["web"]\n',
            "listeners[0]: no listener is called 'web'",
        ),
        (
            listener("smtp", CLEAR) + listener("web", 'kind = "web"', address="*:443"),
            'tls: "implicit" needs certificate and key',
        ),
    ],
)
def test_mistake_about_a_web_listener_names_the_key(
    tls_files: TlsFiles, tmp_path: Path, text: str, problem: str
) -> None:
    table = "" if "443" in text else tls_files.table
    with pytest.raises(ConfigError) as found:
        Config.parse(text + table, tmp_path / "minismtp.toml")
    assert problem in str(found.value)


# challenges


def test_challenge_is_answered_as_soon_as_any_process_placed_it(
    configure: Configure, start: Start
) -> None:
    """RFC 8555 section 8.3."""
    server = start(configure(listeners=BOTH))
    port = server.port("web")
    assert status(ask(port, get(PATH))) == 404
    path = Challenges(server.directory / "state").put(TOKEN, ANSWER)
    answer = ask(port, get(PATH, "Host: any.example\r\n"))
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "Content-Type: application/octet-stream\r\n" in answer
    assert answer.partition("\r\n\r\n")[2] == ANSWER
    head = ask(port, get(PATH).replace("GET", "HEAD"))
    assert (status(head), head.partition("\r\n\r\n")[2]) == (200, "")
    path.unlink()
    assert status(ask(port, get(PATH))) == 404
    assert server.metric("web_requests_total", listener="web", result="served") == 2
    assert server.metric("web_requests_total", listener="web", result="not_found") == 2
    refused = r"web request refused listener=web peer=127\.0\.0\.1 reason=not_found status=404"
    server.wait_for_log(rf"{refused} host=mx\.example\.org path={PATH}$", 2)


@pytest.mark.parametrize(
    ("token", "content"),
    [
        ("x.y", "x.y.thumb"),
        ("..", "...thumb"),
        ("", ".thumb"),
        ("a/b", "a/b.thumb"),
        ("a\n", "a\n.thumb"),
        ("ä", "ä.thumb"),
        ("t" * 201, "t" * 201 + ".thumb"),
        ("token", "other.thumb"),
        ("token", "token"),
        ("token", "token.thumb.more"),
        ("token", "token." + "t" * 101),
    ],
)
def test_challenge_has_the_form_of_a_key_authorization(
    tmp_path: Path, token: str, content: str
) -> None:
    challenges = Challenges(tmp_path)
    with pytest.raises(ValueError, match="expected a token"):
        challenges.put(token, content)
    assert challenges.get(token) is None


def test_other_files_in_the_directory_of_challenges_are_not_served(tmp_path: Path) -> None:
    challenges = Challenges(tmp_path)
    challenges.put("good", "good.thumb")
    (challenges.directory / "secret").write_text("password")
    (challenges.directory / "link").symlink_to("good")
    (challenges.directory / "folder").mkdir()
    os.mkfifo(challenges.directory / "fifo")
    (challenges.directory / "long").write_text("long." + "t" * 400)
    names = ("good", "secret", "link", "folder", "fifo", "long", "none")
    assert [challenges.get(name) for name in names] == [b"good.thumb", *[None] * 6]


# the process


def test_web_listener_speaks_tls_and_survives_a_client_that_does_not(
    configure: Configure, start: Start, tls_files: TlsFiles
) -> None:
    web = listener("web", 'kind = "web"', 'tls = "implicit"')
    server = start(configure(tls_files.table, listeners=listener("smtp", CLEAR) + web))
    Challenges(server.directory / "state").put(TOKEN, ANSWER)
    port = server.port("web")
    assert ask(port, get(PATH), tls_files.client()).endswith(ANSWER)
    ask(port, get(PATH))  # in clear: the handshake fails, and the next client is served
    socket.create_connection(("127.0.0.1", port), 60).close()  # such as a check of a monitor
    assert ask(port, get(PATH), tls_files.client()).endswith(ANSWER)
    labels = {"listener": "web", "result": "failed"}
    server.wait_until(lambda: server.metric("web_requests_total", **labels) == 2)
    server.wait_for_log("web request refused .* reason=failed error=HTTP_REQUEST")
    assert server.log.count("reason=failed") == 1
    assert server.metric("tls_certificate_last_reload_successful", listener="web") == 1


def web_processes(server: Running) -> list[int]:
    """Return the ids of the processes of the web listeners."""
    found = []
    for pid in server.tree():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "minismtp-web\n":
                found.append(pid)
    return found


def web_process(server: Running) -> int:
    """Return the id of the only one, once it runs."""
    return server.wait_until(lambda: web_processes(server))[0]


def test_process_of_the_web_that_dies_is_replaced_and_counted(
    configure: Configure, start: Start
) -> None:
    server = start(configure(listeners=BOTH))
    port, first = server.port("web"), web_process(server)
    assert status(ask(port, get("/"))) == 404
    os.kill(first, signal.SIGKILL)
    server.wait_for_log(r"error web server died pid=\d+ status=-9")
    assert status(ask(port, get("/"))) == 404
    assert web_process(server) != first
    assert server.metric("process_replacements_total", process="web", reason="died") == 1


def test_reload_adds_and_removes_a_web_listener(configure: Configure, start: Start) -> None:
    server = start(configure(listeners=BOTH))
    port, first = server.port("web"), web_process(server)
    second = free_port()
    configure(listeners=BOTH + listener("second", 'kind = "web"', address=f"127.0.0.1:{second}"))
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" info reloaded")
    assert status(ask(second, get("/"))) == 404
    server.wait_until(lambda: first not in server.tree())
    assert status(ask(port, get("/"))) == 404  # on the same socket
    configure()
    server.signal(signal.SIGHUP)
    server.wait_for_log(r" reloaded", 2)

    def refused() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    server.wait_until(refused)
    with server.connect() as client:
        assert client.greet().startswith("250")


def test_request_under_way_is_answered_after_a_reload(configure: Configure, start: Start) -> None:
    server = start(configure(listeners=BOTH))
    old = web_process(server)
    with socket.create_connection(("127.0.0.1", server.port("web")), 60) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert status(ask(server.port("web"), get("/"))) == 404  # so the first one is accepted
        server.signal(signal.SIGHUP)
        server.wait_until(lambda: len({old, *web_processes(server)}) > 1)
        sock.sendall(HOST.encode() + b"\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 404")
    server.wait_until(lambda: old not in server.tree())


def test_certificate_of_a_web_listener_that_does_not_load_stops_the_start(
    configure: Configure, tls_files: TlsFiles
) -> None:
    tls = f'[tls]\ncertificate = "{tls_files.certificate}"\nkey = "/none"\n'
    web = listener("web", 'kind = "web"', 'tls = "implicit"')
    config = configure(tls, listeners=listener("smtp", CLEAR) + web)
    done = subprocess.run(
        [sys.executable, "-m", "minismtp", "serve", "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78
    assert "tls.key: /none: No such file or directory" in done.stderr


# hostile requests


def echo(request: Request) -> Page:
    return Page("text/plain", f"{request.host} {request.query} {request.body.decode()}".encode())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with a page under one name, one under all names, and one for POST."""
    routes = {("a.example", "/page"): echo, ("", "/any"): echo, ("", "/post"): echo}
    return Site(Challenges(tmp_path), routes, frozenset({"/post"}))


def post(length: str, body: str = "", path: str = "/post", more: str = "") -> str:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n{body}"


@pytest.mark.parametrize(
    ("request_", "expected", "body"),
    [
        (get("/page", "Host: a.example\r\n"), 200, "a.example  "),
        (get("/page?q=1", "Host: A.Example.:8080\r\n"), 200, "a.example q=1 "),
        (get("http://a.example/page", "Host: b.example\r\n"), 200, "a.example  "),
        (get("/any", "Host: [::1]:80\r\n"), 200, "[::1]  "),
        ("GET /any HTTP/1.0\r\n\r\n", 200, "  "),
        ("\r\n" + get("/any"), 200, "mx.example.org  "),  # RFC 9112 section 2.2
        ("\r\n\r\n" + get("/any"), 400, "Bad Request\n"),
        (get("/any", "Host: a..\r\n"), 200, "a.  "),
        ("GET /page HTTP/1.0\r\n\r\n", 404, "Not Found\n"),
        (get("/page", "Host: b.example\r\n"), 404, "Not Found\n"),
        (get("/page", "Host: a.example.evil\r\n"), 404, "Not Found\n"),
        (get("/%70age", "Host: a.example\r\n"), 404, "Not Found\n"),
        (get("/./page", "Host: a.example\r\n"), 404, "Not Found\n"),
        (get("/any/../page", "Host: a.example\r\n"), 404, "Not Found\n"),
        (get("/.well-known/acme-challenge/../../state.db"), 404, "Not Found\n"),
        (get("/.well-known/acme-challenge/%2e%2e%2fkey"), 404, "Not Found\n"),
        (get("/any", ""), 400, "Bad Request\n"),
        (get("/any", "Host: a\r\nHost: b\r\n"), 400, "Bad Request\n"),
        (get("/any", "Host: a b\r\n"), 400, "Bad Request\n"),
        (get("/any", "Host: a/b\r\n"), 400, "Bad Request\n"),
        (get("/any", "Host: <script>\r\n"), 400, "Bad Request\n"),
        (get("*"), 400, "Bad Request\n"),
        (get("any"), 400, "Bad Request\n"),
        ("GET /any HTTP/2.0\r\nHost: a\r\n\r\n", 505, "HTTP Version Not Supported\n"),
        ("GET /any FTP/1.1\r\nHost: a\r\n\r\n", 400, "Bad Request\n"),
        ("DELETE /any HTTP/1.1\r\nHost: a\r\n\r\n", 501, "Not Implemented\n"),
        (get("/any", f"{HOST}{'X: y' * 20000}\r\n"), 431, "Request Header Fields Too Large\n"),
        (get("/any", HOST + "X: y\r\n" * 200), 431, "Request Header Fields Too Large\n"),
        (get("/" + "a" * 70000), 431, "Request Header Fields Too Large\n"),
        (post("3", "abc"), 200, "x  abc"),
        (post("3", "abcdef"), 200, "x  abc"),
        (post("0"), 200, "x  "),
        (post("3", "abc", more="Content-Length: 3\r\n"), 200, "x  abc"),
        (post("3", "abc", more="Content-Length: 4\r\n"), 400, "Bad Request\n"),
        (post("8193"), 413, TOO_LARGE),
        (post("9" * 5000), 413, TOO_LARGE),
        (post("-1"), 411, "Length Required\n"),
        (post("²"), 411, "Length Required\n"),
        (post("3", "abc", more="Transfer-Encoding: chunked\r\n"), 411, "Length Required\n"),
        (post("3", "abc", path="/any"), 405, "Method Not Allowed\n"),
        (post("3", "abc", path="HTTP://x/post"), 200, "x  abc"),
        (post("3", "abc", path="http://x/any"), 405, "Method Not Allowed\n"),
        (post(f"{1 << 22}", "x" * (1 << 22)), 413, TOO_LARGE),
    ],
)
def test_request_gets_its_page_or_a_refusal(
    site: Site, tmp_path: Path, request_: str, expected: int, body: str
) -> None:
    with serving(site, tmp_path) as (port, _, metrics):
        answer = ask(port, request_)
        assert (status(answer), answer.partition("\r\n\r\n")[2]) == (expected, body)
        result = {200: "served", 404: "not_found"}.get(expected, "refused")
        assert counted(metrics, result) == 1
        assert "Python" not in answer
        fields = {"X-Content-Type-Options: nosniff", "Cache-Control: no-store", "Connection: close"}
        assert fields <= {*answer.split("\r\n")}


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\r\n",
        b"\0\xff\xfe" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a hello of TLS
        b"GET /any\r\n\r\n",  # HTTP/0.9
        b"GET /any HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET /\xff\r\n HTTP/1.1\r\n\r\n",
        post("5", "ab").encode(),  # then the client hangs up
    ],
)
def test_request_that_is_none_hurts_no_other_one(
    site: Site, tmp_path: Path, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(site, tmp_path) as (port, _, metrics):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        assert status(ask(port, get("/any"))) == 200
        assert counted(metrics, "served") >= 1
    assert not caplog.records  # no thread failed


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (get("/any", ""), 'status=400 error="expected exactly one field Host" host="" path=/any'),
        (get("/any", "Host: a b\r\n"), 'error="expected a host name" host="a b" path=/any'),
        (get("any"), 'error="expected a path" host=mx.example.org path=any'),
        (post("3", more="Content-Length: 4\r\n"), 'error="expected one Content-Length" host=x'),
        (post("5", "ab"), 'error="the client ended within the body" host=x path=/post'),
        ("\n\n", 'status=400 error="expected a request line"'),
        ("GET /a\x1b b c\r\n\r\n", 'status=400 request="GET /a\\u001b b c"'),
        ("GET / HTTP/3.0\r\n\r\n", 'status=505 request="GET / HTTP/3.0"'),
        (get("/" + "a" * 70_000), "status=431\n"),
        (get("/none"), "reason=not_found status=404 host=mx.example.org path=/none"),
    ],
)
def test_each_refusal_says_why_in_the_log(
    site: Site, tmp_path: Path, request_: str, line: str
) -> None:
    with serving(site, tmp_path) as (port, file, metrics):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(request_.encode())
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(65536).startswith(b"HTTP/1.")
        assert line in file.read_text()
        assert counted(metrics, "refused") + counted(metrics, "not_found") == 1


def test_refusal_of_a_method_names_the_others(site: Site, tmp_path: Path) -> None:
    """RFC 9110 section 15.5.6."""
    with serving(site, tmp_path) as (port, _, _):
        assert "\r\nAllow: GET, HEAD\r\n" in ask(port, post("3", "abc", path="/any"))


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGALRM), "the plugins did not tell them within 30 s"),
        (lambda: 1 / 0, "the process that asks them ended with status 1"),
    ],
)
def test_plugins_that_do_not_tell_their_domains_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[[], object], error: str
) -> None:
    monkeypatch.setattr(web_listener, "dns_zone", lambda _: ends())
    with (tmp_path / "log").open("ab") as file:
        log = Log(descriptor=file.fileno())
        assert web_listener.domains(Config.parse(BOTH, tmp_path / "c.toml"), log) == {}
    assert f'no pages for domains are served error="{error}"' in (tmp_path / "log").read_text()


def test_one_connection_has_one_request(site: Site, tmp_path: Path) -> None:
    with serving(site, tmp_path) as (port, _, metrics):
        answer = ask(port, get("/any", HOST + "Connection: keep-alive\r\n") * 3)
        assert answer.count("HTTP/1.1") == 1
        assert "Connection: close\r\n" in answer
        assert counted(metrics, "served") == 1


def test_slow_client_has_a_deadline_for_the_whole_request(site: Site, tmp_path: Path) -> None:
    with (
        serving(site, tmp_path, seconds=0.2) as (port, _, metrics),
        socket.create_connection(("127.0.0.1", port), 60) as sock,
    ):
        sock.sendall(b"GET /any HTTP/1.1\r\n")
        ended = threading.Event()

        def drip() -> None:  # each octet comes in time, the request does not
            try:
                while not ended.wait(0.02):
                    sock.sendall(b"X")
            except OSError:
                pass

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert sock.recv(100) == b""
        except ConnectionResetError:
            pass
        finally:
            ended.set()
            thread.join()
        assert counted(metrics, "slow") == 1


@pytest.mark.parametrize(("most", "most_of_one"), [(2, 9), (9, 2)])
def test_connection_beyond_a_limit_is_closed_and_counted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, most_of_one: int
) -> None:
    monkeypatch.setattr("minismtp.server.web_places.is_loopback", lambda _: False)
    with (
        serving(site, tmp_path, most=most, most_of_one=most_of_one) as (port, file, metrics),
        ExitStack() as stack,
    ):
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(2)
        ]
        assert ask(port, get("/any")) == ""
        assert counted(metrics, "limited") == 1
        assert "web request refused listener=web peer=127.0.0.1 reason=limited" in file.read_text()
        held[0].sendall(get("/any").encode())
        assert held[0].recv(100).startswith(b"HTTP/1.1 200")


def test_proxy_on_this_machine_has_no_limit_of_its_own() -> None:
    places = Places(3, 1)
    assert [places.enter(peer) for peer in ("127.0.0.1", "::1", "unix", "unix")] == [1, 1, 1, 0]
    places.leave("unix")
    assert [places.enter(peer) for peer in ("192.0.2.1", "192.0.2.1")] == [True, False]
    assert not places.wait(0)
    for peer in ("127.0.0.1", "::1", "192.0.2.1"):
        places.leave(peer)
    assert places.wait(0)


def test_process_beats_only_if_the_loops_of_all_listeners_turn() -> None:
    beats: list[int] = []
    pulse = Pulse(lambda: beats.append(1), 2)
    pulse.turn(0)
    pulse.turn(0)
    assert not beats
    pulse.turn(1)
    assert beats == [1]
