"""RFC 3207, 6066 and 8314: STARTTLS and certificates, in memory and over sockets."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme
from client_script import (
    MAIL,
    MAIL_FROM,
    MESSAGE,
    NOOP,
    OK,
    SENDER,
    code,
    greeted,
    hear,
    plain,
    rules,
    said,
)
from snippets import MX, SUBMISSIONS
from stub_plugins import Passwords

from minismtp.mail.session import TlsInfo
from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from conftest import Client, Launch, Running


TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")


@pytest.mark.parametrize(
    ("script", "change", "tls", "expected"),
    [
        (b"STARTTLS\r\n", {"starttls": True}, False, ["220 2.0.0"]),
        (b"STARTTLS x\r\n", {"starttls": True}, False, ["501 5.5.4"]),
        (b"STARTTLS\r\n", {}, False, ["502 5.5.1"]),
        (b"STARTTLS\r\n", {"starttls": True}, True, ["503 5.5.1"]),
        (b"STARTTLS\r\n", {}, True, ["503 5.5.1"]),
        (b"starttls \r\n", {"starttls": True}, False, ["220 2.0.0"]),
        (MAIL + b"STARTTLS\r\n", {"starttls": True}, False, [SENDER, "503 5.5.1"]),
    ],
    ids=[
        "offered",
        "argument",
        "not-offered",
        "again",
        "again-not-offered",
        "lower-case",
        "in-a-transaction",
    ],
)
def test_starttls_is_answered_as_its_rfc_says(
    script: bytes, change: dict[str, Any], tls: bool, expected: list[str]
) -> None:
    # RFC 3207 section 4
    assert said(script, change=change, tls=tls) == expected


@pytest.mark.parametrize(
    "behind", [NOOP, MESSAGE, b"EHLO x.example\r\n" + MESSAGE, b"\x16", b"\r\n"]
)
def test_octets_in_clear_behind_starttls_end_the_session(behind: bytes) -> None:
    # RFC 3207 section 6 (CVE-2011-0411)
    heard = hear(b"STARTTLS\r\n" + behind, change={"starttls": True})
    assert heard.codes == ["421 4.7.0"]
    assert not heard.stored


def test_tls_forgets_login_and_greeting_and_asks_for_a_new_one() -> None:
    # RFC 3207 section 4.2
    dialogue = Dialogue(service=replace(rules(Passwords()), starttls=True))
    greeted(dialogue).send(plain("secret"))
    assert dialogue.send("STARTTLS") == "220 2.0.0 ready to start TLS"
    assert dialogue.receiver.wants_tls
    dialogue.receiver.secured(TLS)
    assert (dialogue.session.login, dialogue.session.helo, dialogue.session.esmtp) == (
        None,
        "",
        False,
    )
    assert code(dialogue.send(MAIL_FROM)) == "503 5.5.1"
    lines = dialogue.send("EHLO client.example").splitlines()
    assert lines[3:5] == ["250-REQUIRETLS", "250-AUTH PLAIN LOGIN"]


ASKING: Final = "client_certificates = true\n"
FRONT: Final = MX + ASKING + SUBMISSIONS + ASKING


@dataclass
class Front:
    """A server with two certificates, and the authority of its clients."""

    server: Running
    clients: dict[str, ssl.SSLContext]

    def secured(self, listener: str, name: str = "mx.example.org", who: str = "nobody") -> Client:
        """Connect and make the handshake, asking for the server by a name."""
        client = self.server.connect(listener)
        if listener == "smtp":
            client.greet()
            assert client.command("STARTTLS").startswith("220 2.0.0 ")
        context = self.clients[who]
        client.socket = context.wrap_socket(client.socket, server_hostname=name)
        if listener != "smtp":
            client.reply()
        return client


@pytest.fixture(scope="module")
def front(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Run a server behind every kind of front end."""
    directory = tmp_path_factory.mktemp("front")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("mx.example.org", "mail.example.com"):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
    clients = {who: ssl.create_default_context() for who in ("nobody", "alice")}
    for context in clients.values():
        authority.configure_trust(context)
    authority.issue_cert("alice@example.org").configure_cert(clients["alice"])
    pairs = {
        name: f'certificate = "{directory}/{name}.pem"\nkey = "{directory}/{name}.key"\n'
        for name in ("mx.example.org", "mail.example.com")
    }
    tls = f'[tls]\nclient_ca = "{directory}/ca.pem"\n{pairs["mx.example.org"]}'
    sni = f'[[tls.sni]]\nname = "mail.example.com"\n{pairs["mail.example.com"]}'
    with launch(tls, sni, listeners=FRONT) as server:
        yield Front(server, clients)


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
@pytest.mark.parametrize("name", ["mx.example.org", "mail.example.com"])
def test_name_that_the_client_asks_for_chooses_the_certificate(
    front: Front, listener: str, name: str
) -> None:
    # RFC 6066 section 3; the handshake fails for a certificate of another name
    with front.secured(listener, name) as client:
        assert client.command("NOOP").startswith(OK)


def test_starttls_inside_tls_is_503_and_not_offered(front: Front) -> None:
    # RFC 3207 sections 4 and 4.2; RFC 8314 section 3
    for listener in ("smtp", "submissions"):
        with front.secured(listener) as client:
            assert "STARTTLS" not in client.command("EHLO client.example")
            assert client.command("STARTTLS").startswith("503 5.5.1 ")


def test_session_inside_tls_starts_again(front: Front) -> None:
    # RFC 3207 section 4.2
    with front.secured("smtp") as client:
        assert client.command("MAIL FROM:<>").startswith("503 5.5.1 ")
        client.command("EHLO client.example")
        assert client.command("MAIL FROM:<>").startswith(SENDER)


def test_commands_in_clear_after_the_220_are_no_commands(front: Front) -> None:
    # RFC 3207 section 6: in a packet of their own, where a handshake was to come
    with front.server.connect() as client:
        client.greet()
        assert client.command("STARTTLS").startswith("220 2.0.0 ")
        client.send(b"EHLO client.example\r\n" + MESSAGE.replace(b"user@", b"injected@"))
        assert "250" not in client.rest(reset=True)
    assert front.server.mail("injected") == []


def test_identity_is_that_of_the_client_certificate(front: Front) -> None:
    # RFC 4422 appendix A
    with front.secured("submissions", who="alice") as client:
        assert "AUTH EXTERNAL" in client.command("EHLO client.example")
        assert client.command("AUTH EXTERNAL =").startswith("235 2.7.0 ")
        assert client.command("MAIL FROM:<alice@example.org>").startswith(SENDER)


def test_client_without_a_certificate_has_no_identity(front: Front) -> None:
    # RFC 4422 appendix A
    with front.secured("submissions") as client:
        assert "EXTERNAL" not in client.command("EHLO client.example")
        assert client.command("AUTH EXTERNAL =").startswith(("502 5.5.1 ", "504 5.5.4 "))
        assert client.command("MAIL FROM:<alice@example.org>").startswith("530 5.7.0 ")
