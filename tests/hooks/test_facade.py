"""Each hook as plugins and clients see it. `test_every_hook_has_a_test` counts them."""

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import ClassVar

import pluggy
import pytest
from client_script import plain
from pumps import grows_too_fast
from scram import b64, scram
from stub_plugins import Judge, Observer

from minismtp import (
    Address,
    Content,
    Credentials,
    Defer,
    Delivery,
    Destination,
    Disconnect,
    DnsRecord,
    DnsZone,
    Envelope,
    Local,
    Message,
    PluginCheck,
    Recipient,
    Reject,
    Relay,
    Reply,
    ServerInfo,
    Session,
    SocketAddress,
    hookimpl,
    plugin,
)
from minismtp.config import Config, Listener, PluginConfig
from minismtp.events import (
    Authenticated,
    MessageDecided,
    RecipientDecided,
    SessionClosed,
    SessionOpened,
)
from minismtp.hooks import specs
from minismtp.hooks.facade import Hooks
from minismtp.hooks.loader import PluginSet, hook_names
from minismtp.hooks.plugin_check import Facts, check_plugins
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.thread_activity import Activity
from minismtp.session.receiver import Receiver
from minismtp.smtp.sasl import StoredKey, derive_key
from minismtp.testing import Dialogue, Mailroom
from minismtp.values.reply import Verdict


def at_rcpt(dialogue: Dialogue, *, data: bool = False) -> Dialogue:
    """Run a session up to RCPT, or until DATA would be next."""
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example>")
    if data:
        dialogue.send("RCPT TO:<user@example.org>")
    return dialogue


def test_every_hook_has_a_test() -> None:
    for name in hook_names():
        assert any(test.startswith(f"test_{name}_") for test in globals()), name


def test_facade_calls_every_hook() -> None:
    hooks = Dialogue().service.hooks
    without = {name for name in hook_names() if not callable(getattr(hooks, name, None))}
    assert without == {
        "on_check",
        "on_dns",
    }  # asked of each plugin by itself


@plugin
class Lifecycle:
    seen: list[object] = field(default_factory=list)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self.seen.append(server)

    @hookimpl
    def on_stop(self) -> None:
        self.seen.append("stopped")


def test_on_start_learns_about_the_process(tmp_path: Path) -> None:
    lifecycle = Lifecycle()
    Dialogue(lifecycle, spool=tmp_path)
    assert lifecycle.seen == [ServerInfo("mx.example.org", tmp_path, "worker", 0)]


@plugin
class Published:
    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        zone.receive("a.example")
        zone.send("B.example")
        zone.add(DnsRecord("c.example", "TXT", "x"))


def test_on_dns_names_domains_and_records() -> None:
    zone = DnsZone("mx.example.org")
    Published().on_dns(zone)
    assert (zone.receiving, [*zone.sending]) == ({"a.example": True}, ["b.example"])
    assert [*zone.records] == [DnsRecord("c.example", "TXT", "x")]


@plugin
class Place:
    limit: int = 5

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        if check.role == "check":
            check.warn(f"limit: {self.limit} is low; expected 10 or more")
        check.error("cannot work at all; remove its table")
        check.comes_after("later", lest="sees too little")


def test_on_check_reports_with_the_place_in_the_file(tmp_path: Path) -> None:
    tables = [
        PluginConfig(use="place", options={"limit": 5}, key="plugins[0]"),
        PluginConfig(use="later", key="plugins[1]"),
    ]
    listener = Listener(name="smtp", address=SocketAddress("127.0.0.1"), tls="none")
    config = Config(listeners=[listener], plugins=tables, file=str(tmp_path / "x.toml"))
    pair: list[tuple[PluginConfig, object]] = [(tables[0], Place()), (tables[1], Lifecycle())]
    found = [
        (each.severity, str(each.mistake)) for each in check_plugins(config, "check", pair, Facts())
    ]
    assert found == [
        ("warning", f"{tmp_path}/x.toml: plugins[0].limit: 5 is low; expected 10 or more"),
        ("error", f"{tmp_path}/x.toml: plugins[0]: cannot work at all; remove its table"),
        ("warning", f"{tmp_path}/x.toml: plugins[0]: sees too little: put its table below later"),
    ]


def test_on_stop_is_called_at_the_end() -> None:
    lifecycle = Lifecycle()
    Dialogue(lifecycle).close()
    assert lifecycle.seen[1:] == ["stopped"]


@plugin
class Farewell:
    """Records how sessions ended, and may fail."""

    error: Exception | None = None
    ends: list[tuple[str, str]] = field(default_factory=list)

    @hookimpl
    def on_disconnect(self, session: Session, reason: str) -> None:
        self.ends.append((session.helo, reason))
        if self.error is not None:
            raise self.error


