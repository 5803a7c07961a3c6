"""TLS of a web listener: ordinary clients, authorities that check a name (RFC 8737), and others."""

from __future__ import annotations

import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import wait_until
from cryptography import x509
from web_service import ask, counted, get, serving, status, web_tls

from minismtp.runtime.metrics import Metrics
from minismtp.server.web_pages import Page, Site
from minismtp.services.acme_challenges import Challenges
from minismtp.services.acme_tls_challenges import PROTOCOL, TlsChallenges

if TYPE_CHECKING:
    from conftest import TlsFiles

NAME: Final = "mx.example.org"
AUTHORIZATION: Final = "token.thumbprint"
#: A hello of 16 MiB whose first record is there, and nothing more.
ENDLESS: Final = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff".ljust(1 << 14, b"\0")


@pytest.fixture
def challenges(tmp_path: Path) -> TlsChallenges:
    (tmp_path / "state").mkdir()
    return TlsChallenges(tmp_path / "state")


@pytest.fixture
def web(tmp_path: Path, tls_files: TlsFiles, challenges: TlsChallenges) -> Iterator[Web]:
    """Serve one page over TLS, with 2 s for a request."""
    site = Site(Challenges(tmp_path), {("", "/any"): lambda _: Page("text/plain", b"page")})
    tls = web_tls(tls_files, challenges)
    with serving(site, tmp_path, most=300, most_of_one=300, seconds=2.0, tls=tls) as served:
        yield Web(*served, tls_files.client())


class Web:
    """A running listener, and the context of clients that trust its ordinary certificate."""

    def __init__(self, port: int, log: Path, metrics: Metrics, client: ssl.SSLContext) -> None:
        self.port = port
        self.log = log
        self.metrics = metrics
        self.client = client

    def serves(self) -> bool:
        return status(ask(self.port, get("/any"), self.client)) == 200

    def certificate(self, name: str | None, *protocols: str) -> x509.Certificate:
        """Return the certificate for a client that offers these protocols."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(list(protocols))
        with (
            socket.create_connection(("127.0.0.1", self.port), 60) as sock,
            context.wrap_socket(sock, server_hostname=name) as secured,
        ):
            der = secured.getpeercert(binary_form=True)
            assert der is not None
            if secured.selected_alpn_protocol() == PROTOCOL:
                assert secured.recv(1) == b""  # nothing else is done on it
            return x509.load_der_x509_certificate(der)

    def is_proof(self, found: x509.Certificate) -> bool:
        return bool(found.issuer == found.subject)


def test_authority_sees_the_certificate_of_the_challenge_and_others_never_do(
    web: Web, challenges: TlsChallenges
) -> None:
    """RFC 8737 section 3."""
    assert not web.is_proof(web.certificate(NAME, PROTOCOL))
    path = challenges.put(NAME, AUTHORIZATION)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    proof = web.certificate(NAME, PROTOCOL)
    assert web.is_proof(proof)
    names = proof.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [NAME]
    found = proof.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert found.critical
    assert isinstance(found.value, x509.UnrecognizedExtension)
    assert found.value.value == b"\x04\x20" + sha256(AUTHORIZATION.encode()).digest()
    assert web.is_proof(web.certificate(NAME.upper(), PROTOCOL))
    wait_until(lambda: counted(web.metrics, "served") == 2)
    for name, protocols in (
        (NAME, ()),
        (NAME, ("h2", "http/1.1")),
        (NAME, (PROTOCOL, "http/1.1")),
        ("other.example.org", (PROTOCOL,)),
        (None, (PROTOCOL,)),
    ):
        assert not web.is_proof(web.certificate(name, *protocols))
    assert web.serves()
    path.unlink()
    assert not web.is_proof(web.certificate(NAME, PROTOCOL))


@pytest.mark.parametrize("name", ["a", "../x.example", "a/b.example", "ä.example", "A.example", ""])
def test_challenge_is_for_a_host_name(name: str, challenges: TlsChallenges) -> None:
    with pytest.raises(ValueError, match="expected a host name"):
        challenges.put(name, AUTHORIZATION)
    assert challenges.context(name.encode(), (PROTOCOL.encode(),)) is None
    assert not challenges.are_there()


def test_challenge_that_cannot_be_read_fails_one_handshake_alone(
    web: Web, challenges: TlsChallenges
) -> None:
    challenges.put(NAME, AUTHORIZATION).write_text("no certificate")
    with pytest.raises(OSError, match=r"."):
        web.certificate(NAME, PROTOCOL)
    wait_until(lambda: counted(web.metrics, "failed") == 1)
    assert web.serves()


def hello_in_records_of_one_octet() -> bytes:
    body = b"\x01" + (3000).to_bytes(3, "big") + bytes(3000)
    return b"".join(b"\x16\x03\x01\x00\x01" + bytes([octet]) for octet in body)


HELLOS: Final = (
    b"\x16",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x16\x03\x01\xff\xff\x01",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00" * 10,
    ENDLESS,
    ENDLESS * 20,
    hello_in_records_of_one_octet(),
    bytes(range(256)) * 1000,
)


def rest(sock: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


@pytest.mark.parametrize("ends", [True, False], ids=["hang up", "wait"])
def test_hellos_that_are_none_are_closed_in_time_and_others_are_served(
    web: Web, challenges: TlsChallenges, *, ends: bool
) -> None:
    challenges.put(NAME, AUTHORIZATION)
    with ExitStack() as stack:
        hostile = []
        for said in HELLOS:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", web.port), 60))
            hostile.append(sock)
            with suppress(OSError):  # the server may have closed it
                sock.sendall(said)
                if ends:
                    sock.shutdown(socket.SHUT_WR)
        assert web.serves()
        for sock in hostile:
            rest(sock)
    wait_until(lambda: counted(web.metrics, "failed") == len(HELLOS))
    assert web.serves()


def test_many_slow_hellos_delay_nobody(web: Web, challenges: TlsChallenges) -> None:
    challenges.put(NAME, AUTHORIZATION)
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", web.port), 60))
            for _ in range(100)
        ]
        for sock in slow:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert web.serves()
        assert web.is_proof(web.certificate(NAME, PROTOCOL))
        for sock in slow:
            rest(sock)
    wait_until(lambda: counted(web.metrics, "failed") == len(slow))


def test_connection_of_a_refused_request_is_closed(web: Web) -> None:
    """Otherwise the collector would find it, and warn."""
    assert status(ask(web.port, get("/" + "a" * 70_000), web.client)) == 431
    assert web.serves()
