"""The receiving end of a session (layer 4): octets in, octets out, hooks in between.

It turns the events of `smtp.protocol` into hook calls and what the hooks say into replies. It knows
no socket: `connection` and `testing` drive it in the same way.
"""

from __future__ import annotations

from typing import Final, assert_never

from minismtp import replies
from minismtp.activity import Activity
from minismtp.authentication import Authentication
from minismtp.chronicle import Record
from minismtp.ehlo import keywords
from minismtp.events import SessionClosed, SessionOpened
from minismtp.metrics import COMMANDS
from minismtp.reply import Disconnect, Reject, Reply, Verdict
from minismtp.service import Service
from minismtp.session import Session, TlsInfo
from minismtp.smtp.commands import (
    Auth,
    Bdat,
    Command,
    Data,
    Ehlo,
    Helo,
    Lhlo,
    Mail,
    Noop,
    Other,
    Quit,
    Rcpt,
    Rset,
    StartTls,
)
from minismtp.smtp.grammar import SyntaxProblem
from minismtp.smtp.protocol import (
    CLOSED,
    DATA,
    GREETINGS,
    NEED_DATA,
    TLS,
    ContentChunk,
    EndOfChunk,
    EndOfContent,
    Event,
    Protocol,
    Refused,
    SaslResponse,
    Signal,
    State,
)
from minismtp.transaction import Transaction
from minismtp.xclient import apply_xclient

_BAD_COMMANDS: Final = frozenset({500, 501, 502, 503, 504, 555})
_CONTENT: Final = frozenset({ContentChunk, EndOfContent, EndOfChunk, Bdat})
_FLUSH: Final = 65536  # octets of replies that wait for the end of a batch at the most