def test_on_disconnect_is_called_once_with_the_reason() -> None:
    farewell = Farewell()
    for end, reason in (("QUIT", "quit"), ("NOOP", "lost")):
        dialogue = Dialogue(farewell)
        dialogue.send("EHLO client.example")
        dialogue.send(end)
        assert not farewell.ends
        dialogue.close()
        dialogue.close()
        assert farewell.ends.pop() == ("client.example", reason)


def test_on_disconnect_is_called_for_a_client_that_was_refused() -> None:
    farewell = Farewell()
    Dialogue(farewell, Judge(hook="on_connect", verdict=Reject("no"))).close()
    assert farewell.ends == [("", "refused")]


def test_on_disconnect_is_not_called_without_a_session() -> None:
    farewell = Farewell()
    service = Dialogue(farewell).service
    session = Session(id="1", listener="test", kind="mx", hostname="mx", peer="192.0.2.1")
    Receiver(service, session, Activity()).finished()
    assert farewell.ends == []


@pytest.mark.parametrize("error", [OSError("away"), Reject("no"), Disconnect("bye")], ids=repr)
def test_on_disconnect_cannot_affect_anything(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    observer = Observer()
    dialogue = Dialogue(Farewell(error=error), observer)
    dialogue.close()
    assert isinstance(observer.events[-1], SessionClosed)
    assert "hook=on_disconnect policy=ignore" in capfd.readouterr().err
    assert dialogue.count("connections_active", listener="test") == 0


@pytest.mark.parametrize(
    ("verdict", "banner"),
    [
        (Reject("unwelcome"), "554 mx.example.org unwelcome\r\n"),
        (Reject("unwelcome", code=550, enhanced="5.7.25"), "554 mx.example.org unwelcome\r\n"),
        (Defer("not now"), "421 mx.example.org not now\r\n"),
        (Disconnect("bye"), "421 mx.example.org bye\r\n"),
        (Disconnect("bye", code=550, enhanced="5.7.1"), "554 mx.example.org bye\r\n"),
    ],
    ids=str,
)
def test_on_connect_refusal_is_the_banner_without_enhanced_code(
    verdict: Verdict, banner: str
) -> None:
    # RFC 5321 section 3.1; RFC 2034 section 4
    dialogue = Dialogue(Judge(hook="on_connect", verdict=verdict))
    assert dialogue.banner == banner
    assert dialogue.receiver.closing == (not isinstance(verdict, Reject))
    assert dialogue.count("connections_total", listener="test", result="refused") == 1
    assert dialogue.count("connections_total", listener="test", result="accepted") == 0


def test_on_connect_reject_leaves_the_peer_nothing_but_quit() -> None:
    # RFC 5321 section 3.1: 503 to every command before QUIT
    dialogue = Dialogue(Judge(hook="on_connect", verdict=Reject("unwelcome")))
    assert dialogue.send("EHLO client.example").startswith("503")
    assert dialogue.send("MAIL FROM:<a@client.example>").startswith("503")
    assert dialogue.send("QUIT").startswith("221")
    assert dialogue.receiver.closing


def test_on_connect_sees_the_peer() -> None:
    @plugin
    class Blocked:
        addresses: tuple[str, ...]

        @hookimpl
        def on_connect(self, session: Session) -> None:
            if session.peer in self.addresses:
                raise Reject("blocked")

    blocked = Blocked(addresses=("192.0.2.7",))
    assert Dialogue(blocked, peer="192.0.2.7").banner.startswith("554")
    assert Dialogue(Blocked(addresses=("192.0.2.7",)), peer="192.0.2.8").banner.startswith("220")


@pytest.mark.parametrize("greeting", ["EHLO", "HELO"])
@pytest.mark.parametrize(
    ("verdict", "reply"),
    [(Reject("no"), "550 no"), (Defer("later"), "451 later"), (Disconnect("bye"), "421 bye")],
    ids=str,
)
def test_on_helo_refusal_has_no_enhanced_code(verdict: Verdict, reply: str, greeting: str) -> None:
    # RFC 2034 section 4
    dialogue = Dialogue(Judge(hook="on_helo", verdict=verdict))
    assert dialogue.send(f"{greeting} client.example") == reply
    assert dialogue.receiver.closing == isinstance(verdict, Disconnect)


def test_on_helo_refusal_leaves_the_session_as_it_was() -> None:
    # RFC 5321 section 4.1.4
    @plugin
    class BadHelo:
        @hookimpl
        def on_helo(self, session: Session) -> None:
            if session.helo == "bad.example":
                raise Reject("bad name")

    dialogue = Dialogue(BadHelo(), Mailroom())
    assert dialogue.send("EHLO bad.example").startswith("550")
    assert dialogue.send("MAIL FROM:<a@client.example>").startswith("503")
    at_rcpt(dialogue)
    assert dialogue.send("HELO bad.example").startswith("550")
    assert (dialogue.session.helo, dialogue.session.esmtp) == ("client.example", True)
    assert dialogue.send("RCPT TO:<user@example.org>").startswith("250")


@pytest.mark.usefixtures("capfd")
def test_on_helo_crash_is_451_without_enhanced_code() -> None:
    @plugin
    class Broken:
        @hookimpl
        def on_helo(self) -> None:
            raise ValueError("boom")

    reply = Dialogue(Broken()).send("EHLO client.example")
    assert reply == "451 temporary failure, try again later"


@plugin
class Keywords:
    lines: list[str]

    @hookimpl
    def ehlo_keywords(self, session: Session) -> list[str] | None:
        return self.lines if session.peer == "192.0.2.1" else None


def test_ehlo_keywords_are_collected_from_all_plugins_in_order() -> None:
    dialogue = Dialogue(Keywords(lines=["XONE", "XTWO 2"]), Keywords(lines=["XTHREE"]))
    lines = dialogue.send("EHLO client.example").splitlines()
    assert lines[-3:] == ["250-XONE", "250-XTWO 2", "250 XTHREE"]


def test_ehlo_keywords_may_be_none() -> None:
    dialogue = Dialogue(Keywords(lines=["XONE"]), peer="192.0.2.2")
    assert "XONE" not in dialogue.send("EHLO client.example")


def test_ehlo_keywords_are_not_for_helo() -> None:
    dialogue = Dialogue(Keywords(lines=["XONE"]))
    assert dialogue.send("HELO client.example") == "250 mx.example.org greets client.example"


@pytest.mark.parametrize(
    ("verdict", "reply"), [(Defer("later"), "451 later"), (Disconnect("bye"), "421 bye")], ids=str
)
def test_ehlo_keywords_refusal_has_no_enhanced_code(verdict: Verdict, reply: str) -> None:
    dialogue = Dialogue(Judge(hook="ehlo_keywords", verdict=verdict))
    assert dialogue.send("EHLO client.example") == reply
    assert dialogue.session.helo == ""


@plugin
class Users:
    """Knows users and their passwords."""

    passwords: dict[str, str]
    seen: list[Credentials] = field(default_factory=list)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        self.seen.append(credentials)
        if self.passwords.get(credentials.username) == credentials.password:
            return f"{credentials.username}@example.org"
        return None


def test_authenticate_answer_is_the_login() -> None:
    users = Users(passwords={"alice": "secret"})
    dialogue = Dialogue(users)
    dialogue.send("EHLO client.example")
    assert dialogue.send(plain("secret", "alice")).startswith("235 2.7.0")
    assert dialogue.session.login == "alice@example.org"
    assert users.seen == [Credentials("PLAIN", "alice", "secret")]


def test_authenticate_asks_the_next_plugin_until_one_knows() -> None:
    first, second = Users(passwords={"alice": "secret"}), Users(passwords={"bob": "hidden"})
    dialogue = Dialogue(first, second)
    dialogue.send("EHLO client.example")
    assert dialogue.send(plain("hidden", "bob")).startswith("235")
    other = Dialogue(first, second)
    other.send("EHLO client.example")
    assert other.send(plain("secret", "alice")).startswith("235")
    assert [credentials.username for credentials in second.seen] == ["bob"]


def test_authenticate_without_any_answer_is_535() -> None:
    dialogue = Dialogue(Users(passwords={}), Users(passwords={}))
    dialogue.send("EHLO client.example")
    assert dialogue.send(plain("guess", "alice")).startswith("535 5.7.8")


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Defer("directory is away"), "454 4.7.0 "),
        (Reject("expired", code=534, enhanced="5.7.9"), "534 5.7.9 expired"),
        (Disconnect("bye"), "421 4.7.0 bye"),
        (Disconnect("bye", code=535, enhanced="5.7.8"), "535 5.7.8 bye"),
    ],
    ids=str,
)
def test_authenticate_may_refuse(verdict: Verdict, reply: str) -> None:
    # RFC 4954 section 6
    dialogue = Dialogue(Judge(hook="authenticate", verdict=verdict))
    dialogue.send("EHLO client.example")
    assert dialogue.send(plain("secret", "alice")).startswith(reply)
    assert dialogue.receiver.closing == isinstance(verdict, Disconnect)
    assert dialogue.session.login is None


