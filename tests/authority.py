"""A certificate authority for tests: Debian's pebble, with a DNS that sends all names to loopback.

Its host has a certificate of `trustme`. It does not wait, refuses no nonce, and checks every name
again, because these depend on chance by default.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import trustme
from conftest import wait_until
from ports import free_port

_SETTINGS: Final = {
    "PEBBLE_VA_NOSLEEP": "1",
    "PEBBLE_WFE_NONCEREJECT": "0",
    "PEBBLE_AUTHZREUSE": "0",
}
#: An account for external account binding.
EAB_ID: Final = "kid-1"
EAB_KEY: Final = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@dataclass
class Authority:
    """A running authority. It fetches answers from `web_port` of loopback, or from `tls_port`.

    `dns_port` is that of its DNS, which has every name; servers with this `table` ask it.
    """

    port: int
    web_port: int
    tls_port: int
    trusted: Path
    log: Path
    dns_port: int = 0

    def table(self, challenges: Path | None, *lines: str, names: str = "mx.example.org") -> str:
        """Return `[tls.acme]` for a configuration."""
        place = [f'challenges = "{challenges}"'] if challenges else []
        return "\n".join(
            [
                "[tls.acme]\nagree_terms = true",
                f'directory = "https://localhost:{self.port}/dir"\ndirectory_ca = "{self.trusted}"',
                f"names = {json.dumps(names.split())}\n",
                *place,
                *lines,
                *([f'[dns]\nnameservers = ["127.0.0.1:{self.dns_port}"]\n'] * bool(self.dns_port)),
            ]
        )


@contextlib.contextmanager
def running_authority(
    directory: Path, require_program: Callable[[str], str], *, eab: bool = False
) -> Iterator[Authority]:
    """Run an authority while the block runs."""
    programs = [require_program(name) for name in ("pebble", "pebble-challtestsrv")]
    trusted, (certificate, key) = directory / "ca.pem", issue(directory, trustme.CA())
    port, dns, web, tls = free_port(), free_port(), free_port(), free_port()
    settings: dict[str, Any] = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{free_port()}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": web,
        "tlsPort": tls,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": eab,
        "externalAccountMACKeys": {EAB_ID: EAB_KEY},
    }
    (directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
    management = f"127.0.0.1:{free_port()}"
    none = [
        word
        for name in ("http01", "https01", "tlsalpn01", "defaultIPv6")
        for word in (f"-{name}", "")
    ]
    commands = (
        [programs[0], "-config", "pebble.json", "-dnsserver", f"127.0.0.1:{dns}"],
        [programs[1], "-dns01", f"127.0.0.1:{dns}", *none, "-management", management],
    )
    log = directory / "pebble.log"
    with contextlib.ExitStack() as stack, log.open("wb") as output:
        for command in commands:
            process = subprocess.Popen(
                command, cwd=directory, env=os.environ | _SETTINGS, stdout=output, stderr=output
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        for each in (port, dns):
            wait_until(lambda each=each: _answers(each))  # type: ignore[misc]
        yield Authority(port, web, tls, trusted, log, dns)


def issue(directory: Path, authority: trustme.CA, **options: Any) -> tuple[Path, Path]:  # noqa: ANN401 - of trustme
    """Write `ca.pem`, and a certificate for localhost and its key, and return these two."""
    issued = authority.issue_cert("localhost", "127.0.0.1", **options)
    certificate, key = directory / "host.pem", directory / "host.key"
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def serving_challenges(
    port: int, directory: Path, refused: Container[str] = ()
) -> Iterator[list[str]]:
    """Serve the files of a directory to the authority, and yield the names it asked for.

    Under the names in `refused` nothing is served.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, token = self.path.rpartition("/")
            name = self.headers.get("Host", "").partition(":")[0]
            asked.append(name)
            file = directory / token
            known = path == "/.well-known/acme-challenge" and file.is_file()
            found = known and name not in refused
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(file.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", port), Handler)):
        yield asked


@dataclass
class Stub:
    """An authority that does what pebble does not."""

    port: int
    trusted: Path
    status: int = 429
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    renewal: bytes | None = None  # what it says about renewals (RFC 9773); None = it does not
    renewal_status: int = 200
    pause: float = 0.0  # seconds between two octets of that
    header_pause: float = 0.0  # seconds between two octets of its header
    missing: int = 0  # octets of it that are not sent
    silent: bool = False  # whether it then neither sends nor hangs up
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def stub_authority(directory: Path, **options: Any) -> Iterator[Stub]:  # noqa: ANN401 - of trustme
    """Run an authority that makes accounts and answers each order with `status`."""
    certificate, key = issue(directory, trustme.CA(), **options)
    stub = Stub(free_port(), directory / "ca.pem")
    base = f"https://localhost:{stub.port}"
    paths = {each: f"{base}/{each}" for each in ("newNonce", "newAccount", "newOrder")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if stub.renewal is not None and self.path.startswith("/renewalInfo/"):
                self._send(stub.renewal_status, stub.renewal, stub.headers)
                return
            more = {} if stub.renewal is None else {"renewalInfo": f"{base}/renewalInfo"}
            self._send(200, json.dumps(paths | more).encode())

        def do_HEAD(self) -> None:
            self._send(200, b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/newAccount":
                self._send(201, b'{"status": "valid"}', {"Location": f"{base}/account/1"})
            else:
                self._send(stub.status, stub.answer, stub.headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            stub.asked.append(self.path)
            self.send_response(status)
            fields = {"Content-Type": "application/json", "Replay-Nonce": "bm9uY2U"}
            for name, value in (fields | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) + stub.missing))
            header = b"".join([*self._headers_buffer, b"\r\n"])
            _drip(self.wfile, header, stub.header_pause)
            _drip(self.wfile, body, stub.pause)
            self._headers_buffer: list[bytes] = []
            self.close_connection = not stub.silent

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", stub.port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with _serving(server):
        yield stub


def _drip(file: BufferedIOBase, octets: bytes, pause: float) -> None:
    """Write octets, each after a pause if there is one."""
    for piece in [octets[at : at + 1] for at in range(len(octets))] if pause else [octets]:
        time.sleep(pause)
        file.write(piece)


@contextlib.contextmanager
def _serving(server: ThreadingHTTPServer) -> Iterator[None]:
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that hang up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library for ACME not sleep for a second between two questions."""
    monkeypatch.setattr("acme.client.time", SimpleNamespace(sleep=lambda _: time.sleep(0.02)))