class Receiver:
    """Drives one session. `deadline` is when the peer must have finished what it is doing now.

    `reason` says in one word how the session ended.
    """

    def __init__(self, service: Service, session: Session, activity: Activity) -> None:
        self.session = session
        self.reason = "lost"
        self._service = service
        self._activity = activity
        self._protocol = Protocol(lmtp=service.lmtp, line_length=service.limits.line_length)
        self._authentication = Authentication(service, session)
        self._transaction: Transaction | None = None
        self._tracing = service.tracing
        self._subject = session.id  # what the next refusal is about
        self._origin = ""
        self._refused_verb = "OTHER"
        self._starved = True  # no event before more input
        self._envelopes = 0
        self._transactions = 0
        self._commands = 0
        self._errors = 0
        self._begun = service.clock()
        limits = service.limits
        self._command_timeout = limits.command_timeout.total_seconds()
        self._data_timeout = limits.data_timeout.total_seconds()
        self._opened = False
        self._answered = self._begun
        self._end = self._begun + limits.session_timeout.total_seconds()
        self.deadline = min(self._begun + self._command_timeout, self._end)

    @property
    def closing(self) -> bool:
        """Whether the connection is to be closed once the replies have left."""
        return self._protocol.state is CLOSED

    @property
    def wants_tls(self) -> bool:
        """Whether a TLS handshake is to follow, answered by `secured`."""
        return self._protocol.state is TLS

    @property
    def pending(self) -> bool:
        """Whether `proceed` has input left to work on."""
        return not self._starved and not self.closing and not self.wants_tls

    @property
    def at_boundary(self) -> bool:
        """Whether the peer is between two commands: nothing half said."""
        return not self._protocol.in_content and not self._protocol.buffered

    @property
    def unread(self) -> bool:
        """Whether the peer has said more than was answered."""
        return self._protocol.buffered

    def greet(self, *, early: bool = False) -> bytes:
        """Give the banner, or the refusal of a peer that is unwelcome or talked `early`."""
        service, session = self._service, self.session
        self._opened = True
        self._tracing.happened(session, f"connected to {session.listener}")
        self._origin = session.peer  # now: a PROXY header has come before the banner
        service.metrics.active(1)
        if service.hooks.observed:
            service.hooks.observe(SessionOpened(session.id, session.listener, session.peer))
        reply = self._banner(early=early)
        service.metrics.connections["accepted" if reply.code == 220 else "refused"](1)  # noqa: PLR2004
        return self._send([reply])

    def limited(self) -> bytes:
        """Give the refusal of a peer that has too many sessions, and close."""
        self._service.metrics.connections["limited"](1)
        return self.interrupt("too many connections, try again later", "4.7.0", "limited")

    def receive(self, data: bytes) -> bytes:
        """Take octets from the peer and give the replies that they call for."""
        self._protocol.receive(data)
        return self.proceed()

    def proceed(self) -> bytes:
        """Work on what has come in until more is needed or enough replies wait to be sent."""
        output: list[bytes] = []
        size = 0
        self._starved = False
        while size < _FLUSH:
            event = self._watched_event() if self._tracing.outlets else self._protocol.next_event()
            if event is NEED_DATA:
                self._starved = True
                break
            answers = self._decide(event)
            if answers:
                sent = self._send(answers)
                output.append(sent)
                size += len(sent)
        return output[0] if len(output) == 1 else b"".join(output)

    def _watched_event(self) -> Event | Command:
        line = self._protocol.upcoming
        event = self._protocol.next_event()
        self._tracing.heard(self.session, event, line)
        return event

    def secured(self, tls: TlsInfo) -> None:
        """Begin anew inside TLS; all that was said in clear is forgotten (RFC 3207 section 4.2)."""
        self._service.metrics.tls[tls.version](1)
        session = self.session
        session.tls = tls
        self._tracing.happened(session, f"{tls.version} {tls.cipher}")
        session.helo = ""
        session.esmtp = False
        session.login = None
        if self.wants_tls:
            self._protocol.restart()
            self.deadline = min(self._service.clock() + self._command_timeout, self._end)

    def interrupt(self, text: str, enhanced: str, reason: str) -> bytes:
        """End the session from outside: give the 421 that says why."""
        self.reason = reason
        self._protocol.close()
        reply = Reply(421, f"{self._service.hostname} {text}", enhanced).about(self.session.id)
        self._tracing.answered(self.session, reply)
        return reply.encode()

    def report(self) -> dict[str, object]:
        """Say how the session stands: for other threads, hence nothing that may just be changing.

        `idle` is how many seconds ago the last reply was.
        """
        session, transaction, now = self.session, self._transaction, self._service.clock()
        return self._activity.report() | {
            "id": session.id,
            "peer": session.peer,
            "listener": session.listener,
            "state": self._protocol.state.name.lower(),
            "login": session.login,
            "tls": session.tls.version if session.tls else None,
            "helo": session.helo,
            "age": now - self._begun,
            "message": transaction.envelope.id if transaction else None,
            "idle": now - self._answered,
        }

    def finished(self) -> None:
        """Tell the log, the metrics and the observers that the session is over."""
        self._drop_transaction()
        self._protocol.close()
        service, session = self._service, self.session
        duration = service.clock() - self._begun
        if self._opened:
            service.metrics.active(-1)
            service.metrics.session_duration(duration)
        fields: dict[str, str | int] = {
            "peer": session.peer,
            "listener": session.listener,
            "reason": self.reason,
            "seconds": f"{duration:.3f}",
            "commands": self._commands,
            "transactions": self._transactions,
            "helo": session.helo,
            **({"tls": session.tls.version} if session.tls else {}),
        }
        (service.log.debug if service.quiet else service.log.info)("session closed", **fields)
        self._tracing.happened(session, f"closed: {self.reason}")
        if service.chronicle is not None and not service.quiet:
            service.chronicle.keep(
                Record(
                    "session closed",
                    session.id,
                    service.wall(),
                    self._begun,
                    fields,
                    self._activity.steps,
                )
            )
        if service.hooks.observed:
            service.hooks.observe(
                SessionClosed(session.id, session.listener, session.peer, duration, self.reason)
            )

    def _send(self, answers: list[Reply]) -> bytes:
        protocol = self._protocol
        verb = protocol.verb
        if answers[0].code >= 400 or len(answers) > 1:  # noqa: PLR2004
            answers = [self._named(reply) for reply in answers]
        if self._transaction is None:
            self._subject = self.session.id
        if self._tracing.outlets:
            for reply in answers:
                self._tracing.answered(self.session, reply)
        sent = protocol.send_each(answers) if len(answers) > 1 else protocol.send(answers[0])
        if protocol.state is CLOSED and self.reason == "lost":
            self.reason = "refused"
        self._answered = now = self._service.clock()
        if protocol.state is DATA:
            self.deadline = min(now + self._data_timeout, self._end)
        elif protocol.state is not State.CHUNKS:
            self.deadline = min(now + self._command_timeout, self._end)
        if verb != "CONNECT":
            self._count(verb, answers[0])
        return sent

    def _named(self, reply: Reply) -> Reply:
        """Give a refusal with what it is about: the message under way, else the session."""
        return reply.about(self._subject) if reply.code >= 400 else reply  # noqa: PLR2004

    def _count(self, verb: str, reply: Reply) -> None:
        self._commands += 1
        self._service.metrics.commands[self._name(verb), reply.category](1)

    def _name(self, verb: str) -> str:
        """Name what the protocol calls `verb`; nothing that only the peer knows what it is."""
        name = self._refused_verb if verb == "REFUSED" else _METRIC_NAMES.get(verb, verb)
        return name if name in COMMANDS else "OTHER"

    def _decide(self, event: Command | Event) -> list[Reply] | None:
        """Give the replies to one event; None when it is owed none."""
        if event.__class__ not in _CONTENT:  # a look at once: each arm below costs a test
            return [self._guarded(event)]
        match event:
            case ContentChunk():
                if self._transaction is not None:
                    dotted = self._protocol.state is DATA
                    self._transaction.write(event.data, dotted=dotted)
                return None
            case EndOfContent():
                return self._finish_content(
                    bare_newline=event.bare_newline, long_line=event.long_line
                )
            case EndOfChunk():
                return self._finish_chunk(last=event.last)
            case _:
                self._begin_chunk()
                return None

    def _banner(self, *, early: bool = False) -> Reply:
        """Ask the plugins about the peer: 220, or what says that it is unwelcome."""
        service, session = self._service, self.session
        try:
            if early:
                raise Reject("you talk before the greeting")
            service.hooks.on_connect(session)
        except Verdict as verdict:
            # RFC 5321 section 3.1: 554 or 421; RFC 2034 section 4: no enhanced code in a greeting.
            code = 554 if verdict.reply.category == 5 else 421  # noqa: PLR2004
            reply = Reply(code, f"{service.hostname} {verdict.reply.text}")
            if isinstance(verdict, Disconnect):
                self._protocol.close()
            self.reason = "refused"
            service.log.info("connection refused", peer=session.peer, reply=str(reply))
            return reply
        return Reply(220, f"{service.hostname} {'LMTP' if service.lmtp else 'ESMTP'} minismtp")

    def _guarded(self, event: Event) -> Reply:
        """Answer an event, and remember what the metrics are to call it."""
        if isinstance(event, Refused):
            self._refused_verb = event.verb
        reply = self._judged(event)
        verb = self._protocol.verb
        if reply.code >= 400:  # noqa: PLR2004
            self._activity.note_reply(self._name(verb), reply.code, reply.text)
            if verb == "MAIL" and self._transaction is not None:
                self._drop_transaction()
        if (self._refused_verb if verb == "REFUSED" else verb) in GREETINGS:
            # RFC 2034 section 4: no enhanced codes in replies to EHLO and HELO.
            return Reply(reply.code, reply.text)
        return reply

    def _judged(self, event: Event) -> Reply:
        """Answer an event, whatever the hooks raise, and close on what must not go on."""
        if self._service.draining.is_set() and not isinstance(event, Quit):
            return self._closing_reply("draining")
        if self._authentication.failures >= self._service.limits.failed_logins and not isinstance(
            event, Quit
        ):
            self.reason = "logins"
            return replies.TOO_MANY_LOGINS
        try:
            reply = self._answer(event)
        except Verdict as verdict:
            reply = verdict.reply
            if isinstance(verdict, Disconnect):
                self._protocol.close()
        if reply.code in _BAD_COMMANDS:
            self._errors += 1
            if self._errors > self._service.limits.errors:
                self.reason = "errors"
                return replies.TOO_MANY_ERRORS
        return reply

    def _closing_reply(self, reason: str) -> Reply:
        self.reason = reason
        return Reply(421, f"{self._service.hostname} service shutting down", "4.3.2")

    def _answer(self, event: Event) -> Reply:  # noqa: C901, PLR0912 - one arm for each command
        match event:
            case Mail():
                return self._mail(event)
            case Rcpt():
                return self._current.recipient(event)
            case Data():
                return self._data()
            case Ehlo() | Lhlo() | Helo():
                return self._hello(event)
            case Rset():
                self._drop_transaction()
                return replies.OK
            case Noop():
                return replies.OK
            case Quit():
                self.reason = "quit"
                return Reply(221, f"{self._service.hostname} closing connection", "2.0.0")
            case StartTls():
                return self._starttls()
            case Auth():
                return self._authentication.begin(event)
            case SaslResponse():
                return self._authentication.respond(event.data)
            case Refused():
                return self._refused(event)
            case Other():
                return self._other(event)
            case ContentChunk() | EndOfChunk() | EndOfContent() | Bdat() | Signal():
                raise AssertionError(event)
        assert_never(event)

    def _hello(self, event: Ehlo | Helo | Lhlo) -> Reply:
        session = self.session
        if self._service.strict_pipelining and self._protocol.buffered:
            # RFC 2920 section 3.1: EHLO is the last of a group, its reply must be awaited.
            return replies.PIPELINED
        before = session.helo, session.esmtp
        session.helo, session.esmtp = event.name, not isinstance(event, Helo)
        try:
            self._service.hooks.on_helo(session)
            offered = self._offered() if session.esmtp else []
        except Verdict:
            session.helo, session.esmtp = before  # RFC 5321 section 4.1.4
            raise
        self._drop_transaction()
        greeting = f"{self._service.hostname} greets {event.name}"
        return Reply(250, "\n".join([greeting, *offered]))

    def _offered(self) -> list[str]:
        return keywords(
            self._service,
            self.session,
            mechanisms=self._authentication.mechanisms,
            xclient=self._service.trusts_xclient(self._origin),
        )

    def _starttls(self) -> Reply:
        if self.session.tls is not None:
            return replies.TLS_ACTIVE
        return replies.TLS_READY if self._service.starttls else replies.NO_TLS

    def _mail(self, event: Mail) -> Reply:
        service, session = self._service, self.session
        if service.kind == "submission" and session.login is None:
            return replies.AUTH_REQUIRED  # RFC 6409 section 4.3
        if event.size is not None and event.size > service.limits.message_size:
            return replies.TOO_BIG  # RFC 1870 section 6.1
        if event.require_tls and session.tls is None:
            return replies.TLS_REQUIRED  # RFC 8689 section 4
        self._envelopes += 1
        transaction = Transaction(service, session, event, self._envelopes, self._activity)
        self._subject = transaction.envelope.id
        self._transaction = transaction
        reply = transaction.begin()
        self._transactions += reply is replies.SENDER_OK
        return reply

    def _data(self) -> Reply:
        transaction = self._current
        if transaction.envelope.body == "BINARYMIME":
            return replies.BINARY_DATA  # RFC 3030 section 3
        transaction.open_content()
        return replies.GO_AHEAD

    def _begin_chunk(self) -> None:
        transaction = self._current
        if self._protocol.state is State.RCPT:
            # One deadline for all chunks: many small ones buy no more time.
            self.deadline = min(self._service.clock() + self._data_timeout, self._end)
        try:
            transaction.open_content()
        except Verdict as verdict:
            transaction.disconnects = isinstance(verdict, Disconnect)
            transaction.refuse(verdict.reply)

    def _finish_chunk(self, *, last: bool) -> list[Reply]:
        transaction = self._current
        if not last and transaction.refused is None:
            return [replies.CHUNK_OK]
        answers = self._finish_content(bare_newline=False, long_line=False)
        return answers if last else answers[:1]

    def _finish_content(self, *, bare_newline: bool, long_line: bool) -> list[Reply]:
        transaction = self._current
        self._transaction = None
        answers = transaction.finish(bare_newline=bare_newline, long_line=long_line)
        if transaction.disconnects:
            self._protocol.close()
        return answers

    def _refused(self, event: Refused) -> Reply:
        if self._protocol.verb == "RESPONSE":
            self._authentication.abandon()
        return event.reply

    def _other(self, event: Other) -> Reply:
        answer = self._service.hooks.command(self.session, event.verb, event.argument)
        if answer is not None:
            return answer
        match event.verb:
            case "XCLIENT":
                return self._xclient(event.argument)
            case "VRFY":
                return replies.CANNOT_VERIFY
            case "EXPN":
                return replies.NO_EXPANSION
            case "HELP":
                return replies.HELP
            case _:
                return replies.UNKNOWN_COMMAND

    def _xclient(self, argument: str) -> Reply:
        """Let a trusted front end say who it speaks for, and begin anew with a greeting."""
        service, session = self._service, self.session
        if not service.trusts_xclient(self._origin):
            return replies.NO_XCLIENT
        try:
            apply_xclient(session, argument)
        except SyntaxProblem as problem:
            return Reply(501, str(problem), "5.5.4")
        session.esmtp = False
        reply = self._banner()
        if reply.category == 5:  # noqa: PLR2004
            self._protocol.close()  # the front end would go on as if nothing had been said
        return reply

    @property
    def _current(self) -> Transaction:
        """The transaction under way: the protocol lets nothing that needs one come before MAIL."""
        if self._transaction is None:
            raise RuntimeError("no transaction")
        return self._transaction

    def _drop_transaction(self) -> None:
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None


#: How the protocol's own verbs are called in the metrics.
_METRIC_NAMES: Final = {"RESPONSE": "AUTH", "LAST": "BDAT"}