@plugin
class Keys:
    """Keeps keys for SCRAM instead of passwords."""

    keys: dict[str, StoredKey]
    asked: list[tuple[str, str]] = field(default_factory=list)

    @hookimpl
    def stored_key(self, mechanism: str, username: str) -> StoredKey | None:
        self.asked.append((mechanism, username))
        return self.keys.get(username)


def test_stored_key_serves_scram() -> None:
    keys = Keys(keys={"alice": derive_key("secret", b"salt")})
    dialogue = Dialogue(keys)
    assert scram(dialogue, "alice", "secret").startswith("235")
    assert dialogue.session.login == "alice"
    assert keys.asked == [("SCRAM-SHA-256", "alice")]


@pytest.mark.parametrize("username", ["alice", "nobody"])
def test_stored_key_unknown_or_wrong_is_535_at_the_end(username: str) -> None:
    dialogue = Dialogue(Keys(keys={"alice": derive_key("secret", b"salt")}))
    assert scram(dialogue, username, "guess").startswith("535 5.7.8")
    assert dialogue.session.login is None


def test_stored_key_makes_the_mechanism_advertised() -> None:
    assert "AUTH SCRAM-SHA-256" in Dialogue(Keys(keys={})).send("EHLO client.example")
    assert "SCRAM" not in Dialogue(Users(passwords={})).send("EHLO client.example")


