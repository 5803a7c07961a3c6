"""A package index over HTTPS for tests, with what a test has it answer."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import TlsFiles


@dataclass
class PackageIndex:
    """A running index. `requests` has the path and the header fields of each request."""

    port: int
    status: int = 200
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    missing: int = 0  # octets of the body that do not come
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL for the configuration."""
        return f"https://localhost:{self.port}/simple/"

    def has(self, *names: str, yanked: tuple[str, ...] = ()) -> None:
        """Have these files, in the form of PEP 691."""
        files: list[dict[str, Any]] = [
            {"filename": name, "url": f"../{name}", "hashes": {}} for name in names
        ]
        files += [{"filename": name, "url": "x", "hashes": {}, "yanked": "bad"} for name in yanked]
        page = {"meta": {"api-version": "1.1"}, "name": "minismtp", "files": files}
        self.status, self.body = 200, json.dumps(page).encode()


@contextlib.contextmanager
def package_index(files: TlsFiles) -> Iterator[PackageIndex]:
    """Run an index, whose certificate is for localhost, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.requests.append((self.path, dict(self.headers)))
            self.send_response(index.status)
            for name, value in index.fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(index.body) + index.missing))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(index.body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # such as a client that trusts nobody
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    index = PackageIndex(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
