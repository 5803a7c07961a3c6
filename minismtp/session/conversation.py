"""What the server says to each event of a session: hooks are asked, replies come back.

A conversation knows the transaction and the login under way. It turns each event of the protocol
into one `Decision`, and neither sends nor closes: that is the receiver's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from msgspec import Struct, structs

from minismtp.mail.envelope import Envelope
from minismtp.mail.session import TlsInfo
from minismtp.runtime.metrics import COMMANDS
from minismtp.session import replies
from minismtp.session.authentication import Authentication
from minismtp.session.error_count import USEFUL, ErrorCount
from minismtp.session.recipient_verdicts import Outcome
from minismtp.session.refusal_reasons import reason_of, stage_of
from minismtp.session.session_log import SessionLog
from minismtp.session.transaction import Transaction
from minismtp.session.xclient import apply_xclient
from minismtp.smtp.commands import (
    GREETINGS,
    Auth,
    Bdat,
    Command,
    Data,
    Greeting,
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
    ContentChunk,
    EndOfChunk,
    EndOfContent,
    Event,
    Refused,
    SaslResponse,
)
from minismtp.values.reply import Disconnect, Reject, Reply, Verdict
from minismtp.values.threads import surviving

_Answerable: TypeAlias = Command | SaslResponse | Refused
#: The commands that metrics name. The end of content is not one that a client can send.
_COMMANDS: Final = frozenset(COMMANDS) - {"CONTENT"}
_CONTENT: Final = frozenset({ContentChunk, EndOfContent, Bdat, EndOfChunk})
_CLEAN: Final = EndOfContent(bare_newline=False, long_line=False)


class Decision(Struct, frozen=True):
    """What the server does about one event.

    There is one reply, but over LMTP one for each recipient of a message. `command` is the name of
    what is answered in the metrics, "" for the banner. `reason` says in one word why the session
    ends, "" if it goes on. `close` asks to close the connection after the replies, and `delay` to
    hold them back for that many seconds.
    """

    replies: list[Reply]
    command: str
    reason: str = ""
    close: bool = False
    delay: float = 0.0


class Conversation:
    """Answers the events of one session.

    `transactions` counts the accepted MAIL commands, `messages` the accepted messages. `verdicts`
    are those for single recipients of the latest message.
    """

    def __init__(self, log: SessionLog) -> None:
        context = log.context
        self.transactions = 0
        self.messages = 0
        self.verdicts: Sequence[Outcome] = ()
        self.transaction: Transaction | None = None
        self._context = context
        self._session = log.session
        self._log = log
        self._connected = ""  # the peer before any XCLIENT
        self._authentication = Authentication(log)
        self._envelopes = 0
        self._empty_chunk = False
        self._errors = ErrorCount(
            context.limits, context.peer_errors, context.clock, trusted=context.lmtp
        )

    def greet(self, *, early: bool) -> Decision:
        """Return the banner, or the refusal of a peer that is unwelcome or talked `early`."""
        self._connected = self._session.peer  # only now: a PROXY header may have changed it
        reply, close = self._banner(early=early)
        if reply.category == 2:  # noqa: PLR2004
            return Decision([reply], "")
        return Decision(self._refuse("CONNECT", [reply]), "", "refused", close)

    def decide(self, event: Event, line: bytes) -> Decision | None:
        """Return the decision on an event, None if no reply is due. `line` is the last command."""
        # Not by patterns, because each takes 0.1 us and a command would need five of them.
        if event.__class__ in _CONTENT:
            return self._decide_content(event)
        said: _Answerable = event  # type: ignore[assignment]  # all others
        if said.__class__ is Quit:
            return Decision([replies.goodbye(self._context.hostname)], "QUIT", "quit")
        reason, close, delay = "", False, 0.0
        if self._context.draining.up:
            reply, reason = replies.shutting_down(self._context.hostname), "draining"
        elif self._authentication.failures >= self._context.limits.failed_logins:
            reply, reason = replies.TOO_MANY_LOGINS, "logins"
        else:
            try:
                reply = self._answer(said)
            except Verdict as verdict:
                reply, close = verdict.reply, isinstance(verdict, Disconnect)
            if reply.code >= 400 or said.__class__ not in USEFUL:  # noqa: PLR2004
                if self._errors.note(said, reply, self._session.peer):
                    reply, reason = _too_many_errors(reply), "errors"
                delay = self._errors.delay
        command = said.verb if said.verb in _COMMANDS else "OTHER"
        if reply.code < 400:  # noqa: PLR2004
            return Decision([reply], command, delay=delay)
        answers = self._refuse_command(said, command, reply, line)
        return Decision(answers, command, reason, close, delay)

    def secured(self, tls: TlsInfo) -> None:
        """Forget what was said in clear, because TLS follows (RFC 3207 section 4.2)."""
        session = self._session
        session.tls, session.helo, session.esmtp, session.login = tls, "", False, None

    def end(self) -> None:
        """End the transaction and the login under way, because the session is over."""
        if self.transaction is not None:
            self._drop()
        self._authentication.abandon()

    def _banner(self, *, early: bool = False) -> tuple[Reply, bool]:
        """Ask the plugins about the peer. Return the reply, and whether to close after it."""
        context, session = self._context, self._session
        session.trusted = False  # a plugin says so of the peer that it is now, see XCLIENT
        try:
            if early:
                raise Reject("you talk before the greeting")
            context.hooks.on_connect(session)
        except Verdict as verdict:
            # RFC 5321 section 3.1: 554 or 421; RFC 2034 section 4: no enhanced code in a greeting.
            code = 554 if verdict.reply.category == 5 else 421  # noqa: PLR2004
            text = f"{context.hostname} {verdict.reply.text}"
            reply = replace(verdict.reply, code=code, text=text, enhanced="")
            with surviving():
                self._log.refused("connection refused", reply)
            return reply, isinstance(verdict, Disconnect)
        return replies.banner(context.hostname, "LMTP" if context.lmtp else "ESMTP"), False

    def _refuse_command(
        self, event: _Answerable, command: str, reply: Reply, line: bytes
    ) -> list[Reply]:
        """Log a refusal, and return it as the client gets it."""
        if reply.enhanced and command in GREETINGS:
            # RFC 2034 section 4: no enhanced codes in replies to EHLO and HELO.
            reply = replace(reply, enhanced="")
        with surviving():
            self._authentication.log_refusal(reply)
            self._log.log_command(command, reply, self._envelope, event, line)
        answers = self._refuse(command, [reply])
        if isinstance(event, Mail):
            self._drop()
        return answers

    def _refuse(
        self, command: str, answers: list[Reply], envelope: Envelope | None = None
    ) -> list[Reply]:
        """Return answers whose refusals name the message or the session, and log the first one."""
        if answers[0].code >= 400:  # noqa: PLR2004
            with surviving():
                self._log.log_other(command, answers[0], self._envelope)
        self._log.logged = False
        self._count_refusals(command, answers)
        envelope = envelope or self._envelope
        subject = self._session.id if envelope is None else envelope.id
        return [each.about(subject) if each.code >= 400 else each for each in answers]  # noqa: PLR2004

    def _count_refusals(self, command: str, answers: list[Reply]) -> None:
        stage = stage_of(command)
        for each in answers:
            if each.code >= 400:  # noqa: PLR2004
                reason = reason_of(stage, each)
                code_class = f"{each.category}xx"
                self._context.metrics.refused(stage, each.origin.plugin, reason, code_class)

    def _answer(self, event: _Answerable) -> Reply:  # noqa: C901, PLR0912 - an arm for each command
        transaction = self.transaction
        if type(event) is Mail:
            return self._mail(event)
        if transaction is not None:
            if type(event) is Rcpt:
                return transaction.recipient(event)
            if type(event) is Data:
                return transaction.begin_data()
        match event:
            case Greeting():
                return self._hello(event)
            case Rset():
                self._drop()
                return replies.OK
            case Noop():
                return replies.OK
            case StartTls() if self._session.tls is not None:
                return replies.TLS_ACTIVE
            case StartTls():
                return replies.TLS_READY if self._context.starttls else replies.NO_TLS
            case Auth():
                return self._authentication.begin(event)
            case SaslResponse():
                return self._authentication.respond(event.data)
            case Refused():
                if event.verb == "AUTH":
                    self._authentication.abandon(event.reply)
                return event.reply
            case Other():
                return self._other(event)
        raise RuntimeError(f"{event.verb} without a transaction")

    def _hello(self, event: Greeting) -> Reply:
        session = self._session
        before = session.helo, session.esmtp
        session.helo, session.esmtp = event.name, event.verb != "HELO"
        try:
            self._context.hooks.on_helo(session)
            offered = self._keywords() if session.esmtp else []
        except Verdict:
            session.helo, session.esmtp = before  # RFC 5321 section 4.1.4
            raise
        self._drop()
        # A name with blanks could break into lines, which would read as keywords.
        greeted = f" greets {event.name}" if is_host_name(event.name) else ""
        greeting = f"{self._context.hostname}{greeted}"
        return replies.greeting(greeting, tuple(offered))

    def _keywords(self) -> list[str]:
        """Return the keywords for EHLO (RFC 5321 section 4.1.1.1), in Postfix's order.

        Naive clients look for `250-STARTTLS` and `250-AUTH`, so neither is ever the last line.
        """
        context, session = self._context, self._session
        mechanisms = self._authentication.mechanisms
        lines = [
            "PIPELINING",  # RFC 2920
            f"SIZE {int(context.limits.message_size)}",  # RFC 1870
        ]
        if context.starttls and session.tls is None:
            lines.append("STARTTLS")  # RFC 3207 section 4.2: not again inside TLS
        if session.tls is not None:
            lines.append("REQUIRETLS")  # RFC 8689 section 2: inside TLS only
        if mechanisms and session.login is None:
            lines.append(f"AUTH {' '.join(mechanisms)}")  # RFC 4954
        if context.trusts_xclient(self._connected):
            lines.append("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR")
        lines += [
            "ENHANCEDSTATUSCODES",  # RFC 2034
            "8BITMIME",  # RFC 6152
            "DSN",  # RFC 3461
            "SMTPUTF8",  # RFC 6531
            "CHUNKING",  # RFC 3030
            "BINARYMIME",
            f"LIMITS RCPTMAX={context.limits.recipients}",  # RFC 9422
        ]
        return [*lines, *(context.hooks.ehlo_keywords(session) or ())]

    def _mail(self, event: Mail) -> Reply:
        context, session = self._context, self._session
        if context.kind == "submission" and session.login is None:
            return replies.AUTH_REQUIRED  # RFC 6409 section 4.3
        if event.size is not None and event.size > context.limits.message_size:
            return replies.TOO_BIG  # RFC 1870 section 6.1
        if event.require_tls and session.tls is None:
            return replies.TLS_REQUIRED  # RFC 8689 section 4
        self._envelopes += 1
        self.transaction = transaction = Transaction(self._log, event, self._envelopes)
        reply = transaction.begin()
        self.transactions += reply is replies.SENDER_OK
        return reply

    def _decide_content(self, event: Event) -> Decision | None:
        transaction = self.transaction
        assert transaction is not None  # noqa: S101 - the protocol refuses content before RCPT
        if type(event) is ContentChunk:
            transaction.write(event.data)
            return None
        if type(event) is EndOfContent:
            if event.data:
                transaction.write(event.data)
            return self._finish_content(transaction, event)
        if type(event) is EndOfChunk:
            return self._finish_chunk(transaction, event)
        assert type(event) is Bdat  # noqa: S101 - the fourth of `_CONTENT`
        self._empty_chunk = not event.size
        transaction.begin_chunk()
        return None

    def _finish_chunk(self, transaction: Transaction, end: EndOfChunk) -> Decision:
        if end.last:
            transaction.write(b"", last=True)
        elif transaction.refused is None:
            errors, delay = self._errors, 0.0
            if self._empty_chunk:
                if errors.note(end, replies.CHUNK_OK, self._session.peer):
                    answers = self._refuse("BDAT", [replies.TOO_MANY_ERRORS])
                    return Decision(answers, "BDAT", "errors", delay=errors.delay)
                delay = errors.delay
            return Decision([replies.CHUNK_OK], "BDAT", delay=delay)
        decision = self._finish_content(transaction, command="BDAT")
        return decision if end.last else structs.replace(decision, replies=decision.replies[:1])

    def _finish_content(
        self, transaction: Transaction, end: EndOfContent = _CLEAN, *, command: str = "CONTENT"
    ) -> Decision:
        bare_newline, long_line = end.bare_newline, end.long_line
        try:  # until the end, `minismtp sessions` shows the message
            answers, close = transaction.finish(bare_newline=bare_newline, long_line=long_line)
        finally:
            self.transaction = None
        self.verdicts = transaction.verdicts
        if answers[0].category == 2 or any(reply.category == 2 for reply in answers):  # noqa: PLR2004
            self.messages += 1
            self._errors.forgive(self._session.peer)
        if answers[0].code >= 400 or self._context.lmtp:  # noqa: PLR2004
            answers = self._refuse(command, answers, transaction.envelope)
        return Decision(answers, command, close=close)

    def _other(self, event: Other) -> Reply:
        answer = self._context.hooks.command(self._session, event.verb, event.argument)
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
        context, session = self._context, self._session
        if not context.trusts_xclient(self._connected):
            return replies.NO_XCLIENT
        try:
            apply_xclient(session, argument)
        except SyntaxProblem as problem:
            return Reply(501, str(problem), "5.5.4")
        self._authentication = Authentication(self._log)
        self._errors.restart()
        reply, _ = self._banner()
        if reply.category != 2:  # noqa: PLR2004
            # The front end would go on as if nothing had been said, so the connection is closed.
            unwelcome = Disconnect(reply.text, code=reply.code, enhanced="")
            unwelcome.reply = reply
            raise unwelcome
        return reply

    @property
    def _envelope(self) -> Envelope | None:
        return None if self.transaction is None else self.transaction.envelope

    def _drop(self) -> None:
        """End the transaction under way, if there is one, without a message."""
        if self.transaction is not None:
            self.transaction.abort()
            self.transaction = None


def _too_many_errors(reply: Reply) -> Reply:
    """Return the reply that ends a session, with the last error as its reason."""
    origin = reply.origin
    cause = f"{reply}: {origin.reason}" if origin.reason else str(reply)
    return replies.TOO_MANY_ERRORS.because(cause, plugin=origin.plugin, hook=origin.hook)
