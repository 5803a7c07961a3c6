"""Filters of the milter protocol: a scripted one for each feature, and real ones."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import dkim
import dns.name
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fakes import FAILURES, Talk, listen, running_daemon, serving
from minismtp_plugins._milter import packet, texts
from minismtp_plugins.milter import Milter
from ports import free_port

from minismtp import (
    Envelope,
    Found,
    Line,
    Local,
    Message,
    Recipient,
    Reject,
    Resolver,
    ServerInfo,
    Session,
    SocketAddress,
    UnansweredError,
    events,
    hookimpl,
    plugin,
)
from minismtp.config import PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom

DEFERRED: Final = "451 4.3.0 temporary failure, try again later"
HERE: Final = "127.0.0.1"
CONTENT: Final = "From: me@example.org\nSubject: hello\n  there\n\nIt works.\n"
CONTINUE: Final = packet(b"c")
SILENT: Final = frozenset(b"DAQK")  # commands that have no reply
ALL_ACTIONS: Final = 0x1FF
NO_REPLIES: Final = 0xFF080


@dataclass
class Filter:
    """A filter that sends the answers of a test, and keeps its input.

    `answers` are packets by the letter of the command; others get continue.
    """

    answers: Mapping[bytes, bytes] = field(default_factory=dict)
    version: int = 6
    actions: int = ALL_ACTIONS
    steps: int = 0
    symlist: bytes = b""
    told: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)  # the commands of each

    def talk(self, sock: socket.socket) -> None:
        """Serve one connection."""
        number = len(self.connections)
        self.connections.append("")
        with sock.makefile("rb") as reader:
            while head := reader.read(4):
                body = reader.read(int.from_bytes(head, "big"))
                letter, data = body[:1], body[1:]
                self.told.append((letter, data))
                self.connections[number] += letter.decode() if letter != b"D" else ""
                if letter == b"O":
                    agreed = struct.pack(">III", self.version, self.actions, self.steps)
                    sock.sendall(packet(b"O", agreed + self.symlist))
                elif letter not in {b"D", b"A", b"Q", b"K"} and not self._keeps_silent(letter):
                    answer = self.answers.get(letter, CONTINUE)
                    if not answer:
                        return
                    sock.sendall(answer)

    def _keeps_silent(self, letter: bytes) -> bool:
        flags = {b"C": 12, b"H": 13, b"M": 14, b"R": 15, b"T": 16, b"U": 17, b"N": 18, b"B": 19}
        return bool(self.steps >> {**flags, b"L": 7}.get(letter, 31) & 1)

    @property
    def letters(self) -> str:
        """The commands so far, macros left out."""
        return b"".join(letter for letter, _ in self.told if letter != b"D").decode()

    def data(self, letter: bytes) -> list[bytes]:
        """Return the data of all commands of a letter."""
        return [data for each, data in self.told if each == letter]

    def macros(self, letter: bytes) -> dict[str, str]:
        """Return the macros of the last command of a letter."""
        found = [data[1:] for data in self.data(b"D") if data[:1] == letter]
        words = found[-1].decode().removesuffix("\0").split("\0") if found else []
        return dict(zip(words[::2], words[1::2], strict=True))


@dataclass
class Scene:
    """A session with a filter; `stored` are the messages by recipient."""

    dialogue: Dialogue
    mailroom: Mailroom

    def mail(self, content: str | bytes = CONTENT, **values: Any) -> str:  # noqa: ANN401 - of Dialogue.mail
        return self.dialogue.mail(content, **values)

    @property
    def stored(self) -> list[str]:
        return sorted(self.mailroom.stored)

    @property
    def message(self) -> str:
        """The only stored message, without our Received field."""
        [[message]] = self.mailroom.stored.values()
        return re.sub(r"Received: from client.*\r\n(?:\t.*\r\n)*", "", message.decode(), count=1)


Play = Callable[..., Scene]


@pytest.fixture
def play() -> Iterator[Play]:
    """Yield a function that begins a session with a filter, or with a bad service."""
    dialogues: list[Dialogue] = []
    services: list[Any] = []

    def play(talk: Filter | Talk | SocketAddress, *plugins: object, **values: Any) -> Scene:  # noqa: ANN401
        if isinstance(talk, SocketAddress):
            address = talk
        else:
            service = serving(talk.talk if isinstance(talk, Filter) else talk)
            address = service.__enter__()
            services.append(service)
        mailroom = Mailroom()
        milter = Milter(address=address, patience=values.pop("patience", timedelta(seconds=60)))
        table = PluginConfig(use="milter", **values.pop("table", {}))
        dialogue = Dialogue((table, milter), *plugins, mailroom, **{"peer": HERE, **values})
        dialogues.append(dialogue)
        return Scene(dialogue, mailroom)

    yield play
    for dialogue in dialogues:
        dialogue.close()
    for service in services:
        service.__exit__(None, None, None)


def say(letter: bytes, *values: str | bytes) -> bytes:
    return packet(letter, texts(*values))


def change(*packets: bytes) -> dict[bytes, bytes]:
    """Return the answers of a filter that makes this change, then continues."""
    return {b"E": b"".join(packets) + CONTINUE}


# The input of a filter


def test_filter_is_told_of_each_step(play: Play) -> None:
    told = Filter()
    scene = play(told)
    assert scene.mail(to=("a@example.org", "b@example.org")).startswith("250 ")
    assert told.letters == "OCHMRRTLLNBE"
    assert told.data(b"C")[0][:11] == b"localhost\x004"
    assert told.data(b"C")[0][13:] == b"127.0.0.1\0"
    assert told.data(b"H") == [b"client.example\0"]
    assert told.data(b"M") == [b"<sender@client.example>\0"]
    assert told.data(b"R") == [b"<a@example.org>\0", b"<b@example.org>\0"]
    assert told.data(b"L") == [b"From\0me@example.org\0", b"Subject\0hello\n  there\0"]
    assert told.data(b"B") == [b"It works.\r\n"]
    del scene.mailroom.stored["b@example.org"]
    assert scene.message == CONTENT.replace("\n", "\r\n")


def test_macros_go_before_each_step(play: Play) -> None:
    told = Filter()
    scene = play(told, tls=True, login="alice")
    scene.mail()
    message = f"{scene.dialogue.session.id}.1"
    connect = told.macros(b"C")
    assert connect["j"] == "mx.example.org"
    assert connect["_"] == "localhost [127.0.0.1]"
    assert connect["{daemon_name}"] == "test"
    assert connect["{client_addr}"] == "127.0.0.1"
    assert told.macros(b"H") == {
        "{tls_version}": "TLSv1.3",
        "{cipher}": "TLS_AES_256_GCM_SHA384",
    }
    assert told.macros(b"M") == {
        "i": message,
        "{auth_authen}": "alice",
        "{auth_type}": "unknown",
        "{mail_mailer}": "smtp",
        "{mail_host}": "client.example",
        "{mail_addr}": "sender@client.example",
    }
    assert told.macros(b"R") == {
        "{rcpt_mailer}": "local",
        "{rcpt_host}": "example.org",
        "{rcpt_addr}": "user@example.org",
    }
    for letter in (b"T", b"N", b"E"):
        assert told.macros(letter) == {"i": message}


def test_macros_are_those_that_the_filter_has_chosen(play: Play) -> None:
    symlist = struct.pack(">I", 2) + b"{mail_addr} j {none}\0" + struct.pack(">I", 0) + b"\0"
    told = Filter(symlist=symlist)
    play(told).mail()
    assert told.macros(b"M") == {"{mail_addr}": "sender@client.example", "j": "mx.example.org"}
    assert told.macros(b"C") == {}
    assert "{rcpt_addr}" in told.macros(b"R")


@plugin
class Login:
    @hookimpl
    def authenticate(self) -> str:
        return "alice@example.org"


def test_filter_learns_how_a_user_has_logged_in(play: Play) -> None:
    told = Filter()
    scene = play(told, Login())
    scene.dialogue.send("EHLO client.example")
    plain = b64encode(b"\0alice\0secret").decode()
    assert scene.dialogue.send(f"AUTH PLAIN {plain}").startswith("235 ")
    scene.mail()
    assert told.macros(b"M")["{auth_type}"] == "PLAIN"
    assert told.macros(b"M")["{auth_authen}"] == "alice@example.org"


def test_parameters_of_the_envelope_are_told(play: Play) -> None:
    told = Filter()
    dialogue = play(told, login="user").dialogue  # for strangers NOTIFY=SUCCESS does not count
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS")
    dialogue.send("RCPT TO:<user@example.org> NOTIFY=SUCCESS,FAILURE")
    assert told.data(b"M") == [b"<>\0SIZE=100\0BODY=8BITMIME\0SMTPUTF8\0RET=HDRS\0"]
    assert told.data(b"R") == [b"<user@example.org>\0NOTIFY=FAILURE,SUCCESS\0"]


def test_large_body_comes_in_pieces(play: Play, tmp_path: Path) -> None:
    told = Filter()
    body = b"0123456789abcde\r\n" * 40_000
    assert play(told, spool=tmp_path).mail(b"Subject: x\r\n\r\n" + body).startswith("250 ")
    pieces = told.data(b"B")
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) == 65535


def test_field_that_no_filter_could_be_given_is_cut(play: Play) -> None:
    told = Filter()
    assert play(told).mail("A: " + "x" * 900 + "\n\tyy" * 20_000 + "\n\n").startswith("250 ")
    assert [len(each) for each in told.data(b"L")] == [65535]


def test_recipient_that_is_refused_is_not_told(play: Play) -> None:
    @plugin
    class Unknown:
        @hookimpl
        def route(self, recipient: Recipient) -> None:
            if recipient.address.local == "nobody":
                raise Reject("no such mailbox", code=550, enhanced="5.1.1")

    told, asked = Filter(), Filter(steps=0x800)
    for each in (told, asked):
        dialogue = play(each, Unknown()).dialogue
        dialogue.send("EHLO client.example")
        dialogue.send("MAIL FROM:<a@client.example>")
        assert dialogue.send("RCPT TO:<nobody@example.org>").startswith("550 5.1.1")
    assert told.data(b"R") == []
    assert asked.data(b"R") == [b"<nobody@example.org>\0"]
    assert asked.macros(b"R") == {
        "{rcpt_mailer}": "error",
        "{rcpt_host}": "5.1.1",
        "{rcpt_addr}": "550 no such mailbox",
    }


def test_recipient_that_the_filter_refuses_is_not_told_again(play: Play) -> None:
    told = Filter({b"R": packet(b"r")}, steps=0x800)
    assert play(told).mail() == "550 5.7.1 refused by a filter"
    assert told.data(b"R") == [b"<user@example.org>\0"]


def test_unknown_command_is_told_unless_another_server_would_know_it(play: Play) -> None:
    told = Filter({b"U": say(b"y", "500 5.5.1 what?")})
    dialogue = play(told).dialogue
    assert dialogue.send("XYZZY now") == "500 5.5.1 what?"
    assert dialogue.send("VRFY me").startswith("252 ")
    assert told.data(b"U") == [b"XYZZY now\0"]


@dataclass
class Names(Resolver):
    """A DNS."""

    records: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def lookup(self, name: str, kind: str, *, seconds: float = 0) -> Found:
        """Return the one record, or fail."""
        assert seconds > 0
        if (name, kind) not in self.records:
            raise UnansweredError("away")
        text = self.records[name, kind]
        return Found((SimpleNamespace(address=text, target=dns.name.from_text(text)),), name)


@pytest.mark.parametrize(
    ("peer", "records", "name"),
    [
        (
            "192.0.2.1",
            {("1.2.0.192.in-addr.arpa", "PTR"): "mx.a.example", ("mx.a.example", "A"): "192.0.2.1"},
            "mx.a.example",
        ),
        (
            "192.0.2.1",
            {("1.2.0.192.in-addr.arpa", "PTR"): "mx.a.example", ("mx.a.example", "A"): "192.0.2.9"},
            "[192.0.2.1]",
        ),
        ("192.0.2.1", {}, "[192.0.2.1]"),
        ("2001:db8::1", {}, "[IPv6:2001:db8::1]"),
        ("::1", {}, "localhost"),
        ("unix", {}, "localhost"),
    ],
)
def test_client_is_named_when_its_name_leads_back(
    peer: str, records: Mapping[tuple[str, str], str], name: str
) -> None:
    told = Filter()
    session = Session(id="1", listener="smtp", kind="mx", hostname="mx.example.org", peer=peer)
    with serving(told.talk) as address:
        milter = Milter(address=address)
        server = ServerInfo("mx.example.org", Path("/nonexistent"), "worker", 0, Names(records))
        milter.on_start(server)
        milter.on_connect(session)
        milter.observe(events.SessionClosed("1", "smtp", peer, 0.0, "quit"))
    assert told.data(b"C")[0].startswith(name.encode() + b"\0")
    known = not name.startswith("[")
    macros = told.macros(b"C")
    assert macros["{client_name}"] == (name if known else "unknown")  # as with Postfix
    assert macros["_"] == f"{name if known else 'unknown'} [{peer}]"
    assert macros["{client_resolve}"] == ("OK" if known else "FAIL")


# What is left out


@pytest.mark.parametrize(
    ("steps", "letters"),
    [
        (0x1, "OHMRTLLNBE"),
        (0x2, "OCMRTLLNBE"),
        (0x4, "OCHRTLLNBE"),
        (0x8, "OCHMTLLNBE"),
        (0x10, "OCHMRTLLNE"),
        (0x20, "OCHMRTNBE"),
        (0x40, "OCHMRTLLBE"),
        (0x200, "OCHMRLLNBE"),
        (0x37F, "OE"),
        (NO_REPLIES, "OCHMRTLLNBE"),
    ],
    ids=str,
)
def test_filter_hears_what_it_wants(play: Play, steps: int, letters: str) -> None:
    told = Filter(steps=steps)
    assert play(told).mail().startswith("250 ")
    assert told.letters == letters


def test_what_needs_no_reply_is_sent_together(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send = Line.send

    def count(line: Line, data: bytes) -> None:
        sent.append(data)
        send(line, data)

    monkeypatch.setattr(Line, "send", count)
    assert play(Filter(steps=NO_REPLIES)).mail().startswith("250 ")
    assert len(sent) == 2  # the agreement, and all of the message


def test_old_filter_hears_what_it_knows(play: Play) -> None:
    told = Filter(version=2, actions=0x3F, steps=0)
    scene = play(told)
    assert scene.dialogue.send("XYZZY").startswith("500 ")
    assert scene.mail().startswith("250 ")
    assert told.letters == "OCHMRLLNBE"


def test_filter_that_has_seen_enough_of_a_body_is_shown_no_more(play: Play) -> None:
    told = Filter({b"B": packet(b"s")}, steps=0x400)
    scene = play(told)
    for _ in range(2):
        assert scene.mail(b"Subject: x\r\n\r\n" + b"x" * 60 + b"\r\n" * 80_000).startswith("250 ")
    assert told.letters == "OCHMRTLNBEHMRTLNBE"


def test_filter_may_see_the_space_before_values(play: Play) -> None:
    told = Filter(change(say(b"h", "X-A", " b"), say(b"h", "X-B", "c")), steps=0x100000)
    scene = play(told)
    scene.mail("A:b\nC:  d\n\n")
    assert told.data(b"L") == [b"A\0b\0", b"C\0  d\0"]
    assert scene.message == "A:b\r\nC:  d\r\nX-A: b\r\nX-B:c\r\n\r\n"


# The answers of a filter


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (packet(b"r"), "550 5.7.1 refused by a filter"),
        (packet(b"t"), "451 4.7.1 a filter asks you to try again later"),
        (packet(b"4"), "421 4.7.0 a filter asks you to try again later"),
        (say(b"y", "554 5.7.1 100%% spam"), "554 5.7.1 100% spam"),
        (say(b"y", "452 4.2.2 full"), "452 4.2.2 full"),
        (say(b"y", "550-5.7.1 no\r\n550 5.7.1 never"), "550-5.7.1 no\n550 5.7.1 never"),
        (packet(b"p") + packet(b"p") + packet(b"r"), "550 5.7.1 refused by a filter"),
        (packet(b"z"), DEFERRED),
        (packet(b"s"), DEFERRED),
        (say(b"h", "X-A", "b"), DEFERRED),
        (b"", DEFERRED),
    ],
    ids=[
        *("reject", "tempfail", "shutdown", "reply", "4yz", "lines", "progress"),
        *("unknown", "skip", "change", "lost"),
    ],
)
@pytest.mark.parametrize("letter", [b"M", b"R", b"T", b"L", b"N", b"B"])
def test_refusal_at_a_step_is_the_reply(
    play: Play, letter: bytes, answer: bytes, reply: str
) -> None:
    scene = play(Filter({letter: answer}))
    assert scene.mail() == reply
    assert scene.stored == []


@pytest.mark.parametrize(
    ("answer", "reply"),
    [(packet(b"r"), "550 5.7.1 refused by a filter"), (packet(b"z"), DEFERRED)],
)
def test_refusal_of_the_whole_message_is_the_reply(play: Play, answer: bytes, reply: str) -> None:
    header = say(b"h", "X-A", "b")
    scene = play(Filter({b"E": header + answer}))
    assert scene.mail() == reply
    assert scene.stored == []


@pytest.mark.parametrize(
    ("answer", "banner"),
    [
        (packet(b"r"), "554 mx.example.org refused by a filter"),
        (packet(b"t"), "421 mx.example.org a filter asks you to try again later"),
        (say(b"y", "554 5.7.1 go away"), "554 mx.example.org go away"),
        (packet(b"d"), "421 mx.example.org temporary failure, try again later"),
    ],
)
def test_client_may_be_refused_at_once(play: Play, answer: bytes, banner: str) -> None:
    assert play(Filter({b"C": answer})).dialogue.banner.rstrip() == banner


@pytest.mark.parametrize("letter", [b"C", b"H"])
def test_client_that_is_accepted_is_filtered_no_more(letter: bytes) -> None:
    told = Filter({letter: packet(b"a")})
    with serving(told.talk) as address:
        dialogue = Dialogue(Milter(address=address), Mailroom(), peer=HERE)
        for _ in range(2):
            assert dialogue.mail(CONTENT).startswith("250 ")
        dialogue.close()
    assert told.letters == {b"C": "OCQ", b"H": "OCHQ"}[letter]


@pytest.mark.parametrize("letter", [b"M", b"R", b"T", b"L", b"N", b"B", b"E"])
def test_message_that_is_accepted_is_filtered_no_more(play: Play, letter: bytes) -> None:
    told = Filter({letter: packet(b"a")})
    scene = play(told)
    for _ in range(2):
        assert scene.mail().startswith("250 ")
    assert len(scene.mailroom.stored["user@example.org"]) == 2
    first = "CHMRTLLNBE"
    first = first[: first.index(letter.decode()) + 1]
    assert told.letters.startswith(f"O{first}" + ("" if letter == b"E" else "A") + "HM")


@pytest.mark.parametrize("letter", [b"M", b"R", b"T", b"L", b"N", b"B", b"E"])
def test_message_may_be_discarded(play: Play, letter: bytes) -> None:
    scene = play(Filter({letter: packet(b"d")}))
    assert scene.mail().startswith("250 ")
    assert scene.stored == []
    assert scene.dialogue.count("messages_total", listener="test", outcome="discarded") == 1


def test_filter_is_given_the_time_it_asks_for(play: Play) -> None:
    def slowly(sock: socket.socket) -> None:
        told.talk(_Slow(sock))  # type: ignore[arg-type]

    told = Filter()
    scene = play(slowly, patience=timedelta(milliseconds=500))
    assert scene.mail().startswith("250 ")


class _Slow:
    """A socket of a filter that works longer than the limit, and reports progress."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.makefile = sock.makefile

    def sendall(self, data: bytes) -> None:
        if data == CONTINUE:
            for _ in range(4):
                self._socket.sendall(packet(b"p"))
                time.sleep(0.02)
        self._socket.sendall(data)


