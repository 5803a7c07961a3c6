"""Each 4yz and 5yz reply has one line in the log with all details.

The table drives everything that can refuse. A refusal that is missing in the table is found by
`test_table_has_every_refusal_of_the_source`, so that a new refusal gets its line.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest
from client_script import plain
from fakes import Clock
from stub_plugins import Judge

from minismtp import (
    Address,
    Defer,
    Disconnect,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Relay,
    Reply,
    hookimpl,
    plugin,
)
from minismtp.cli.explain import about
from minismtp.cli.main import main
from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.hooks.guard import ANSWERS
from minismtp.mail.queue_entry import QueueEntry
from minismtp.runtime.decision_log import DecisionLog, Record
from minismtp.runtime.log import Log
from minismtp.runtime.login_backoff import Backoff
from minismtp.runtime.suspects import Notes
from minismtp.runtime.thread_activity import Activity
from minismtp.session.listener_context import ListenerContext, RefusalLog
from minismtp.session.receiver import Receiver
from minismtp.storage.spool import Spool, UnreadableError
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from _pytest.capture import CaptureFixture
    from conftest import Configure, Launch, Running, Start, TlsFiles

    Capture = CaptureFixture[str]

ROOT: Final = Path(__file__).parents[2]
PEER: Final = "192.0.2.1"
EHLO: Final = "EHLO client.example"
MAIL: Final = "MAIL FROM:<a@client.example>"
RCPT: Final = "RCPT TO:<user@example.org>"
SENDER: Final = {"sender": "a@client.example"}
ENVELOPE: Final = {"sender": "a@client.example", "to": "user@example.org"}
CONTENT: Final = "Subject: x\r\n\r\nx\r\n."
HOOKS: Final = (
    *("on_connect", "on_helo", "ehlo_keywords", "authenticate", "stored_key", "on_mail"),
    *("on_rcpt", "route", "on_routed", "on_data", "on_message", "deliver", "command"),
)


@plugin
class AddsRecipient:
    """Adds a recipient to each message, and refuses to route it."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        envelope.add(Address("more", "example.org"))

    @hookimpl
    def route(self, recipient: Recipient) -> None:
        if recipient.address.local == "more":
            raise Reject("no such user", enhanced="5.1.1")


@dataclass(frozen=True)
class Case:
    """The input of a client, as lines or octets, and the log line about its refusal.

    Only the last of `lines` is refused. `event` is without its outcome, which depends on the code
    of the reply.
    """

    name: str
    lines: tuple[str | bytes, ...]
    reply: str
    event: str
    fields: dict[str, str] = field(default_factory=dict)
    plugins: tuple[Any, ...] = (Mailroom(),)
    kind: Literal["mx", "submission", "lmtp"] = "mx"
    login: str | None = None
    tls: bool = False
    limits: Limits = field(default_factory=Limits)
    rules: Callable[[ListenerContext], ListenerContext] = lambda service: service
    early: bool = False


def judged(
    hook: str,
    verdict: Exception | None = None,
    answer: object = None,
    cause: Exception | None = None,
    known: tuple[str, ...] = (),
) -> tuple[Judge, ...]:
    """Return a plugin that refuses or answers at a hook, and accepts everything else."""
    judge = Judge(hook=hook, verdict=verdict, answer=answer, cause=cause, accepts=True, known=known)
    judge.mechanisms = ("PLAIN", "LOGIN", "SCRAM-SHA-256")
    return (judge,)


def scram() -> str:
    return "AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=alice,r=n0nce").decode()


#: How each hook is reached, and the log line.
REACHED: Final[dict[str, tuple[tuple[str | bytes, ...], str, dict[str, str]]]] = {
    "on_connect": ((), "connection refused", {}),
    "on_helo": ((EHLO,), "command", {"command": "EHLO", "said": EHLO}),
    "ehlo_keywords": ((EHLO,), "command", {"command": "EHLO", "said": EHLO}),
    "authenticate": (
        (EHLO, plain("secret")),
        "auth",
        {"mechanism": "PLAIN", "username": "alice", "helo": "client.example"},
    ),
    "stored_key": ((EHLO, scram()), "auth", {"mechanism": "SCRAM-SHA-256", "username": "alice"}),
    "on_mail": ((EHLO, MAIL), "sender", SENDER | {"helo": "client.example"}),
    "on_rcpt": ((EHLO, MAIL, RCPT), "recipient", SENDER | {"recipient": "user@example.org"}),
    "route": ((EHLO, MAIL, RCPT), "recipient", SENDER | {"recipient": "user@example.org"}),
    "on_routed": ((EHLO, MAIL, RCPT), "recipient", SENDER | {"recipient": "user@example.org"}),
    "on_data": ((EHLO, MAIL, RCPT, "DATA"), "command", ENVELOPE | {"command": "DATA"}),
    "on_message": ((EHLO, MAIL, RCPT, "DATA", CONTENT), "", {"to": "user@example.org"}),
    "deliver": ((EHLO, MAIL, RCPT, "DATA", CONTENT), "", {"to": "user@example.org"}),
    "command": ((EHLO, "VRFY bob"), "command", {"command": "VRFY", "said": "VRFY bob"}),
}


