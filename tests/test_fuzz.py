"""Random peers: for any input the server stays in step, sends only replies, and survives.

For any input:

1. Every line gets one well-formed reply, of a code that its verb may have.
2. No reply and no line of the log shows a traceback.
3. The server lives: the same processes answer afterwards, with no more memory than before.
4. Stored messages were acknowledged, and acknowledged messages are stored.

`make fuzz` runs longer: MINISMTP_FUZZ_SECONDS for the sockets, or MINISMTP_FUZZ_COUNT sessions over
them; MINISMTP_FUZZ_SEED for another run.
A failure names its seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from fuzz.scripts import ACCEPTED, PROXY, SCRIPTS, mutate, split_replies
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from minismtp.testing import Dialogue, Mailroom
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Launch, Running, TlsFiles

SECONDS: Final = float(os.environ.get("MINISMTP_FUZZ_SECONDS", "5"))
COUNT: Final = int(os.environ.get("MINISMTP_FUZZ_COUNT") or 0)  # instead of seconds
SEED: Final = os.environ.get("MINISMTP_FUZZ_SEED", "minismtp")
EXAMPLES: Final = max(20, int(3 * SECONDS))  # of the state machine
PEERS: Final = 4
GROWTH: Final = 16 << 20  # octets that a worker's memory may grow by once it is warm

#: The replies that RFC 5321 section 4.3.2 and the extensions allow for each verb, besides 421.
CODES: Final = {
    "EHLO": {250, 501, 503, 550},
    "HELO": {250, 501, 503, 550},
    "MAIL": {250, 451, 452, 501, 503, 530, 550, 552, 553, 555, 500},
    "RCPT": {250, 451, 452, 501, 503, 550, 553, 555, 500},
    "DATA": {354, 501, 503, 554},
    "RSET": {250, 501, 503},
    "NOOP": {250},
    "VRFY": {252, 501},
    "HELP": {214},
    "EXPN": {502, 501},
    "AUTH": {334, 235, 500, 501, 502, 503, 504, 535},
    "STARTTLS": {501, 502, 503},
}
_text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30)
_sender = st.sampled_from(
    ["<>", "<a@b.example>", "<@x.example:a@b.example>", "a@b", "<a@b", "<ä@b>"]
)
_recipient = st.sampled_from(
    ["<u@example.org>", "<Postmaster>", "<u@[192.0.2.1]>", "<u>", "<>", '<"a b"@example.org>']
)
_parameters = st.lists(
    st.sampled_from(
        [
            "SIZE=10",
            "SIZE=x",
            "BODY=8BITMIME",
            "BODY=BINARYMIME",
            "SMTPUTF8",
            "RET=HDRS",
            "ENVID=a+2B",
            "NOTIFY=NEVER",
            "NOTIFY=DELAY,FAILURE",
            "ORCPT=rfc822;a@b",
            "AUTH=<>",
            "FOO=bar",
            "=",
        ]
    ),
    max_size=3,
).map(lambda words: "".join(f" {word}" for word in words))


class Conversation(RuleBasedStateMachine):
    """One session, against a model of RFC 5321 that has nothing in common with the server."""

    @initialize()
    def connect(self) -> None:
        """Begin."""
        self.mailroom = Mailroom()
        self.dialogue = Dialogue(self.mailroom)
        self.greeted = False
        self.sender = False
        self.recipients = 0
        self.acknowledged = 0
        self.binary = False

    def teardown(self) -> None:
        """End."""
        if hasattr(self, "dialogue"):
            self.dialogue.close()

    @property
    def open(self) -> bool:
        """Whether the server still listens."""
        return not self.dialogue.receiver.closing

    def say(self, line: bytes) -> int:
        """Send a line, and return the code of its only reply."""
        replies = split_replies(self.dialogue.send_raw(line + b"\r\n"))
        assert len(replies) == 1, (line, replies)
        return int(replies[0][:3])

    def command(self, verb: str, rest: str = "") -> int:
        """Send a command, and compare its reply with CODES."""
        code = self.say(f"{verb}{rest}".encode())
        assert code in CODES[verb] | {421}, (verb, rest, code)
        return code

    @precondition(lambda self: not self.open)
    @rule()
    def come_back(self) -> None:
        """After a 421, begin again."""
        self.dialogue.close()
        self.connect()

    @precondition(lambda self: self.open)
    @rule(
        verb=st.sampled_from(["EHLO", "HELO"]),
        name=st.sampled_from(["x.example", "", "[::1]", "a b"]),
    )
    def greet(self, verb: str, name: str) -> None:
        """A greeting that is taken resets the transaction."""
        if self.command(verb, f" {name}") == 250:
            self.greeted, self.sender, self.recipients = True, False, 0

    @precondition(lambda self: self.open)
    @rule(sender=_sender, parameters=_parameters)
    def mail(self, sender: str, parameters: str) -> None:
        """MAIL is taken once, after a greeting."""
        if self.command("MAIL", f" FROM:{sender}{parameters}") == 250:
            assert self.greeted
            assert not self.sender
            self.sender, self.binary = True, "BINARYMIME" in parameters

    @precondition(lambda self: self.open)
    @rule(recipient=_recipient, parameters=_parameters)
    def rcpt(self, recipient: str, parameters: str) -> None:
        """RCPT is taken inside a transaction."""
        if self.command("RCPT", f" TO:{recipient}{parameters}") == 250:
            assert self.sender
            self.recipients += 1

    @precondition(lambda self: self.open)
    @rule(content=st.lists(_text, max_size=4))
    def data(self, content: list[str]) -> None:
        """DATA is taken after a recipient, and its end is acknowledged once."""
        if self.command("DATA") != 354:
            return
        assert self.recipients
        assert not self.binary
        lines = [line if not line.startswith(".") else "." + line for line in content]
        code = self.say("".join(f"{line}\r\n" for line in lines).encode() + b".")
        assert code in {250, 421, 550, 552, 554}, code
        self.acknowledged += code == 250
        self.sender, self.recipients = False, 0

    @precondition(lambda self: self.open)
    @rule(content=st.binary(max_size=50), last=st.booleans())
    def bdat(self, content: bytes, *, last: bool) -> None:
        """A chunk is answered once, taken or not, and its octets are never commands."""
        line = f"BDAT {len(content)}{' LAST' if last else ''}\r\n".encode()
        replies = split_replies(self.dialogue.send_raw(line + content))
        assert len(replies) == 1
        code = int(replies[0][:3])
        if code == 250:
            assert self.recipients
            self.acknowledged += last
        if (code == 250 and last) or code not in {250, 503, 554}:
            self.sender, self.recipients = False, 0

    @precondition(lambda self: self.open)
    @rule()
    def rset(self) -> None:
        """RSET drops the transaction."""
        if self.command("RSET") == 250:
            self.sender, self.recipients = False, 0

    @precondition(lambda self: self.open)
    @rule(verb=st.sampled_from(["NOOP", "HELP", "VRFY", "EXPN", "STARTTLS"]), rest=_text)
    def aside(self, verb: str, rest: str) -> None:
        """Commands outside of transactions change nothing."""
        rest = "".join(character for character in rest if character.isprintable())
        self.command(verb, f" {rest}" if rest else "")

    @precondition(lambda self: self.open)
    @rule(line=st.binary(max_size=100).filter(lambda line: b"\r\n" not in line + b"\r\n"[:1]))
    def noise(self, line: bytes) -> None:
        """A line that is not a command is refused once."""
        if re.match(rb"(?i)[a-z]{4}", line) is None:
            assert self.say(line) in {421, 500, 501}

    @invariant()
    def stored_is_acknowledged(self) -> None:
        """Nothing is stored that was not acknowledged."""
        if hasattr(self, "mailroom"):
            copies = sum(len(found) for found in self.mailroom.stored.values())
            assert (copies > 0) == (self.acknowledged > 0)


def test_any_conversation_follows_the_rfc() -> None:
    run_state_machine_as_test(
        Conversation, settings=settings(max_examples=EXAMPLES, stateful_step_count=40)
    )


LISTENERS: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"

[[listeners]]
name = "lmtp"
address = "127.0.0.1:0"
kind = "lmtp"
tls = "none"

[[listeners]]
name = "proxied"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["127.0.0.0/8"]
"""
LIMITS: Final = """
[limits]
message_size = "64KiB"
login_backoff = "0s"
command_timeout = "20s"
error_delay = "0s"

[[plugins]]
use = "password_file"
path = "{passwords}"
"""