def test_stored_key_and_authenticate_advertise_the_strongest_first() -> None:
    dialogue = Dialogue(Users(passwords={}), Keys(keys={}))
    assert "AUTH SCRAM-SHA-256 PLAIN LOGIN" in dialogue.send("EHLO client.example")


def test_stored_key_deferred_is_454() -> None:
    @plugin
    class Away:
        @hookimpl
        def stored_key(self) -> None:
            raise Defer("directory is away")

    dialogue = Dialogue(Away())
    dialogue.send("EHLO client.example")
    assert dialogue.send(f"AUTH SCRAM-SHA-256 {b64('n,,n=alice,r=x')}").startswith("454 4.7.0")


def test_mechanisms_are_those_that_the_plugin_names() -> None:
    @plugin
    class Tokens(Users):
        mechanisms = ("OAUTHBEARER", "XOAUTH2")

    dialogue = Dialogue(Tokens(passwords={}))
    assert "AUTH OAUTHBEARER XOAUTH2" in dialogue.send("EHLO client.example")


def test_hook_that_a_plugin_calls_unused_is_not_called() -> None:
    @plugin
    class Sometimes:
        wanted: bool
        seen: ClassVar[list[str]] = []

        @property
        def unused_hooks(self) -> tuple[str, ...]:
            return () if self.wanted else ("on_mail",)

        @hookimpl
        def on_helo(self) -> None:
            self.seen.append(f"helo {self.wanted}")

        @hookimpl
        def on_mail(self) -> None:
            self.seen.append(f"mail {self.wanted}")

    dialogue = Dialogue(Sometimes(wanted=True), Sometimes(wanted=False))
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@b.example>")
    assert Sometimes.seen == ["helo True", "helo False", "mail True"]


def test_on_mail_sees_the_envelope() -> None:
    seen: list[Envelope] = []

    @plugin
    class Looking:
        @hookimpl
        def on_mail(self, envelope: Envelope, session: Session) -> None:
            assert session.helo == envelope.helo
            seen.append(envelope)

    dialogue = Dialogue(Looking())
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example> SIZE=100 BODY=8BITMIME SMTPUTF8")
    [envelope] = seen
    assert envelope.reverse_path == Address("a", "client.example")
    assert (envelope.size, envelope.body, envelope.smtputf8) == (100, "8BITMIME", True)
    assert (envelope.peer, envelope.listener, envelope.login) == ("192.0.2.1", "test", None)
    assert envelope.recipients == []


def test_on_mail_refusal_leaves_no_transaction() -> None:
    dialogue = Dialogue(Judge(hook="on_mail", verdict=Reject("no")), Mailroom())
    at_rcpt(dialogue)
    assert dialogue.send("RCPT TO:<user@example.org>").startswith("503")


def test_on_rcpt_sees_the_recipient_and_the_earlier_ones() -> None:
    seen: list[tuple[str, int]] = []

    @plugin
    class Looking:
        @hookimpl
        def on_rcpt(self, envelope: Envelope, recipient: Recipient) -> None:
            seen.append((str(recipient.address), len(envelope.recipients)))

    dialogue = Dialogue(Looking(), Mailroom())
    dialogue.mail("Subject: x", to=("user@example.org", "other@example.org"))
    assert seen == [("user@example.org", 0), ("other@example.org", 1)]


def test_on_rcpt_refusal_concerns_one_recipient() -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_rcpt(self, recipient: Recipient) -> None:
            if recipient.address.local == "nobody":
                raise Reject("no such user", enhanced="5.1.1")

    mailroom = Mailroom()
    dialogue = at_rcpt(Dialogue(Refusing(), mailroom))
    assert dialogue.send("RCPT TO:<nobody@example.org>") == "550 5.1.1 no such user"
    assert dialogue.send("RCPT TO:<user@example.org>").startswith("250")
    dialogue.send("DATA")
    assert dialogue.send("Subject: x\r\n.").startswith("250")
    assert [*mailroom.stored] == ["user@example.org"]