def of_plugins() -> Iterator[Case]:
    """Yield each hook with each kind of refusal."""
    for hook, (lines, event, fields) in REACHED.items():
        caused = Defer("not so")
        for word, verdict, reply in (
            ("rejects", Reject("not you"), "550 5.7.1 not you"),
            ("defers", Defer("not now"), "451 4.7.1 not now"),
            ("disconnects", Disconnect("go"), "421 4.7.0 go"),
            ("has an error", caused, "451 4.7.1 not so"),
            ("fails", ZeroDivisionError("by 0"), "451 4.3.0 temporary failure, try again later"),
        ):
            told = fields | {"plugin": "judge", "hook": hook}
            if isinstance(verdict, ZeroDivisionError):
                told |= {"reason": "failed: ZeroDivisionError: by 0"}
            elif verdict is caused:
                told |= {"reason": "OSError: no disk"}
            said = reply
            if hook == "on_connect":
                code = "554" if reply[0] == "5" else "421"
                said = f"{code} mx.example.org {reply.partition(' ')[2][6:]}"
            elif hook in {"on_helo", "ehlo_keywords"}:
                said = reply[:4] + reply[10:]
            elif event == "auth" and reply.startswith("451"):
                said = "454 4.7.0 temporary authentication failure"
                told |= {"reason": told.get("reason", reply)}
            cause = OSError("no disk") if verdict is caused else None
            plugins = judged(hook, verdict, cause=cause)
            yield Case(f"{hook}-{word}", lines, said, event, told, plugins)
    chunks = (EHLO, MAIL, RCPT, b"BDAT 3\r\nabc")
    told = {"to": "user@example.org", "plugin": "judge", "hook": "on_data"}
    yield Case("chunk", chunks, "550 5.7.1 no", "", told, judged("on_data", Reject("no")))
    answer = Reply(502, "not that", "5.5.1")
    told = {"command": "OTHER", "plugin": "judge", "hook": "command"}
    yield Case(
        "answer", (EHLO, "XYZZY"), str(answer), "command", told, judged("command", None, answer)
    )


def malformed(text: str, reply: str, **fields: str) -> Case:
    """Return the case of a MAIL or RCPT that is refused for its syntax."""
    command = text.partition(" ")[0].upper()
    before = (EHLO, MAIL) if command == "RCPT" else (EHLO,)
    event = {"MAIL": "sender", "RCPT": "recipient"}[command]
    return Case(text[:60], (*before, text), reply, event, fields)


MALFORMED: Final = (
    malformed("MAIL FROM:<a\u00a0b@x.example>", "553 5.6.7", sender="<a\u00a0b@x.example>"),
    malformed("MAIL FROM:<a@b,c>", "501 5.1.7", sender="<a@b,c>"),
    malformed("MAIL FROM:<a@x.example> FOO=1", "555 5.5.4", sender="<a@x.example> FOO=1"),
    malformed("MAIL FROM:<a@x.example> SIZE=1x", "501 5.5.4", sender="<a@x.example> SIZE=1x"),
    malformed("MAIL FROM:<a@x.example> BODY=9", "501 5.5.4", sender="<a@x.example> BODY=9"),
    malformed("MAIL FROM:<a@x.example> SIZE", "501 5.5.4", sender="<a@x.example> SIZE"),
    malformed("MAIL TO:<a@x.example>", "501 5.5.4", sender="<a@x.example>"),
    malformed("MAIL a@x.example", "501 5.5.4", sender="MAIL a@x.example"),
    malformed("MAIL FROM:<a@x.example> SIZE=99999999999", "552 5.3.4", sender="a@x.example"),
    malformed("MAIL FROM:<a@x.example> REQUIRETLS", "530 5.7.10", sender="a@x.example"),
    malformed("MAIL FROM:<a\x1b[2Jb@x.example>", "501 5.5.2", sender="<a\x1b[2Jb@x.example>"),
    malformed(f"MAIL FROM:<{'a' * 9000}@x.example>", "500 5.5.2", sender=f"<{'a' * 699}..."),
    malformed("RCPT TO:<b c@example.org>", "501 5.1.3", recipient="<b c@example.org>", **SENDER),
    malformed("RCPT TO:<>", "501 5.1.3", recipient="<>", **SENDER),
    malformed("RCPT TO:<b@example.org", "501 5.1.3", recipient="<b@example.org", **SENDER),
    malformed("RCPT TO:<b@x> NOTIFY=NO", "501 5.5.4", recipient="<b@x> NOTIFY=NO", **SENDER),
    malformed("RCPT TO:<b@x> FOO", "555 5.5.4", recipient="<b@x> FOO", **SENDER),
    malformed("RCPT TO:<\u00fc@example.org>", "553 5.6.7", recipient="\u00fc@example.org"),
    malformed("RCPT TO:<b\x00@example.org>", "501 5.5.2", recipient="<b\x00@example.org>"),
    malformed("RCPT TO:<b\u202e@example.org>", "553 5.6.7", recipient="b\u202e@example.org"),
    Case(
        "octets that are no text",
        (EHLO, MAIL, b"RCPT TO:<b\xff@example.org>\r\n"),
        "501 5.5.2",
        "recipient",
        {"recipient": "<b\\xff@example.org>"},
    ),
    Case(
        "RCPT before MAIL",
        (EHLO, RCPT),
        "503 5.5.1",
        "recipient",
        {"recipient": "<user@example.org>"},
    ),
    Case(
        "second MAIL", (EHLO, MAIL, MAIL), "503 5.5.1", "sender", {"sender": "<a@client.example>"}
    ),
)


