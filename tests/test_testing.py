import subprocess
import sys
from dataclasses import field, replace
from pathlib import Path

import pytest

from minismtp import Delivery, Destination, Message, Reject, ServerInfo, hookimpl, plugin
from minismtp.config import Config, Limits, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import ByteSize
from minismtp.hooks.guard import StartError
from minismtp.testing import Dialogue, Dialogues, Mailroom


def configuration(tmp_path: Path, *plugins: dict[str, object]) -> Config:
    document: dict[str, object] = {
        "hostname": "mx.example.org",
        "state_directory": "state",
        "listeners": [
            {"name": "smtp", "address": "127.0.0.1:0", "tls": "none"},
            {"name": "lmtp", "address": "127.0.0.1:0", "tls": "none", "kind": "lmtp"},
        ],
        "plugins": [*plugins],
    }
    return Config.build(document, file="mini.toml", base=tmp_path)


def test_banner_and_replies_are_text() -> None:
    dialogue = Dialogue()
    assert dialogue.banner == "220 mx.example.org ESMTP minismtp\r\n"
    assert dialogue.send("HELO client.example") == "250 mx.example.org greets client.example"


def test_octets_go_in_and_come_out_as_they_are() -> None:
    assert Dialogue().send_raw(b"NOOP\r\nRSE") == b"250 2.0.0 ok\r\n"


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        ("Subject: x\n\n.dot\n..two\n", b"Subject: x\r\n\r\n.dot\r\n..two\r\n"),
        (".\n", b"\r\n.\r\n"),
        (b"a\r\nb", b"\r\na\r\nb\r\n"),
        ("ü", "\r\nü\r\n".encode()),
        ("", b"\r\n"),
    ],
    ids=repr,
)
def test_mail_is_sent_whole_with_dots_and_line_ends(content: str | bytes, stored: bytes) -> None:
    mailroom = Mailroom()
    assert Dialogue(mailroom).mail(content).startswith("250 2.0.0 message accepted")
    assert mailroom.stored["user@example.org"][0].endswith(b" +0000\r\n" + stored)


def test_mail_gives_the_first_refusal() -> None:
    assert Dialogue().mail("x") == "550 5.7.1 relaying denied"


def test_mail_over_a_closed_session_gives_nothing() -> None:
    dialogue = Dialogue()
    dialogue.send("QUIT")
    assert dialogue.mail("x") == ""


def test_mail_over_lmtp_gives_a_reply_for_each_recipient() -> None:
    dialogue = Dialogue(Mailroom(), kind="lmtp")
    replies = dialogue.mail("x", to=("a@example.org", "b@example.org")).splitlines()
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "250 2.0.0"]


def test_session_may_begin_inside_tls_and_logged_in() -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(mailroom, kind="submission", tls=True, login="alice")
    assert dialogue.mail("x").startswith("250")
    assert b" with ESMTPSA " in mailroom.stored["user@example.org"][0]


def test_limits_are_those_given() -> None:
    dialogue = Dialogue(limits=Limits(message_size=ByteSize(1000)))
    assert "250-SIZE 1000\n" in dialogue.send("EHLO client.example")


def test_plugins_of_one_class_are_told_apart_in_the_metrics() -> None:
    dialogue = Dialogue(Mailroom(), Mailroom())
    dialogue.mail("x")
    labels = {"hook": "route", "verdict": "answer"}
    assert dialogue.count("hook_verdicts_total", plugin="mailroom", **labels) == 1
    assert dialogue.count("hook_verdicts_total", plugin="mailroom-2", **labels) == 0
    assert dialogue.count("hook_verdicts_total", plugin="unknown", **labels) == 0


def test_plugin_may_come_with_its_table() -> None:
    dialogue = Dialogue((PluginConfig(use="mailroom", name="local"), Mailroom()))
    dialogue.mail("x")
    assert dialogue.count("storage_duration_seconds_count", plugin="local") == 1


