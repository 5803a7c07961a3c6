"""SpamAssassin's score marks, quarantines and refuses mail; marks of senders are removed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Final, NamedTuple

import nameserver
import pytest
from fakes import Names, envelope, running_daemon, saying, serving
from minismtp_plugins.spamassassin import SPAMASSASSIN, Spamassassin, SpamassassinResult
from ports import free_port

from minismtp import (
    ByteSize,
    Content,
    Envelope,
    Finding,
    Headers,
    Message,
    Resolver,
    Session,
    SocketAddress,
    findings_of,
    hookimpl,
    plugin,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom

# The test line of SpamAssassin, in halves, because a filter could remove this file.
GTUBE: Final = "XJS*C4JDBQADN1.NSBN3*2IDNEN*" + "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
SPAM: Final = f"From: a@client.example\nSubject: Offer\n\n{GTUBE}\n"
HAM: Final = (
    "From: A Person <a@client.example>\nTo: user@example.org\nSubject: Lunch on Thursday\n"
    f"Date: {formatdate()}\nMessage-ID: <2026.11.26.8a1f0c5d7e21@client.example>\n\nAt one?\n"
)
REFUSED: Final = "550 5.7.1 message refused as spam"
DEFERRED: Final = "451 4.3.0 temporary failure, try again later"


@pytest.fixture(autouse=True)
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that no dialogue asks the DNS of this machine."""
    monkeypatch.setattr("minismtp.session.in_memory.Resolver", Names)


@pytest.fixture(scope="module")
def spamd(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SocketAddress]:
    """Run spamd with the rules of the package and no network, and return its address."""
    program, directory, port = (
        require_program("spamd"),
        tmp_path_factory.mktemp("spamd"),
        free_port(),
    )
    options = f"--local --nouser-config --max-children=1 --syslog=stderr --port={port}"
    user = ["--username=nobody"] if os.geteuid() == 0 else []
    command = [program, *options.split(), "--listen=127.0.0.1", f"--helper-home-dir={directory}"]
    with running_daemon(*command, *user, port=port, log=directory / "log"):
        yield SocketAddress("127.0.0.1", port)


def answer(score: float, tests: str = "A,B", required: float = 5.0) -> bytes:
    spam = score >= required
    return (
        f"SPAMD/1.1 0 EX_OK\r\nContent-length: {len(tests) + 2}\r\n"
        f"Spam: {spam} ; {score} / {required}\r\n\r\n{tests}\r\n"
    ).encode()


def stored(mailroom: Mailroom) -> Headers:
    [message] = mailroom.stored["user@example.org"]
    return Headers.parse(message)