# Changes of a filter


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ([say(b"h", "X-A", "b")], "A: 1\nB: 2\nA: 3\nX-A: b\n"),
        ([say(b"h", "X-A", "b\n\tc\n d")], "A: 1\nB: 2\nA: 3\nX-A: b\n\tc\n d\n"),
        ([say(b"h", "X-A", "b\r\nEvil: c\n\n\nd")], "A: 1\nB: 2\nA: 3\nX-A: b\n\tEvil: c\n\td\n"),
        ([packet(b"i", bytes(4) + texts("X-A", "b"))], "X-A: b\nA: 1\nB: 2\nA: 3\n"),
        ([packet(b"i", b"\0\0\0\2" + texts("X-A", "b"))], "A: 1\nX-A: b\nB: 2\nA: 3\n"),
        ([packet(b"i", b"\0\0\1\0" + texts("X-A", "b"))], "A: 1\nB: 2\nA: 3\nX-A: b\n"),
        ([packet(b"m", b"\0\0\0\2" + texts("a", "4"))], "A: 1\nB: 2\na: 4\n"),
        ([packet(b"m", b"\0\0\0\1" + texts("A", ""))], "B: 2\nA: 3\n"),
        ([packet(b"m", b"\0\0\0\0" + texts("A", ""))], "B: 2\nA: 3\n"),
        ([packet(b"m", b"\0\0\0\3" + texts("A", "4"))], "A: 1\nB: 2\nA: 3\nA: 4\n"),
        ([packet(b"m", b"\0\0\0\3" + texts("A", ""))], "A: 1\nB: 2\nA: 3\n"),
        ([packet(b"m", b"\0\0\0\1" + texts("Received", ""))], "A: 1\nB: 2\nA: 3\n"),
        (
            # Numbers count the original fields, as in Sendmail.
            [packet(b"m", bytes([0, 0, 0, each]) + texts("A", "")) for each in (1, 2)],
            "B: 2\n",
        ),
    ],
)
def test_header_is_changed(play: Play, changes: list[bytes], header: str) -> None:
    scene = play(Filter(change(*changes)))
    assert scene.mail("A: 1\nB: 2\nA: 3\n\nIt works.\n").startswith("250 ")
    assert scene.message == f"{header}\nIt works.\n".replace("\n", "\r\n")