@plugin
class Router:
    answer: Local | Relay | None

    @hookimpl
    def route(self) -> Local | Relay | None:
        return self.answer


def test_route_of_nobody_is_no_relay() -> None:
    dialogue = at_rcpt(Dialogue(Router(answer=None), Router(answer=None)))
    assert dialogue.send("RCPT TO:<user@example.org>") == "550 5.7.1 relaying denied"


def test_route_is_missing_without_plugins_too() -> None:
    assert at_rcpt(Dialogue()).send("RCPT TO:<user@example.org>").startswith("550 5.7.1")


def test_route_of_the_first_plugin_that_answers_counts() -> None:
    mailroom = Mailroom()
    first = Router(answer=Local(Address("first", "example.org")))
    dialogue = Dialogue(Router(answer=None), first, mailroom)
    dialogue.mail("Subject: x")
    assert [*mailroom.stored] == ["first@example.org"]


def test_route_to_several_mailboxes_stores_in_each() -> None:
    mailroom = Mailroom()
    boxes = Local(Address("one", "example.org"), Address("two", "example.org"))
    Dialogue(Router(answer=boxes), mailroom).mail("Subject: x")
    assert [*mailroom.stored] == ["one@example.org", "two@example.org"]


def test_route_to_another_server_is_not_promised_without_a_queue() -> None:
    dialogue = at_rcpt(Dialogue(Router(answer=Relay())))
    assert dialogue.send("RCPT TO:<user@elsewhere.example>").startswith("451 4.3.5")


def test_route_may_refuse() -> None:
    dialogue = at_rcpt(Dialogue(Judge(hook="route", verdict=Reject("gone", enhanced="5.1.6"))))
    assert dialogue.send("RCPT TO:<user@example.org>") == "550 5.1.6 gone"


def test_on_routed_sees_the_route_and_nobody_who_has_none() -> None:
    seen: list[tuple[str, object, int]] = []

    @plugin
    class Looking:
        @hookimpl
        def on_routed(self, envelope: Envelope, recipient: Recipient) -> None:
            seen.append((str(recipient.address), recipient.route, len(envelope.recipients)))

    @plugin
    class Here:
        @hookimpl
        def route(self, recipient: Recipient) -> Local | None:
            return Local() if recipient.address.domain == "example.org" else None

    dialogue = at_rcpt(Dialogue(Looking(), Here()), data=True)
    assert dialogue.send("RCPT TO:<user@elsewhere.example>").startswith("550 ")
    dialogue.send("RCPT TO:<other@example.org>")
    assert seen == [("user@example.org", Local(), 0), ("other@example.org", Local(), 1)]


def test_on_routed_refusal_concerns_one_recipient() -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_routed(self, recipient: Recipient) -> None:
            if recipient.address.local == "user":
                raise Defer("come again")

    dialogue = at_rcpt(Dialogue(Refusing(), Mailroom()))
    assert dialogue.send("RCPT TO:<user@example.org>") == "451 4.7.1 come again"
    assert dialogue.send("RCPT TO:<other@example.org>").startswith("250 ")


def test_on_data_sees_all_recipients() -> None:
    seen: list[list[str]] = []

    @plugin
    class Looking:
        @hookimpl
        def on_data(self, envelope: Envelope) -> None:
            seen.append([str(recipient.address) for recipient in envelope.recipients])

    Dialogue(Looking(), Mailroom()).mail("x", to=("user@example.org", "other@example.org"))
    assert seen == [["user@example.org", "other@example.org"]]


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [(Reject("no"), "550 5.7.1 no"), (Defer("later"), "451 4.7.1 later")],
    ids=str,
)
def test_on_data_is_asked_again_when_the_client_insists(verdict: Verdict, reply: str) -> None:
    judge = Judge(hook="on_data", verdict=verdict)
    dialogue = at_rcpt(Dialogue(judge, Mailroom()), data=True)
    assert [dialogue.send("DATA"), dialogue.send("DATA")] == [reply, reply]
    assert judge.calls.count("on_data") == 2


def test_on_data_refusal_consumes_the_chunk() -> None:
    # RFC 3030 section 2
    mailroom = Mailroom()
    dialogue = Dialogue(Judge(hook="on_data", verdict=Reject("no")), mailroom)
    at_rcpt(dialogue, data=True)
    refusal, after = dialogue.send_raw(b"BDAT 6\r\nQUIT\r\nNOOP\r\n").splitlines()
    assert refusal.startswith(b"550 5.7.1 no (id ")
    assert after == b"250 2.0.0 ok"
    assert not mailroom.stored


def test_on_data_is_asked_once_for_all_chunks() -> None:
    judge = Judge(hook="", verdict=Reject("no"))
    dialogue = at_rcpt(Dialogue(judge, Mailroom()), data=True)
    assert dialogue.send_raw(b"BDAT 1\r\naBDAT 1\r\nbBDAT 0 LAST\r\n").count(b"250") == 3
    assert judge.calls.count("on_data") == 1


