"""What the server says to each event of a session: hooks are asked, replies come back.

A conversation knows the transaction and the login under way. It neither sends nor counts: that is
the receiver's.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Final, assert_never

from minismtp.mail.session import Session
from minismtp.runtime.dialogue_trace import abbreviated
from minismtp.runtime.metrics import COMMANDS
from minismtp.runtime.thread_activity import Activity
from minismtp.session import replies
from minismtp.session.authentication import Authentication
from minismtp.session.ehlo import keywords
from minismtp.session.error_count import ErrorCount
from minismtp.session.listener_context import ListenerContext
from minismtp.session.refusals import Refusals, outcome_of, path_as_it_came, shortened
from minismtp.session.transaction import Transaction
from minismtp.session.xclient import apply_xclient
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
from minismtp.smtp.grammar import SyntaxProblem, is_host_name
from minismtp.smtp.protocol import (
    DATA,
    GREETINGS,
    ContentChunk,
    EndOfChunk,
    EndOfContent,
    Event,
    Protocol,
    Refused,
    SaslResponse,
    Signal,
)
from minismtp.values.reply import Disconnect, Reject, Reply, Verdict
from minismtp.values.threads import surviving

_CONTENT: Final = frozenset({ContentChunk, EndOfContent, EndOfChunk, Bdat})


class Conversation:
    """Answers one session's events.

    `subject` is the identifier of what the next refusal is about: the message, or the session;
    `reason` says in one word how the session ended; `origin` is the peer before any XCLIENT;
    `transactions` counts the accepted MAIL commands, `messages` those that were accepted, `errors`
    what led to nothing since the last one.
    """

    def __init__(
        self, service: ListenerContext, session: Session, activity: Activity, protocol: Protocol
    ) -> None:
        self.reason = "lost"
        self.origin = ""
        self.subject = session.id
        self.transactions = 0
        self.messages = 0
        self.transaction: Transaction | None = None
        self._service = service
        self._session = session
        self._activity = activity
        self._protocol = protocol
        self._authentication = Authentication(service, session)
        self.refusals = Refusals(service, session)
        self._refused_verb = "OTHER"
        self._envelopes = 0
        self._empty_chunk = False
        self.errors = ErrorCount(
            service.limits, service.errors, service.clock, trusted=service.lmtp
        )

    def banner(self, *, early: bool = False) -> Reply:
        """Ask the plugins about the peer: 220, or what says that it is unwelcome."""
        service, session = self._service, self._session
        session.trusted = False  # a plugin says so of the peer that it is now, see XCLIENT
        try:
            if early:
                raise Reject("you talk before the greeting")
            service.hooks.on_connect(session)
        except Verdict as verdict:
            # RFC 5321 section 3.1: 554 or 421; RFC 2034 section 4: no enhanced code in a greeting.
            code = 554 if verdict.reply.category == 5 else 421  # noqa: PLR2004
            text = f"{service.hostname} {verdict.reply.text}"
            reply = replace(verdict.reply, code=code, text=text, enhanced="")
            if isinstance(verdict, Disconnect):
                self._protocol.close()
            self.reason = "refused"
            return reply
        return Reply(220, f"{service.hostname} {'LMTP' if service.lmtp else 'ESMTP'} minismtp")

    def decide(self, event: Command | Event) -> list[Reply] | None:
        """Return the replies to one event, or None if the event is owed no reply."""
        if event.__class__ not in _CONTENT:  # a look at once: each arm below costs a test
            return [self._guarded(event)]
        match event:
            case ContentChunk():
                if self.transaction is not None:
                    dotted = self._protocol.state is DATA
                    self.transaction.write(event.data, dotted=dotted)
                return None
            case EndOfContent():
                return self._finish_content(
                    bare_newline=event.bare_newline, long_line=event.long_line
                )
            case EndOfChunk():
                return self._finish_chunk(last=event.last)
            case Bdat():
                self._empty_chunk = not event.size
                self._begin_chunk()
                return None
        raise AssertionError(event)

    def _guarded(self, event: Event) -> Reply:
        """Answer an event, and remember what the metrics are to call it."""
        if isinstance(event, Refused):
            self._refused_verb = event.verb
        reply = self._judged(event)
        verb = self._protocol.verb
        if (self._refused_verb if verb == "REFUSED" else verb) in GREETINGS:
            # RFC 2034 section 4: no enhanced codes in replies to EHLO and HELO.
            reply = replace(reply, enhanced="")
        if reply.code >= 400:  # noqa: PLR2004
            with surviving():
                self._tell(event, self.name(verb), reply)
            if verb == "MAIL" and self.transaction is not None:
                self.drop()
        return reply

    def _tell(self, event: Event, verb: str, reply: Reply) -> None:
        """Write the line of a command that is refused, and note it for `explain`."""
        outcome, line = outcome_of(reply), self._protocol.line
        match verb:
            case "MAIL":
                known = event.reverse_path if isinstance(event, Mail) else None
                path = path_as_it_came(line, str(known or ""))
                self._activity.note(("MAIL", path, perf_counter(), 0.0, "", ""))
                self.refusals.tell(f"sender {outcome}", reply, sender=path)
            case "RCPT":
                known = event.forward_path if isinstance(event, Rcpt) else None
                path = path_as_it_came(line, str(known or ""))
                if known is None:
                    self._activity.note(("RCPT", path, perf_counter(), 0.0, "", ""))
                sender = {"sender": self.transaction.envelope.sender} if self.transaction else {}
                self.refusals.tell_recipient(
                    f"recipient {outcome}", reply, **sender, recipient=path
                )
            case _:
                self._authentication.tell(self.refusals, reply)
                self.tell(verb, reply, shortened(abbreviated(event, line)))
        self._activity.note_reply(verb, reply.code, reply.text)

    def tell(self, verb: str, reply: Reply, said: str = "") -> None:
        """Write the line of a refusal that is about to be sent, unless it has one."""
        if self.refusals.told:
            return
        if verb == "CONNECT" or (verb == "XCLIENT" and self.reason == "refused"):
            self.refusals.tell("connection refused", reply)
            return
        fields = {"command": self.name(verb)} | ({"said": said} if said else {})
        if self.transaction is not None:
            envelope = self.transaction.envelope
            to = ",".join(str(each.address) for each in envelope.recipients)
            fields |= {"sender": envelope.sender, "to": to}
        self.refusals.tell(f"command {outcome_of(reply)}", reply, **fields)

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
        if self.errors.note(event, reply, self._session.peer):
            self.reason = "errors"
            origin = reply.origin
            return replies.TOO_MANY_ERRORS.because(
                f"{reply}: {origin.reason}" if origin.reason else str(reply),
                plugin=origin.plugin,
                hook=origin.hook,
            )
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
                self.drop()
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
        session = self._session
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
        self.drop()
        # A name with blanks could break into lines, which would read as keywords.
        greeted = f" greets {event.name}" if is_host_name(event.name) else ""
        greeting = f"{self._service.hostname}{greeted}"
        return Reply(250, "\n".join([greeting, *offered]))

    def _offered(self) -> list[str]:
        return keywords(
            self._service,
            self._session,
            mechanisms=self._authentication.mechanisms,
            xclient=self._service.trusts_xclient(self.origin),
        )

    def _starttls(self) -> Reply:
        if self._session.tls is not None:
            return replies.TLS_ACTIVE
        return replies.TLS_READY if self._service.starttls else replies.NO_TLS

    def _mail(self, event: Mail) -> Reply:
        service, session = self._service, self._session
        if service.kind == "submission" and session.login is None:
            return replies.AUTH_REQUIRED  # RFC 6409 section 4.3
        if event.size is not None and event.size > service.limits.message_size:
            return replies.TOO_BIG  # RFC 1870 section 6.1
        if event.require_tls and session.tls is None:
            return replies.TLS_REQUIRED  # RFC 8689 section 4
        self._envelopes += 1
        transaction = Transaction(
            service, session, event, self._envelopes, self._activity, refusals=self.refusals
        )
        self.subject = transaction.envelope.id
        self.transaction = transaction
        reply = transaction.begin()
        self.transactions += reply is replies.SENDER_OK
        return reply

    def _data(self) -> Reply:
        transaction = self._current
        if transaction.envelope.body == "BINARYMIME":
            return replies.BINARY_DATA  # RFC 3030 section 3
        transaction.open_content()
        return replies.GO_AHEAD

    def _begin_chunk(self) -> None:
        transaction = self._current
        try:
            transaction.open_content()
        except Verdict as verdict:
            transaction.disconnects = isinstance(verdict, Disconnect)
            transaction.refuse(verdict.reply)

    def _finish_chunk(self, *, last: bool) -> list[Reply]:
        transaction = self._current
        if last:
            transaction.write(b"", dotted=False, last=True)
        elif transaction.refused is None:
            if self._empty_chunk and self.errors.note_junk(self._session.peer):
                self.reason = "errors"
                return [replies.TOO_MANY_ERRORS]
            return [replies.CHUNK_OK]
        answers = self._finish_content(bare_newline=False, long_line=False)
        return answers if last else answers[:1]

    def _finish_content(self, *, bare_newline: bool, long_line: bool) -> list[Reply]:
        transaction = self._current
        self.transaction = None
        answers = transaction.finish(bare_newline=bare_newline, long_line=long_line)
        if transaction.disconnects:
            self._protocol.close()
        if any(reply.category == 2 for reply in answers):  # noqa: PLR2004
            self.messages += 1
            self.errors.forgive(self._session.peer)
        return answers

    def _refused(self, event: Refused) -> Reply:
        if self._protocol.verb == "RESPONSE":
            self._authentication.abandon(event.reply)
        return event.reply

    def _other(self, event: Other) -> Reply:
        answer = self._service.hooks.command(self._session, event.verb, event.argument)
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
        """Let a trusted front end say who it speaks for, and start again with a greeting."""
        service, session = self._service, self._session
        if not service.trusts_xclient(self.origin):
            return replies.NO_XCLIENT
        try:
            apply_xclient(session, argument)
        except SyntaxProblem as problem:
            return Reply(501, str(problem), "5.5.4")
        self._authentication = Authentication(service, session)
        self.errors.restart()
        reply = self.banner()
        if reply.category == 5:  # noqa: PLR2004
            self._protocol.close()  # the front end would go on as if nothing had been said
        return reply

    @property
    def _current(self) -> Transaction:
        """The transaction under way: the protocol lets nothing that needs one come before MAIL."""
        if self.transaction is None:
            raise RuntimeError("no transaction")
        return self.transaction

    def drop(self) -> None:
        """End the transaction under way, if there is one, without a message."""
        if self.transaction is not None:
            self.transaction.abort()
            self.transaction = None

    def end(self) -> None:
        """End what is under way: the session is over."""
        self.drop()
        self._authentication.abandon()

    def name(self, verb: str) -> str:
        """Name what the protocol calls `verb`; nothing that only the peer knows what it is."""
        name = self._refused_verb if verb == "REFUSED" else _METRIC_NAMES.get(verb, verb)
        return name if name in COMMANDS else "OTHER"


#: How the protocol's own verbs are called in the metrics.
_METRIC_NAMES: Final = {"RESPONSE": "AUTH", "LAST": "BDAT"}
