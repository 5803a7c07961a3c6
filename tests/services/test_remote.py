"""Services that plugins ask: deadlines, and a breaker for dead ones."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes import Clock, drip, serving

from minismtp import Breaker, Reject, Remote, RemoteError, SocketAddress, WebService
from minismtp.services.remote import Line

if TYPE_CHECKING:
    from conftest import TlsFiles

SHORT = timedelta(milliseconds=200)
LONG = timedelta(seconds=60)


def saying(*pieces: bytes) -> Callable[[socket.socket], None]:
    """Return a talk that reads one piece, then sends these."""

    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        for piece in pieces:
            sock.sendall(piece)

    return talk


def test_answer_is_read_by_size_by_end_and_whole() -> None:
    talk = saying(b"first\0sec", b"ond", b"the rest")
    with serving(talk) as address, Remote(address, timeout=LONG).connect() as line:
        line.send(b"?")
        assert line.read_until(b"\0") == b"first"
        assert line.read(6) == b"second"
        assert line.read_all(100) == b"the rest"


def test_unix_socket_is_a_service_too(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Remote(SocketAddress(path=path), timeout=LONG).connect() as line:
            listener.accept()[0].close()
            assert line.receive() == b""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["TCP", "unix"])
def test_line_says_whether_anything_came_without_waiting(
    family: socket.AddressFamily, tmp_path: Path
) -> None:
    with socket.socket(family) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "sock"))
        listener.listen()
        sock = socket.socket(family)
        sock.connect(listener.getsockname())
        line = Line(sock, inf, "service")
        service, _ = listener.accept()
        for piece in (b"one", b"x" * 100_000, b"three"):
            assert not line.is_readable()
            service.sendall(piece)
            select.select([sock], [], [])
            assert line.is_readable()
            assert line.read(len(piece)) == piece
        assert not line.is_readable()
        service.close()
        select.select([sock], [], [])
        assert line.is_readable()
        assert line.receive() == b""
        line.close()


def test_drip_ends_at_the_deadline() -> None:
    with serving(drip) as address:
        remote = Remote(address, timeout=SHORT)
        with pytest.raises(RemoteError, match=f"{address} is too slow"), remote.connect() as line:
            line.read_all(1_000_000)


def test_deadline_of_a_conversation_that_pauses_is_extended() -> None:
    def talk(sock: socket.socket) -> None:
        while sock.recv(1):
            sock.sendall(b".")

    with (
        serving(talk) as address,
        contextlib.closing(Remote(address, timeout=SHORT).open()) as line,
    ):
        line.extend(timedelta(0))
        with pytest.raises(RemoteError, match="is too slow"):
            line.send(b"?")
        line.extend(LONG)
        line.send(b"?")
        assert line.read(1) == b"."


def test_service_that_hangs_up_in_the_middle_is_an_error() -> None:
    with serving(saying(b"half")) as address:
        remote = Remote(address, timeout=LONG)
        with remote.connect() as line:
            line.send(b"?")
            with pytest.raises(RemoteError, match="hung up in the middle"):
                line.read(10)


@pytest.mark.parametrize("read", ["read_until", "read_all"])
def test_endless_answer_is_an_error(read: str) -> None:
    with serving(saying(b"x" * 100_000)) as address:
        remote = Remote(address, timeout=LONG)
        with remote.connect() as line:
            line.send(b"?")
            with pytest.raises(RemoteError, match="sends more than 1000"):
                line.read_all(1000) if read == "read_all" else line.read_until(b"\0", 1000)


def test_service_that_is_away_is_named() -> None:
    with serving(drip) as address:
        pass
    with pytest.raises(RemoteError, match=f"^{address}: Connection refused"):
        Remote(address, timeout=LONG).open()


def fail(breaker: Breaker) -> None:
    with pytest.raises(ZeroDivisionError), breaker.watch():
        raise ZeroDivisionError


def test_service_that_failed_several_times_is_left_alone_for_a_while() -> None:
    clock = Clock(0.0)
    breaker = Breaker("scanner", failures=3, pause=30, clock=clock)
    for _ in range(3):
        fail(breaker)
    clock.now = 29
    with pytest.raises(RemoteError, match="scanner failed 3 times in a row"), breaker.watch():
        pytest.fail("it was asked")
    clock.now = 31
    one = breaker.watch()
    with one, pytest.raises(RemoteError), breaker.watch():
        pytest.fail("it was asked twice")  # before the result of the first
    with breaker.watch():
        pass


def test_service_that_fails_again_is_left_alone_again() -> None:
    clock = Clock(0.0)
    breaker = Breaker("scanner", failures=1, pause=30, clock=clock)
    fail(breaker)
    clock.now = 40
    fail(breaker)
    clock.now = 69
    with pytest.raises(RemoteError), breaker.watch():
        pytest.fail("it was asked")


def test_success_and_verdicts_are_no_failures() -> None:
    breaker = Breaker("scanner", failures=2)
    for _ in range(4):
        fail(breaker)
        with pytest.raises(Reject), breaker.watch():
            raise Reject("spam")


def answering(*pieces: bytes) -> Callable[[socket.socket], None]:
    return saying(b"HTTP/1.1 200 OK\r\nX-Word: yes\r\nConnection: close\r\n\r\n", *pieces)


def test_web_service_gives_status_fields_and_body() -> None:
    with serving(answering(b"he", b"llo")) as address:
        answer = WebService(f"http://{address}/check", timeout=LONG).request("POST", b"?")
    assert (answer.status, answer.headers["x-word"], answer.body) == (200, "yes", b"hello")


def test_web_service_sends_fields_in_utf_8_each_value_and_a_body_that_is_a_file() -> None:
    heard: list[bytes] = []

    def talk(sock: socket.socket) -> None:
        while not heard or not heard[-1].endswith(b"the end"):
            heard.append(sock.recv(65536))
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    body = io.BytesIO(b"x" * 100_000 + b"the end")
    with serving(talk) as address:
        WebService(f"http://{address}/", timeout=LONG).request(
            "POST",
            body,
            size=100_007,
            path="check",
            headers={"From": "m\u00fcller@example.org", "Rcpt": ["a@example.org", "b@example.org"]},
        )
    head, _, sent = b"".join(heard).partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        "POST /check HTTP/1.1",
        f"Host: {address}",
        "Accept-Encoding: identity",
        "Content-Length: 100007",
        "Connection: close",
        "From: m\u00fcller@example.org",
        "Rcpt: a@example.org",
        "Rcpt: b@example.org",
    ]
    assert sent == body.getvalue()


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_web_service_that_answers_in_single_octets_ends_at_the_deadline(begin: bytes) -> None:
    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(begin)
        drip(sock)

    with serving(talk) as address, pytest.raises(RemoteError, match="too slow"):
        WebService(f"http://{address}/", timeout=SHORT).request("GET")


def test_field_with_a_line_end_is_not_sent() -> None:
    with serving(saying()) as address, pytest.raises(RemoteError, match="Invalid header value"):
        WebService(f"http://{address}/", timeout=LONG).request("GET", headers={"A": "b\r\nC: d"})


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        (saying(b"220 mx.example.org ESMTP\r\n"), "does not answer in HTTP"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), "does not answer in HTTP"),
        (saying(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"), "answers 503 Busy"),
        (answering(b"x" * 2_000_000), "more than 1048576 octets"),
        (drip, "does not answer in HTTP|is too slow"),
        (saying(), "does not answer in HTTP|reset"),
    ],
    ids=["SMTP", "half", "503", "endless", "drip", "silence"],
)
def test_web_service_that_does_not_answer_well_is_an_error(
    talk: Callable[[socket.socket], None], problem: str
) -> None:
    with serving(talk) as address:
        service = WebService(f"http://{address}/", timeout=SHORT if talk is drip else LONG)
        with pytest.raises(RemoteError, match=problem):
            service.request("GET")


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "http://", "a.example", "http://u:p@a.example"]
)
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        WebService(url, timeout=LONG)


def test_line_becomes_tls_in_the_middle(tls_files: TlsFiles) -> None:
    def talk(sock: socket.socket) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls_files.certificate, tls_files.key)
        sock.sendall(b"go on\n")
        with context.wrap_socket(sock, server_side=True) as secured:
            secured.sendall(b"secret\n")

    with serving(talk) as address, Remote(address, timeout=LONG).connect() as line:
        assert line.read_until(b"\n") == b"go on"
        line.secure(tls_files.client(), "mx.example.org")
        assert line.read_until(b"\n") == b"secret"


def test_what_was_said_in_clear_is_no_part_of_tls(tls_files: TlsFiles) -> None:
    with serving(saying(b"220 go on\r\n250 forged\r\n")) as address:
        line = Remote(address, timeout=LONG).open()
        line.send(b"?")
        line.read_until(b"go on\r\n2")
        with pytest.raises(RemoteError, match="sends clear text after it agreed to TLS"):
            line.secure(tls_files.client(), "mx.example.org")
        line.close()


def test_every_host_is_no_place_of_a_service() -> None:
    with pytest.raises(ValueError, match='expected the address of a server, not "\\*:783"'):
        Remote(SocketAddress("*", 783), timeout=timedelta(seconds=1))
