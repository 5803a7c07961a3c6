"""The session as a client hears it: every command, its reply, and what the reply changes."""

import base64
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Literal

import pytest
from minismtp_plugins.relay import Relaying

from minismtp import (
    Defer,
    Disconnect,
    Envelope,
    Reject,
    Reply,
    Session,
    StashKey,
    hookimpl,
    plugin,
)
from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.mail.session import TlsInfo
from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import Activity
from minismtp.session.listener_context import ListenerContext
from minismtp.session.receiver import Receiver
from minismtp.testing import Dialogue, Mailroom

Kind = Literal["mx", "submission", "lmtp"]
TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
NOTE = StashKey[str]()
TRUSTED = (IPv4Network("192.0.2.0/24"),)
MAIL = "MAIL FROM:<a@client.example>"
RCPT = "RCPT TO:<user@example.org>"


@plugin
class Passwords:
    """Takes one password from everybody."""

    @hookimpl
    def authenticate(self, credentials: object) -> str | None:
        username = str(getattr(credentials, "username", ""))
        return username if getattr(credentials, "password", "") == "secret" else None


@plugin
class Judge:
    """Raises at one hook, by its name."""

    hook: str
    verdict: Exception

    def _judge(self, hook: str) -> None:
        if hook == self.hook:
            raise self.verdict

    @hookimpl
    def on_connect(self, session: Session) -> None:
        if session.peer != "192.0.2.1":  # in these tests: whoever XCLIENT has brought
            self._judge("on_connect")

    @hookimpl
    def on_helo(self) -> None:
        self._judge("on_helo")

    @hookimpl
    def ehlo_keywords(self) -> None:
        self._judge("ehlo_keywords")

    @hookimpl
    def authenticate(self) -> None:
        self._judge("authenticate")

    @hookimpl
    def on_mail(self) -> None:
        self._judge("on_mail")

    @hookimpl
    def on_rcpt(self) -> None:
        self._judge("on_rcpt")

    @hookimpl
    def route(self) -> None:
        self._judge("route")

    @hookimpl
    def on_data(self) -> None:
        self._judge("on_data")

    @hookimpl
    def on_message(self) -> None:
        self._judge("on_message")

    @hookimpl
    def deliver(self) -> None:
        self._judge("deliver")

    @hookimpl
    def command(self) -> None:
        self._judge("command")


def plain(password: str) -> str:
    return "AUTH PLAIN " + base64.b64encode(f"\0alice\0{password}".encode()).decode()


def rules(*plugins: object, kind: Kind = "mx", limits: Limits | None = None) -> ListenerContext:
    """Return a service for `replace` to change."""
    return Dialogue(*plugins, kind=kind, limits=limits).service


def greeted(dialogue: Dialogue) -> Dialogue:
    dialogue.send("LHLO client.example" if dialogue.service.lmtp else "EHLO client.example")
    return dialogue


def at_data(dialogue: Dialogue) -> Dialogue:
    """Go as far as an accepted recipient."""
    greeted(dialogue)
    assert dialogue.send(MAIL).startswith("250")
    assert dialogue.send(RCPT).startswith("250")
    return dialogue


def code(reply: str) -> str:
    """Return the reply code, and the enhanced one if there is one."""
    match = re.match(r"\d{3}(?:[ -]\d\.\d+\.\d+(?= ))?", reply)
    assert match is not None, reply
    return match[0]


# The banner


@pytest.mark.parametrize(
    ("kind", "word"), [("mx", "ESMTP"), ("submission", "ESMTP"), ("lmtp", "LMTP")]
)
def test_banner_names_host_and_protocol_without_enhanced_code(kind: Kind, word: str) -> None:
    # RFC 5321 section 4.2; RFC 2034 section 4
    assert Dialogue(kind=kind).banner == f"220 mx.example.org {word} minismtp\r\n"


def test_peer_that_talks_before_the_banner_is_unwelcome() -> None:
    # RFC 5321 section 4.3.1
    dialogue = Dialogue()
    receiver = Receiver(dialogue.service, dialogue.session, Activity())
    assert receiver.greet(early=True).startswith(b"554 mx.example.org you talk before the ")
    assert receiver.receive(b"EHLO client.example\r\nQUIT\r\n").startswith(b"503 ")
    assert dialogue.count("connections_total", listener="test", result="refused") == 1


def test_peer_with_too_many_sessions_hears_421_and_is_counted() -> None:
    dialogue = Dialogue()
    receiver = Receiver(dialogue.service, dialogue.session, Activity())
    assert receiver.limited().startswith(b"421 4.7.0 mx.example.org too many connections")
    assert receiver.closing
    assert receiver.reason == "limited"
    assert dialogue.count("connections_total", listener="test", result="limited") == 1


def test_interruption_says_why_and_closes() -> None:
    dialogue = greeted(Dialogue())
    reply = dialogue.receiver.interrupt("timeout", "4.4.2", "timeout")
    identifier = dialogue.session.id
    assert reply.decode() == f"421 4.4.2 mx.example.org timeout (id {identifier})\r\n"
    assert dialogue.receiver.closing
    assert dialogue.send("NOOP") == ""


# What EHLO offers

