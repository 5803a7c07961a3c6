"""One session outside the RFCs: limits, hooks, metrics, log, the end of the process."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from client_script import (
    MAIL_FROM,
    RCPT_TO,
    at_data,
    code,
    greeted,
    plain,
    rules,
)
from stub_plugins import Judge, Passwords

from minismtp import (
    Defer,
    Disconnect,
    Envelope,
    Reject,
    Reply,
    hookimpl,
    plugin,
)
from minismtp.config import Limits
from minismtp.mail.session import TlsInfo
from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import Activity
from minismtp.session.receiver import Receiver
from minismtp.testing import Dialogue, Mailroom

TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")


def test_peer_with_too_many_sessions_hears_421_and_is_counted() -> None:
    dialogue = Dialogue()
    receiver = Receiver(dialogue.service, dialogue.session, Activity())
    assert receiver.interrupt("limited").startswith(
        b"421 4.7.0 mx.example.org too many connections"
    )
    assert receiver.closing
    assert receiver.reason == "limited"
    assert dialogue.count("connections_total", listener="test", result="limited") == 1


def test_interruption_says_why_and_closes() -> None:
    dialogue = greeted(Dialogue())
    reply = dialogue.receiver.interrupt("timeout")
    identifier = dialogue.session.id
    assert reply.decode() == f"421 4.4.2 mx.example.org timeout (id {identifier})\r\n"
    assert dialogue.receiver.closing
    assert dialogue.send("NOOP") == ""


def test_tls_is_counted_by_version() -> None:
    dialogue = Dialogue()
    dialogue.receiver.secured(TLS)
    assert dialogue.count("tls_sessions_total", listener="test", version="TLSv1.3") == 1


def files_open_below(directory: Path) -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += descriptor.readlink().is_relative_to(directory)
    return count


@pytest.mark.parametrize("line", ["RSET", "EHLO client.example", "HELO client.example", None])
def test_content_of_a_dropped_transaction_is_let_go(line: str | None, tmp_path: Path) -> None:
    dialogue = at_data(Dialogue(Mailroom(), spool=tmp_path))
    dialogue.send_raw(b"BDAT 300000\r\n" + b"xxxx\r\n" * 50_000)
    assert files_open_below(tmp_path) == 1
    if line is None:
        dialogue.close()
    else:
        dialogue.send(line)
    assert files_open_below(tmp_path) == 0


def test_transactions_of_a_session_have_ids_of_their_own() -> None:
    dialogue = Dialogue(Mailroom())
    session = dialogue.session.id
    assert dialogue.mail("x") == f"250 2.0.0 message accepted as {session}.1"
    assert dialogue.mail("x") == f"250 2.0.0 message accepted as {session}.2"


def test_refused_senders_have_ids_of_their_own() -> None:
    seen: list[str] = []

    @plugin
    class Refusing:
        @hookimpl
        def on_mail(self, envelope: Envelope) -> None:
            seen.append(envelope.id)
            raise Reject("no")

    dialogue = greeted(Dialogue(Refusing()))
    dialogue.send(MAIL_FROM)
    dialogue.send(MAIL_FROM)
    assert len(set(seen)) == 2


def test_bad_commands_beyond_the_limit_end_the_session() -> None:
    dialogue = greeted(Dialogue(limits=Limits(errors=2)))
    assert code(dialogue.send("TURN")) == "500 5.5.2"
    assert code(dialogue.send("DATA")) == "503 5.5.1"
    assert not dialogue.receiver.closing
    assert dialogue.send("TURN") == "421 4.7.0 too many bad commands, closing connection"
    assert dialogue.receiver.closing
    assert dialogue.receiver.reason == "errors"


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("TURN", "500"),
        ("EXPN list", "502"),
        ("DATA", "503"),
        ("AUTH FUN", "504"),
        (f"{MAIL_FROM} FUN=1", "555"),
        ("EHLO \x7f", "501"),
    ],
)
def test_each_bad_command_counts(line: str, reply: str) -> None:
    dialogue = greeted(Dialogue(Passwords(), limits=Limits(errors=1)))
    assert dialogue.send(line).startswith(reply)
    assert dialogue.send(line).startswith("421")


@pytest.mark.parametrize(
    "lines",
    [
        ["NOOP"],
        ["VRFY user"],
        ["RSET"],
        [MAIL_FROM, "RCPT TO:<user@elsewhere.example>", "RSET"],
        [f"{MAIL_FROM} SIZE=99999999999"],
        [f"{MAIL_FROM} REQUIRETLS"],
    ],
    ids=" ".join,
)
def test_commands_that_are_well_formed_never_count_as_bad(lines: list[str]) -> None:
    dialogue = greeted(Dialogue(limits=Limits(errors=1)))
    for _ in range(3):
        for line in lines:
            assert not dialogue.send(line).startswith("421")
    assert not dialogue.receiver.closing


def test_failed_logins_end_the_session_at_the_next_command() -> None:
    dialogue = greeted(Dialogue(Passwords(), limits=Limits(failed_logins=2)))
    replies = [dialogue.send(plain("wrong")) for _ in range(3)]
    assert [code(reply) for reply in replies] == ["535 5.7.8", "535 5.7.8", "421 4.7.0"]
    assert dialogue.receiver.closing
    assert dialogue.receiver.reason == "logins"


def test_failed_logins_leave_quit_its_reply() -> None:
    dialogue = greeted(Dialogue(Passwords(), limits=Limits(failed_logins=1)))
    dialogue.send(plain("wrong"))
    assert dialogue.send("QUIT").startswith("221")


@pytest.mark.parametrize(
    "verb", ["VRFY user", "EXPN list", "HELP", "XFUN", "XCLIENT ADDR=192.0.2.7"]
)
def test_command_hook_may_refuse(verb: str) -> None:
    dialogue = greeted(Dialogue(Judge(hook="command", verdict=Reject("not for you"))))
    assert dialogue.send(verb) == "550 5.7.1 not for you"


def test_command_hook_is_asked_before_the_greeting_too() -> None:
    @plugin
    class Fun:
        @hookimpl
        def command(self, verb: str) -> Reply | None:
            return Reply(250, "fun", "2.0.0") if verb == "XFUN" else None

    assert Dialogue(Fun()).send("XFUN") == "250 2.0.0 fun"
    assert Dialogue(Fun()).send("XOTHER").startswith("500")


def test_reply_of_the_command_hook_changes_no_state() -> None:
    @plugin
    class Odd:
        @hookimpl
        def command(self) -> Reply:
            return Reply(354, "go ahead")

    mailroom = Mailroom()
    dialogue = at_data(Dialogue(Odd(), mailroom))
    assert dialogue.send("XFUN") == "354 go ahead"
    assert dialogue.send("NOOP") == "250 2.0.0 ok"
    dialogue.send_raw(b"BDAT 1 LAST\r\nx")
    assert mailroom.stored


def test_draining_ends_the_session_at_the_next_command() -> None:
    dialogue = greeted(Dialogue())
    dialogue.service.draining.set()
    assert dialogue.send("NOOP") == "421 4.3.2 mx.example.org service shutting down"
    assert dialogue.receiver.closing
    assert dialogue.receiver.reason == "draining"


def test_draining_leaves_quit_its_reply() -> None:
    dialogue = greeted(Dialogue())
    dialogue.service.draining.set()
    assert dialogue.send("QUIT").startswith("221 2.0.0")
    assert dialogue.receiver.reason == "quit"


def test_draining_lets_a_message_finish() -> None:
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    dialogue.send("DATA")
    dialogue.service.draining.set()
    assert dialogue.send("Subject: x") == ""
    assert not dialogue.receiver.at_boundary
    assert dialogue.send(".").startswith("250 2.0.0 message accepted")
    assert mailroom.stored
    assert dialogue.send(MAIL_FROM).startswith("421 4.3.2")


def test_draining_lets_the_chunks_of_a_message_finish() -> None:
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    dialogue.send_raw(b"BDAT 1\r\nx")
    dialogue.service.draining.set()
    replies = dialogue.send_raw(b"BDAT 1\r\nyBDAT 1 LAST\r\nzNOOP\r\n").splitlines()
    assert [reply[:9] for reply in replies] == [b"250 2.0.0", b"250 2.0.0", b"421 4.3.2"]
    assert mailroom.stored["user@example.org"][0].endswith(b"xyz")


def test_command_after_draining_is_counted_under_its_own_name() -> None:
    dialogue = greeted(Dialogue())
    dialogue.send("EHLO \x7f")
    dialogue.service.draining.set()
    dialogue.send("RCPT TO:<@")
    labels = {"listener": "test", "code_class": "4xx"}
    assert dialogue.count("commands_total", command="RCPT", **labels) == 1
    assert dialogue.count("commands_total", command="EHLO", **labels) == 0


@pytest.mark.parametrize(
    ("verdict", "replied"),
    [
        (Disconnect("bye"), "421 4.7.0 bye"),
        (Disconnect("bye", code=554, enhanced="5.7.1"), "554 5.7.1 bye"),
    ],
    ids=["421", "554"],
)
@pytest.mark.parametrize(
    ("hook", "lines"),
    [
        ("on_helo", ["EHLO client.example"]),
        ("ehlo_keywords", ["EHLO client.example"]),
        ("authenticate", ["EHLO client.example", plain("secret")]),
        ("on_mail", ["EHLO client.example", MAIL_FROM]),
        ("on_rcpt", ["EHLO client.example", MAIL_FROM, RCPT_TO]),
        ("route", ["EHLO client.example", MAIL_FROM, RCPT_TO]),
        ("on_data", ["EHLO client.example", MAIL_FROM, RCPT_TO, "DATA"]),
        ("on_data", ["EHLO client.example", MAIL_FROM, RCPT_TO, "BDAT 0"]),
        ("on_data", ["EHLO client.example", MAIL_FROM, RCPT_TO, "BDAT 0 LAST"]),
        ("on_message", ["EHLO client.example", MAIL_FROM, RCPT_TO, "DATA", "."]),
        ("on_message", ["EHLO client.example", MAIL_FROM, RCPT_TO, "BDAT 0 LAST"]),
        ("deliver", ["EHLO client.example", MAIL_FROM, RCPT_TO, "DATA", "."]),
        ("command", ["EHLO client.example", "XFUN"]),
    ],
    ids=lambda value: value[-1].replace(" ", "-") if isinstance(value, list) else value,
)
def test_disconnect_closes_after_its_reply(
    hook: str, lines: list[str], verdict: Disconnect, replied: str
) -> None:
    # RFC 5321 section 3.8; RFC 2034 section 4 for the greeting
    dialogue = Dialogue(Judge(hook=hook, verdict=verdict), Mailroom())
    *_, reply = [dialogue.send(line) for line in lines]
    greeting = hook in {"on_helo", "ehlo_keywords"}
    assert reply == (f"{verdict.reply.code} bye" if greeting else replied)
    assert dialogue.receiver.closing
    assert dialogue.receiver.reason == "refused"
    assert dialogue.send("NOOP") == ""


@pytest.mark.parametrize("refusal", [Reject("no"), Defer("later")], ids=str)
@pytest.mark.parametrize("hook", ["on_helo", "on_mail", "on_rcpt", "on_data", "on_message"])
def test_other_refusals_leave_the_session_open(hook: str, refusal: Exception) -> None:
    dialogue = Dialogue(Judge(hook=hook, verdict=refusal), Mailroom())
    assert dialogue.mail("x").startswith(("5", "4"))
    assert dialogue.send("NOOP") == "250 2.0.0 ok"


def test_commands_are_counted_by_name_and_class_of_the_reply() -> None:
    dialogue = Dialogue(Passwords(), Mailroom())
    dialogue.mail("x")
    lines = ("TURN", "XFUN", "EXPN list", "VRFY user", "DATA", "RCPT TO:<@", "HELP", "EHLO \x7f")
    for line in (*lines, plain("wrong"), "AUTH LOGIN", "*", "NOOP", "RSET", "QUIT"):
        dialogue.send(line)
    dialogue.metrics.buffer.flush()
    counted = {
        (sample.labels["command"], sample.labels["code_class"]): sample.value
        for family in dialogue.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "minismtp_commands_total" and sample.value
    }
    assert counted == {
        ("EHLO", "2xx"): 1,
        ("MAIL", "2xx"): 1,
        ("RCPT", "2xx"): 1,
        ("DATA", "3xx"): 1,
        ("CONTENT", "2xx"): 1,
        ("OTHER", "5xx"): 2,
        ("EXPN", "5xx"): 1,
        ("VRFY", "2xx"): 1,
        ("DATA", "5xx"): 1,
        ("RCPT", "5xx"): 1,
        ("HELP", "2xx"): 1,
        ("EHLO", "5xx"): 1,
        ("AUTH", "5xx"): 2,
        ("AUTH", "3xx"): 1,
        ("NOOP", "2xx"): 1,
        ("RSET", "2xx"): 1,
        ("QUIT", "2xx"): 1,
    }


def test_chunks_are_counted_as_bdat() -> None:
    dialogue = at_data(Dialogue(Mailroom()))
    dialogue.send_raw(b"BDAT 1\r\nxBDAT 0 LAST\r\n")
    dialogue.send_raw(b"BDAT 0 LAST\r\n")
    labels = {"listener": "test", "command": "BDAT"}
    assert dialogue.count("commands_total", **labels, code_class="2xx") == 2
    assert dialogue.count("commands_total", **labels, code_class="5xx") == 1


def test_session_is_counted_open_until_it_is_finished() -> None:
    dialogue = Dialogue()
    assert dialogue.count("connections_active", listener="test") == 1
    dialogue.close()
    assert dialogue.count("connections_active", listener="test") == 0
    assert dialogue.count("session_duration_seconds_count", listener="test") == 1


def test_log_has_one_line_of_the_session(capfd: pytest.CaptureFixture[str]) -> None:
    dialogue = Dialogue(Mailroom(), tls=True, log=Log())
    dialogue.mail("x")
    dialogue.send(f"{MAIL_FROM} FUN=1")
    dialogue.send("QUIT")
    dialogue.close()
    line = capfd.readouterr().err.splitlines()[-1]
    assert f" info session closed session={dialogue.session.id} peer=192.0.2.1 " in line
    assert re.search(
        r" listener=test reason=quit seconds=\d+\.\d{3} commands=7 transactions=1"
        r" helo=client\.example tls=TLSv1\.3$",
        line,
    )


def test_sender_that_does_not_belong_to_the_login_is_no_transaction(
    capfd: pytest.CaptureFixture[str],
) -> None:
    service = replace(rules(kind="submission"), match_sender=True, log=Log())
    dialogue = greeted(Dialogue(service=service, login="alice", tls=True))
    assert dialogue.send(MAIL_FROM).startswith("553")
    dialogue.close()
    assert " commands=2 transactions=0 " in capfd.readouterr().err


def test_refused_connection_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    judge = Judge(hook="on_connect", verdict=Reject("unwelcome"))
    dialogue = Dialogue(judge, peer="192.0.2.7", log=Log())
    dialogue.close()
    refused, closed = capfd.readouterr().err.splitlines()
    assert refused.endswith(
        'peer=192.0.2.7 reply="554 mx.example.org unwelcome" plugin=judge hook=on_connect'
    )
    assert " connection refused " in refused
    assert " reason=refused " in closed


def test_client_that_vanishes_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    dialogue = at_data(Dialogue(Mailroom(), log=Log()))
    dialogue.close()
    assert " reason=lost " in capfd.readouterr().err