def unseen(
    command: str,
    said: str,
    lines: tuple[str | bytes, ...],
    reply: str,
    **more: Any,  # noqa: ANN401 - whatever a case has
) -> Case:
    """Return the case of another command."""
    fields = {"command": command} | ({"said": said} if said else {})
    return Case(f"{command}-{reply}-{said}", lines, reply, "command", fields, **more)


def octets(line: str | bytes) -> str:
    return f"({len(line)} octets that are no known command)"


def slow_backoff(service: ListenerContext) -> ListenerContext:
    backoff = Backoff(60.0, lambda: 0.0)
    backoff.reserve(PEER)
    backoff.failed(PEER)
    return replace(service, backoff=backoff)


class BadSpool(Spool):
    """A queue on a full disk, or one that accepts no message."""

    def __init__(self, *, full: bool) -> None:
        self._full = full

    def has_space(self, size: int = 0) -> bool:
        return not self._full or size < 0

    def add(self, entry: QueueEntry, message: Message) -> None:
        raise UnreadableError(f"no envelope for {entry.id} with {message.size} octets")


class Fatal(Notes):
    """Reports that workers died on each message."""

    def __init__(self) -> None:
        pass

    def is_fatal(self, fingerprint: int) -> bool:
        return bool(fingerprint)


class Faulty(Notes):
    """Fails when it is asked."""

    def __init__(self) -> None:
        pass

    def is_fatal(self, fingerprint: int) -> bool:
        raise ArithmeticError(fingerprint)


COMMANDS: Final = (
    Case(
        "no greeting",
        (MAIL,),
        "503 5.5.1 say EHLO first",
        "sender",
        {"sender": "<a@client.example>"},
    ),
    Case(
        "a long line",
        (EHLO, MAIL, *(b"RCPT TO:<" + b"b" * 9000, b"b" * 9000, b"@x.example>\r\n")),
        "500 5.5.2",
        "recipient",
        {"recipient": "<" + "b" * 503},
    ),
    unseen("OTHER", octets("XYZZY secret"), (EHLO, "XYZZY secret"), "500 5.5.2"),
    unseen("OTHER", octets("XYZZY"), (EHLO, MAIL, RCPT, "DATA", CONTENT, "XYZZY"), "500 5.5.2"),
    unseen("OTHER", octets("\u00fcber".encode()), (EHLO, "\u00fcber"), "500 5.5.2"),
    unseen("OTHER", octets("x" * 2100), (EHLO, "x" * 2100), "500 5.5.2 line too long"),
    unseen("OTHER", octets("GET / HTTP/1.1"), ("GET / HTTP/1.1",), "421 4.7.0 this is not a web"),
    unseen("OTHER", "", (b"\x16\x03\x01\x02\x00",), "421 4.7.0 this port speaks plain SMTP first"),
    unseen("EHLO", "EHLO", ("EHLO",), "501"),
    unseen(
        "EHLO",
        "EHLO a.example",
        (b"EHLO a.example\r\nNOOP\r\n",),
        "503 wait",
        rules=lambda service: replace(service, strict_pipelining=True),
    ),
    unseen("LHLO", "LHLO a.example", ("LHLO a.example",), "500 this is SMTP"),
    unseen("EHLO", "EHLO a.example", ("EHLO a.example",), "500 this is LMTP", kind="lmtp"),
    unseen("DATA", "DATA x", (EHLO, MAIL, RCPT, "DATA x"), "501 5.5.4"),
    unseen("DATA", "DATA", (EHLO, "DATA"), "503 5.5.1"),
    unseen(
        "DATA",
        "DATA",
        (EHLO, MAIL.replace(">", "> BODY=BINARYMIME"), RCPT, "DATA"),
        "503 5.5.1 BINARYMIME needs BDAT",
    ),
    unseen("DATA", "DATA", (EHLO, MAIL, RCPT, b"BDAT 3\r\nabc", "DATA"), "503 5.5.1 DATA cannot"),
    unseen("BDAT", "BDAT x", (EHLO, "BDAT x"), "501 5.5.4"),
    unseen("BDAT", " BDAT 3", (EHLO, " BDAT 3"), "501 5.5.4 expected BDAT size [LAST]"),
    unseen("BDAT", "", (EHLO, b"BDAT 3\r\nabc"), "503 5.5.1"),
    unseen(
        "BDAT",
        "",
        (EHLO, MAIL, RCPT, b"BDAT 0\r\n" * 3),
        "421 4.7.0 too many bad commands",
        limits=Limits(errors=0, junk_commands=2),
    ),
    unseen("EXPN", "EXPN list", (EHLO, "EXPN list"), "502 5.5.1"),
    unseen("XCLIENT", "XCLIENT ADDR=192.0.2.9", (EHLO, "XCLIENT ADDR=192.0.2.9"), "550 5.7.1"),
    unseen(
        "XCLIENT",
        "XCLIENT ADDR=x",
        (EHLO, "XCLIENT ADDR=x"),
        "501 5.5.4",
        rules=lambda service: replace(service, xclient=(ip_network(PEER),)),
    ),
    unseen("STARTTLS", "STARTTLS", (EHLO, "STARTTLS"), "502 5.5.1"),
    unseen("STARTTLS", "STARTTLS", (EHLO, "STARTTLS"), "503 5.5.1 TLS is already", tls=True),
    unseen("STARTTLS", "STARTTLS", (EHLO, b"STARTTLS\r\nNOOP\r\n"), "421 4.7.0 nothing may follow"),
    unseen("AUTH", "AUTH ***", (EHLO, "AUTH"), "501 5.5.4"),
    unseen("AUTH", "AUTH PLAIN ***", (EHLO, plain("secret")), "502 5.5.1 AUTH is not offered"),
    unseen("AUTH", "AUTH NTLM", (EHLO, "AUTH NTLM"), "504 5.5.4", plugins=judged("")),
    unseen(
        "AUTH",
        "AUTH PLAIN",
        (EHLO, "AUTH PLAIN"),
        "538 5.7.11",
        plugins=judged(""),
        rules=lambda service: replace(service, clear_auth=False),
    ),
    unseen(
        "AUTH",
        "AUTH PLAIN",
        (EHLO, "AUTH PLAIN"),
        "503 5.5.1 already",
        plugins=judged(""),
        login="bob",
    ),
    unseen(
        "NOOP",
        "NOOP",
        (EHLO, "NOOP"),
        "421 4.7.0 too many bad commands",
        limits=Limits(errors=0, junk_commands=1),
    ),
    unseen(
        "NOOP",
        "NOOP",
        (EHLO, plain("wrong"), "NOOP"),
        "421 4.7.0 too many failed logins",
        plugins=judged(""),
        limits=Limits(failed_logins=1),
    ),
)