FIRST = ["PIPELINING", "SIZE 26214400"]
LAST = [
    "ENHANCEDSTATUSCODES",
    "8BITMIME",
    "DSN",
    "SMTPUTF8",
    "CHUNKING",
    "BINARYMIME",
    "LIMITS RCPTMAX=100",
]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A state of a session and what is offered between `FIRST` and `LAST`."""

    kind: Kind = "mx"
    starttls: bool = True
    clear_auth: bool = False
    tls: bool = False
    login: str | None = None
    more: list[str]


@pytest.mark.parametrize(
    "offer",
    [
        pytest.param(Offer(more=["STARTTLS"]), id="mx-in-clear"),
        pytest.param(Offer(tls=True, more=["REQUIRETLS", "AUTH PLAIN LOGIN"]), id="mx-inside-tls"),
        pytest.param(Offer(starttls=False, more=[]), id="mx-without-tls"),
        pytest.param(Offer(kind="submission", more=["STARTTLS"]), id="submission-in-clear"),
        pytest.param(
            Offer(kind="submission", tls=True, more=["REQUIRETLS", "AUTH PLAIN LOGIN"]),
            id="submission-inside-tls",
        ),
        pytest.param(
            Offer(kind="submission", tls=True, login="alice", more=["REQUIRETLS"]),
            id="submission-logged-in",
        ),
        pytest.param(
            Offer(starttls=False, clear_auth=True, more=["AUTH PLAIN LOGIN"]), id="on-loopback"
        ),
        pytest.param(Offer(kind="lmtp", starttls=False, more=[]), id="lmtp"),
        pytest.param(Offer(kind="lmtp", more=["STARTTLS"]), id="lmtp-in-clear"),
    ],
)
def test_ehlo_offers_what_is_true_for_the_session(offer: Offer) -> None:
    # RFC 3207 section 4.2, RFC 8689 section 2, RFC 4954 section 4. Naive clients look for
    # `250-STARTTLS` and `250-AUTH`, so the last line must be neither.
    service = replace(
        rules(Passwords(), kind=offer.kind), starttls=offer.starttls, clear_auth=offer.clear_auth
    )
    dialogue = Dialogue(service=service, tls=offer.tls, login=offer.login)
    reply = dialogue.send("LHLO client.example" if offer.kind == "lmtp" else "EHLO client.example")
    first, *lines = reply.splitlines()
    assert first == "250-mx.example.org greets client.example"
    assert [line[4:] for line in lines] == [*FIRST, *offer.more, *LAST]
    assert {line[:4] for line in lines[:-1]} == {"250-"}
    assert lines[-1][:4] == "250 "


def test_ehlo_offers_the_configured_limits() -> None:
    limits = Limits(message_size=ByteSize(1000), recipients=7)
    lines = Dialogue(limits=limits).send("EHLO client.example").splitlines()
    assert "250-SIZE 1000" in lines
    assert "250 LIMITS RCPTMAX=7" in lines


def test_rcptmax_is_what_a_transaction_takes() -> None:
    # RFC 9422 section 4.3
    dialogue = greeted(Dialogue(Mailroom(), limits=Limits(recipients=2)))
    dialogue.send(MAIL)
    codes = [code(dialogue.send(RCPT)) for _ in range(3)]
    assert codes == ["250 2.1.5", "250 2.1.5", "452 4.5.3"]


def test_mechanisms_are_offered_only_where_a_plugin_checks_logins() -> None:
    assert "AUTH" not in Dialogue(Mailroom()).send("EHLO client.example")


def test_login_hides_auth_from_the_next_ehlo() -> None:
    dialogue = greeted(Dialogue(Passwords()))
    assert dialogue.send(plain("secret")).startswith("235")
    assert "AUTH" not in dialogue.send("EHLO client.example")


def test_tls_forgets_login_and_greeting_and_asks_for_a_new_one() -> None:
    # RFC 3207 section 4.2
    dialogue = Dialogue(service=replace(rules(Passwords()), starttls=True))
    greeted(dialogue).send(plain("secret"))
    assert dialogue.send("STARTTLS") == "220 2.0.0 ready to start TLS"
    assert dialogue.receiver.wants_tls
    dialogue.receiver.secured(TLS)
    assert (dialogue.session.login, dialogue.session.helo, dialogue.session.esmtp) == (
        None,
        "",
        False,
    )
    assert code(dialogue.send(MAIL)) == "503 5.5.1"
    lines = dialogue.send("EHLO client.example").splitlines()
    assert lines[3:5] == ["250-REQUIRETLS", "250-AUTH PLAIN LOGIN"]


def test_tls_is_counted_by_version() -> None:
    dialogue = Dialogue()
    dialogue.receiver.secured(TLS)
    assert dialogue.count("tls_sessions_total", listener="test", version="TLSv1.3") == 1


# Enhanced status codes


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["NOOP"], "250 2.0.0 ok"),
        (["NOOP with an argument"], "250 2.0.0 ok"),
        (["RSET"], "250 2.0.0 ok"),
        (["HELP"], "214 2.0.0 see RFC 5321; mail to postmaster reaches a person"),
        (["HELP MAIL"], "214 2.0.0 see RFC 5321; mail to postmaster reaches a person"),
        (["VRFY user"], "252 2.5.2 cannot verify, but will take mail and try"),
        (["EXPN list"], "502 5.5.1 EXPN is not implemented"),
        (["TURN"], "500 5.5.2 command not recognized"),
        (["ÜBER"], "500 5.5.2 command not recognized"),
        (["XCLIENT ADDR=192.0.2.7"], "550 5.7.1 XCLIENT is not for you"),
        (["STARTTLS"], "502 5.5.1 STARTTLS is not offered here"),
        (["AUTH PLAIN"], "502 5.5.1 AUTH is not offered here"),
        ([MAIL], "250 2.1.0 sender ok"),
        ([MAIL, MAIL], "503 5.5.1 bad sequence of commands"),
        ([MAIL, RCPT], "250 2.1.5 recipient ok"),
        ([MAIL, "DATA"], "503 5.5.1 bad sequence of commands"),
        ([MAIL, "BDAT 0 LAST"], "503 5.5.1 bad sequence of commands"),
        ([MAIL, RCPT, "DATA"], "354 end data with <CR><LF>.<CR><LF>"),
        ([MAIL, RCPT, "BDAT 0"], "250 2.0.0 chunk received"),
        ([MAIL, RCPT, "BDAT 0", "DATA"], "503 5.5.1 DATA cannot be mixed with BDAT"),
        ([RCPT], "503 5.5.1 bad sequence of commands"),
        (["MAIL FROM:<a@client.example> FUN=1"], "555 5.5.4 parameter FUN not recognized"),
        (["QUIT"], "221 2.0.0 mx.example.org closing connection"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_reply_has_its_code_and_enhanced_code(lines: list[str], reply: str) -> None:
    # RFC 2034 section 4
    dialogue = greeted(Dialogue(Mailroom()))
    assert [dialogue.send(line) for line in lines][-1] == reply


def with_draining(dialogue: Dialogue) -> None:
    dialogue.service.draining.set()


def with_errors(dialogue: Dialogue) -> None:
    for _ in range(dialogue.service.limits.errors):
        dialogue.send("TURN")


def with_failed_logins(dialogue: Dialogue) -> None:
    for _ in range(dialogue.service.limits.failed_logins):
        dialogue.send(plain("wrong"))


@pytest.mark.parametrize("ending", [with_draining, with_failed_logins])
@pytest.mark.parametrize("line", ["EHLO client.example", "HELO client.example", "HELO", "LHLO a"])
def test_greeting_that_ends_the_session_has_no_enhanced_code(
    line: str, ending: Callable[[Dialogue], None]
) -> None:
    # RFC 2034 section 4
    dialogue = greeted(Dialogue(Passwords()))
    ending(dialogue)
    assert code(dialogue.send(line)) == "421"
    assert dialogue.receiver.closing


@pytest.mark.parametrize("line", ["EHLO", "HELO \x7f", "LHLO a"])
def test_bad_greeting_beyond_the_limit_of_errors_has_no_enhanced_code(line: str) -> None:
    dialogue = greeted(Dialogue())
    with_errors(dialogue)
    assert code(dialogue.send(line)) == "421"


# Greetings and RSET


@pytest.mark.parametrize(
    "line", ["RSET", "EHLO client.example", "HELO client.example", "EHLO other.example"]
)
@pytest.mark.parametrize("chunks", [0, 1])
def test_rset_and_greetings_drop_the_transaction(line: str, chunks: int) -> None:
    # RFC 5321 sections 4.1.1.5 and 4.1.4
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    for _ in range(chunks):
        dialogue.send_raw(b"BDAT 3\r\nold")
    assert dialogue.send(line).startswith("250")
    assert dialogue.send("DATA").startswith("503")
    assert dialogue.send(RCPT).startswith("503")
    dialogue.send(MAIL)
    dialogue.send("RCPT TO:<other@example.org>")
    dialogue.send_raw(b"BDAT 3 LAST\r\nnew")
    assert [*mailroom.stored] == ["other@example.org"]
    assert mailroom.stored["other@example.org"][0].endswith(b"+0000\r\n\r\nnew")


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


@pytest.mark.parametrize("hook", ["on_helo", "ehlo_keywords"])
def test_refused_greeting_leaves_no_name(hook: str) -> None:
    # RFC 5321 section 4.1.4
    dialogue = Dialogue(Judge(hook=hook, verdict=Reject("no")))
    assert dialogue.send("EHLO bad.example") == "550 no"
    assert (dialogue.session.helo, dialogue.session.esmtp) == ("", False)
    assert dialogue.send(MAIL).startswith("503")


def test_refused_greeting_keeps_the_transaction() -> None:
    # RFC 5321 section 4.1.4
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    assert dialogue.send("EHLO \x7f").startswith("501")
    assert dialogue.send("LHLO client.example").startswith("500")
    dialogue.send_raw(b"BDAT 1 LAST\r\nx")
    assert mailroom.stored


def test_helo_makes_a_session_without_extensions() -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(mailroom)
    assert dialogue.send("HELO client.example") == "250 mx.example.org greets client.example"
    for line in (MAIL, RCPT, "DATA"):
        dialogue.send(line)
    dialogue.send("x\r\n.")
    assert b" with SMTP id " in mailroom.stored["user@example.org"][0]


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
    dialogue.send(MAIL)
    dialogue.send(MAIL)
    assert len(set(seen)) == 2


# MAIL


@pytest.mark.parametrize(
    ("size", "reply"),
    [("1000", "250 2.1.0"), ("1001", "552 5.3.4"), ("0", "250 2.1.0"), ("9" * 20, "552 5.3.4")],
)
def test_declared_size_is_held_against_the_limit(size: str, reply: str) -> None:
    # RFC 1870 section 6.1
    dialogue = greeted(Dialogue(limits=Limits(message_size=ByteSize(1000))))
    assert code(dialogue.send(f"{MAIL} SIZE={size}")) == reply


@pytest.mark.parametrize(("tls", "reply"), [(False, "530 5.7.10"), (True, "250 2.1.0")])
def test_requiretls_needs_tls(tls: bool, reply: str) -> None:
    # RFC 8689 section 4
    seen: list[bool] = []

    @plugin
    class Looking:
        @hookimpl
        def on_mail(self, envelope: Envelope) -> None:
            seen.append(envelope.require_tls)

    assert code(greeted(Dialogue(Looking(), tls=tls)).send(f"{MAIL} REQUIRETLS")) == reply
    assert seen == [True] * tls


@pytest.mark.parametrize(
    ("kind", "login", "reply"),
    [
        ("submission", None, "530 5.7.0"),
        ("submission", "alice", "250 2.1.0"),
        ("mx", None, "250 2.1.0"),
        ("lmtp", None, "250 2.1.0"),
    ],
)
def test_submission_needs_a_login(kind: Kind, login: str | None, reply: str) -> None:
    # RFC 6409 section 4.3
    dialogue = greeted(Dialogue(Passwords(), kind=kind, tls=True, login=login))
    assert code(dialogue.send(MAIL)) == reply


def test_refused_mail_begins_no_transaction() -> None:
    dialogue = greeted(Dialogue(Mailroom(), limits=Limits(message_size=ByteSize(1000))))
    dialogue.send(f"{MAIL} SIZE=1001")
    assert dialogue.send(RCPT).startswith("503")
    assert dialogue.send(MAIL).startswith("250")


# STARTTLS


@pytest.mark.parametrize(
    ("starttls", "tls", "reply"),
    [
        (False, False, "502 5.5.1 STARTTLS is not offered here"),
        (True, True, "503 5.5.1 TLS is already active"),
        (False, True, "503 5.5.1 TLS is already active"),
        (True, False, "220 2.0.0 ready to start TLS"),
    ],
)
def test_starttls_where_it_is_offered(starttls: bool, tls: bool, reply: str) -> None:
    # RFC 3207 section 4
    dialogue = greeted(Dialogue(service=replace(rules(), starttls=starttls), tls=tls))
    assert dialogue.send("STARTTLS") == reply
    assert dialogue.receiver.wants_tls == reply.startswith("220")


# Limits of a session


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
        (f"{MAIL} FUN=1", "555"),
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
        [MAIL, "RCPT TO:<user@elsewhere.example>", "RSET"],
        [f"{MAIL} SIZE=99999999999"],
        [f"{MAIL} REQUIRETLS"],
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


# Pipelining


def test_batch_is_answered_in_one_piece() -> None:
    # RFC 2920 section 3.2
    mailroom = Mailroom()
    dialogue = greeted(Dialogue(mailroom))
    batch = f"{MAIL}\r\n{RCPT}\r\nRCPT TO:<other@example.org>\r\nDATA\r\n".encode()
    lines = dialogue.receiver.receive(batch).decode().split("\r\n")
    assert [line[:3] for line in lines] == ["250", "250", "250", "354", ""]
    assert not dialogue.receiver.pending
    lines = dialogue.receiver.receive(b"x\r\n.\r\nNOOP\r\nQUIT\r\n").decode().split("\r\n")
    assert [line[:3] for line in lines] == ["250", "250", "221", ""]
    assert [*mailroom.stored] == ["user@example.org", "other@example.org"]


def test_replies_of_a_huge_batch_do_not_pile_up() -> None:
    dialogue = greeted(Dialogue(limits=Limits(junk_commands=100_000)))
    output = dialogue.receiver.receive(b"NOOP\r\n" * 10_000)
    assert 65536 <= len(output) < 66_000
    assert dialogue.receiver.pending
    while dialogue.receiver.pending:
        output += dialogue.receiver.proceed()
    assert output == b"250 2.0.0 ok\r\n" * 10_000


def test_strict_pipelining_refuses_who_does_not_wait_for_ehlo() -> None:
    # RFC 2920 section 3.1
    service = replace(rules(), strict_pipelining=True)
    dialogue = Dialogue(service=service)
    first, second = dialogue.send_raw(f"EHLO client.example\r\n{MAIL}\r\n".encode()).splitlines()
    assert first.startswith(b"503 wait for the reply before you go on (id ")
    assert second.startswith(b"503 5.5.1 say EHLO first (id ")
    assert dialogue.session.helo == ""
    assert dialogue.send("EHLO client.example").startswith("250")
    assert dialogue.send_raw(f"{MAIL}\r\nRSET\r\n".encode()).count(b"250 ") == 2


def test_pipelining_behind_ehlo_is_let_pass_by_default() -> None:
    reply = Dialogue().send_raw(f"EHLO client.example\r\n{MAIL}\r\n".encode())
    assert reply.endswith(b"250 2.1.0 sender ok\r\n")


def test_nothing_follows_quit() -> None:
    dialogue = greeted(Dialogue())
    assert (
        dialogue.send_raw(b"QUIT\r\nNOOP\r\n") == b"221 2.0.0 mx.example.org closing connection\r\n"
    )
    assert dialogue.receiver.closing
    assert dialogue.receiver.reason == "quit"
    assert dialogue.send("NOOP") == ""


# The `command` hook


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


# The end of the process


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
    assert dialogue.send(MAIL).startswith("421 4.3.2")


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


# BDAT


def test_chunks_are_answered_one_by_one_and_the_last_with_the_message() -> None:
    # RFC 3030 section 2
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    assert dialogue.send_raw(b"BDAT 5\r\na\r\nb\r") == b"250 2.0.0 chunk received\r\n"
    assert dialogue.send_raw(b"BDAT 4 LAST\r\n\n.\r\n") == (
        f"250 2.0.0 message accepted as {dialogue.session.id}.1\r\n".encode()
    )
    assert mailroom.stored["user@example.org"][0].endswith(b"+0000\r\n\r\na\r\nb\r\n.\r\n")


def test_chunk_may_come_octet_by_octet() -> None:
    mailroom = Mailroom()
    dialogue = at_data(Dialogue(mailroom))
    wire = b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"
    replies = b"".join(dialogue.send_raw(bytes([octet])) for octet in wire).splitlines()
    assert [reply[:9] for reply in replies] == [b"250 2.0.0", b"250 2.0.0"]
    assert mailroom.stored["user@example.org"][0].endswith(b"+0000\r\n\r\nQUIT\r\n")


@pytest.mark.parametrize("last", ["", " LAST"])
def test_chunk_without_a_transaction_is_consumed(last: str) -> None:
    dialogue = greeted(Dialogue(Mailroom()))
    replies = dialogue.send_raw(f"BDAT 6{last}\r\nQUIT\r\nNOOP\r\n".encode()).splitlines()
    assert [reply[:9] for reply in replies] == [b"503 5.5.1", b"250 2.0.0"]


def test_chunks_after_a_refused_one_are_consumed() -> None:
    # RFC 3030 section 2: 5yz ends the transaction
    mailroom = Mailroom()
    limits = Limits(message_size=ByteSize(8))
    dialogue = at_data(Dialogue(mailroom, limits=limits))
    wire = b"BDAT 6\r\nabcdefBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"
    codes = [code(line) for line in dialogue.send_raw(wire).decode().splitlines()]
    assert codes == ["250 2.0.0", "552 5.3.4", "503 5.5.1", "250 2.0.0"]
    assert not mailroom.stored
    assert dialogue.send(MAIL).startswith("250")


def test_binarymime_needs_bdat() -> None:
    # RFC 3030 section 3
    mailroom = Mailroom()
    dialogue = greeted(Dialogue(mailroom))
    dialogue.send(f"{MAIL} BODY=BINARYMIME")
    dialogue.send(RCPT)
    assert dialogue.send("DATA") == "503 5.5.1 BINARYMIME needs BDAT"
    assert dialogue.send_raw(b"BDAT 5 LAST\r\n\r\n\0\n\xff").startswith(b"250")
    assert mailroom.stored["user@example.org"][0].endswith(b"\r\n\0\n\xff")


# LMTP


@plugin
class Picky:
    """Stores for everybody but some."""

    refusals: dict[str, Exception]
    stored: list[str] = field(default_factory=list)

    @hookimpl
    def deliver(self, mailbox: object) -> bool:
        name = str(mailbox)
        if name in self.refusals:
            raise self.refusals[name]
        self.stored.append(name)
        return True


THREE = ("a@example.org", "b@example.org", "c@example.org")


def test_lmtp_answers_for_each_recipient_in_order() -> None:
    # RFC 2033 section 4.2
    picky = Picky(refusals={"b@example.org": Defer("full", code=452, enhanced="4.2.2")})
    dialogue = Dialogue(picky, Mailroom(), kind="lmtp")
    replies = dialogue.mail("x", to=THREE).splitlines()
    assert [code(reply) for reply in replies] == ["250 2.0.0", "452 4.2.2", "250 2.0.0"]
    assert picky.stored == ["a@example.org", "c@example.org"]
    assert dialogue.count("messages_total", listener="test", outcome="stored") == 1


def test_lmtp_refusal_of_the_whole_message_is_said_for_each_recipient() -> None:
    judge = Judge(hook="on_message", verdict=Reject("spam"))
    reply = Dialogue(judge, Mailroom(), kind="lmtp").mail("x", to=THREE)
    assert reply.splitlines() == ["550 5.7.1 spam"] * 3


def test_lmtp_last_chunk_is_answered_for_each_recipient_and_others_once() -> None:
    # RFC 2033 section 4.2, RFC 3030 section 2
    dialogue = at_data(Dialogue(Mailroom(), kind="lmtp"))
    dialogue.send(RCPT)
    assert dialogue.send_raw(b"BDAT 1\r\nx") == b"250 2.0.0 chunk received\r\n"
    assert dialogue.send_raw(b"BDAT 0 LAST\r\n").count(b"250 2.0.0 message accepted") == 2


def test_lmtp_refused_chunk_is_answered_once() -> None:
    dialogue = at_data(Dialogue(Mailroom(), kind="lmtp", limits=Limits(message_size=ByteSize(1))))
    dialogue.send(RCPT)
    replies = dialogue.send_raw(b"BDAT 2\r\nxyNOOP\r\n").decode().splitlines()
    assert [code(reply) for reply in replies] == ["552 5.3.4", "250 2.0.0"]


def test_lmtp_message_without_accepted_recipients_is_503() -> None:
    # RFC 2033 section 4.2
    dialogue = greeted(Dialogue(kind="lmtp"))
    dialogue.send(MAIL)
    assert code(dialogue.send(RCPT)) == "550 5.7.1"
    assert code(dialogue.send("DATA")) == "503 5.5.1"


def test_smtp_message_without_accepted_recipients_is_554() -> None:
    # RFC 5321 section 3.3
    dialogue = greeted(Dialogue())
    dialogue.send(MAIL)
    dialogue.send(RCPT)
    assert code(dialogue.send("DATA")) == "554 5.5.1"


# Disconnect


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
        ("on_mail", ["EHLO client.example", MAIL]),
        ("on_rcpt", ["EHLO client.example", MAIL, RCPT]),
        ("route", ["EHLO client.example", MAIL, RCPT]),
        ("on_data", ["EHLO client.example", MAIL, RCPT, "DATA"]),
        ("on_data", ["EHLO client.example", MAIL, RCPT, "BDAT 0"]),
        ("on_data", ["EHLO client.example", MAIL, RCPT, "BDAT 0 LAST"]),
        ("on_message", ["EHLO client.example", MAIL, RCPT, "DATA", "."]),
        ("on_message", ["EHLO client.example", MAIL, RCPT, "BDAT 0 LAST"]),
        ("deliver", ["EHLO client.example", MAIL, RCPT, "DATA", "."]),
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


# Metrics and the log


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
    dialogue.send(f"{MAIL} FUN=1")
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
    assert dialogue.send(MAIL).startswith("553")
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


# Deadlines


@dataclass
class Clock:
    """Time that stands still but for what a test says."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def timed() -> tuple[Dialogue, Clock]:
    clock = Clock()
    limits = Limits(
        command_timeout=timedelta(seconds=10),
        data_timeout=timedelta(seconds=50),
        session_timeout=timedelta(seconds=200),
    )
    return Dialogue(service=replace(rules(Mailroom(), limits=limits), clock=clock)), clock


