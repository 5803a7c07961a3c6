"""What anybody may send to a web listener."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final, cast

from fuzz.peers import Peer, threads_that_fail
from fuzz.target import target
from minismtp.server.web_pages import Page, Site
from minismtp.server.web_server import WebHandler
from minismtp.services.acme_challenges import Challenges

_SITE: Final = Site(
    Challenges(Path("/nonexistent")),
    {("", "/page"): lambda request: Page("text/plain", repr(request).encode())},
    frozenset({"/page"}),
)


@target("server.web_server", "server.http_server", "services.acme_challenges", most=1 << 14)
def request_on_the_web(data: bytes) -> None:
    said = io.BytesIO()
    with threads_that_fail():
        handler = object.__new__(WebHandler)
        handler.rfile = cast("Any", io.BytesIO(data))
        handler.wfile = cast("Any", said)
        handler.connection = cast("Any", Peer(b""))
        handler.client_address = ("127.0.0.1", 1)
        handler.server = cast("Any", _Server())
        handler.handle()
    assert said.getvalue()[:7] in {b"", b"HTTP/1."}
    assert said.getvalue().count(b"\r\n\r\n") <= 2  # after 100 Continue, one answer


class _Server:
    """What the handler of a request wants of its server."""

    site = _SITE
    seconds = 1.0
    certificates = None

    @property
    def record(self) -> _Server:
        """Count here."""
        return self

    def count(self, result: str) -> None:
        """Count nothing."""

    def refuse(self, result: str, peer: str, **fields: object) -> None:
        """Refuse in silence."""
