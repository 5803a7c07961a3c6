"""Random sessions in memory: `make fuzz-sessions COUNT=1000000`.

Each has a number; with the seed it says the same again (`--first N --count 1`). Whatever a client
says, every reply is one, nothing raises or is logged as an error, what was acknowledged is stored
or queued for every recipient, and nothing else is.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_network
from typing import Final

from fuzz.scripts import ACCEPTED, PIECES, SCRIPTS, mutate, split_replies
from minismtp import (
    Address,
    Credentials,
    Defer,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Relay,
    hookimpl,
    plugin,
)
from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mail.session import TlsInfo
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.storage.spool import Spool
from minismtp.testing import Dialogue

_KINDS: Final = ("mx", "submission", "lmtp")
_CHUNK: Final = 1000  # sessions that a process runs at a time
_TOLD: Final = 50_000  # sessions
_SHOWN: Final = 10  # problems


class Queue(Spool):
    """A queue in memory: the recipients of each message that is in it."""

    def __init__(self) -> None:
        self.entries: dict[str, list[str]] = {}

    def has_space(self, size: int = 0) -> bool:
        """Always have space."""
        return size >= 0

    def add(self, entry: QueueEntry, message: Message) -> None:
        """Take a message as the spool does, which has to be able to read it again."""
        del message
        entry.check()
        self.entries[entry.id] = [target.recipient for target in entry.targets]


@plugin
class Store:
    """Let `u` log in, and record which mailboxes have a copy of which message.

    The local part of a recipient, or the subject of a message, selects the outcome.
    """

    copies: set[tuple[str, str]] = field(default_factory=set)
    recipients: dict[str, list[str]] = field(default_factory=dict)
    discarded: set[str] = field(default_factory=set)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Know one user."""
        return "u" if (credentials.username, credentials.password) == ("u", "p") else None

    @hookimpl
    def route(self, recipient: Recipient) -> Local | Relay | None:
        """Know some recipients."""
        local = recipient.address.local
        if local == "nobody":
            return None
        return Relay(recipient.address) if local.startswith("r") else Local()

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        """Judge a message."""
        match message.headers.get("Subject"):
            case "reject":
                raise Reject("so you asked")
            case "defer":
                raise Defer("so you asked")
            case "discard":
                message.discard("so you asked")
                self.discarded.add(envelope.id)
        self.recipients[envelope.id] = [str(each.address) for each in envelope.recipients]

    @hookimpl
    def deliver(self, envelope: Envelope, mailbox: Address) -> bool:
        """Keep a copy."""
        if mailbox.local == "full":
            raise Defer("mailbox full", code=452, enhanced="4.2.2")
        self.copies.add((envelope.id, str(mailbox)))
        return True


@dataclass
class Tally:
    """The sum of the results of some sessions."""

    sessions: int = 0
    replies: int = 0
    acknowledged: int = 0
    queued: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add up."""
        self.sessions += other.sessions
        self.replies += other.replies
        self.acknowledged += other.acknowledged
        self.queued += other.queued
        self.problems += other.problems


class Server:
    """The services of one process, one of each kind."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.queue = Queue()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._metrics = Metrics(["test"])
        log = Log(level="error", descriptor=self.errors.fileno())
        limits = Limits(message_size=ByteSize(65536))
        self._first = [
            Dialogue(self.store, kind=kind, limits=limits, log=log, metrics=self._metrics)
            for kind in _KINDS
        ]
        self._services = {
            each.service.kind: replace(
                each.service,
                queue=self.queue,
                starttls=True,
                xclient=(ip_network("192.0.2.0/24"),),
                fix_newlines=each.service.lmtp,
            )
            for each in self._first
        }

    def close(self) -> None:
        """End them."""
        for each in self._first:
            each.close()
        self.errors.close()

    def begin(self, kind: str) -> Dialogue:
        """Begin a session with an empty store."""
        self.store.copies.clear()
        self.store.recipients.clear()
        self.store.discarded.clear()
        self.queue.entries.clear()
        return Dialogue(service=self._services[kind], metrics=self._metrics)


def run(server: Server, seed: str, number: int, tally: Tally) -> None:
    """Run one session and check its result."""
    dice = random.Random(f"{seed}-{number}")  # noqa: S311 - to be repeated, not kept secret
    kind = dice.choice(_KINDS)
    said = list(_cut(dice, _script(dice, kind)))
    try:
        output = _converse(server, kind, said)
        replies = split_replies(output)
        assert b"Traceback" not in output
        assert not os.fstat(server.errors.fileno()).st_size, _read(server)
        accepted = Counter(match[1].decode() for match in ACCEPTED.finditer(output))
        _check(server, kind, accepted)
    except Exception:  # noqa: BLE001 - this is what is looked for
        whole = b"".join(said)[:1000]
        problem = traceback.format_exc(limit=-6)
        tally.problems.append(f"session {seed}-{number}, {kind}, {whole!r}:\n{problem}")
    else:
        tally.replies += len(replies)
        tally.acknowledged += accepted.total()
        tally.queued += len(server.queue.entries)
    tally.sessions += 1