def drained(service: ListenerContext) -> ListenerContext:
    service.draining.set()
    return service


def login(name: str, lines: tuple[str | bytes, ...], reply: str, event: str, **more: Any) -> Case:  # noqa: ANN401
    return Case(name, (EHLO, *lines), reply, event, {"mechanism": "PLAIN"}, judged(""), **more)


def content(name: str, lines: tuple[str | bytes, ...], reply: str, **more: Any) -> Case:  # noqa: ANN401
    said = (EHLO, MAIL, RCPT, *lines)
    return Case(
        name, said, reply, "", {"sender": "<a@client.example>", "helo": "client.example"}, **more
    )


OTHERS: Final = (
    unseen("NOOP", "NOOP", ("NOOP",), "421 4.3.2", rules=drained),
    login("wrong password", (plain("wrong"),), "535 5.7.8", "auth failure"),
    login("cancelled", ("AUTH PLAIN", "*"), "501 5.7.0", "auth cancelled"),
    login("no base64", ("AUTH PLAIN", "!"), "501 5.5.2", "auth cancelled"),
    login("long line", ("AUTH PLAIN", "x" * 13000), "500 5.5.6", "auth cancelled"),
    login("no message", ("AUTH PLAIN", "eA=="), "535 5.7.8", "auth failure"),
    login("not yet", (plain("wrong"),), "454 4.7.0", "login put off", rules=slow_backoff),
    login("one too many", (plain("wrong"),), "421 4.7.0", "auth failure", limits=Limits(errors=0)),
    Case("no login", (EHLO, MAIL), "530 5.7.0", "sender", SENDER, kind="submission"),
    Case(
        "another's sender",
        (EHLO, MAIL),
        "553 5.7.1",
        "sender",
        SENDER | {"login": "bob"},
        login="bob",
        kind="submission",
        rules=lambda service: replace(service, match_sender=True),
    ),
    Case(
        "full queue",
        (EHLO, MAIL),
        "452 4.3.1",
        "sender",
        SENDER,
        rules=lambda service: replace(service, queue=BadSpool(full=True)),
    ),
    Case(
        "no route", (EHLO, MAIL, RCPT), "550 5.7.1 relaying denied", "recipient", SENDER, plugins=()
    ),
    Case(
        "no queue",
        (EHLO, MAIL, RCPT),
        "451 4.3.5",
        "recipient",
        SENDER,
        plugins=judged("route", None, Relay()),
    ),
    Case(
        "too many",
        (EHLO, MAIL, RCPT, RCPT),
        "452 4.5.3",
        "recipient",
        SENDER,
        limits=Limits(recipients=1),
    ),
    Case(
        "wrong answer",
        (EHLO, MAIL, RCPT),
        "451 4.3.0",
        "recipient",
        {"reason": "failed: TypeError: route returned str"},
        plugins=judged("route", None, "x"),
    ),
    Case(
        "errors",
        (EHLO, MAIL, RCPT),
        "421 4.7.0 too many bad commands",
        "recipient",
        {
            "recipient": "user@example.org",
            "reason": "550 5.7.1 spammer",
            "plugin": "judge",
            "hook": "on_rcpt",
        },
        plugins=judged("on_rcpt", Reject("spammer")),
        limits=Limits(errors=0),
    ),
    Case(
        "nobody left",
        (EHLO, MAIL, RCPT, "DATA"),
        "554 5.5.1 no valid recipients",
        "command",
        {"command": "DATA"} | SENDER,
        plugins=(),
    ),
    Case(
        "nobody left of LMTP",
        ("LHLO a.example", MAIL, RCPT, "DATA"),
        "503 5.5.1 no valid recipients",
        "command",
        {"command": "DATA"},
        plugins=(),
        kind="lmtp",
    ),
    Case(
        "refused by XCLIENT",
        (EHLO, "XCLIENT ADDR=192.0.2.9"),
        "554 mx.example.org no",
        "connection refused",
        {"peer": "192.0.2.9", "plugin": "judge"},
        plugins=judged("on_connect", Reject("no"), known=(PEER,)),
        rules=lambda service: replace(service, xclient=(ip_network(PEER),)),
    ),
    content("bare newline", (b"DATA\r\n", b"a\nb\r\n.\r\n"), "550 5.6.0"),
    content(
        "long line", ("DATA", "x" * 2000 + "\r\n."), "500 5.6.0", limits=Limits(line_length=998)
    ),
    content(
        "too big",
        ("DATA", "x" * 50 + "\r\n."),
        "552 5.3.4 message exceeds",
        limits=Limits(message_size=ByteSize(10)),
    ),
    content(
        "too big a chunk",
        (b"BDAT 20 LAST\r\n" + b"x" * 20,),
        "552 5.3.4",
        limits=Limits(message_size=ByteSize(10)),
    ),
    content(
        "long header",
        ("DATA", "A: " + "x" * 900 + "\r\n\r\n."),
        "552 5.3.4 header section is too long",
        limits=Limits(headers=ByteSize(100)),
    ),
    content(
        "many fields",
        ("DATA", "A: b\r\n" * 10_001 + "\r\n."),
        "552 5.3.4 header section has too many",
    ),
    content(
        "loop", ("DATA", "Received: x\r\n" * 3 + "\r\nx\r\n."), "554 5.4.6", limits=Limits(hops=2)
    ),
    content(
        "no storage",
        ("DATA", CONTENT),
        "451 4.3.5 no storage",
        plugins=judged("deliver", None, False),
    ),
    content(
        "no author",
        ("DATA", CONTENT),
        "550 5.7.1 From or Sender",
        login="bob",
        rules=lambda service: replace(service, match_from=True),
    ),
    content(
        "no directory",
        ("DATA", "x" * 500_000 + "\r\n."),
        "452 4.3.1",
        limits=Limits(line_length=0),
        rules=lambda service: replace(service, spool=Path("/nowhere")),
    ),
    content(
        "fatal",
        ("DATA", CONTENT),
        "451 4.3.0 this message cannot",
        rules=lambda service: replace(service, suspects=Fatal()),
    ),
    content(
        "fault",
        ("DATA", CONTENT),
        "451 4.3.0 local error",
        rules=lambda service: replace(service, suspects=Faulty()),
    ),
)


