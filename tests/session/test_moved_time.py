"""Time that a test moves: plugins, their state and the session see it pass at once."""

import re
from dataclasses import field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from minismtp_plugins._signing import Signer, content_tags
from minismtp_plugins.arc import Arc
from minismtp_plugins.dkim_sign import DkimSign
from minismtp_plugins.dkim_verify import DkimVerify
from minismtp_plugins.greylist import Greylist
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.rate_limit import Limit, RateLimit
from zones import DictionaryResolver, published

from minismtp import (
    Address,
    Content,
    Defer,
    Envelope,
    Message,
    Rate,
    Recipient,
    Reject,
    ServerInfo,
    hookimpl,
    plugin,
    results_of,
)
from minismtp.config import Config
from minismtp.testing import Clock, Dialogue, Dialogues, Mailroom

MINUTE = timedelta(minutes=1)


@plugin
class Pause:
    """Defers a client's second session in a minute, by a clock or by the state."""

    by_state: bool = False

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._server = server
        self._last = -1000.0

    @hookimpl
    def on_connect(self) -> None:
        state, now = self._server.state, self._server.clock()
        if self.by_state:
            if state.add("clients", 1, MINUTE) > 1:
                raise Defer("wait a minute")
        elif now - self._last < 60:
            raise Defer("wait a minute")
        self._last = now


@pytest.mark.parametrize("by_state", [True, False])
def test_plugin_sees_time_pass(by_state: bool, dialogue: Dialogues) -> None:
    session = dialogue(Pause(by_state=by_state))

    def banner() -> str:
        return Dialogue(service=session.service).banner[:3]

    assert banner() == "421"
    dialogue.advance(timedelta(seconds=59))
    assert banner() == "421"
    dialogue.advance(timedelta(seconds=61))
    assert banner() == "220"


def test_greylisted_mail_passes_after_its_delay(dialogue: Dialogues) -> None:
    greylist = Greylist(delay=timedelta(minutes=5))
    assert dialogue(greylist, Mailroom()).mail("x").startswith("451 4.7.1 greylisted")
    dialogue.advance(timedelta(minutes=5))
    assert dialogue(Greylist(), Mailroom()).mail("x").startswith("250 ")


def test_configured_greylist_passes_after_its_delay(dialogue: Dialogues, tmp_path: Path) -> None:
    document: dict[str, object] = {
        "state_directory": "state",
        "listeners": [{"name": "smtp", "address": "127.0.0.1:0", "tls": "none"}],
        "plugins": [{"use": "greylist"}, {"use": "mailboxes", "domains": ["example.org"]}],
    }
    config = Config.build(document, file="mini.toml", base=tmp_path)
    for reply in ("451", "250"):
        session = dialogue.configured(config, "smtp")
        session.send("EHLO client.example")
        session.send("MAIL FROM:<a@client.example>")
        assert session.send("RCPT TO:<b@example.org>")[:3] == reply
        dialogue.advance(timedelta(minutes=6))


def test_limit_is_free_again_after_its_span(dialogue: Dialogues) -> None:
    limit = Limit(by="login", messages=Rate(1, timedelta(hours=1)))
    session = dialogue(RateLimit(limits=[limit]), Mailroom(), login="alice")
    assert session.mail("x").startswith("250")
    assert session.mail("x").startswith("4")
    session.advance(timedelta(hours=1, minutes=4))
    assert session.mail("x").startswith("250")


def test_session_sees_time_pass_too(dialogue: Dialogues) -> None:
    session = dialogue(Mailroom())
    before = session.service.wall(), session.service.clock()
    session.advance(timedelta(days=1))
    after = session.service.wall(), session.service.clock()
    for old, new in zip(before, after, strict=True):
        assert 86_400 <= new - old < 86_400 + 600


def test_time_of_a_session_without_the_fixture_can_be_moved() -> None:
    clock = Clock(wall=lambda: 1000.0, monotonic=lambda: 5.0)
    session = Dialogue(Pause(), clock=clock)
    assert session.service.wall() == 1000.0
    clock.advance(timedelta(seconds=10))
    assert (session.service.wall(), session.service.clock()) == (1010.0, 15.0)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="forward"):
        Clock().advance(timedelta(seconds=-1))


def test_real_server_has_the_real_clocks(tmp_path: Path) -> None:
    info = ServerInfo("mx.example.org", tmp_path, "worker", 0)
    assert info.clock() <= info.clock()
    assert info.wall() > 1.7e9
    assert replace(info, wall=lambda: 0.0) == info