@dataclass
class Tally:
    """The results of the peers."""

    sessions: int = 0
    replies: int = 0
    lost: int = 0  # sessions that the server cut before everything was read
    accepted: Counter[bytes] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    changing: threading.Lock = field(default_factory=threading.Lock)


def exchange(sock: socket.socket, dice: random.Random, data: bytes) -> tuple[bytes, bool]:
    """Send everything in random packets. Return all output, and whether it is complete."""
    output = bytearray()
    whole = True
    try:
        at = 0
        while at < len(data):
            size = dice.choice([1, 7, 100, 1000, len(data)])
            sock.sendall(data[at : at + size])
            at += size
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        whole = False
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(65536):
            output += more
        return bytes(output), whole
    return bytes(output), False


def check(output: bytes) -> tuple[int, list[bytes]]:
    """Check the output of a session. Return the number of replies and the acknowledged messages."""
    clear, secured, _ = output.partition(b"220 2.0.0 ready to start TLS\r\n")
    replies = split_replies(clear + secured)
    assert b"Traceback" not in output
    return len(replies), [match[1] for match in ACCEPTED.finditer(clear)]


def attack(server: Running, seed: str, end: float, tally: Tally) -> None:
    """Act as one peer after another until `end`."""
    number = 0
    while number < COUNT // PEERS or time.monotonic() < end:
        number += 1
        dice = random.Random(f"{seed}-{number}")  # noqa: S311 - to be repeated, not kept secret
        listener = dice.choice(["smtp", "smtp", "lmtp", "proxied"])
        script = b"".join(dice.choices(SCRIPTS, k=dice.choice([1, 1, 2])))
        if listener == "proxied":
            script = dice.choice(PROXY) + script
        data = mutate(dice, script)
        try:
            with server.connect(listener) as client:
                output, whole = exchange(client.socket, dice, data)
            replies, accepted = check(output)
        except (AssertionError, OSError) as problem:
            with tally.changing:
                tally.problems.append(f"seed {seed}-{number}, {listener}, {data!r}: {problem!r}")
            return
        with tally.changing:
            tally.sessions += 1
            tally.replies += replies
            tally.lost += not whole
            tally.accepted.update(set(accepted))