class Leaping:
    """A clock that is hours later each time."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 10_000.0
        return self.now


MORE: Final = (
    unseen("BDAT", "BDAT\\t3", (EHLO, b"BDAT\t3\r\nabc"), "501 5.5.4 expected BDAT size [LAST]"),
    Case(
        "slow storage",
        ("LHLO a.example", MAIL, RCPT, "RCPT TO:<other@example.org>", "DATA", CONTENT),
        "451 4.3.0 storage takes too long",
        "recipient",
        {"recipient": "other@example.org"},
        kind="lmtp",
        rules=lambda service: replace(service, clock=Leaping()),
    ),
    Case("early", (), "554 mx.example.org you talk before", "connection refused", early=True),
    content(
        "unqueued",
        ("DATA", CONTENT),
        "451 4.3.0 the message cannot be queued",
        plugins=judged("route", None, Relay()),
        rules=lambda service: replace(service, queue=BadSpool(full=False)),
    ),
    Case(
        "added",
        (EHLO, MAIL, RCPT, "DATA", CONTENT),
        "451 4.3.5 a recipient that was added",
        "",
        {
            "plugin": "addsrecipient",
            "hook": "route",
            "reason": "more@example.org: 550 5.1.1 no such user",
        },
        plugins=(AddsRecipient(), *judged("")),
    ),
)


def cases() -> list[Case]:
    return [*of_plugins(), *MALFORMED, *COMMANDS, *OTHERS, *MORE]


def drive(case: Case, capfd: Capture) -> tuple[list[str], list[dict[str, str]]]:
    """Return the refusals that a client got, without identifiers, and the log lines with one."""
    log = Log(style="json")
    limits = replace(case.limits, error_delay=timedelta(0))
    plugins = [replace(each) for each in case.plugins]  # otherwise guards would be around guards
    made = Dialogue(*plugins, kind=case.kind, limits=limits, log=log)
    made.service.log.flush()
    capfd.readouterr()
    service = case.rules(made.service)
    dialogue = Dialogue(service=service, login=case.login, tls=case.tls)
    heard = dialogue.banner.encode()
    if case.early:
        heard = Receiver(service, dialogue.session, Activity()).greet(early=True)
    for line in case.lines:
        data = line if isinstance(line, bytes) else line.encode() + b"\r\n"
        heard += dialogue.send_raw(data)
    dialogue.close()
    log.flush()
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    return refusals(heard), [line for line in told if line.get("reply", "2")[0] in "45"]


def refusals(heard: bytes) -> list[str]:
    found = re.findall(rb"^((?:[45]\d\d-.*\r\n)*[45]\d\d .*)\r\n", heard, re.MULTILINE)
    return [re.sub(r" \(id [0-9a-f.]+\)$", "", each.decode()) for each in found]


@pytest.mark.parametrize(
    "case", [pytest.param(each, id=f"{n}-{each.name[:40]!a}") for n, each in enumerate(cases())]
)
def test_refusal_has_one_line(case: Case, capfd: Capture) -> None:
    heard, told = drive(case, capfd)
    assert heard, "the case refuses nothing"
    assert [line["reply"] for line in told] == heard
    line = told[-1]
    assert line["reply"].startswith(case.reply)
    assert line["level"] == "info"
    outcome = "deferred" if line["reply"][0] == "4" else "rejected"
    events = {case.event, f"{case.event} {outcome}".strip(), f"{case.event} failure"}
    assert line["event"] in events | {f"{case.event} error"}
    assert case.early or re.fullmatch("[0-9a-f]{12}", line["session"])
    told_fields = {"peer": PEER} | case.fields
    if "reason" in line:  # without the place of a wrong answer in the source
        line["reason"] = re.sub(r" \(\S+\.py:\d+\);.*", "", line["reason"])
    assert {name: line.get(name) for name in told_fields} == told_fields


# Nothing is left out


@dataclass(frozen=True)
class Origin:
    """Where the source makes a refusal: a regular expression of the reply, and its place."""

    place: str
    pattern: str


#: Replies over sockets, below, and names that make no reply themselves.
ELSEWHERE: Final = frozenset({"server.py", "receiver.py", "reply.py", "state.py"})


def origins() -> Iterator[Origin]:
    """Find each `Reply(4yz or 5yz, ...)` of what answers clients."""
    for path in sorted((ROOT / "minismtp").rglob("*.py")):
        if path.parent.name == "outbound" or path.name in ELSEWHERE:
            continue  # replies of other servers; over sockets, below
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                words = [_pattern(argument) for argument in call.args]
                place = f"{path.name}:{call.lineno}"
                if call.func.id in {"Reject", "Defer", "Disconnect"} and words:
                    yield Origin(place, f".*{words[0]}")
                elif call.func.id == "Reply" and not re.match(r"[23]\d\d", words[0]):
                    yield Origin(place, " ".join(words[:1] + words[2:] + words[1:2]))


def _pattern(node: ast.expr) -> str:
    match node:
        case ast.Constant(value):
            return re.escape(str(value))
        case ast.JoinedStr(values):
            return "".join(map(_pattern, values))
        case ast.IfExp(_, body, orelse):
            return f"(?:{_pattern(body)}|{_pattern(orelse)})"
        case _:
            return ".*"


def test_table_has_every_refusal_of_the_source(capfd: Capture) -> None:
    heard = {reply for case in cases() for reply in drive(case, capfd)[0]}
    found = list(origins())
    assert len(found) > 40
    left = [each for each in found if not any(re.match(each.pattern, reply) for reply in heard)]
    assert not left


def test_table_has_every_hook_that_can_refuse() -> None:
    assert {*HOOKS} == {*ANSWERS} - {"on_send", "destination"}  # these send no reply to clients


def test_table_has_every_code_of_the_documentation(capfd: Capture) -> None:
    heard = {reply for case in cases() for reply in drive(case, capfd)[0]}
    rows = re.findall(
        r"^\| `([45]\.\d+\.\d+)` \| (\d{3}) \|",
        (ROOT / "docs/conformance.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 20
    left = [
        row for row in rows if not any(each.startswith(f"{row[1]} {row[0]} ") for each in heard)
    ]
    assert left == [("4.4.2", "421")]  # the time-out, below


# LMTP, which answers each recipient


def of_lmtp(
    answers: dict[str, Exception], capfd: Capture
) -> tuple[list[str], list[dict[str, str]]]:
    @plugin
    class Mailboxes:
        @hookimpl
        def route(self) -> Local:
            return Local()

        @hookimpl
        def deliver(self, mailbox: Address) -> bool:
            if verdict := answers.get(mailbox.local):
                raise verdict
            return True

    recipients = [f"RCPT TO:<{name}@example.org>" for name in ("anna", "bob", "carl")]
    lines = ("LHLO client.example", MAIL, *recipients, "DATA", CONTENT)
    return drive(Case("lmtp", lines, "", "", plugins=(Mailboxes(),), kind="lmtp"), capfd)


def test_recipients_of_lmtp_that_fare_worse_than_the_message_have_lines(capfd: Capture) -> None:
    full, gone = Defer("full", enhanced="4.2.2"), Reject("gone", enhanced="5.2.1")
    heard, told = of_lmtp({"anna": full, "carl": gone}, capfd)
    assert heard == ["451 4.2.2 full", "550 5.2.1 gone"]
    assert [(line["event"], line["recipient"], line["reply"]) for line in told] == [
        ("recipient deferred", "anna@example.org", heard[0]),
        ("recipient rejected", "carl@example.org", heard[1]),
    ]
    assert {line["plugin"] + "." + line["hook"] for line in told} == {"mailboxes.deliver"}


def test_message_that_no_recipient_of_lmtp_gets_has_one_line(capfd: Capture) -> None:
    full = Defer("full", enhanced="4.2.2")
    heard, [line] = of_lmtp({"anna": full, "bob": full, "carl": full}, capfd)
    assert heard == ["451 4.2.2 full"] * 3
    assert (line["event"], line["reply"]) == ("deferred", heard[0])
    assert line["to"] == "anna@example.org,bob@example.org,carl@example.org"


# Floods and hostile input


def test_flood_has_its_share_of_lines_and_one_summary(capfd: Capture) -> None:
    made = Dialogue(Mailroom(), limits=Limits(errors=10**6, error_delay=timedelta(0)), log=Log())
    service = replace(made.service, refusal_log=RefusalLog(30), clock=Clock(0.0))
    dialogue = Dialogue(service=service)
    dialogue.send(EHLO)
    for number in range(1000):
        assert dialogue.send(f"MAIL FROM:<{number}@b,c>").startswith("501")
        assert dialogue.send(f"RCPT TO:<{number}@b,c>").startswith("501")
        assert dialogue.send("XYZZY").startswith("500")
    assert len(capfd.readouterr().err.splitlines()) == 30
    service.refusal_log.settle(service.log, 61.0)
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(f"more refusals peer={PEER} count={2020 - 30}")
    dialogue.close()
    assert f" peer={PEER} count=980\n" in capfd.readouterr().err


def test_cancelled_logins_have_their_share_of_lines_and_failed_ones_all(capfd: Capture) -> None:
    made = Dialogue(*judged(""), limits=Limits(errors=10**6, error_delay=timedelta(0)), log=Log())
    service = replace(made.service, refusal_log=RefusalLog(30), clock=Clock(0.0))
    for _ in range(100):
        dialogue = Dialogue(service=service)
        for line in (EHLO, "AUTH PLAIN", "*", "AUTH PLAIN", "!", plain("wrong"), "AUTH PLAIN"):
            dialogue.send(line)
        dialogue.close()  # the last exchange is cancelled by that
    lines = capfd.readouterr().err.splitlines()
    assert sum(" auth failure " in line for line in lines) == 100
    assert len(lines) == 130
    service.refusal_log.settle(service.log, 61.0)
    assert capfd.readouterr().err.endswith(f" more refusals peer={PEER} count={400 - 30}\n")


def test_malformed_recipients_of_a_message_share_its_lines(capfd: Capture) -> None:
    made = Dialogue(Mailroom(), limits=Limits(errors=10**6, error_delay=timedelta(0)), log=Log())
    dialogue = Dialogue(service=replace(made.service, refusal_log=RefusalLog(1000)))
    dialogue.send(EHLO)
    dialogue.send(MAIL)
    for number in range(500):
        dialogue.send(f"RCPT TO:<{number}@b,c>")
    dialogue.send("RSET")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[20].endswith("count=480")


@pytest.mark.parametrize("command", ["MAIL FROM", "RCPT TO", "EHLO", "VRFY"])
@pytest.mark.parametrize(
    "text",
    [
        "<a\x1b]0;owned\x07@x.example> ",
        '<"a b=c reply=250"@x.example',
        "<a\u2028info@x.example> X",
        "<a\u202eelpmaxe@x> X",
        "<a\x85b@x.example>",
        "<a\x00b@x.example>",
        "<\ud83d\ude00@x.example> X".encode("utf-16", "surrogatepass").decode("utf-16"),
    ],
)
def test_hostile_words_stay_within_their_value(capfd: Capture, command: str, text: str) -> None:
    made = Dialogue(Mailroom(), log=Log())
    dialogue = Dialogue(service=made.service)
    dialogue.send("EHLO client.example")
    colon = ":" if " " in command else " "
    dialogue.send(f"{command}{colon}{text}")
    dialogue.close()
    made.service.log.flush()
    for line in capfd.readouterr().err.split("\n"):
        assert line.isprintable()
        assert line == "" or re.fullmatch(
            r"\S+ (?:info|error) [a-z ]+(?: [a-z]+=(?:[^\s\"=]+|\"(?:[^\"\\]|\\.)*\"))+", line
        ), line


def test_line_that_cannot_be_written_changes_no_reply(capfd: Capture) -> None:
    class Broken(RefusalLog):
        def admits(self, log: Log, peer: str, now: float) -> bool:
            raise MemoryError(log, peer, now)

    made = Dialogue(Mailroom(), log=Log())
    dialogue = Dialogue(service=replace(made.service, refusal_log=Broken(1)))
    assert dialogue.send(EHLO).startswith("250")
    assert dialogue.send("MAIL FROM:<a@b,c>").startswith("501 5.1.7")
    assert dialogue.send("XYZZY").startswith("500 5.5.2")
    capfd.readouterr()


# The output of `minismtp explain`


@pytest.fixture
def remembering(configure: Configure, start: Start) -> Running:
    return start(configure("[limits]\nerrors = 1000\n"))


ADDRESSES: Final = (
    "b c@example.org",
    "no-such.user@elsewhere.example",
    "a\x1b[2Jb@x.example",
    "bounces+0123456789ab@x..example",
    'quo"te@x.example',
    "b\\a@x,y",
)


def test_explain_knows_the_address_as_it_came(remembering: Running, capsys: Capture) -> None:
    with remembering.connect() as client:
        client.greet()
        client.command(MAIL)
        for address in ADDRESSES:
            assert client.command(f"RCPT TO:<{address}>")[0] == "5"
        assert client.command("RSET").startswith("250")
        assert client.command("MAIL FROM:<from outside@x.example>").startswith("501")
        client.command("QUIT")
    remembering.wait_for_log("session closed")
    for address in (*ADDRESSES, "from outside@x.example", "FROM OUTSIDE@X.example"):
        for spelled in (address, json.dumps(address)[1:-1]):
            assert main(["explain", spelled, "--config", str(remembering.config)]) == 0
            text = capsys.readouterr().out
            assert re.search("(RCPT|MAIL) => 5\\d\\d", text), (address, text)
            assert "session closed" in text or "no message" in text
            assert text.isprintable() or all(map(str.isprintable, text.split("\n")))


def test_explain_of_an_address_comes_before_the_session_ends(
    remembering: Running, capsys: Capture
) -> None:
    with remembering.connect() as client:
        client.greet()
        client.command(MAIL)
        client.command("RCPT TO:<x y@example.org>")
        remembering.wait_for_log("recipient rejected")
        assert main(["explain", "x y@example.org", "--config", str(remembering.config)]) == 0
        text = capsys.readouterr().out
        assert re.search(r"^[0-9a-f]{12}\.1  recipient rejected  ", text)
        assert "recipient=<x y@example.org>" in text
        assert "    => 501 5.1.3 " in text


def test_explain_of_an_address_nobody_knows_is_a_failure(
    remembering: Running, capsys: Capture
) -> None:
    for unknown in ("nobody@example.net", "", " "):
        assert main(["explain", unknown, "--config", str(remembering.config)]) == 1
        assert "nothing is known of" in capsys.readouterr().err


def test_newest_records_of_an_address_are_shown(tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 10_000_000, Log())
    for number in range(200):
        fields: dict[str, str | int] = {"sender": "<bob@x.example>", "number": number}
        chronicle.keep(Record("stored", f"{number:012x}.1", float(number), 0.0, fields, []))
    chronicle.flush()
    found = about(tmp_path, "bob@x.example")
    assert [record.fields["number"] for record in found] == list(range(180, 200))


# Over sockets: refusals without a command


LISTENERS: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"

[[listeners]]
name = "balanced"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["127.0.0.0/8"]

[limits]
command_timeout = "500ms"
sessions_per_ip = 2
"""