def test_table_for_another_listener_leaves_the_plugin_out() -> None:
    dialogue = Dialogue((PluginConfig(use="mailroom", listeners=["other"]), Mailroom()))
    assert dialogue.mail("x").startswith("550")


def test_wrong_plugin_is_refused_as_in_a_configuration() -> None:
    @plugin
    class Wrong:
        @hookimpl
        def on_mial(self) -> None: ...

    with pytest.raises(ConfigError, match=r"plugins\[0\]\.use: plugin 'wrong' .*'on_mail'"):
        Dialogue(Wrong())


def test_service_with_other_rules_may_be_given() -> None:
    dialogue = Dialogue(Mailroom())
    other = Dialogue(
        service=replace(dialogue.service, hostname="other.example"), metrics=dialogue.metrics
    )
    assert other.banner.startswith("220 other.example ")
    assert other.count("connections_total", listener="test", result="accepted") == 2


def test_configured_session_uses_listener_and_plugins(tmp_path: Path) -> None:
    config = configuration(
        tmp_path,
        {"use": "mailboxes", "domains": ["example.org"]},
        {"use": "maildir", "path": "mail/{local}"},
    )
    dialogue = Dialogue.configured(config, "lmtp", peer="unix")
    assert dialogue.banner == "220 mx.example.org LMTP minismtp\r\n"
    assert dialogue.mail("Subject: x\n\n" + "y\n" * 200_000).startswith("250")
    [stored] = (tmp_path / "mail/user/new").iterdir()
    assert stored.read_bytes().endswith(b"Subject: x\r\n\r\n" + b"y\r\n" * 200_000)
    assert dialogue.count("messages_total", listener="lmtp", outcome="stored") == 1


def test_configured_session_begins_and_ends_the_plugins(tmp_path: Path) -> None:
    (tmp_path / "started.py").write_text(
        "from minismtp import hookimpl, plugin\n"
        "@plugin\n"
        "class Started:\n"
        "    @hookimpl\n"
        "    def on_start(self, server):\n"
        "        self.path = server.state_directory / 'started'\n"
        "        self.path.touch()\n"
        "    @hookimpl\n"
        "    def on_stop(self):\n"
        "        self.path.unlink()\n"
    )
    config = replace(configuration(tmp_path, {"use": "started"}), plugin_path=[tmp_path])
    dialogue = Dialogue.configured(config, "smtp")
    assert (tmp_path / "state/started").exists()
    dialogue.close()
    assert not (tmp_path / "state/started").exists()


@pytest.mark.usefixtures("capfd")
def test_plugin_that_does_not_start_is_a_failure() -> None:
    @plugin
    class Broken:
        @hookimpl
        def on_start(self) -> None:
            raise OSError("no database")

    with pytest.raises(StartError, match="plugin 'broken'"):
        Dialogue(Broken())


def test_closed_session_is_over_for_plugins_and_metrics() -> None:
    @plugin
    class Lifecycle:
        seen: list[str] = field(default_factory=list)

        @hookimpl
        def on_start(self, server: ServerInfo) -> None:
            self.seen.append(server.role)

        @hookimpl
        def on_stop(self) -> None:
            self.seen.append("stopped")

    lifecycle = Lifecycle()
    dialogue = Dialogue(lifecycle)
    assert dialogue.count("connections_active", listener="test") == 1
    dialogue.close()
    assert dialogue.count("connections_active", listener="test") == 0
    assert lifecycle.seen == ["worker", "stopped"]


def test_example_of_the_documentation_works() -> None:
    @plugin
    class BadHelo:
        names: list[str]

        @hookimpl
        def on_helo(self) -> None:
            raise Reject("your name is not welcome here")

    assert Dialogue(BadHelo(names=["localhost"])).send("EHLO localhost").startswith("550")


# Mail that leaves