def test_trace_field_of_ours_is_neither_shown_nor_changed(play: Play) -> None:
    told = Filter(change(packet(b"m", b"\0\0\0\1" + texts("Received", "by me"))))
    scene = play(told)
    scene.mail("Received: by another\nA: 1\n\n")
    assert told.data(b"L")[0] == b"Received\0by another\0"
    assert scene.message == "Received: by me\r\nA: 1\r\n\r\n"


def test_fields_of_earlier_plugins_are_shown() -> None:
    @plugin
    class Early:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.prepend("X-Early", "yes")

    told = Filter()
    with serving(told.talk) as address:
        dialogue = Dialogue(Early(), Milter(address=address), Mailroom(), peer=HERE)
        dialogue.mail("A: 1\n\n")
        dialogue.close()
    assert told.data(b"L") == [b"X-Early\0yes\0", b"A\x001\0"]


@pytest.mark.parametrize("size", [10, 200_000])
def test_body_is_replaced_in_the_spool_when_it_is_large(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    body = b"new\r\n" * size
    pieces = [packet(b"b", body[start : start + 60_000]) for start in range(0, len(body), 60_000)]
    scene = play(Filter(change(*pieces, say(b"h", "X-A", "b"))), spool=tmp_path)
    assert scene.mail().startswith("250 ")
    header, _, stored = scene.message.partition("\r\n\r\n")
    assert header.endswith("there\r\nX-A: b")
    assert stored.encode() == body


def test_recipients_and_sender_are_changed(play: Play) -> None:
    seen: list[str] = []

    @plugin
    class Looking:
        @hookimpl
        def deliver(self, envelope: Envelope) -> None:
            seen.append(envelope.sender)

    changes = change(
        say(b"-", "<user@example.org>"),
        say(b"-", "<nobody@example.org>"),
        say(b"+", "<new@example.org>"),
        say(b"2", "<other@example.org>", "NOTIFY=NEVER"),
        say(b"e", "<list@client.example>"),
    )
    scene = play(Filter(changes), Looking())
    assert scene.mail().startswith("250 ")
    assert scene.stored == ["new@example.org", "other@example.org"]
    assert set(seen) == {"list@client.example"}


def test_added_recipient_opens_no_relay(play: Play) -> None:
    @plugin
    class Here:
        @hookimpl
        def route(self, recipient: Recipient) -> Local:
            if recipient.address.domain != "example.org":
                raise Reject("relaying denied")
            return Local()

    scene = play(Filter(change(say(b"+", "<a@elsewhere.example>"))), Here())
    assert scene.mail() == "451 4.3.5 a recipient that was added cannot be reached"
    assert scene.stored == []


def test_message_is_quarantined(play: Play) -> None:
    scene = play(Filter(change(say(b"q", "looks odd"))))
    assert scene.mail().startswith("250 ")
    assert scene.dialogue.count("messages_total", listener="test", outcome="quarantined") == 1


CHANGES: Final = {
    0x1: packet(b"i", bytes(4) + texts("X-A", "b")),
    0x2: packet(b"b", b"body"),
    0x4: say(b"+", "<new@example.org>"),
    0x8: say(b"-", "<user@example.org>"),
    0x10: packet(b"m", b"\0\0\0\1" + texts("Subject", "b")),
    0x20: say(b"q", "why"),
    0x40: say(b"e", "<new@example.org>"),
    0x80: say(b"2", "<new@example.org>"),
}


@pytest.mark.parametrize("action", CHANGES, ids=hex)
def test_change_needs_to_be_agreed_upon(play: Play, action: int) -> None:
    answers = change(CHANGES[action])
    assert play(Filter(answers, actions=action)).mail().startswith("250 ")
    scene = play(Filter(answers, actions=ALL_ACTIONS & ~action))
    assert scene.mail() == DEFERRED
    assert scene.stored == []


def test_changes_without_end_are_an_error(play: Play) -> None:
    scene = play(Filter(change(*[say(b"h", "X-A", "b")] * 1001)))
    assert scene.mail() == DEFERRED


def test_filter_in_shadow_mode_changes_nothing(play: Play) -> None:
    told = Filter(change(*CHANGES.values()))
    scene = play(told, table={"mode": "shadow"})
    assert scene.mail().startswith("250 ")
    assert scene.message == CONTENT.replace("\n", "\r\n")
    assert told.letters == "OCHMRTLLNBE"


# Several messages, and the end


def test_messages_of_a_session_share_a_connection(play: Play) -> None:
    told = Filter()
    scene = play(told)
    scene.mail()
    scene.dialogue.send("MAIL FROM:<a@client.example>")
    scene.dialogue.send("RSET")
    scene.mail()
    assert len(told.connections) == 1
    assert told.letters == "OCHMRTLLNBE" + "MA" + "HMRTLLNBE"


def test_message_that_another_plugin_refuses_is_given_up(play: Play) -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_data(self) -> None:
            raise Reject("no")

    told = Filter()
    dialogue = play(told, Refusing()).dialogue
    for line in ("EHLO client.example", "MAIL FROM:<>", "RCPT TO:<user@example.org>", "DATA"):
        dialogue.send(line)
    dialogue.send("EHLO client.example")
    assert told.letters == "OCHMRTAH"


def test_end_of_the_session_is_told_and_closes_the_connection() -> None:
    told = Filter()
    with serving(told.talk) as address:
        dialogue = Dialogue(Milter(address=address), Mailroom(), peer=HERE)
        dialogue.mail(CONTENT)
        dialogue.close()
    assert told.connections == ["OCHMRTLLNBEQ"]


def test_end_of_a_session_whose_filter_has_gone_is_no_failure(play: Play) -> None:
    scene = play(Filter({b"M": b""}))
    scene.mail()
    scene.dialogue.close()
    labels = {"plugin": "milter", "hook": "observe"}
    assert scene.dialogue.count("hook_errors_total", **labels) == 0


def test_refused_message_cannot_be_tried_again_without_the_filter(play: Play) -> None:
    told = Filter({b"T": packet(b"t")})
    dialogue = play(told).dialogue
    for line in ("EHLO client.example", "MAIL FROM:<>", "RCPT TO:<user@example.org>"):
        dialogue.send(line)
    later = "451 4.7.1 a filter asks you to try again later"
    assert [dialogue.send("DATA"), dialogue.send("DATA")] == [later, later]
    assert told.letters == "OCHMRT"


@pytest.mark.parametrize(
    ("version", "connections"), [(6, ["OCHQ", "OCHMQ"]), (3, ["OCHQ", "OCHMQ"])]
)
def test_client_behind_a_front_end_is_another_one(version: int, connections: list[str]) -> None:
    told = Filter(version=version)
    with serving(told.talk) as address:
        service = Dialogue(Milter(address=address), peer=HERE)
        trusting = replace(service.service, xclient=(ip_network("127.0.0.0/8"),))
        service.close()
        dialogue = Dialogue(service=trusting, peer=HERE)
        dialogue.send("EHLO front.example")
        dialogue.send("XCLIENT ADDR=127.0.0.2 LOGIN=alice")
        dialogue.send("EHLO client.example")
        dialogue.send("MAIL FROM:<>")
        dialogue.close()
    assert told.connections == ["OCQ", *connections]
    assert told.macros(b"C")["{client_addr}"] == "127.0.0.2"
    assert told.macros(b"M")["{auth_authen}"] == "alice"


def test_library_of_sendmail_hears_of_the_client_behind_a_front_end(
    libmilter: SocketAddress,
) -> None:
    mailroom = Mailroom()
    made = Dialogue(Milter(address=libmilter), mailroom, peer=HERE, resolver=Names({}))
    trusting = replace(made.service, xclient=(ip_network("127.0.0.0/8"),))
    dialogue = Dialogue(service=trusting, peer=HERE)
    dialogue.send("EHLO front.example")
    assert dialogue.send("XCLIENT NAME=a.example ADDR=192.0.2.7 LOGIN=alice").startswith("220 ")
    assert dialogue.mail("Subject: x\n\nx").startswith("250 ")
    dialogue.close()
    made.close()
    [message] = mailroom.stored["new@example.org"]
    assert b"X-Seen: a.example\r\n\t192.0.2.7\r\n\t<" in message


def test_parameters_reach_the_filter_as_they_came() -> None:
    told = Filter()
    with serving(told.talk) as address:
        dialogue = Dialogue(Milter(address=address), Mailroom(), peer=HERE)
        dialogue.send("EHLO client.example")
        mail = "SIZE=100 BODY=8BITMIME RET=HDRS ENVID=a+2Bb+3Dc"
        assert dialogue.send(f"MAIL FROM:<a@client.example> {mail}").startswith("250 ")
        rcpt = "NOTIFY=FAILURE ORCPT=rfc822;user+2B1@example.org"
        assert dialogue.send(f"RCPT TO:<user@example.org> {rcpt}").startswith("250 ")
        dialogue.close()
    assert told.data(b"M")[0].decode().split("\0")[1:-1] == mail.split()
    assert told.data(b"R")[0].decode().split("\0")[1:-1] == rcpt.split()


# When it fails


@pytest.mark.parametrize("failure", FAILURES)
def test_client_waits_while_the_filter_fails(play: Play, failure: str) -> None:
    scene = play(FAILURES[failure], patience=timedelta(milliseconds=200))
    later = "421 mx.example.org temporary failure, try again later"
    assert scene.dialogue.banner.rstrip() == later


def test_client_waits_while_the_filter_is_away(play: Play) -> None:
    scene = play(SocketAddress(HERE, free_port()))
    assert scene.dialogue.banner.startswith("421 ")


def test_mail_passes_without_the_filter_where_that_is_wanted(play: Play) -> None:
    scene = play(SocketAddress(HERE, free_port()), table={"on_error": "ignore"})
    assert scene.mail().startswith("250 ")
    assert scene.stored == ["user@example.org"]


def test_filter_that_is_slow_in_the_middle_defers(play: Play) -> None:
    def talk(sock: socket.socket) -> None:
        Filter({b"E": b""}).talk(sock)
        listen(sock)

    scene = play(talk, patience=timedelta(milliseconds=200))
    assert scene.mail() == DEFERRED
    assert scene.stored == []


def test_message_whose_filter_was_lost_is_not_taken(play: Play) -> None:
    told = Filter({b"R": b""})
    scene = play(told)
    assert scene.mail() == DEFERRED
    told.answers = {}
    assert scene.dialogue.send("RCPT TO:<other@example.org>") == DEFERRED
    assert scene.dialogue.send("DATA") == "554 5.5.1 no valid recipients"
    assert scene.mail().startswith("250 ")
    assert told.letters == "OCHMR" + "OCHMRTLLNBE"


def test_filter_that_is_back_hears_all_again(play: Play) -> None:
    told = Filter({b"M": b""})
    dialogue = play(told).dialogue
    dialogue.send("EHLO client.example")
    assert dialogue.send("MAIL FROM:<a@client.example>") == DEFERRED
    told.answers = {}
    assert dialogue.send("MAIL FROM:<a@client.example>").startswith("250 ")
    assert told.letters == "OCHM" + "OCHM"


def test_options_that_make_no_sense_are_mistakes() -> None:
    table = {"address": "127.0.0.1:1", "patience": "0s"}
    with pytest.raises(ConfigError, match='patience: expected more than "0s"'):
        build(Milter, table, file="c.toml", key="plugins[0]", base=Path())


# Real ones


@dataclass(frozen=True)
class Key:
    """A key for signing, in a file, and as its record in the DNS."""

    path: Path
    record: bytes

    def txt(self, name: bytes, timeout: int = 5) -> bytes:
        """Answer dkimpy as the DNS would."""
        del timeout
        return self.record if name == b"mail._domainkey.example.org." else b""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path_factory.mktemp("key") / "mail.pem"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return Key(path, b"v=DKIM1; k=rsa; p=" + b64encode(public))


OPENDKIM: Final = """
Mode sv
Socket inet:{port}@127.0.0.1
Domain example.org
Selector mail
KeyFile {key}
AuthservID mx.example.org
AlwaysAddARHeader yes
InternalHosts {directory}/internal
TestDNSData file:{directory}/dns
TemporaryDirectory {directory}
Canonicalization {canonicalization}
On-BadSignature reject
RequireSafeKeys no
Syslog no
"""


@pytest.fixture(scope="module", params=["simple/simple", "relaxed/relaxed"])
def opendkim(
    request: pytest.FixtureRequest,
    require_program: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    key: Key,
) -> Iterator[SocketAddress]:
    """Run OpenDKIM, which signs for users and verifies for all others."""
    program, directory, port = (
        require_program("opendkim"),
        tmp_path_factory.mktemp("o"),
        free_port(),
    )
    (directory / "internal").write_text("192.0.2.77\n")
    (directory / "dns").write_text(f"mail._domainkey.example.org {key.record.decode()}\n")
    text = OPENDKIM.format(
        port=port, key=key.path, directory=directory, canonicalization=request.param
    )
    (directory / "opendkim.conf").write_text(text)
    command = (program, "-f", "-x", directory / "opendkim.conf")
    with running_daemon(*command, port=port, log=directory / "log"):
        yield SocketAddress(HERE, port)


SIGNED: Final = (
    b"From: Me <me@example.org>\r\nTo: a@b.example,\r\n\tc@d.example\r\nSubject:  two  spaces \r\n"
    b"Tab:\tx\r\n\r\nHello,\t Bob. \r\n.\r\n\r\n\r\n"
)


def whole(scene: Scene) -> bytes:
    """Return the only stored message."""
    [[message]] = scene.mailroom.stored.values()
    return message


def test_opendkim_signs_what_users_send_and_verifies_it_later(
    opendkim: SocketAddress, play: Play, key: Key
) -> None:
    signing = play(opendkim, login="alice")
    assert signing.mail(SIGNED).startswith("250 ")
    message = whole(signing)
    assert message.count(b"DKIM-Signature:") == 1
    assert dkim.verify(message, dnsfunc=key.txt)
    verifying = play(opendkim)
    content = message[message.index(b"DKIM-Signature:") :]
    assert verifying.mail(content).startswith("250 ")
    stored = whole(verifying)
    [result] = re.findall(rb"^Authentication-Results: (.*(?:\n[ \t].*)*)", stored, re.MULTILINE)
    assert result.startswith(b"mx.example.org;")
    assert b"dkim=pass" in result
    assert stored.endswith(content)
    forged = content.replace(b"Hello", b"Hullo")
    assert play(opendkim).mail(forged).startswith("550 5.7.0 ")


def test_opendkim_removes_results_that_claim_to_be_ours(
    opendkim: SocketAddress, play: Play
) -> None:
    """It numbers the fields as they were before it deletes any."""
    hosts = ("mx.example.org", "b.example", "mx.example.org", "mx.example.org", "c.example")
    claims = [f"Authentication-Results: {host}; dkim=pass" for host in hosts]
    scene = play(opendkim)
    assert scene.mail("\n".join([*claims, "From: a@b.example", "", "x"])).startswith("250 ")
    found = re.findall(r"^Authentication-Results: (.*?);", scene.message, re.MULTILINE)
    assert found == ["mx.example.org", "b.example", "c.example"]
    assert "dkim=none" in scene.message


RSPAMD: Final = """
options {{
  filters = "";
  gtube_patterns = "all";
  enable_test_patterns = true;
  url_tld = "{directory}/tlds";
  tempdir = "{directory}";
  pidfile = "{directory}/pid";
  control_socket = "{directory}/control.sock mode=0600";
}}
logging {{ type = "console"; level = "info"; }}
lang_detection {{ languages = "{directory}/none"; }}
actions {{ reject = 15; add_header = 6; rewrite_subject = 8; }}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{port}";
  milter = yes;
  count = 1;
  upstream "local" {{ default = yes; self_scan = yes; }}
}}
"""
GTUBE: Final = "C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


@pytest.fixture(scope="module")
def rspamd(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SocketAddress]:
    """Run rspamd as a milter that checks messages itself, with only its test rules."""
    program, directory, port = require_program("rspamd"), tmp_path_factory.mktemp("r"), free_port()
    (directory / "tlds").write_text("com\norg\nexample\n")
    (directory / "rspamd.conf").write_text(RSPAMD.format(directory=directory, port=port))
    command = (program, "-f", "-i", "-c", directory / "rspamd.conf")
    with running_daemon(*command, port=port, log=directory / "log"):
        yield SocketAddress(HERE, port)


def gtube(letter: str) -> str:
    """Return a message for rspamd to refuse (X), mark (Y), or rename (Z)."""
    return f"From: me@example.org\nSubject: hello\n\n{letter}JS*{GTUBE}\n"


def test_rspamd_refuses_spam_and_marks_what_may_be(rspamd: SocketAddress, play: Play) -> None:
    """It sends no replies before the end of the message."""
    scene = play(rspamd)
    assert scene.mail(gtube("X")) == "554 5.7.1 Gtube pattern"
    assert scene.stored == []
    assert scene.mail(gtube("Y"), to=("marked@example.org",)).startswith("250 ")
    assert scene.mail(gtube("Z"), to=("renamed@example.org",)).startswith("250 ")
    assert scene.mail(CONTENT, to=("clean@example.org",)).startswith("250 ")
    stored = {name: message.decode() for name, [message] in scene.mailroom.stored.items()}
    assert "\r\nX-Spam: Yes\r\n" in stored["marked@example.org"]
    assert re.search(r"\r\nSubject: .*SPAM.*hello\r\n", stored["renamed@example.org"])
    assert stored["clean@example.org"].endswith(CONTENT.replace("\n", "\r\n"))


PYMILTER: Final = """
import sys

import Milter


class Filter(Milter.Base):
    @Milter.noreply
    def connect(self, hostname, family, hostaddr):
        self.seen = [hostname, str(hostaddr[0])]
        return Milter.CONTINUE

    def envfrom(self, sender, *parameters):
        self.seen[2:] = [sender, *parameters, self.getsymval("{auth_authen}")]
        return Milter.CONTINUE

    def envrcpt(self, recipient, *parameters):
        if recipient.startswith("<refused"):
            self.setreply("550", "5.7.1", "not", "for 100%% of you")
            return Milter.REJECT
        self.seen += [recipient, *parameters]
        return Milter.CONTINUE

    def header(self, name, value):
        self.seen.append(f"{name}={value!r}")
        return Milter.CONTINUE

    def body(self, piece):
        self.seen.append(f"{len(piece)} octets")
        return Milter.SKIP

    def eom(self):
        self.progress()
        self.addheader("X-Seen", "\\n\\t".join(self.seen))
        self.addheader("X-First", self.getsymval("i"), 0)
        self.chgheader("Subject", 1, "changed")
        self.chgheader("X-Gone", 1, "")
        self.addrcpt("<new@example.org>")
        self.delrcpt("<user@example.org>")
        self.chgfrom("<other@client.example>")
        self.replacebody("a new body\\r\\n")
        self.replacebody("in two pieces\\r\\n")
        return Milter.CONTINUE


Milter.factory = Filter
Milter.set_flags(Milter.CURR_ACTS & ~Milter.SETSYMLIST)
Milter.runmilter("test", sys.argv[1], 60)
"""


@pytest.fixture(scope="module")
def libmilter(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SocketAddress]:
    """Run a filter on Sendmail's own library, which Debian's Python knows."""
    python, directory, port = "/usr/bin/python3", tmp_path_factory.mktemp("p"), free_port()
    require_program(python)
    if subprocess.run([python, "-c", "import Milter"], capture_output=True, check=False).returncode:
        require_program("python3-milter")
    (directory / "filter.py").write_text(PYMILTER)
    command = (python, directory / "filter.py", f"inet:{port}@127.0.0.1")
    with running_daemon(*command, port=port, log=directory / "log"):
        yield SocketAddress(HERE, port)


@pytest.mark.parametrize("body", ["x\n" * 30_000, "x" * 90_000], ids=["lines", "one-line"])
def test_library_of_sendmail_agrees_on_all_of_it(
    libmilter: SocketAddress, play: Play, body: str
) -> None:
    scene = play(libmilter, login="alice")
    content = (
        "From: me@example.org\nDate: d\nMessage-ID: m\nSubject: hello\nX-Gone: x\n"
        "X-Folded: a\n b\n\n" + body
    )
    refusal = scene.mail(content, to=("refused@example.org",))
    assert refusal == "550-5.7.1 not\n550 5.7.1 for 100% of you"
    assert scene.mail(content).startswith("250 ")
    assert scene.stored == ["new@example.org"]
    first, _, rest = whole(scene).decode().partition("\r\n")
    assert first == f"X-First: {scene.dialogue.session.id}.2"
    assert rest.partition("From: ")[2].split("\r\n") == [
        "me@example.org",
        "Date: d",
        "Message-ID: m",
        "Subject: changed",
        "X-Folded: a",
        " b",
        "X-Seen: localhost",
        "\t127.0.0.1",
        "\t<sender@client.example>",
        "\talice",
        "\t<user@example.org>",
        "\tFrom='me@example.org'",
        "\tDate='d'",
        "\tMessage-ID='m'",
        "\tSubject='hello'",
        "\tX-Gone='x'",
        "\tX-Folded='a\\n b'",
        "\t65535 octets",
        "",
        "a new body",
        "in two pieces",
        "",
    ]