DAY = timedelta(days=1)
RSA = rsa.generate_private_key(65537, 2048)
ZONE = DictionaryResolver({"one._domainkey.example.org": [published(RSA)]})
TIME = re.compile(r" t=([0-9]+);")
CONTENT = "From: alice@example.org\nSubject: Hello\n\nHi.\n"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def times(message: Message, name: str) -> set[int]:
    """Return the times of signature in the fields of a name."""
    return {int(found) for raw in message.headers.get_all(name) for found in TIME.findall(raw)}


def test_signature_has_the_moved_time(dialogue: Dialogues, key: Path) -> None:
    session = dialogue(
        DkimSign(domains=["example.org"], keys=key, selectors=["one"]), login="alice"
    )
    dialogue.advance(1000 * DAY)
    message, _ = session.leave(CONTENT)
    assert times(message, "DKIM-Signature") == {int(dialogue.clock.wall())}


def test_seal_has_the_moved_time(dialogue: Dialogues, key: Path) -> None:
    session = dialogue(Arc(domain="example.org", selector="one", key=key))
    dialogue.advance(1000 * DAY)
    results = "Authentication-Results: mx.example.org; arc=none\nReceived: from x by y; now\n"
    message, _ = session.leave(results + CONTENT)
    assert times(message, "ARC-Seal") == {int(dialogue.clock.wall())}


def expiring(now: float) -> str:
    """Return a message whose signature expires in two days."""
    signer = Signer("example.org", "one", RSA)
    message = Message("0", Content.of(CONTENT.replace("\n", "\r\n").encode()))
    tags, fields = content_tags(message)
    whole = f"v=1; {signer.tags(now)} x={int(now + 2 * DAY.total_seconds())}; {tags}"
    message.prepend("DKIM-Signature", signer.signed("DKIM-Signature", whole, fields))
    with message.open() as content:
        return content.read().decode()


@plugin
class Results:
    """Keeps the results of other plugins."""

    told: list[str] = field(default_factory=list)

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        self.told += [each.result for each in results_of(envelope)]


def test_signature_expires_as_time_passes(dialogue: Dialogues) -> None:
    results, content = Results(), expiring(dialogue.clock.wall())
    for _ in range(2):
        dialogue(DkimVerify(), results, Mailroom(), resolver=ZONE).mail(content)
        dialogue.advance(3 * DAY)
    assert results.told == ["pass", "policy"]


def test_sealed_chain_expires_as_time_passes(dialogue: Dialogues, key: Path) -> None:
    sealer = Arc(domain="example.org", selector="one", key=key)
    found = "Authentication-Results: mx.example.org; arc=none\nReceived: from x by y; now\n"
    original, tags = Signer.tags, f"x={int(dialogue.clock.wall() + 2 * DAY.total_seconds())};"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signer, "tags", lambda self, now: f"{original(self, now)} {tags}")
        message, _ = dialogue(sealer).leave(found + CONTENT)
    with message.open() as reader:
        content = reader.read()
    results = Results()
    for _ in range(2):
        dialogue(Arc(), results, Mailroom(), resolver=ZONE).mail(content)
        dialogue.advance(3 * DAY)
    assert results.told == ["pass", "fail"]


def test_rewritten_sender_expires_as_time_passes(dialogue: Dialogues, tmp_path: Path) -> None:
    (tmp_path / "srs").write_text("a secret of sixteen\n")
    (tmp_path / "aliases").write_text("bob: bob@example.net\n")
    mailboxes = Mailboxes(
        domains=["example.org"],
        aliases_file=tmp_path / "aliases",
        srs_secret_file=tmp_path / "srs",
    )
    session = dialogue(mailboxes)
    envelope = Envelope(
        id="e", reverse_path=Address("jo", "sender.example"), listener="smtp", peer="192.0.2.1",
        helo="x", login=None, arrived=0.0,
    )  # fmt: skip

    def routed(address: Address) -> Recipient:
        recipient = Recipient(address)
        recipient.route = session.service.hooks.route(session.session, envelope, recipient)
        return recipient

    [relay] = routed(Address("bob", "example.org")).relays
    envelope.reverse_path = None
    assert relay.sender is not None
    dialogue.advance(20 * DAY)
    assert routed(relay.sender).relays[0].addresses == (Address("jo", "sender.example"),)
    dialogue.advance(3 * DAY)
    with pytest.raises(Reject, match="expired"):
        routed(relay.sender)