def test_each_command_has_its_own_time() -> None:
    dialogue, clock = timed()
    assert dialogue.receiver.deadline == 1010
    clock.now = 1009
    dialogue.send("EHLO client.example")
    assert dialogue.receiver.deadline == 1019


def test_half_a_command_buys_no_time() -> None:
    dialogue, clock = timed()
    clock.now = 1009
    dialogue.send_raw(b"EHL")
    assert dialogue.receiver.deadline == 1010


def test_content_has_time_from_354_on_and_each_octet_buys_a_little() -> None:
    dialogue, clock = timed()
    at_data(dialogue).send("DATA")
    assert dialogue.receiver.deadline == 1050
    clock.now = 1049
    dialogue.send("x" * 498)
    assert dialogue.receiver.deadline == 1051  # 500 octets at 500 octets a second
    dialogue.send(".")
    assert dialogue.receiver.deadline == 1059


def test_all_chunks_have_one_time() -> None:
    dialogue, clock = timed()
    at_data(dialogue).send_raw(b"BDAT 1\r\nx")
    clock.now = 1040
    dialogue.send_raw(b"BDAT 491\r\n" + b"x" * 490)
    assert dialogue.receiver.deadline == 1051
    dialogue.send_raw(b"x")
    assert dialogue.receiver.deadline == pytest.approx(1051, abs=0.1)
    dialogue.send_raw(b"BDAT 0 LAST\r\n")
    assert dialogue.receiver.deadline == 1050


