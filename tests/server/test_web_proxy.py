"""Web listeners behind a load balancer that says who the client is (PROXY protocol)."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Semaphore
from typing import TYPE_CHECKING, Final

import pytest
from conftest import wait_until
from ports import free_port
from snippets import CLEAR, listener
from web_service import HOST, ask, counted, get, serving, status, web_tls

from minismtp.server.web_pages import Page, Request, Site
from minismtp.server.web_places import Places
from minismtp.services.acme_challenges import Challenges
from minismtp.services.acme_tls_challenges import TlsChallenges

if TYPE_CHECKING:
    from conftest import Configure, Start, TlsFiles

BALANCER: Final = "127.0.0.1"
SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
CHECK: Final = SIGNATURE + b"\x20\x00\x00\x00"  # of the balancer itself


def header(client: str) -> bytes:
    return f"PROXY TCP4 {client} 192.0.2.99 4711 80\r\n".encode()


def header_2(client: str) -> bytes:
    addresses = socket.inet_aton(client) + socket.inet_aton("192.0.2.99") + b"\x12\x67\x00\x50"
    return SIGNATURE + b"\x21\x11" + len(addresses).to_bytes(2, "big") + addresses


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Challenges(tmp_path), {("", "/any"): lambda _: Page("text/plain", b"page")})


@pytest.mark.parametrize("make", [header, header_2])
def test_client_of_the_balancer_is_in_the_log_and_no_other(
    site: Site, tmp_path: Path, make: Callable[[str], bytes]
) -> None:
    with serving(site, tmp_path, behind=BALANCER) as (port, log, metrics):
        assert status(ask(port, make("192.0.2.7") + get("/any").encode())) == 200
        said = get("/none", f"{HOST}X-Forwarded-For: 192.0.2.8\r\n")
        assert status(ask(port, make("192.0.2.7") + said.encode())) == 404
        assert counted(metrics, "served") == counted(metrics, "not_found") == 1
        assert log.read_text().count(" peer=192.0.2.7 reason=not_found ") == 1
        assert "192.0.2.8" not in log.read_text()


def test_header_comes_before_tls(site: Site, tmp_path: Path, tls_files: TlsFiles) -> None:
    challenges = TlsChallenges(tmp_path)
    challenges.put("mx.example.org", "token.thumbprint")  # so that hellos are looked at
    tls = web_tls(tls_files, challenges)
    with (
        serving(site, tmp_path, behind=BALANCER, tls=tls) as (port, log, _),
        socket.create_connection(("127.0.0.1", port), 60) as sock,
    ):
        sock.sendall(header_2("192.0.2.7"))
        with tls_files.client().wrap_socket(sock, server_hostname="mx.example.org") as secured:
            secured.sendall(get("/none").encode())
            assert secured.recv(100).startswith(b"HTTP/1.1 404")
        assert " peer=192.0.2.7 reason=not_found " in log.read_text()


def test_clients_of_the_balancer_have_limits_of_their_own(site: Site, tmp_path: Path) -> None:
    under_way, release = Semaphore(0), Event()

    def held(_: Request) -> Page:
        under_way.release()
        assert release.wait(60)
        return Page("text/plain", b"page")

    site = Site(Challenges(tmp_path), {**site.routes, ("", "/held"): held})
    with (
        serving(site, tmp_path, behind=BALANCER, most_of_one=2) as (port, log, metrics),
        ThreadPoolExecutor(2) as clients,
    ):

        def answer(client: str, path: str = "/any") -> str:
            return ask(port, header(client) + get(path).encode())

        waiting = [clients.submit(answer, "192.0.2.7", "/held") for _ in range(2)]
        assert all(under_way.acquire(timeout=60) for _ in waiting)
        assert answer("192.0.2.7") == ""
        assert counted(metrics, "limited") == 1
        assert " peer=192.0.2.7 reason=limited" in log.read_text()
        assert status(answer("192.0.2.8")) == 200
        release.set()
        assert [status(each.result(60)) for each in waiting] == [200, 200]
        wait_until(lambda: status(answer("192.0.2.7")) == 200)


def test_health_checks_of_the_balancer_are_served_and_leave_no_trace(
    site: Site, tmp_path: Path
) -> None:
    with serving(site, tmp_path, behind=BALANCER) as (port, log, metrics):
        assert status(ask(port, CHECK + get("/any").encode())) == 200
        assert status(ask(port, CHECK + get("/none").encode())) == 404
        assert not any(counted(metrics, result) for result in ("served", "not_found", "failed"))
        assert log.read_text() == ""


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (get("/any").encode(), "no PROXY header"),
        (b"PROXY TCP4 x y 1 2\r\n", "malformed address in PROXY line"),
        (b"PROXY TCP4 " + b"1" * 200, "PROXY line longer than 107 octets"),
        (SIGNATURE + b"\x21\x11\xff\xff", "PROXY header too long"),
        (b"PROXY", "connection ended within the PROXY header"),
    ],
)
def test_connection_without_a_header_is_closed(
    site: Site, tmp_path: Path, said: bytes, problem: str
) -> None:
    with serving(site, tmp_path, behind=BALANCER) as (port, log, metrics):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            with suppress(OSError):  # the server may have closed it
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                assert sock.recv(100) == b""
        wait_until(lambda: counted(metrics, "refused") == 1)
        assert f' peer=127.0.0.1 reason=refused error="{problem}"' in log.read_text()
        assert status(ask(port, header("192.0.2.7") + get("/any").encode())) == 200


def test_header_that_does_not_come_has_the_deadline_of_the_request(
    site: Site, tmp_path: Path
) -> None:
    with (
        serving(site, tmp_path, behind=BALANCER, seconds=0.3) as (port, _, metrics),
        socket.create_connection(("127.0.0.1", port), 60) as sock,
    ):
        sock.sendall(b"PROXY TCP4 ")
        assert sock.recv(100) == b""
        wait_until(lambda: counted(metrics, "failed") == 1)


def test_other_clients_need_no_header(site: Site, tmp_path: Path) -> None:
    with serving(site, tmp_path, behind="192.0.2.1") as (port, _, _):
        assert status(ask(port, get("/any"))) == 200
        assert status(ask(port, header("192.0.2.7") + get("/any").encode())) == 400


def test_identified_client_counts_instead_of_the_balancer() -> None:
    places = Places(3, 1)
    assert [places.enter("") for _ in range(4)] == [True, True, True, False]
    assert places.identify("192.0.2.1")
    assert not places.identify("192.0.2.1")
    assert places.identify("127.0.0.1")
    for peer in ("192.0.2.1", "127.0.0.1"):
        places.forget(peer)
    assert not places.wait(0)
    for _ in range(3):
        places.leave("")
    assert places.wait(0)


def test_haproxy_tells_who_the_client_is(
    configure: Configure, start: Start, require_program: Callable[[str], str]
) -> None:
    web = listener("web", 'kind = "web"', 'proxy_protocol = ["127.0.0.0/8"]')
    server = start(configure(listeners=listener("smtp", CLEAR) + web))
    front, file = free_port(), server.directory / "haproxy.cfg"
    file.write_text(
        "defaults\n mode tcp\n timeout connect 30s\n timeout client 30s\n timeout server 30s\n"
        f"listen web\n bind 127.0.0.1:{front}\n"
        f" server one 127.0.0.1:{server.port('web')} send-proxy-v2 source 127.0.0.9\n"
    )
    haproxy = subprocess.Popen([require_program("haproxy"), "-db", "-f", str(file)])
    try:
        wait_until(lambda: is_open(front))
        with socket.create_connection(("127.0.0.1", front), 60, ("127.0.0.77", 0)) as sock:
            sock.sendall(get("/none").encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 404")
    finally:
        haproxy.kill()
        haproxy.wait()
    server.wait_for_log(r"web request refused listener=web peer=127\.0\.0\.77 reason=not_found")


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