@plugin
class Notes:
    """Keep the result of the plugin on the last envelope."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        self.result = envelope.stash.get(SPAMASSASSIN, None)
        self.findings = list(findings_of(envelope))


def test_spam_is_refused(spamd: SocketAddress) -> None:
    mailroom = Mailroom()
    assert Dialogue(Spamassassin(address=spamd), mailroom).mail(SPAM) == REFUSED
    assert mailroom.stored == {}


def test_spam_is_marked_where_nothing_is_refused(spamd: SocketAddress) -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(Spamassassin(address=spamd, reject=None), mailroom)
    assert dialogue.mail(SPAM).startswith("250 ")
    headers = stored(mailroom)
    assert headers.get("X-Spam-Flag") == "YES"
    assert float(headers.get("X-Spam-Score")) > 900
    assert headers.get("X-Spam-Status").startswith("Yes, score=")
    assert "GTUBE" in headers.get("X-Spam-Status")


def test_ham_is_taken_with_its_score_and_without_a_flag(spamd: SocketAddress) -> None:
    mailroom, notes = Mailroom(), Notes()
    dialogue = Dialogue(Spamassassin(address=spamd), notes, mailroom)
    assert dialogue.mail(f"X-Spam-Flag: YES\n{HAM}").startswith("250 ")
    headers = stored(mailroom)
    assert "X-Spam-Flag" not in headers
    assert headers.get("X-Spam-Status").startswith("No, score=")
    assert notes.result is not None
    assert not notes.result.spam
    assert notes.result.score < notes.result.required == 5.0


@pytest.mark.parametrize("line", ["x" * 70 + "\n", "x" * 70], ids=["many-lines", "one-line"])
def test_message_of_many_pieces_is_judged(spamd: SocketAddress, line: str) -> None:
    filler = line * 3000
    assert Dialogue(Spamassassin(address=spamd), Mailroom()).mail(SPAM + filler) == REFUSED


def test_marks_from_elsewhere_are_removed_and_ours_stand_on_top() -> None:
    mailroom = Mailroom()
    forged = "X-Spam-Score: -100\nx-spam-status: No\nX-SPAM-Level: *\nX-Spam-Score: 7\n"
    with serving(saying(answer(6.25))) as address:
        dialogue = Dialogue(Spamassassin(address=address), mailroom)
        assert dialogue.mail(forged + HAM).startswith("250 ")
    fields = [field for field in stored(mailroom) if field[0].lower().startswith("x-spam")]
    assert fields == [
        ("X-Spam-Flag", "YES"),
        ("X-Spam-Score", "6.2"),
        ("X-Spam-Status", "Yes, score=6.2 required=5.0 tests=A, B"),
    ]


def test_forged_mark_is_removed_even_from_what_is_not_judged() -> None:
    mailroom = Mailroom()
    nobody = SocketAddress("127.0.0.1", free_port())
    dialogue = Dialogue(Spamassassin(address=nobody, largest=ByteSize(10)), mailroom)
    assert dialogue.mail(f"X-Spam-Status: No\n{HAM}").startswith("250 ")
    assert "X-Spam-Status" not in stored(mailroom)


@pytest.mark.parametrize(
    ("score", "outcome", "flag"),
    [
        (4.9, "stored", ""),
        (5.0, "stored", "YES"),
        (8.0, "quarantined", "YES"),
        (12, "rejected", ""),
    ],
)
def test_each_threshold_has_its_effect(score: float, outcome: str, flag: str) -> None:
    mailroom = Mailroom()
    with serving(saying(answer(score, required=100))) as address:
        scanner = Spamassassin(address=address, tag=5, quarantine=8, reject=12)
        dialogue = Dialogue(scanner, mailroom)
        dialogue.mail(HAM)
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1
    assert outcome == "rejected" or stored(mailroom).get("X-Spam-Flag") == flag


def test_score_is_left_for_others() -> None:
    notes = Notes()
    with serving(saying(answer(-1.5, tests="ALL_TRUSTED,DKIM_VALID"))) as address:
        Dialogue(Spamassassin(address=address), notes, Mailroom()).mail(HAM)
    assert notes.result == SpamassassinResult(False, -1.5, 5.0, ("ALL_TRUSTED", "DKIM_VALID"))
    assert notes.findings == [Finding("spamassassin", "score", -1.5, "ALL_TRUSTED, DKIM_VALID")]


def test_user_who_has_logged_in_is_left_alone() -> None:
    mailroom = Mailroom()
    nobody = SocketAddress("127.0.0.1", free_port())
    dialogue = Dialogue(Spamassassin(address=nobody), mailroom, login="alice", tls=True)
    assert dialogue.mail(f"X-Spam-Flag: YES\n{HAM}").startswith("250 ")
    assert stored(mailroom).get("X-Spam-Flag") == "YES"


@pytest.mark.parametrize(
    ("user", "recipients", "sent"),
    [
        ("", ["alice@example.org"], None),
        ("shared", ["alice@example.org", "bob@example.org"], "shared"),
        ("{local}", ["alice@example.org"], "alice"),
        ("{address}", ["alice@Example.ORG"], "alice@example.org"),
        ("{domain}", ["alice@example.org", "bob@example.org"], "example.org"),
        ("{local}", ["alice@example.org", "bob@example.org"], None),
        ("{local}", ['"../x"@example.org'], None),
        ("{local}", ['"a b"@example.org'], None),
    ],
)
def test_preferences_are_those_of_the_one_user(
    user: str, recipients: list[str], sent: str | None
) -> None:
    heard: list[bytes] = []

    def talk(sock: socket.socket) -> None:
        heard.append(sock.recv(65536))
        sock.sendall(answer(0))

    with serving(talk) as address:
        scanner = Spamassassin(address=address, user=user)
        message = Message("1", Content.of(b"Subject: x\r\n\r\n"))
        scanner.on_message(session(), envelope(*recipients), message)
    lines = heard[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert [line for line in lines if line.startswith("User:")] == (
        [f"User: {sent}"] if sent else []
    )


def session() -> Session:
    return Session(
        id="1a2b", listener="smtp", kind="mx", hostname="mx.example.org", peer="192.0.2.1"
    )


@pytest.mark.parametrize(
    "said",
    [
        b"SPAMD/1.0 76 Bad header line: (EOF)\r\n\r\n",
        b"SPAMD/1.1 79 Timeout: (30 second timeout while trying to SYMBOLS)\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 2\r\n\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 2\r\nSpam: Maybe ; 1 / 5\r\n\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 2\r\nSpam: False ; nan / 5.0\r\n\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 99\r\nSpam: False ; 1.0 / 5.0\r\n\r\nA,B\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 999999\r\nSpam: False ; 1.0 / 5.0\r\n\r\nA,B\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 1.0 / 5.0\r\n",
        b"HTTP/1.1 200 OK\r\nContent-length: 2\r\nSpam: False ; 1.0 / 5.0\r\n\r\n\r\n",
    ],
)
def test_answer_that_is_no_judgement_defers(said: bytes) -> None:
    with serving(saying(said)) as address:
        assert Dialogue(Spamassassin(address=address), Mailroom()).mail(HAM) == DEFERRED


def test_name_of_a_test_cannot_bring_in_a_field() -> None:
    mailroom = Mailroom()
    with serving(saying(answer(1, tests="A\r\nX-Evil: yes\x00\xff"))) as address:
        Dialogue(Spamassassin(address=address), mailroom).mail(HAM)
    assert "X-Evil" not in stored(mailroom)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
        ({"tag": 9.0, "reject": 8.0}, "reject: expected at least the 9 of tag, not 8"),
        ({"quarantine": 16.0}, "reject: expected at least the 16 of quarantine, not 15"),
        ({"tag": float("nan")}, "tag: expected a number"),
        ({"user": "{mailbox}"}, "known placeholders are {local}"),
        ({"user": "{local"}, "user: "),
    ],
)
def test_options_that_make_no_sense_are_mistakes(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(Spamassassin, table, file="c.toml", key="plugins[0]", base=Path())


def test_threshold_can_be_switched_off() -> None:
    options = {"quarantine": 20.0, "reject": ""}
    scanner = build(Spamassassin, options, file="c.toml", key="plugins[0]", base=Path())
    assert scanner.reject is None


# Data about the client for spamd


ZONES: Final = {
    "test": """