@plugin
class Stamping:
    name: str

    @hookimpl
    def on_message(self, message: Message) -> None:
        message.prepend("X-Stamp", self.name)


def test_on_message_prepends_above_the_trace_field_in_order() -> None:
    mailroom = Mailroom()
    Dialogue(Stamping(name="first"), Stamping(name="second"), mailroom).mail("Subject: x")
    [stored] = mailroom.stored["user@example.org"]
    assert stored.startswith(b"X-Stamp: second\r\nX-Stamp: first\r\nReceived: from client.example ")
    assert stored.endswith(b"\r\nSubject: x\r\n")


def test_on_message_sees_what_earlier_plugins_have_changed() -> None:
    seen: list[str] = []

    @plugin
    class Reading:
        @hookimpl
        def on_message(self, message: Message) -> None:
            seen.append(message.headers.get("X-Stamp"))
            seen.append(message.open().read().decode().partition(":")[0])

    Dialogue(Stamping(name="first"), Reading(), Mailroom()).mail("Subject: x")
    assert seen == ["first", "X-Stamp"]


def test_on_message_replaces_the_content_below_the_trace_field() -> None:
    @plugin
    class Replacing:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.replace(b"Subject: other\r\n\r\nbody\r\n")

    mailroom = Mailroom()
    Dialogue(Replacing(), mailroom).mail("Subject: x")
    [stored] = mailroom.stored["user@example.org"]
    assert stored.startswith(b"Received: ")
    assert stored.endswith(b"\r\nSubject: other\r\n\r\nbody\r\n")
    assert b"Subject: x" not in stored


def test_on_message_discards_and_the_client_hears_250() -> None:
    @plugin
    class Discarding:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.discard("looks odd")

    mailroom = Mailroom()
    dialogue = Dialogue(Discarding(), mailroom)
    assert dialogue.mail("Subject: x").startswith("250 2.0.0 message accepted as ")
    assert not mailroom.stored
    assert dialogue.count("messages_total", listener="test", outcome="discarded") == 1


def test_on_message_quarantines_for_the_storage_to_see() -> None:
    @plugin
    class Quarantining:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.quarantine("looks odd")

    seen: list[str | None] = []

    @plugin
    class Storage:
        @hookimpl
        def deliver(self, message: Message) -> bool:
            seen.append(message.quarantined)
            return True

    dialogue = Dialogue(Quarantining(), Router(answer=Local()), Storage())
    assert dialogue.mail("Subject: x").startswith("250")
    assert seen == ["looks odd"]
    assert dialogue.count("messages_total", listener="test", outcome="quarantined") == 1


@pytest.mark.parametrize(
    ("verdict", "reply", "outcome"),
    [
        (Reject("spam", code=554, enhanced="5.7.0"), "554 5.7.0 spam", "rejected"),
        (Defer("scanner is away"), "451 4.7.1 scanner is away", "deferred"),
        (Disconnect("bye"), "421 4.7.0 bye", "deferred"),
        (Disconnect("bye", code=554, enhanced="5.7.1"), "554 5.7.1 bye", "rejected"),
    ],
    ids=str,
)
def test_on_message_refusal_stores_nothing(verdict: Verdict, reply: str, outcome: str) -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(Judge(hook="on_message", verdict=verdict), mailroom)
    assert dialogue.mail("Subject: x") == reply
    assert not mailroom.stored
    assert dialogue.receiver.closing == isinstance(verdict, Disconnect)
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1


def test_deliver_is_called_with_envelope_message_and_mailbox() -> None:
    seen: list[tuple[str, int, str]] = []

    @plugin
    class Storage:
        @hookimpl
        def deliver(self, mailbox: Address, message: Message, envelope: Envelope) -> bool:
            seen.append((envelope.id, message.size, str(mailbox)))
            assert envelope.id == message.id
            return True

    reply = Dialogue(Router(answer=Local()), Storage()).mail("Subject: x")
    [(identifier, size, mailbox)] = seen
    assert reply == f"250 2.0.0 message accepted as {identifier}"
    assert size > len("Subject: x\r\n")
    assert mailbox == "user@example.org"


@pytest.mark.parametrize("answer", [None, False])
def test_deliver_without_success_defers(answer: bool | None) -> None:
    @plugin
    class Storage:
        @hookimpl
        def deliver(self) -> bool | None:
            return answer

    dialogue = Dialogue(Router(answer=Local()), Storage())
    assert dialogue.mail("Subject: x").startswith("451 4.3.5")


def test_deliver_asks_the_next_plugin_after_none() -> None:
    @plugin
    class Elsewhere:
        @hookimpl
        def deliver(self) -> None:
            return None

    mailroom = Mailroom()
    assert Dialogue(Elsewhere(), mailroom).mail("Subject: x").startswith("250")
    assert mailroom.stored