def run_peers(server: Running, seed: str, seconds: float) -> Tally:
    """Let some peers attack at once."""
    tally = Tally()
    end = time.monotonic() + (0 if COUNT else seconds)
    peers = [
        threading.Thread(target=attack, args=(server, f"{seed}-{peer}", end, tally))
        for peer in range(PEERS)
    ]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join()
    return tally


def resident(server: Running) -> dict[int, int]:
    """Return the memory of each process in octets."""
    found = {}
    for pid in server.tree():
        match = re.search(
            r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
        )
        assert match is not None
        found[pid] = int(match[1]) * 1024
    return found


@pytest.fixture(scope="module")
def target(
    launch: Launch, tls_files: TlsFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Run the server that is attacked."""
    passwords = tmp_path_factory.mktemp("passwords") / "passwords"
    passwords.write_text(f"a:{hash_password('not b')}\n")
    limits = LIMITS.format(passwords=passwords)
    with launch(tls_files.table, limits, listeners=LISTENERS, workers=2) as server:
        yield server


def test_server_survives_any_octets(target: Running) -> None:
    warm = run_peers(target, f"{SEED}-warm", min(2.0, SECONDS / 2))
    before = resident(target)
    tally = run_peers(target, SEED, SECONDS)
    after = resident(target)
    print(  # noqa: T201 - figures that the caller asked for
        f"\n{tally.sessions} sessions, {tally.replies} replies, {tally.lost} cut,"
        f" {len(tally.accepted)} messages; RSS {before} -> {after}"
    )

    assert not (warm.problems + tally.problems), "\n".join(warm.problems + tally.problems)
    assert tally.sessions > PEERS
    assert before.keys() == after.keys()
    assert all(after[pid] - before[pid] < GROWTH for pid in after)
    assert "traceback" not in target.log.lower()
    assert " error " not in target.log

    stored = {
        match[1]
        for path in target.directory.glob("mail/*/new/*")
        if (match := re.search(rb"\bid ([0-9a-f]+\.[0-9]+)", path.read_bytes()))
    }
    acknowledged = warm.accepted.keys() | tally.accepted.keys()
    assert acknowledged <= stored
    assert len(stored - acknowledged) <= warm.lost + tally.lost
