"""What anybody may send to a web listener."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final, cast

from fuzz.peers import Peer, threads_that_fail
from fuzz.target import target
from minismtp.config import Config
from minismtp.server.autodiscover_request import requested_address
from minismtp.server.web_server import WebHandler
from minismtp.server.web_site import site_of
from minismtp.services.acme_challenges import Challenges

_CONFIG: Final[dict[str, object]] = {
    "hostname": "mx.a.example",
    "listeners": [
        {"name": "smtp", "address": "*:25", "tls": "none"},
        {"name": "users", "address": "*:465", "kind": "submission", "tls": "implicit"},
    ],
    "tls": {"certificate": "/none", "key": "/none"},
}
_SITE: Final = site_of(
    Config.build(_CONFIG, file="", base=Path("/nonexistent")),
    Challenges(Path("/nonexistent")),
    {"a.example": True},
)


@target(
    *("server.web_server", "server.http_server", "services.acme_challenges"),
    *("server.web_site", "server.web_pages", "server.mail_settings"),
    most=1 << 14,
)
def request_on_the_web(data: bytes) -> None:
    said = io.BytesIO()
    with threads_that_fail():
        handler = object.__new__(WebHandler)
        handler.rfile = cast("Any", io.BytesIO(data))
        handler.wfile = cast("Any", said)
        handler.connection = cast("Any", Peer(b""))
        handler.client_address = ("127.0.0.1", 1)
        handler.server = cast("Any", _Server())
        handler.record = handler.server.record
        handler.handle()
    assert said.getvalue()[:7] in {b"", b"HTTP/1."}


@target("server.autodiscover_request", most=8192)
def request_of_outlook(data: bytes) -> None:
    found = requested_address(data)
    assert len(found) <= 320
    assert found == found.strip()


class _Server:
    """What the handler of a request wants of its server."""

    site = _SITE
    seconds = 1.0
    tls = None

    @property
    def record(self) -> _Server:
        """Count here."""
        return self

    def count(self, result: str) -> None:
        """Count nothing."""

    def refuse(self, result: str, peer: str, **fields: object) -> None:
        """Refuse in silence."""