def test_deliver_refusal_is_the_reply() -> None:
    full = Judge(hook="deliver", verdict=Defer("full", code=452, enhanced="4.2.2"))
    assert Dialogue(full, Mailroom()).mail("Subject: x") == "452 4.2.2 full"


def test_deliver_that_disconnects_closes() -> None:
    dialogue = Dialogue(Judge(hook="deliver", verdict=Disconnect("bye")), Mailroom())
    assert dialogue.mail("Subject: x") == "421 4.7.0 bye"
    assert dialogue.receiver.closing


@plugin
class Commands:
    @hookimpl
    def command(self, session: Session, verb: str, argument: str) -> Reply | None:
        if verb in {"XFUN", "VRFY"}:
            return Reply(250, f"{verb} {argument} by {session.peer}")
        return None


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("XFUN a b", "250 XFUN a b by 192.0.2.1"),
        ("xfun", "250 XFUN  by 192.0.2.1"),
        ("VRFY alice", "250 VRFY alice by 192.0.2.1"),
        ("EXPN list", "502 5.5.1 EXPN is not implemented"),
        ("HELP", "214 2.0.0 see RFC 5321; mail to postmaster reaches a person"),
        ("XOTHER", "500 5.5.2 command not recognized"),
    ],
)
def test_command_answers_or_leaves_the_standard_reply(line: str, reply: str) -> None:
    dialogue = Dialogue(Commands())
    dialogue.send("EHLO client.example")
    assert dialogue.send(line) == reply


def test_command_is_not_asked_about_what_the_server_knows() -> None:
    judge = Judge(hook="command", verdict=Reject("no"))
    dialogue = Dialogue(judge)
    for line in ("EHLO client.example", "NOOP", "RSET", "QUIT"):
        assert dialogue.send(line).startswith("2")
    assert "command" not in judge.calls


def test_observe_learns_what_happened_in_order() -> None:
    observer = Observer()
    dialogue = Dialogue(observer, Users(passwords={"alice": "secret"}), Mailroom())
    dialogue.send("EHLO client.example")
    dialogue.send(plain("secret", "alice"))
    reply = dialogue.mail("Subject: x")
    dialogue.send("QUIT")
    dialogue.close()
    opened, authenticated, recipient, message, closed = observer.events
    session, peer = dialogue.session.id, "192.0.2.1"
    assert opened == SessionOpened(session, "test", peer)
    assert authenticated == Authenticated(session, peer, "PLAIN", "alice", "success")
    assert isinstance(recipient, RecipientDecided)
    assert recipient.reply == Reply(250, "recipient ok", "2.1.5")
    assert isinstance(message, MessageDecided)
    assert (message.outcome, str(message.reply)) == ("stored", reply)
    assert message.envelope == recipient.envelope
    assert isinstance(closed, SessionClosed)
    assert closed.reason == "quit"


def test_observe_learns_of_refused_recipients_and_messages() -> None:
    observer = Observer()
    refusing = Judge(hook="on_message", verdict=Reject("spam"))
    dialogue = Dialogue(observer, Router(answer=None))
    at_rcpt(dialogue, data=True)
    other = Observer()
    Dialogue(other, refusing, Mailroom()).mail("Subject: x")
    codes = [item.reply.code for item in observer.events if isinstance(item, RecipientDecided)]
    outcomes = [item.outcome for item in other.events if isinstance(item, MessageDecided)]
    assert (codes, outcomes) == ([550], ["rejected"])


# How implementations are called


def test_implementation_may_take_any_arguments_in_any_order() -> None:
    seen: list[object] = []

    @plugin
    class Some:
        @hookimpl
        def on_mail(self) -> None:
            seen.append("none")

        @hookimpl
        def on_rcpt(self, recipient: Recipient, session: Session) -> None:
            seen.extend([recipient.address.local, session.helo])

    Dialogue(Some(), Mailroom()).mail("Subject: x")
    assert seen == ["none", "user", "client.example"]


def test_later_plugins_are_not_asked_after_a_refusal() -> None:
    first, second, third = (
        Judge(hook="", verdict=Reject()),
        Judge(hook="on_mail", verdict=Reject("second")),
        Judge(hook="on_mail", verdict=Reject("third")),
    )
    dialogue = Dialogue(first, second, third)
    at_rcpt(dialogue)
    assert [("on_mail" in judge.calls) for judge in (first, second, third)] == [True, True, False]


@pytest.mark.usefixtures("capfd")
def test_later_plugins_are_not_asked_after_a_failure_but_after_an_ignored_one() -> None:
    @plugin
    class Broken:
        @hookimpl
        def on_mail(self) -> None:
            raise ValueError("boom")

    later = Judge(hook="", verdict=Reject())
    at_rcpt(Dialogue(Broken(), later))
    assert "on_mail" not in later.calls
    ignored = PluginConfig(use="broken", on_error="ignore")
    at_rcpt(Dialogue((ignored, Broken()), later))
    assert "on_mail" in later.calls


