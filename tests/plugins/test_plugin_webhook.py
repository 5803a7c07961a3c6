"""Storage by a web service: a real one of the standard library, and some that fail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from fakes import FAILURES, after_request, nobody_there, serving
from fakes import envelope as make_envelope
from minismtp_plugins.webhook import Webhook

from minismtp import Address, Content, ContentWriter, Message, RemoteError
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom
from minismtp.values.reply import Verdict

ALICE = Address("alice", "example.org")
TEXT = b"Subject: x\r\n\r\n.dot\r\n8-bit \xff\r\n"


@dataclass
class Service:
    """The requests to a service, and its answers."""

    url: str = ""
    status: int = 204
    answer: bytes = b""
    kind: str = "text/plain"
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    """Run a web service until the test ends."""
    service = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fields = {name.lower(): value for name, value in self.headers.items()}
            service.asked.append((self.path, fields, body))
            self.send_response(service.status)
            self.send_header("Content-Type", service.kind)
            self.send_header("Content-Length", str(len(service.answer)))
            self.end_headers()
            self.wfile.write(service.answer)

        def log_message(self, *_: object) -> None:
            """Do not log requests."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}/mail?of=us"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        server.shutdown()
        thread.join()


def deliver(plugin: Webhook, content: bytes = TEXT, mailbox: Address = ALICE) -> str:
    """Post a copy, and return the refusal."""
    try:
        message = Message("1a2b.1", Content.of(content), b"Received: by us\r\n")
        assert plugin.deliver(make_envelope(), message, mailbox) is True
    except Verdict as verdict:
        return f"{type(verdict).__name__} {verdict.reply}"
    return ""


def test_message_is_posted_as_it_would_be_stored_with_its_envelope(service: Service) -> None:
    assert deliver(Webhook(url=service.url)) == ""
    [(path, fields, body)] = service.asked
    assert path == "/mail?of=us"
    assert body == b"Received: by us\r\n" + TEXT
    assert fields["content-type"] == "message/rfc822"
    assert fields["envelope-id"] == "1a2b.1"
    assert fields["envelope-from"] == "sender@client.example"
    assert fields["envelope-to"] == "alice@example.org"
    assert "authorization" not in fields


def test_key_is_the_same_for_the_same_copy_and_no_other(service: Service) -> None:
    plugin = Webhook(url=service.url)
    for mailbox in (ALICE, ALICE, Address("bob", "example.org")):
        deliver(plugin, mailbox=mailbox)
    keys = [fields["idempotency-key"] for _, fields, _ in service.asked]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("local", ["jürgen", "a\r\nX-Forged: yes", "100%", 'a"b', "\udc80"])
def test_address_cannot_break_out_of_its_field(service: Service, local: str) -> None:
    mailbox = Address(local, "example.org")
    assert deliver(Webhook(url=service.url), mailbox=mailbox) == ""
    [(_, fields, _)] = service.asked
    assert unquote(fields["envelope-to"]) == str(mailbox).replace("\udc80", "?")
    assert "x-forged" not in fields


def test_json_has_envelope_and_message(service: Service) -> None:
    assert deliver(Webhook(url=service.url, format="json")) == ""
    [(_, fields, body)] = service.asked
    assert fields["content-type"] == "application/json"
    found = json.loads(body)
    assert base64.b64decode(found.pop("message")) == b"Received: by us\r\n" + TEXT
    assert found == {
        "id": "1a2b.1",
        "sender": "sender@client.example",
        "recipient": "alice@example.org",
        "peer": "192.0.2.1",
        "helo": "client.example",
        "login": None,
        "arrived": 1_700_000_000.0,
    }


