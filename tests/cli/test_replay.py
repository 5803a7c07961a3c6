"""`minismtp replay`: stored mail through a changed set of plugins."""

from __future__ import annotations

import gc
import io
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minismtp import Message
from minismtp.cli.main import main
from minismtp.cli.replay import differences
from minismtp.cli.stored_mail import envelope_of, maildir
from minismtp.config import Config
from minismtp.runtime.decision_log import Record

if TYPE_CHECKING:
    from conftest import Configure, Start

Capture = pytest.CaptureFixture[str]
TRACE = (
    "Return-Path: <{sender}>\r\nDelivered-To: {to}\r\nX-Spam: no\r\n"
    "Received: from mail.client.example ([{peer}])\r\n"
    "\tby mx.example.org with {protocol} id 8a1f0c5d7e21.1\r\n\t(TLSv1.3 TLS_AES_256_GCM_SHA384);"
    "\r\n\tThu, 26 Nov 2026 06:00:00 +0000\r\n"
)
PLUGINS = {
    "words": """
from minismtp import Reject, hookimpl, plugin

@plugin
class Words:
    words: list[str]
    set_aside: bool = False

    @hookimpl
    def on_message(self, session, envelope, message):
        subject = message.headers.get("Subject")
        if session.login is None and any(word in subject for word in self.words):
            if self.set_aside:
                message.quarantine("a word")
            else:
                raise Reject("not wanted")
""",
    "effects": """
from pathlib import Path
from minismtp import Reject, hookimpl, plugin

@plugin
class Effects:
    path: Path

    def act(self, what):
        with self.path.open("a") as file:
            file.write(f"{what}\\n")

    @hookimpl
    def on_start(self, server):
        self.act("started")

    @hookimpl
    def on_message(self):
        self.act("judged")

    @hookimpl
    def on_stop(self):
        self.act("stopped")

    @hookimpl
    def route(self):
        self.act("route")
        raise Reject("no route")

    @hookimpl
    def deliver(self):
        self.act("deliver")
        return True

    @hookimpl
    def observe(self, event):
        self.act("observe")
""",
    "unready": """
from minismtp import hookimpl, plugin

@plugin
class Unready:
    @hookimpl
    def on_start(self):
        raise OSError("no database")
""",
}