def test_hooks_of_a_listener_leave_out_plugins_of_others() -> None:
    loaded = PluginSet(Metrics(), Log(level="error"))
    loaded.add(PluginConfig(use="inside", listeners=["inside"]), Users(passwords={}))
    loaded.add(PluginConfig(use="everywhere"), Mailroom())
    loaded.close()
    assert loaded.hooks("inside").mechanisms == {"PLAIN", "LOGIN"}
    outside = loaded.hooks("outside")
    assert outside.mechanisms == set()
    assert (outside.routes, outside.delivers, outside.observed) == (True, True, False)
    assert loaded.hooks().mechanisms == {"PLAIN", "LOGIN"}


def empty() -> Hooks:
    loaded = PluginSet(Metrics(), Log(level="error"))
    loaded.close()
    return loaded.hooks()


SESSION = Session(id="s", listener="l", kind="mx", hostname="mx.example.org", peer="192.0.2.1")
# Outgoing mail


@plugin
class Way:
    """Sends mail for one domain to its own host, and marks this mail."""

    domain: str
    host: str
    verdict: Verdict | None = None

    @hookimpl
    def destination(self, delivery: Delivery) -> Destination | None:
        return Destination(self.host) if delivery.domain == self.domain else None

    @hookimpl
    def on_send(self, delivery: Delivery, message: Message) -> None:
        if self.verdict is not None:
            raise self.verdict
        message.prepend("X-Way", f"{self.host} for {delivery.domain}")


def to_example_net() -> Delivery:
    return Delivery(ENVELOPE, (Address("bob", "example.net"),), "example.net")


def test_destination_is_the_first_answer() -> None:
    ways = (
        Way(domain="example.com", host="a"),
        Way(domain="example.net", host="b"),
        Way(domain="example.net", host="c"),
    )
    hooks = Dialogue(*ways).service.hooks
    assert hooks.destination(to_example_net()) == Destination("b")


def test_on_send_runs_every_plugin() -> None:
    hooks = Dialogue(Way(domain="", host="a"), Way(domain="", host="b")).service.hooks
    message = Message("e", Content.of(b"\r\n"))
    hooks.on_send(to_example_net(), message)
    assert message.headers.get_all("X-Way") == ["b for example.net", "a for example.net"]


def test_on_send_may_refuse() -> None:
    verdict = Reject("not out of here")
    hooks = Dialogue(Way(domain="", host="a", verdict=verdict)).service.hooks
    with pytest.raises(Reject) as raised:
        hooks.on_send(to_example_net(), Message("e", Content.of(b"\r\n")))
    assert raised.value is verdict


ENVELOPE = Envelope(
    id="e",
    reverse_path=None,
    listener="l",
    peer="192.0.2.1",
    helo="client.example",
    login=None,
    arrived=0.0,
)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda hooks: hooks.authenticate(SESSION, Credentials("PLAIN", "alice")), None),
        (lambda hooks: hooks.stored_key(SESSION, "SCRAM-SHA-256", "alice"), None),
        (lambda hooks: hooks.command(SESSION, "XFUN", ""), None),
        (lambda hooks: hooks.ehlo_keywords(SESSION), None),
        (lambda hooks: hooks.route(SESSION, ENVELOPE, Recipient(Address("a", "b"))), None),
        (lambda hooks: hooks.on_start(ServerInfo("mx", Path(), "check", 0)), None),
        (lambda hooks: hooks.on_stop(), None),
        (lambda hooks: hooks.observe(SessionOpened("s", "l", "p")), None),
        (lambda hooks: hooks.on_disconnect(SESSION, "quit"), None),
        (lambda hooks: (hooks.routes, hooks.delivers, hooks.observed), (False, False, False)),
    ],
    ids=[
        "authenticate",
        "stored_key",
        "command",
        "ehlo",
        "route",
        "start",
        "stop",
        "observe",
        "disconnect",
        "is",
    ],
)
def test_hook_that_nobody_implements_gives_no_opinion(
    call: Callable[[Hooks], object], answer: object
) -> None:
    assert call(empty()) == answer


def test_hooks_of_one_plugin_among_many_take_linear_time() -> None:
    """As at a start, where each of a thousand domains may have tables of its own."""

    class Nothing:
        """Without any hook."""

    def work(count: int) -> Callable[[], object]:
        manager = pluggy.PluginManager(specs.PROJECT)
        manager.add_hookspecs(specs)
        plugins = [Nothing() for _ in range(count)]
        for each in plugins:
            manager.register(each)
        return lambda: Hooks(manager, plugins[1:])

    assert not grows_too_fast(work, 1_000)