@pytest.fixture(scope="module")
def hasty(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    with launch(tls_files.table, listeners=LISTENERS) as server:
        yield server


def test_timeout_has_a_line_with_its_reply(hasty: Running) -> None:
    with hasty.connect() as client:
        client.greet()
        assert "421 4.4.2 mx.example.org timeout" in client.rest()
    hasty.wait_for_log(
        r'session closed .*reason=timeout .* reply="421 4\.4\.2 mx\.example\.org timeout"$'
    )


def test_connections_beyond_the_limit_have_a_line_with_the_reply(hasty: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(hasty.connect(source="127.0.0.9")) for _ in range(3)]
        assert clients[2].rest().startswith("421 4.7.0 ")
    hasty.wait_for_log(
        r"connection limited peer=127\.0\.0\.9 limit=address"
        r' reply="421 4\.7\.0 mx\.example\.org too many connections, try again later"$'
    )


def test_limited_client_of_a_balancer_has_one_line(hasty: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(hasty.connect("balanced")) for _ in range(3)]
        for client in clients:
            client.send("PROXY TCP4 192.0.2.77 192.0.2.2 1 25\r\n")
        assert sum("421 4.7.0 " in client.rest() for client in clients) == 1
    hasty.wait_for_log(r"session closed .*peer=192\.0\.2\.77 .*reason=limited ")
    told = re.findall(r'^.*peer=192\.0\.2\.77 .*reply="421 4\.7\.0.*$', hasty.log, re.MULTILINE)
    assert len(told) == 1
    assert " connection limited " in told[0]
    assert " limit=address " in told[0]


def test_failed_handshake_has_a_line(hasty: Running) -> None:
    with hasty.connect() as client:
        client.greet()
        assert client.command("STARTTLS").startswith("220")
        client.send("this is no TLS at all, is it?")
    hasty.wait_for_log(r"TLS handshake failed session=\w+ peer=127\.0\.0\.1 .*error=")


def test_end_of_the_server_has_a_line_with_its_reply(configure: Configure, start: Start) -> None:
    server = start(configure())
    with server.connect() as client:
        client.greet()
        server.signal(signal.SIGTERM)
        assert client.rest().startswith("421 4.3.2 mx.example.org service shutting down (id ")
    server.wait()
    server.wait_for_log(r'session closed .*reason=draining .*reply="421 4\.3\.2 .*"$')