def stored(
    subject: str = "hello",
    *,
    sender: str = "a@client.example",
    to: str = "user@example.org",
    peer: str = "192.0.2.7",
    protocol: str = "ESMTPS",
) -> bytes:
    """Return a message as the plugin maildir stores it."""
    trace = TRACE.format(sender=sender, to=to, peer=peer, protocol=protocol)
    return f"{trace}Subject: {subject}\r\n\r\n.Hello.\r\n".encode()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a Maildir and a present configuration without filters."""
    monkeypatch.chdir(tmp_path)
    for name in ("cur", "new", "tmp"):
        (tmp_path / "Maildir" / name).mkdir(parents=True)
    (tmp_path / "plugins").mkdir()
    for name, text in PLUGINS.items():
        (tmp_path / "plugins" / f"{name}.py").write_text(text)
    (tmp_path / "minismtp.toml").write_text(
        'hostname = "mx.example.org"\nstate_directory = "state"\nplugin_path = ["plugins"]\n'
        '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    )
    monkeypatch.setenv("MINISMTP_CONFIG", str(tmp_path / "minismtp.toml"))
    return tmp_path


def put(place: Path, *messages: bytes) -> None:
    for number, message in enumerate(messages):
        folder = "new" if number % 2 else "cur"
        (place / "Maildir" / folder / f"{1_700_000_000 + number}.x.host").write_bytes(message)


def table(use: str, **options: object) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    return "\n".join(["[[plugins]]", f'use = "{use}"', *lines, ""])


def replay(place: Path, capsys: Capture, changed: str, *options: str) -> list[dict[str, Any]]:
    """Run the command and return the lines of --json."""
    (place / "changed.toml").write_text(changed)
    command = ["replay", str(place / "Maildir"), "--plugins", str(place / "changed.toml")]
    assert main([*command, "--json", *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# What would differ


def test_message_that_changed_plugins_would_refuse_is_a_difference(
    place: Path, capsys: Capture
) -> None:
    put(place, stored("hello"), stored("lottery"))
    difference, summary = replay(place, capsys, table("words", words=["lottery"]))
    assert difference == {
        "type": "difference",
        "message": str(place / "Maildir" / "new" / "1700000001.x.host"),
        "was": "accepted",
        "now": "rejected",
        "by": "words.on_message",
        "reply": "550 5.7.1 not wanted",
    }
    assert (summary["messages"], summary["different"], summary["unreadable"]) == (2, 1, 0)


def test_differences_are_also_text(place: Path, capsys: Capture) -> None:
    put(place, stored("lottery"), stored("lottery"), stored("x"))
    (place / "changed.toml").write_text(table("words", words=["lottery"]))
    assert main(["replay", "Maildir", "--plugins", "changed.toml"]) == 0
    first, *_, total, change = capsys.readouterr().out.splitlines()
    assert first == (
        "Maildir/cur/1700000000.x.host  accepted -> rejected"
        "  words.on_message  550 5.7.1 not wanted"
    )
    assert total == "3 messages, 2 would fare differently"
    assert change == "    2 accepted -> rejected by words.on_message"


def test_message_that_changed_plugins_would_accept_is_a_difference(
    place: Path, capsys: Capture
) -> None:
    put(place, stored("lottery"))
    with (place / "minismtp.toml").open("a") as config:
        config.write(table("words", words=["lottery"]))
    difference, _ = replay(place, capsys, table("words", words=["other"]))
    assert (difference["was"], difference["now"]) == ("rejected", "accepted")
    assert difference["by"] == "words.on_message"


def test_message_that_fares_the_same_is_none(place: Path, capsys: Capture) -> None:
    put(place, stored("lottery"))
    with (place / "minismtp.toml").open("a") as config:
        config.write(table("words", words=["lottery"]))
    [summary] = replay(place, capsys, table("words", words=["lottery", "more"]))
    assert (summary["messages"], summary["changes"]) == (1, [])


def test_outcome_counts_not_only_the_reply(place: Path, capsys: Capture) -> None:
    put(place, stored("lottery"))
    difference, _ = replay(place, capsys, table("words", words=["lottery"], set_aside=True))
    assert (difference["now"], difference["reply"][:3]) == ("quarantined", "250")


def test_other_plugins_may_be_compared_with(place: Path, capsys: Capture) -> None:
    put(place, stored("one"), stored("two"))
    (place / "other.toml").write_text(table("words", words=["one"]))
    found = replay(
        place, capsys, table("words", words=["two"]), "--against", str(place / "other.toml")
    )
    assert [(each["was"], each["now"]) for each in found[:-1]] == [
        ("rejected", "accepted"),
        ("accepted", "rejected"),
    ]


def test_what_became_of_the_mail_may_be_compared_with(place: Path, capsys: Capture) -> None:
    """In this case the plugins of the present configuration do not start."""
    put(place, stored("one"))
    with (place / "minismtp.toml").open("a") as config:
        config.write(table("words", words=["one"]) + table("unready"))
    difference, _ = replay(place, capsys, table("words", words=["one"]), "--against", "accepted")
    assert (difference["was"], difference["now"]) == ("accepted", "rejected")


def test_messages_are_taken_oldest_first_from_both_folders(place: Path, capsys: Capture) -> None:
    put(place, *[stored("x")] * 5)
    (place / "Maildir" / "new" / ".hidden").touch()
    found = replay(place, capsys, table("words", words=["x"]))
    names = [Path(each["message"]).name for each in found[:-1]]
    assert names == sorted(names)
    assert len(names) == 5


# What is not done


def test_nothing_is_delivered_routed_or_told(place: Path, capsys: Capture) -> None:
    put(place, stored(), stored())
    [summary] = replay(place, capsys, table("effects", path="effects"))
    assert summary["messages"] == 2
    assert (place / "effects").read_text().split() == ["started", "judged", "judged", "stopped"]


def test_maildir_and_state_are_left_as_they_were(place: Path, capsys: Capture) -> None:
    put(place, stored(), stored())
    maildir_table = table("maildir", path=str(place / "mail" / "{local}"))
    before = {path: path.stat().st_mtime_ns for path in (place / "Maildir").rglob("*")}
    replay(place, capsys, table("words", words=["x"]) + maildir_table)
    assert {path: path.stat().st_mtime_ns for path in (place / "Maildir").rglob("*")} == before
    assert not (place / "mail").exists()
    assert not (place / "state").exists()


# The envelope


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (stored(), ("a@client.example", "user@example.org", "192.0.2.7", None)),
        (stored(sender=""), ("", "user@example.org", "192.0.2.7", None)),
        (
            stored(peer="IPv6:2001:db8::7"),
            ("a@client.example", "user@example.org", "2001:db8::7", None),
        ),
        (
            stored(protocol="ESMTPSA"),
            ("a@client.example", "user@example.org", "192.0.2.7", "a@client.example"),
        ),
        (
            stored(protocol="UTF8SMTPSA"),
            ("a@client.example", "user@example.org", "192.0.2.7", "a@client.example"),
        ),
        (
            stored(protocol="ESMTPA", sender=""),
            ("", "user@example.org", "192.0.2.7", "somebody"),
        ),
    ],
    ids=["mail", "bounce", "IPv6", "submission", "submission in UTF-8", "bounce of a user"],
)
def test_envelope_is_read_from_our_trace_fields(
    message: bytes, expected: tuple[str, str, str, str | None]
) -> None:
    content = io.BytesIO(message)
    client = envelope_of(content, "mx.example.org")
    assert (client.sender, *client.recipients, client.peer, client.login) == expected
    assert client.helo == "mail.client.example"
    assert content.read() == b"Subject: hello\r\n\r\n.Hello.\r\n"


@pytest.mark.parametrize(
    ("fields", "peer", "helo"),
    [
        ("Received: from x.example (unknown [198.51.100.1])\r\n\tby other; now\r\n", *(
            "198.51.100.1", "x.example")),
        ("Received: from unknown ([198.51.100.1])\r\n\tby other; now\r\n", *(
            "198.51.100.1", "client.example")),
        ("Received: by other; now\r\n", "192.0.2.1", "client.example"),
        ("Received: from x.example ([1.2.3.999]) by other; now\r\n", "192.0.2.1", "x.example"),
        ("", "192.0.2.1", "client.example"),
    ],
    ids=["other server", "no name", "no origin", "no address", "no trace"],
)  # fmt: skip
def test_without_our_trace_field_only_what_delivery_added_is_passed_by(
    fields: str, peer: str, helo: str
) -> None:
    sent = f"{fields}Subject: x\n\ny\n".encode()
    content = io.BytesIO(b"Return-Path: <a@b.example>\nX-Original-To: c@d.example\n" + sent)
    client = envelope_of(content, "mx.example.org")
    assert (client.sender, client.recipients) == ("a@b.example", ("postmaster@mx.example.org",))
    assert (client.peer, client.helo) == (peer, helo)
    assert content.read() == sent


def test_trace_field_that_another_host_forged_in_our_manner_stays(place: Path) -> None:
    del place
    forged = stored().replace(b"by mx.example.org", b"by mx.other.example")
    content = io.BytesIO(forged)
    envelope_of(content, "mx.example.org")
    assert content.read().startswith(b"X-Spam: no\r\nReceived:")


def test_mail_that_came_over_a_unix_socket_has_no_address() -> None:
    message = stored().replace(b"([192.0.2.7])", b"(unix)")
    assert envelope_of(io.BytesIO(message), "mx.example.org").peer == "unix"


@pytest.mark.parametrize("octets", [b"", b"\0" * 999, b"Received:" * 9999, b"\xff: \xfe\n" * 99])
def test_whatever_stands_in_a_file_is_taken_for_a_message(octets: bytes) -> None:
    assert envelope_of(io.BytesIO(octets), "mx.example.org").recipients


def test_what_a_server_has_stored_is_replayed_as_it_came(
    place: Path, configure: Configure, start: Start, capsys: Capture
) -> None:
    server = start(configure())
    with server.connect() as client:
        client.begin_data("user@example.org", "me@client.example")
        assert client.command("Subject: lottery\r\n\r\n..x\r\n.").startswith("250 ")
    box = server.directory / "mail" / "user"
    with maildir(box)[0].open("rb") as content:
        client_of = envelope_of(content, "mx.example.org")
        assert content.read() == b"Subject: lottery\r\n\r\n.x\r\n"
    assert (client_of.sender, client_of.peer) == ("me@client.example", "127.0.0.1")
    put(place, maildir(box)[0].read_bytes())
    changed = 'plugin_path = ["plugins"]\n' + table("words", words=["lottery"])
    difference, _ = replay(place, capsys, changed)
    assert difference["now"] == "rejected"


# Mistakes, the bar, and size


@pytest.mark.parametrize(
    ("changed", "status", "problem"),
    [
        ("[[plugins", 78, "changed.toml: "),
        ("workers = 2\n", 78, "changed.toml: workers: expected [[plugins]] and plugin_path alone"),
        (table("wrods"), 78, "plugins[0].use: no plugin is called 'wrods'; did you mean 'words'?"),
        (table("words"), 78, "plugins[0].words: this key is required"),
        (table("unready"), 1, "/unready.py:8): on_start: OSError: no database"),
    ],
)
def test_mistake_is_told_in_one_line(
    changed: str, status: int, problem: str, place: Path, capfd: Capture
) -> None:
    (place / "changed.toml").write_text(changed)
    assert main(["replay", "Maildir", "--plugins", "changed.toml"]) == status
    assert problem in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        ["replay", "Nowhere", "--plugins", "minismtp.toml"],
        ["replay", "Maildir", "--plugins", "no.toml"],
    ],
)
def test_file_that_is_missing_is_told(command: list[str], place: Path, capsys: Capture) -> None:
    del place
    assert main(command) in (1, 78)
    assert "No such file or directory" in capsys.readouterr().err


def test_whole_configuration_may_be_given(place: Path, capsys: Capture) -> None:
    put(place, stored("lottery"))
    whole = (place / "minismtp.toml").read_text() + table("words", words=["lottery"])
    assert len(replay(place, capsys, whole)) == 2


def test_terminal_sees_a_bar_that_is_gone_in_the_end(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, stored("lottery"), stored())
    (place / "changed.toml").write_text(table("words", words=["lottery"]))
    command = ["replay", "Maildir", "--plugins", "changed.toml"]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("minismtp.cli.progress._PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command) == 0
    done = capsys.readouterr()
    assert f"[{'#' * 15:30}]  50% messages: 1 of 2" in done.err
    assert done.err.endswith("\r\x1b[K")
    assert "2 messages, 1 would fare differently\n" in done.out
    assert main([*command, "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_messages_that_vanish_meanwhile_are_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    put(place, stored())
    listed = [*maildir(place / "Maildir"), place / "Maildir" / "new" / "gone"]
    monkeypatch.setattr("minismtp.cli.replay.maildir", lambda _: listed)
    [summary] = replay(place, capsys, "")
    assert (summary["messages"], summary["unreadable"]) == (1, 1)


def test_memory_does_not_grow_with_the_number_of_messages(place: Path) -> None:
    put(place, *[stored("lottery")] * 12)
    (place / "changed.toml").write_text(table("words", words=["lottery"]))
    options = Namespace(
        maildir=place / "Maildir", plugins=place / "changed.toml", against="", json=False
    )
    kept = []
    for _ in differences(Config.load(place / "minismtp.toml"), options):
        gc.collect()
        kept.append(sum(isinstance(each, Message | Record) for each in gc.get_objects()))
    assert len(set(kept[2:12])) == 1