def _converse(server: Server, kind: str, said: list[bytes]) -> bytes:
    dialogue = server.begin(kind)
    output = [dialogue.banner.encode()]
    receiver = dialogue.receiver
    for piece in said:
        output.append(dialogue.send_raw(piece))
        if receiver.wants_tls:
            receiver.secured(TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
        if receiver.closing:
            break
    dialogue.close()
    return b"".join(output)


def _check(server: Server, kind: str, accepted: Counter[str]) -> None:
    """Compare the stored messages with the acknowledged ones."""
    store, entries = server.store, server.queue.entries
    entries = {name: entries[name] for name in entries if not name.endswith(".d")}
    kept = {name for name, _ in store.copies} | entries.keys()
    assert kept == accepted.keys() - store.discarded, (kept, accepted)
    for name in kept:
        promised = [
            recipient
            for recipient in store.recipients[name]
            if (name, recipient) in store.copies or recipient in entries.get(name, ())
        ]
        if kind == "lmtp":
            assert accepted[name] == len(promised)
        else:
            assert promised == store.recipients[name]


def _read(server: Server) -> bytes:
    server.errors.seek(0)
    said = server.errors.read()
    server.errors.truncate(0)
    return said


def _cut(dice: random.Random, data: bytes) -> Iterator[bytes]:
    """Yield it as packets."""
    if dice.randrange(3):
        yield data
        return
    while data:
        size = dice.choice((1, 3, 10, 50, 200, 1000))
        yield data[:size]
        data = data[size:]


def _script(dice: random.Random, kind: str) -> bytes:
    if not dice.randrange(4):
        script = dice.choice(SCRIPTS)
        script = script.replace(b"EHLO", b"LHLO") if kind == "lmtp" else script
        return mutate(dice, script)
    lines = list(_lines(dice, kind))
    for _ in range(dice.choice((0, 0, 1, 2))):
        at = dice.randrange(len(lines) + 1)
        match dice.randrange(3):
            case 0:
                lines.insert(at, dice.choice(PIECES))
            case 1:
                lines.insert(at, dice.choice(lines))
            case _:
                del lines[at : at + 1]
    return b"".join(lines)


def _lines(dice: random.Random, kind: str) -> Iterator[bytes]:
    """Yield the input of a client that is mostly correct."""
    yield b"LHLO x\r\n" if kind == "lmtp" else dice.choice(_GREETINGS)
    if kind == "submission" or not dice.randrange(5):
        yield dice.choice(_LOGINS)
    for _ in range(dice.choice((1, 1, 2, 3))):
        yield dice.choice(_ASIDE) if not dice.randrange(3) else b""
        yield b"MAIL FROM:%b%b\r\n" % (dice.choice(_SENDERS), dice.choice(_WITH_MAIL))
        for _ in range(dice.choice((1, 1, 2, 3))):
            yield b"RCPT TO:%b%b\r\n" % (dice.choice(_RECIPIENTS), dice.choice(_WITH_RCPT))
        yield dice.choice(_ASIDE) if not dice.randrange(9) else b""
        content = dice.choice(_SUBJECTS) + b"\r\n".join(dice.choices(_CONTENT, k=dice.randrange(5)))
        if dice.randrange(3):
            yield b"DATA\r\n"
            yield content + dice.choice((b"\r\n.\r\n", b"\r\n.\r\n", b"\r\n.\r\n", b"\n.\n"))
            continue
        while len(content) > 9 and dice.randrange(3):
            size = dice.randrange(len(content))
            yield b"BDAT %d\r\n%b" % (size, content[:size])
            content = content[size:]
        yield b"BDAT %d LAST\r\n%b" % (len(content), content)
    yield b"QUIT\r\n"


_GREETINGS: Final = (b"EHLO x\r\n", b"EHLO x\r\n", b"EHLO [192.0.2.1]\r\n", b"HELO x\r\n")
_LOGINS: Final = (
    b"AUTH PLAIN AHUAcA==\r\n",
    b"AUTH PLAIN AHUAcA==\r\n",
    b"AUTH PLAIN\r\nAHUAcA==\r\n",
    b"AUTH LOGIN\r\ndQ==\r\ncA==\r\n",
    b"AUTH LOGIN dQ==\r\n*\r\n",
    b"AUTH PLAIN AHUAeA==\r\n",
    b"STARTTLS\r\n",
    b"AUTH SCRAM-SHA-256 biwsbj11LHI9YWJj\r\nYmFk\r\n",
)
_ASIDE: Final = (
    *(b"RSET\r\n", b"NOOP x\r\n", b"VRFY u\r\n", b"HELP\r\n", b"EHLO again\r\n", b"STARTTLS\r\n"),
    *(b"XCLIENT ADDR=198.51.100.1 LOGIN=u\r\n", b"XCLIENT NAME=[UNAVAILABLE]\r\n", b"FOO\r\n"),
    b"MAIL FROM:<twice@b.example>\r\n",
)
_SENDERS: Final = (
    *(
        b"<a@b.example>",
        b"<a@b.example>",
        b"<c@d.example>",
        b"<>",
        b"<u>",
        b'<"a b"@b.example>',
        "<ü@bücher.example>".encode(),
    ),
    *("<a@\u0130.example>".encode(), b"<@x.example:a@b.example>", b"<a@[IPv6:::1]>", b"a@b"),
)
_WITH_MAIL: Final = (
    *(
        b"",
        b"",
        b"",
        b"",
        b"",
        b"",
        b"",
        b" SIZE=100",
        b" BODY=8BITMIME",
        b" BODY=BINARYMIME",
        b" SMTPUTF8",
    ),
    *(b" SMTPUTF8 BODY=8BITMIME", b" RET=HDRS ENVID=a+2Bb", b" AUTH=<>", b" REQUIRETLS", b" X=y"),
    b" SIZE=99999999",
)
_RECIPIENTS: Final = (
    *(b"<one@example.org>", b"<two@example.org>", b"<full@example.org>", b"<relay@x.example>"),
    *(b"<nobody@example.org>", b"<Postmaster>", b'<"r \\" b"@example.net>', b"<r2@x.example>"),
    *("<rü@bücher.example>".encode(), "<ü@example.org>".encode(), b"<x@[192.0.2.1]>", b"<>"),
)
_WITH_RCPT: Final = (
    *(
        b"",
        b"",
        b"",
        b"",
        b"",
        b"",
        b" NOTIFY=NEVER",
        b" NOTIFY=SUCCESS,FAILURE",
        b" ORCPT=rfc822;a+40b",
    ),
    *(" ORCPT=utf-8;ü\U0001f600@x".encode(), b" NOTIFY=SUCCESS ORCPT=utf-8;\\x{FC}@x", b" NOTIFY="),
)
_SUBJECTS: Final = (
    *(b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n", b"Subject: reject\r\n\r\n", b"no header\r\n"),
    *(
        b"Subject: discard\r\n\r\n",
        b"Subject: defer\r\n\r\n",
        b"\r\n",
        b" x\r\n",
        b"Received: x\r\n",
    ),
)
_CONTENT: Final = (
    *(b"text", b"text", b"text", b"more", b"..", b"..dots", b"", b"\xff\0", "ü".encode()),
    *(b"a\nb", b"a\rb", b"x" * 1500, b"Received: x\r\n" * 60, b"\r\n.\rx", b".\r\n"),
    b"x\r\n" * 23_000,
)


def run_some(seed: str, first: int, count: int) -> Tally:
    """Run sessions in this process."""
    server = _server()
    tally = Tally()
    for number in range(first, first + count):
        run(server, seed, number, tally)
    return tally


def _server() -> Server:
    global _here  # noqa: PLW0603 - one for each process
    if _here is None:
        _here = Server()
    return _here


_here: Server | None = None


def main() -> int:
    """Run many sessions in several processes; return 1 when there are problems."""
    parser = argparse.ArgumentParser(prog="make fuzz-sessions")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first session")
    parser.add_argument("--seed", default=time.strftime("%Y%m%d%H%M%S"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    tally, begin = Tally(), time.monotonic()
    last = arguments.first + arguments.count
    firsts = range(arguments.first, last, _CHUNK)
    counts = [min(_CHUNK, last - first) for first in firsts]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for found in pool.map(partial(run_some, arguments.seed), firsts, counts):
            tally.add(found)
            if not tally.sessions % _TOLD:
                print(f"{tally.sessions:,} sessions", flush=True)
    for problem in tally.problems[:_SHOWN]:
        print(problem)
    print(
        f"seed {arguments.seed}: {tally.sessions:,} sessions, {tally.replies:,} replies,"
        f" {tally.acknowledged:,} acknowledged, {tally.queued:,} queued,"
        f" {len(tally.problems):,} problems in {time.monotonic() - begin:.0f} s"
    )
    return min(len(tally.problems), 1)


if __name__ == "__main__":
    sys.exit(main())