@pytest.mark.parametrize("form", ["data", "one-chunk", "many-chunks"])
@pytest.mark.parametrize("kind", ["mx", "lmtp"])
@pytest.mark.parametrize(
    ("octets", "seconds"),
    [(2048, 0.25), (512, 1.0), (65536, 8.0), (262_144, 290.0), (65536, 20.0)],
    ids=["64kbit", "4kbit", "64kbit-in-large-pieces", "long-gaps", "26kbit"],
)
def test_large_message_over_a_slow_line_comes_in(
    tmp_path: Path, kind: Kind, form: str, octets: int, seconds: float
) -> None:
    # Within the two hours of `content_timeout`; the session has one hour.
    size = min(25 * 2**20 - 2000, int(7000 / seconds) * octets)
    room = Mailroom()
    clock = Clock()
    service = replace(rules(room, kind=kind), clock=clock, spool=tmp_path)
    dialogue = at_data(Dialogue(service=service))
    text = (b"Subject: slow\r\n\r\n" + (b"x" * 62 + b"\r\n") * (octets // 64))[:octets]
    last = b"\r\n.\r\n" if form == "data" else b"BDAT 2 LAST\r\n\r\n"
    if form == "data":
        dialogue.send("DATA")
    if form == "one-chunk":
        dialogue.send_raw(b"BDAT %d\r\n" % (size // octets * octets))
    for _ in range(size // octets):
        clock.now += seconds
        assert clock.now < dialogue.receiver.deadline
        dialogue.send_raw((b"BDAT %d\r\n" % octets) * (form == "many-chunks") + text)
    assert dialogue.send_raw(last).startswith(b"250")
    assert len(room.stored["user@example.org"]) == 1


@pytest.mark.parametrize("form", ["data", "one-chunk", "many-chunks"])
@pytest.mark.parametrize(
    ("octets", "seconds", "lasts"),
    [
        (1, 1.0, 700),
        (1, 30.0, 700),
        (64, 1.0, 800),
        (400, 1.0, 4000),
        (0, 1.0, 610),
        (600, 1.0, 7300),
        (2**16, 1.0, 7300),
    ],
    ids=["1-a-second", "1-in-30", "64-a-second", "just-below", "silence", "endless", "fast"],
)
def test_content_that_trickles_or_never_ends_is_cut(
    form: str, octets: int, seconds: float, lasts: float
) -> None:
    clock = Clock()
    limits = Limits(message_size=ByteSize(10_000))
    dialogue = at_data(Dialogue(service=replace(rules(Mailroom(), limits=limits), clock=clock)))
    dialogue.send_raw({"data": b"DATA\r\n", "one-chunk": b"BDAT 9999999999\r\n"}.get(form, b""))
    if form == "many-chunks":
        dialogue.send_raw(b"BDAT 1\r\nx")
    begun = clock.now
    while clock.now < dialogue.receiver.deadline:
        clock.now += seconds
        if octets:
            chunk = b"BDAT %d\r\n" % octets if form == "many-chunks" and octets > 64 else b""
            dialogue.send_raw(chunk + b"x" * octets if form != "many-chunks" or chunk else b"\r")
        assert clock.now - begun < 10_000
    assert clock.now - begun <= lasts


def test_burst_buys_no_silence_beyond_the_timeout() -> None:
    clock = Clock()
    dialogue = at_data(Dialogue(service=replace(rules(Mailroom()), clock=clock)))
    dialogue.send("DATA")
    for _ in range(20):
        dialogue.send_raw(b"x" * 10**6)
    assert dialogue.receiver.deadline == clock.now + 600


def test_absolute_limit_holds_however_fast_the_content_comes() -> None:
    clock = Clock()
    limits = Limits(content_timeout=timedelta(minutes=1))
    dialogue = at_data(Dialogue(service=replace(rules(Mailroom(), limits=limits), clock=clock)))
    dialogue.send("DATA")
    clock.now += 59
    dialogue.send_raw(b"x" * 10**6)
    assert dialogue.receiver.deadline == 1060


def test_content_outlasts_its_session_only_when_it_began_before() -> None:
    dialogue, clock = timed()
    for line in ("EHLO client.example", MAIL, RCPT):
        dialogue.send(line)
    clock.now = 1190
    dialogue.send("DATA")
    assert dialogue.receiver.deadline == 1200
    clock.now = 1199
    dialogue.send_raw((b"x" * 98 + b"\r\n") * 100)
    assert dialogue.receiver.deadline == 1220
    assert dialogue.send(".").startswith("250")
    clock.now = 1201  # over: the client hears 421, unless it is very fast
    for line in (MAIL, RCPT, "DATA"):
        dialogue.send(line)
    dialogue.send("x" * 10_000)
    assert dialogue.receiver.deadline == 1200


def test_no_time_goes_beyond_that_of_the_session() -> None:
    dialogue, clock = timed()
    clock.now = 1195
    at_data(dialogue)
    assert dialogue.receiver.deadline == 1200
    dialogue.send("DATA")
    assert dialogue.receiver.deadline == 1200


# XCLIENT


def xclient(*plugins: object, peer: str = "192.0.2.1", kind: Kind = "mx") -> Dialogue:
    return Dialogue(service=replace(rules(*plugins, kind=kind), xclient=TRUSTED), peer=peer)


@pytest.mark.parametrize("peer", ["198.51.100.1", "2001:db8::1", "unix"])
def test_xclient_is_not_for_others(peer: str) -> None:
    dialogue = xclient(peer=peer)
    assert "XCLIENT" not in dialogue.send("EHLO client.example")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9") == "550 5.7.1 XCLIENT is not for you"
    assert dialogue.session.peer == peer


def test_xclient_replaces_what_is_known_and_begins_anew() -> None:
    dialogue = xclient(Passwords(), Mailroom())
    assert "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR" in dialogue.send("EHLO proxy.example")
    line = (
        "XCLIENT ADDR=IPV6:2001:db8::7 PORT=4242 HELO=real.example LOGIN=alice DESTADDR=192.0.2.9"
    )
    assert dialogue.send(line) == "220 mx.example.org ESMTP minismtp"
    session = dialogue.session
    assert (session.peer, session.peer_port, session.helo, session.login, session.local) == (
        *("2001:db8::7", 4242, "real.example", "alice"),
        "192.0.2.9",
    )
    assert not session.esmtp
    assert code(dialogue.send(MAIL)) == "503 5.5.1"
    assert "AUTH" not in dialogue.send("EHLO client.example")


@pytest.mark.parametrize("unknown", ["[UNAVAILABLE]", "[tempunavail]"])
def test_client_whose_address_is_not_known_is_nobody(unknown: str) -> None:
    everybody = Relaying(networks=[ip_network("192.0.2.0/24"), ip_network("10.0.0.0/8")])
    dialogue = xclient(everybody)
    assert dialogue.send(f"XCLIENT ADDR={unknown} PORT={unknown}").startswith("220")
    assert (dialogue.session.peer, dialogue.session.peer_port) == ("0.0.0.0", 0)  # noqa: S104
    dialogue.send("EHLO client.example")
    dialogue.send(MAIL)
    assert dialogue.send("RCPT TO:<user@elsewhere.example>").startswith("550 5.7.1")


@pytest.mark.parametrize("following", ["ADDR=198.51.100.10", "HELO=client.example", "LOGIN="])
def test_each_xclient_begins_without_a_login(following: str) -> None:
    dialogue = xclient(Passwords(), kind="submission")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9 LOGIN=alice").startswith("220")
    dialogue.session.stash[NOTE] = "of the client before"
    dialogue.session.tls = replace(TLS, client_identity="front.example")
    assert dialogue.send(f"XCLIENT {following}").startswith("220")
    assert dialogue.session.login is None
    assert dialogue.session.tls == TLS  # not the certificate of the front end
    assert not len(dialogue.session.stash)
    dialogue.send("EHLO client.example")
    assert code(dialogue.send(MAIL)) == "530 5.7.0"


def test_failed_logins_of_one_client_are_not_those_of_the_next() -> None:
    dialogue = greeted(xclient(Passwords()))
    for _ in range(dialogue.service.limits.failed_logins):
        dialogue.send("XCLIENT ADDR=198.51.100.9")
        dialogue.send("EHLO client.example")
        assert code(dialogue.send(plain("wrong"))) == "535 5.7.8"
    dialogue.send("XCLIENT ADDR=198.51.100.10")
    dialogue.send("EHLO client.example")
    assert code(dialogue.send(plain("secret"))) == "235 2.7.0"


def test_front_end_stays_trusted_after_xclient() -> None:
    dialogue = xclient()
    assert dialogue.send("XCLIENT ADDR=198.51.100.9").startswith("220")
    assert dialogue.send("XCLIENT ADDR=198.51.100.10").startswith("220")
    assert dialogue.session.peer == "198.51.100.10"


def test_client_behind_a_trusted_proxy_is_not_trusted_with_xclient() -> None:
    # With PROXY the session learns its peer before the banner, after the receiver was made.
    service = replace(rules(), xclient=TRUSTED)
    session = Session(
        id="s", listener="test", kind="mx", hostname="mx.example.org", peer="192.0.2.1"
    )
    receiver = Receiver(service, session, Activity())
    session.peer = "198.51.100.9"
    receiver.greet()
    assert receiver.receive(b"XCLIENT LOGIN=alice\r\n").startswith(b"550 5.7.1")
    assert session.login is None


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "",
            "ADDR",
            "FUN=1",
            "ADDR=nowhere",
            "ADDR=",
            "ADDR=IPV6:fe80::1%x",
            "PORT=65536",
            "PORT=x",
            "HELO=+",
        ),
        *("PORT=+C2+B2", "LOGIN=a+0D+0A", "ADDR=198.51.100.9 PORT=x"),
    ],
)
def test_malformed_xclient_changes_nothing(argument: str) -> None:
    dialogue = xclient()
    dialogue.send("EHLO proxy.example")
    before = replace(dialogue.session)
    assert code(dialogue.send(f"XCLIENT {argument}")) == "501 5.5.4"
    assert dialogue.session == before


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Reject("unwelcome"), "554 mx.example.org unwelcome"),
        (Defer("later"), "421 mx.example.org later"),
        (Disconnect("bye"), "421 mx.example.org bye"),
    ],
    ids=str,
)
def test_client_of_a_front_end_is_judged_like_any_other(verdict: Exception, reply: str) -> None:
    # The reply is a banner: RFC 5321 section 3.1, RFC 2034 section 4.
    dialogue = xclient(Judge(hook="on_connect", verdict=verdict), Mailroom())
    assert dialogue.banner.startswith("220")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9") == reply
    assert not dialogue.mail("x").startswith("2")
    assert not dialogue.send("XCLIENT ADDR=192.0.2.1").startswith("2")


def test_xclient_over_lmtp_greets_as_lmtp() -> None:
    dialogue = xclient(kind="lmtp")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9") == "220 mx.example.org LMTP minismtp"


def test_xclient_in_a_transaction_is_out_of_sequence() -> None:
    dialogue = xclient(Mailroom())
    assert code(at_data(dialogue).send("XCLIENT ADDR=198.51.100.9")) == "503 5.5.1"
    assert dialogue.session.peer == "192.0.2.1"