@pytest.mark.parametrize("form", ["raw", "json"])
def test_large_message_from_disk_comes_whole(service: Service, tmp_path: Path, form: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    table = {"url": service.url, "format": form, "secret_file": str(secret)}
    plugin = build(Webhook, table, file="", key="", base=tmp_path)
    writer = ContentWriter()
    for _ in range(30):
        writer.write(b"0123456789abcde\r\n" * 4000)
    message = Message("x", writer.finish())
    assert plugin.deliver(make_envelope(), message, ALICE) is True
    [(_, _, body)] = service.asked
    got = base64.b64decode(json.loads(body)["message"]) if form == "json" else body
    assert got == b"0123456789abcde\r\n" * 120_000


@pytest.mark.parametrize("secret", ["plain key", "whsec_cGxhaW4ga2V5"])
def test_signature_is_that_of_standard_webhooks(
    service: Service, tmp_path: Path, secret: str
) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{secret}\n")
    deliver(Webhook(url=service.url, secret_file=path))
    [(_, fields, body)] = service.asked
    signed = f"{fields['webhook-id']}.{fields['webhook-timestamp']}.".encode() + body
    digest = hmac.new(b"plain key", signed, hashlib.sha256).digest()
    assert fields["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_token_is_sent_as_bearer(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("s3cr3t\n")
    deliver(Webhook(url=service.url, token_file=path))
    assert service.asked[0][1]["authorization"] == "Bearer s3cr3t"


@pytest.mark.parametrize(
    ("status", "answer", "verdict"),
    [
        (200, b"thanks", ""),
        (299, b"", ""),
        (400, b"what is this?\nmore", "Reject 550 5.7.1 what is this?"),
        (404, b"no such mailbox", "Reject 550 5.7.1 no such mailbox"),
        (422, b"", "Reject 550 5.7.1 refused by the service of the mailbox (422)"),
        (422, b"x" * 900, f"Reject 550 5.7.1 {'x' * 200}"),
        (422, b"a\x07b\xff", "Reject 550 5.7.1 a b\ufffd"),
        (413, b"", "Reject 552 5.3.4 refused by the service of the mailbox (413)"),
        (401, b"bad token", "Defer 451 4.3.0 the service of the mailbox answers 401"),
        (429, b"", "Defer 451 4.3.0 the service of the mailbox answers 429"),
    ],
)
def test_answer_is_the_verdict(service: Service, status: int, answer: bytes, verdict: str) -> None:
    service.status, service.answer = status, answer
    assert deliver(Webhook(url=service.url)) == verdict


def test_page_for_people_is_not_passed_on(service: Service) -> None:
    service.status, service.answer, service.kind = 403, b"<html>", "text/html"
    assert deliver(Webhook(url=service.url)).endswith("refused by the service of the mailbox (403)")


@pytest.mark.parametrize("status", [302, 500, 503])
def test_answer_that_settles_nothing_is_a_failure(service: Service, status: int) -> None:
    service.status = status
    with pytest.raises(RemoteError, match=str(status)):
        deliver(Webhook(url=service.url))


@pytest.mark.parametrize("failing", [*FAILURES, "cut off in the answer"])
def test_service_that_fails_is_no_storage(failing: str) -> None:
    half = after_request(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    with serving(FAILURES.get(failing, half)) as address:
        plugin = Webhook(url=f"http://{address}/", patience=timedelta(milliseconds=300))
        with pytest.raises(RemoteError):
            deliver(plugin)


def test_client_is_put_off_while_the_service_is_away() -> None:
    room = Mailroom()
    dialogue = Dialogue(Webhook(url=f"http://{nobody_there()}/"), room)
    assert dialogue.mail("Subject: x\n\ntext").startswith("451 4.3.0 ")
    assert room.stored == {}


def test_session_stores_through_the_service(service: Service) -> None:
    dialogue = Dialogue(Webhook(url=service.url), Mailroom())
    assert dialogue.mail("Subject: x\n\ntext", to=("a@b.c", "d@e.f")).startswith("250 ")
    assert [fields["envelope-to"] for _, fields, _ in service.asked] == ["a@b.c", "d@e.f"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "ftp://x/"}, "url: expected a URL"),
        ({"token_file": "missing"}, "token_file: "),
        ({"token_file": "empty"}, "expected a line of ASCII"),
        ({"secret_file": "broken"}, "secret_file: expected base64 behind whsec_"),
        ({"format": "xml"}, "format"),
    ],
)
def test_wrong_option_is_told(tmp_path: Path, options: dict[str, str], problem: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "broken").write_text("whsec_!")
    with pytest.raises(ConfigError) as fault:
        build(Webhook, {"url": "http://x/"} | options, file="", key="", base=tmp_path)
    assert problem in str(fault.value)


def test_envelope_of_a_bounce_has_an_empty_sender(service: Service) -> None:
    envelope = replace(make_envelope(), reverse_path=None)
    Webhook(url=service.url).deliver(envelope, Message("x", Content.of(TEXT)), ALICE)
    assert service.asked[0][1]["envelope-from"] == ""
