"""Mail that goes through plugins and nowhere else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from minismtp import (
    Defer,
    Delivery,
    Disconnect,
    Message,
    Recipient,
    Reject,
    Relay,
    ServerInfo,
    Session,
    hookimpl,
    plugin,
)
from minismtp.cli.dry_run import DryRun, ExampleClient
from minismtp.config import Config, PluginConfig
from minismtp.runtime.log import Log

CLIENT = ExampleClient(sender="a@client.example", recipients=("b@example.org",))
ALSO = replace(CLIENT, recipients=("no@example.org", "b@example.org"))

Rehearse = Callable[..., DryRun]


@pytest.fixture
def rehearse(tmp_path: Path) -> Iterator[Rehearse]:
    """Yield a function that runs mail through plugins, which are stopped after the test."""
    begun: list[DryRun] = []
    listeners = [
        {"name": "smtp", "address": "127.0.0.1:0", "tls": "none"},
        {"name": "users", "address": "127.0.0.1:0", "tls": "none", "kind": "submission"},
    ]

    def rehearse(*plugins: object) -> DryRun:
        document = {
            "state_directory": "state",
            "listeners": listeners,
            "state": {"url": "unix:///nowhere/redis.sock"},
        }
        config = Config.build(document, file="", base=tmp_path)
        tables = [(PluginConfig(use=type(each).__name__.lower()), each) for each in plugins]
        begun.append(DryRun(config, tables, Log(level="error")))
        return begun[-1]

    yield rehearse
    for dry_run in begun:
        dry_run.close()


@plugin
class Seen:
    """Keeps its arguments."""

    sessions: list[Session] = field(default_factory=list)
    content: bytes = b""

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self.server = server

    @hookimpl
    def on_message(self, session: Session, message: Message) -> None:
        self.sessions.append(session)
        with message.open() as content:
            self.content = content.read()


def content(text: bytes = b"Subject: x\r\n\r\nHello.\r\n") -> io.BytesIO:
    return io.BytesIO(text)


def test_message_that_nobody_refuses_is_accepted_and_dropped(
    rehearse: Rehearse, tmp_path: Path
) -> None:
    result = rehearse().run(CLIENT, content())
    assert (result.outcome, result.accepted, result.refused_by) == ("accepted", True, "")
    assert result.reply.startswith("250 2.0.0 message accepted")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("text", "arrives"),
    [
        (b"A: b\n\n.dot\n..two\n", b"A: b\r\n\r\n.dot\r\n..two\r\n"),
        (b"A: b\r\n\r\nno end", b"A: b\r\n\r\nno end\r\n"),
        (b".\n", b"\r\n.\r\n"),
        (b"", b""),
        (b"A: b\n\n" + b"x" * 65530 + b"\r\n.y\n", b"A: b\r\n\r\n" + b"x" * 65530 + b"\r\n.y\r\n"),
        (b"A: b\n\n" + b"." * 65536 + b".\n", b"A: b\r\n\r\n" + b"." * 65537 + b"\r\n"),
        (b"A: b\n\n" + b"x" * 65535 + b"\r\n", b"A: b\r\n\r\n" + b"x" * 65535 + b"\r\n"),
        (b"A: b\n\n" + b"line\n" * 50_000, b"A: b\r\n\r\n" + b"line\r\n" * 50_000),
    ],
    ids=["dots", "no end", "a dot", "nothing", "long line", "long dots", "cut CRLF", "large"],
)
def test_content_arrives_whole_with_proper_line_ends(
    text: bytes, arrives: bytes, rehearse: Rehearse
) -> None:
    seen = Seen()
    assert rehearse(seen).run(CLIENT, content(text)).accepted
    assert seen.content.endswith(b"+0000\r\n" + arrives)


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        (b"text\nmore: of it\n", b"\r\ntext\r\nmore: of it\r\n"),
        (b"From a@b\nSubject :x\n\nb\n", b"X-Mailbox-Line: From a@b\r\nSubject:x\r\n\r\nb\r\n"),
        (b"\xef\xbb\xbfSubject: x\n\nb\n", b"Subject: x\r\n\r\nb\r\n"),
    ],
    ids=["text", "mbox", "mark"],
)
def test_header_is_settled_as_for_a_client(text: bytes, settled: bytes, rehearse: Rehearse) -> None:
    seen = Seen()
    rehearse(seen).run(CLIENT, content(text))
    assert seen.content.endswith(b"+0000\r\n" + settled)


def test_client_is_the_one_described(rehearse: Rehearse) -> None:
    seen = Seen()
    client = ExampleClient(
        sender="", recipients=("ü@example.org",), peer="2001:db8::1", helo="x.example"
    )
    result = rehearse(seen).run(client, content())
    assert (seen.sessions[0].peer, seen.sessions[0].helo) == ("2001:db8::1", "x.example")
    assert result.envelope is not None
    assert result.envelope.reverse_path is None
    assert result.envelope.recipients[0].address.local == "ü"


def test_user_who_has_logged_in_comes_to_the_submission_listener(rehearse: Rehearse) -> None:
    dry_run = rehearse(Seen())
    assert dry_run.run(CLIENT, content()).session.listener == "smtp"
    result = dry_run.run(replace(CLIENT, login="alice"), content())
    assert (result.session.listener, result.session.login) == ("users", "alice")


@plugin
class Refusing:
    """Refuses at a stage."""

    stage: str
    verdict: Exception = field(default_factory=lambda: Reject("no"))

    def _judge(self, stage: str) -> None:
        if stage == self.stage:
            raise self.verdict

    @hookimpl
    def on_connect(self) -> None:
        self._judge("on_connect")

    @hookimpl
    def on_helo(self) -> None:
        self._judge("on_helo")

    @hookimpl
    def on_mail(self) -> None:
        self._judge("on_mail")

    @hookimpl
    def on_rcpt(self, recipient: Recipient) -> None:
        if recipient.address.local == "no":
            raise Reject("not this one")
        self._judge("on_rcpt")

    @hookimpl
    def on_data(self) -> None:
        self._judge("on_data")

    @hookimpl
    def on_message(self, message: Message) -> None:
        message.prepend("X-Seen", "yes")
        self._judge("on_message")

    @hookimpl
    def deliver(self) -> None:
        self._judge("deliver")


STAGES = ["on_connect", "on_helo", "on_mail", "on_rcpt", "on_data", "on_message", "deliver"]


@pytest.mark.parametrize("stage", STAGES)
def test_refusal_is_told_with_its_stage(stage: str, rehearse: Rehearse) -> None:
    result = rehearse(Refusing(stage=stage)).run(CLIENT, content())
    assert (result.outcome, result.accepted) == ("rejected", False)
    assert result.refused_by == f"refusing.{stage}"
    assert result.reply.endswith(" no")
    assert (result.message is not None) == (stage in ("on_message", "deliver"))


@pytest.mark.parametrize("verdict", [Defer("later"), Disconnect("bye")], ids=repr)
def test_verdict_for_now_is_a_deferral(verdict: Exception, rehearse: Rehearse) -> None:
    assert rehearse(Refusing(stage="on_data", verdict=verdict)).run(CLIENT, content()).outcome == (
        "deferred"
    )


@pytest.mark.usefixtures("capfd")
def test_plugin_that_fails_defers(rehearse: Rehearse) -> None:
    result = rehearse(Refusing(stage="on_mail", verdict=KeyError("x"))).run(CLIENT, content())
    assert (result.outcome, result.steps[2][5]) == ("deferred", "failed: KeyError: 'x'")


def test_refused_recipient_is_in_the_steps_while_others_go_on(rehearse: Rehearse) -> None:
    result = rehearse(Refusing(stage="")).run(ALSO, content())
    assert result.accepted
    assert [step[1] for step in result.steps if step[4] == "reject"] == ["refusing"]
    assert ("reply", "RCPT", "550") in {(step[0], step[1], step[4]) for step in result.steps}


def test_steps_are_in_the_order_of_the_session(rehearse: Rehearse) -> None:
    result = rehearse(Refusing(stage="")).run(CLIENT, content())
    assert [step[0] for step in result.steps if step[0] != "RCPT"] == STAGES


def test_message_is_there_as_it_was_and_as_it_became(rehearse: Rehearse) -> None:
    result = rehearse(Refusing(stage="on_message")).run(CLIENT, content())
    assert result.before is not None
    assert result.message is not None
    assert [("X-Seen" in each.headers) for each in (result.before, result.message)] == [False, True]


@pytest.mark.parametrize(
    ("verb", "outcome"), [("quarantine", "quarantined"), ("discard", "discarded")]
)
def test_message_set_aside_or_dropped_is_accepted(
    verb: str, outcome: str, rehearse: Rehearse
) -> None:
    @plugin
    class Aside:
        @hookimpl
        def on_message(self, message: Message) -> None:
            getattr(message, verb)("why")

    result = rehearse(Aside()).run(CLIENT, content())
    assert (result.outcome, result.accepted) == (outcome, True)


def test_mail_for_other_servers_is_accepted_and_queued_nowhere(
    rehearse: Rehearse, tmp_path: Path
) -> None:
    @plugin
    class Elsewhere:
        @hookimpl
        def route(self) -> Relay:
            return Relay()

    assert rehearse(Elsewhere()).run(CLIENT, content()).accepted
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_accepted_message_may_leave(rehearse: Rehearse) -> None:
    @plugin
    class Signing:
        @hookimpl
        def on_send(self, delivery: Delivery, message: Message) -> None:
            message.prepend("X-For", delivery.domain)

    dry_run = rehearse(Signing())
    result = dry_run.run(CLIENT, content())
    assert [step[:2] for step in dry_run.send(result)] == [("on_send", "signing")]
    assert result.message is not None
    assert result.message.headers.get("X-For") == "example.org"


def test_refused_message_does_not_leave(rehearse: Rehearse) -> None:
    dry_run = rehearse(Refusing(stage="on_data"))
    assert dry_run.send(dry_run.run(CLIENT, content())) == []


def test_refusal_to_let_a_message_leave_is_a_step(rehearse: Rehearse) -> None:
    @plugin
    class Keeping:
        @hookimpl
        def on_send(self) -> None:
            raise Reject("stays here")

    dry_run = rehearse(Keeping())
    [step] = dry_run.send(dry_run.run(CLIENT, content()))
    assert step[4:] == ("reject", "550 5.7.1 stays here")


def test_one_message_after_another_has_steps_of_its_own(rehearse: Rehearse) -> None:
    dry_run = rehearse(Refusing(stage=""))
    lengths = [len(dry_run.run(CLIENT, content()).steps) for _ in range(3)]
    assert lengths == [len(STAGES) + 1] * 3


def test_plugins_start_as_in_a_worker_with_the_state_directory_given(
    rehearse: Rehearse, tmp_path: Path
) -> None:
    seen = Seen()
    rehearse(seen)
    assert (seen.server.role, seen.server.state_directory) == ("worker", tmp_path / "state")


def test_state_that_servers_share_is_left_alone(rehearse: Rehearse, tmp_path: Path) -> None:
    @plugin
    class Remembering:
        @hookimpl
        def on_start(self, server: ServerInfo) -> None:
            self._state = server.state

        @hookimpl
        def on_mail(self) -> None:
            if self._state.add("mails", 1, timedelta(hours=1)) > 1:
                raise Reject("again")

    dry_run = rehearse(Remembering())
    assert [dry_run.run(CLIENT, content()).accepted for _ in range(2)] == [True, False]
    assert (tmp_path / "state" / "state.db").exists()