mail A 192.0.2.1
mail AAAA 2001:db8::1
@ TXT "v=spf1 a:mail.test -all"
mail TXT "v=spf1 a -all"
""",
    "2.0.192.in-addr.arpa": "1 PTR mail.test.\n2 PTR mail.test.\n",
    "8.b.d.0.1.0.0.2.ip6.arpa": f"{'1' + '.0' * 23} PTR mail.test.\n",
}


class Network(NamedTuple):
    spamd: SocketAddress
    resolver: Resolver


@pytest.fixture(scope="module")
def network(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    """Run spamd with its rules for SPF, and a DNS for it and for us."""
    program, port = require_program("spamd"), free_port()
    directory = tmp_path_factory.mktemp("spamd")
    with nameserver.serving(tmp_path_factory.mktemp("dns"), require_program, ZONES) as dns:
        lines = [f"dns_server [{dns.host}]:{dns.port}", "dns_available yes", "skip_rbl_checks 1"]
        lines += ["use_bayes 0", "use_auto_welcomelist 0", "skip_uribl_checks 1"]
        lines += ["header RELAYS X-Spam-Relays-Untrusted =~ /./", "score RELAYS 0.001"]
        options = ["--nouser-config", "--max-children=1", "--syslog=stderr", f"--port={port}"]
        options += [f"--cf={line}" for line in lines]
        user = ["--username=nobody"] if os.geteuid() == 0 else []
        command = [program, *options, "--listen=127.0.0.1", f"--helper-home-dir={directory}"]
        with running_daemon(*command, *user, port=port, log=directory / "log"):
            yield Network(SocketAddress("127.0.0.1", port), Resolver([dns]))


def judged(
    network: Network, peer: str, sender: str, *, helo: str = "mail.test", content: str = HAM
) -> set[str]:
    """Return the tests that a message meets."""
    notes = Notes()
    plugins = (Spamassassin(address=network.spamd, reject=None), notes, Mailroom())
    dialogue = Dialogue(*plugins, peer=peer, resolver=network.resolver)
    assert dialogue.send(f"EHLO {helo}").startswith("250")
    assert dialogue.send(f"MAIL FROM:<{sender}>").startswith("250")
    assert dialogue.send("RCPT TO:<user@example.org>").startswith("250")
    assert dialogue.send("DATA").startswith("354")
    data = content.replace("\n", "\r\n").encode() + b".\r\n"
    assert dialogue.send_raw(data).startswith(b"250")
    assert notes.result is not None
    return set(notes.result.tests)


FORGED_SENDER: Final = f"X-Envelope-From: <a@test>\nReturn-Path: <a@test>\n{HAM}"


@pytest.mark.parametrize(
    ("peer", "sender", "met", "unmet"),
    [
        ("192.0.2.1", "a@test", {"SPF_PASS", "SPF_HELO_PASS"}, {"RDNS_NONE"}),
        ("2001:db8::1", "a@test", {"SPF_PASS", "SPF_HELO_PASS"}, {"RDNS_NONE"}),
        ("::ffff:192.0.2.1", "a@test", {"SPF_PASS"}, {"RDNS_NONE"}),
        ("192.0.2.2", "a@test", {"SPF_FAIL", "RDNS_NONE"}, {"SPF_PASS"}),
        ("192.0.2.3", "a@test", {"SPF_FAIL", "RDNS_NONE"}, {"SPF_PASS"}),
        ("192.0.2.1", "", {"SPF_HELO_PASS"}, {"RDNS_NONE", "SPF_FAIL"}),
        ("192.0.2.2", "SRS0=x=y=test=helo=a@test", {"SPF_FAIL"}, {"SPF_PASS"}),
    ],
)
def test_spamd_knows_the_name_and_the_sender(
    network: Network, peer: str, sender: str, met: set[str], unmet: set[str]
) -> None:
    for content in (HAM, FORGED_SENDER):
        tests = judged(network, peer, sender, content=content)
        assert met <= tests
        assert not unmet & tests


@pytest.mark.parametrize(
    "helo",
    [
        "x;envelope-from=a@mail.test",
        "[192.0.2.1]",
        "mail.test",
        "(mail.test",
        "envelope-from",
        "return-path:",
        "Return-Path",
        "HELO",
        "a_b.test",
        "desktop",
    ],
)
def test_helo_cannot_pass_for_something_else(network: Network, helo: str) -> None:
    tests = judged(network, "192.0.2.2", "a@test", helo=helo)
    assert {"SPF_FAIL", "RDNS_NONE"} <= tests


def shown(plugin: Spamassassin, network_peer: str, sender: str = "a@test") -> bytes:
    """Return the message that spamd gets, after its own lines."""
    heard: list[bytes] = []

    def talk(sock: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        head, _, rest = data.partition(b"\r\n\r\n")
        size = int(head.rpartition(b"Content-length: ")[2])
        while len(rest) < size:
            rest += sock.recv(65536)
        heard.append(rest)
        sock.sendall(answer(0.0))

    with serving(talk) as address:
        plugin = replace(plugin, address=address)
        dialogue = Dialogue(plugin, Mailroom(), peer=network_peer)
        assert dialogue.mail(HAM, sender=sender).startswith("250")
    return heard[0]


def test_received_field_is_ours_alone() -> None:
    data = shown(Spamassassin(), "192.0.2.1")
    head = data.partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("X-Envelope-From: <a@test>\r\nReceived: from client.example (unknown [")
    assert head.lower().count("\r\nreceived:") == 1
    assert data.endswith(HAM.replace("\n", "\r\n").encode())


def test_limit_counts_what_is_sent() -> None:
    size = len(shown(Spamassassin(), "192.0.2.1"))
    exactly = shown(Spamassassin(largest=ByteSize(size)), "192.0.2.1")
    assert len(exactly) == size
    mailroom = Mailroom()
    too_large = Spamassassin(address=SocketAddress("127.0.0.1", 9), largest=ByteSize(size - 1))
    assert Dialogue(too_large, mailroom).mail(HAM, sender="a@test").startswith("250")
    assert "X-Spam-Status" not in stored(mailroom)