@plugin
class Leaving:
    """Signs for the domain, and sends one domain to another host."""

    @hookimpl
    def on_send(self, delivery: Delivery, message: Message) -> None:
        if delivery.domain == "refused.example":
            raise Reject("not there")
        sender = delivery.envelope.sender or "nobody"
        message.prepend("X-Left", f"{sender} {delivery.domain} {len(delivery.recipients)}")

    @hookimpl
    def destination(self, delivery: Delivery) -> Destination | None:
        return Destination("hop.example") if delivery.domain == "b.example" else None


def test_message_that_leaves_is_as_the_plugins_changed_it() -> None:
    to = ("x@b.example", "y@b.example")
    message, hop = Dialogue(Leaving()).leave("Subject: x\n\ny", to=to)
    assert message.headers.get("X-Left") == "sender@example.org b.example 2"
    assert message.open().read().endswith(b"Subject: x\r\n\r\ny\r\n")
    assert hop == Destination("hop.example")


def test_bounce_leaves_without_a_sender_by_the_way_of_the_server() -> None:
    message, hop = Dialogue(Leaving()).leave("x", sender="")
    assert message.headers.get("X-Left") == "nobody client.example 1"
    assert hop is None


def test_verdict_about_what_leaves_is_raised() -> None:
    with pytest.raises(Reject):
        Dialogue(Leaving()).leave("x", to=("x@refused.example",))


# The fixtures that pytest finds


@plugin
class Lifetime:
    """Records its end, and the owner of its state."""

    stopped: list[Path] = field(default_factory=list)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._state = server.state_directory

    @hookimpl
    def on_stop(self) -> None:
        self.stopped.append(self._state)


def test_fixtures_give_sessions_and_what_takes_their_mail(
    dialogue: Dialogues, mailroom: Mailroom
) -> None:
    session = dialogue(mailroom, kind="lmtp", peer="unix", login="alice", tls=True)
    assert session.mail("x").startswith("250 ")
    assert b" with LMTPSA " in mailroom.stored["user@example.org"][0]


def test_fixture_takes_limits(dialogue: Dialogues) -> None:
    session = dialogue(limits=Limits(message_size=ByteSize(1000)))
    assert "250-SIZE 1000\n" in session.send("EHLO client.example")


def test_fixture_begins_sessions_of_a_configuration(dialogue: Dialogues, tmp_path: Path) -> None:
    config = configuration(tmp_path, {"use": "mailboxes", "domains": ["example.org"]})
    assert dialogue.configured(config, "lmtp").banner.startswith("220 mx.example.org LMTP")


def test_sessions_of_one_test_end_together(tmp_path: Path) -> None:
    lifetime, dialogues = Lifetime(), Dialogues(tmp_path)
    first, second = dialogues(lifetime), dialogues(Mailroom())
    dialogues.close()
    assert lifetime.stopped == [tmp_path]
    assert [each.count("connections_active", listener="test") for each in (first, second)] == [0, 0]


def test_session_that_was_closed_before_ends_once(tmp_path: Path) -> None:
    lifetime, dialogues = Lifetime(), Dialogues(tmp_path)
    dialogues(lifetime).close()
    dialogues.close()
    assert lifetime.stopped == [tmp_path]


def test_fixture_closes_its_sessions_when_the_test_ends(tmp_path: Path) -> None:
    """This runs in a process of its own, like the tests of an author."""
    (tmp_path / "test_it.py").write_text(
        "from minismtp import hookimpl, plugin\n"
        "@plugin\n"
        "class Last:\n"
        "    @hookimpl\n"
        "    def on_stop(self):\n"
        "        print('it is over')\n"
        "def test_it(dialogue, mailroom):\n"
        "    dialogue(Last(), mailroom)\n"
        "    print('begun')\n"
    )
    command = [sys.executable, "-m", "pytest", "-s", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout
    assert done.stdout.partition("begun\n")[2].partition("it is over")[1]


def test_runs_of_pytest_that_need_no_fixture_of_ours_load_nothing_of_us() -> None:
    look = "import minismtp_plugins._pytest, sys; sys.exit('minismtp' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)
