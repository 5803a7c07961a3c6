"""The receiving end of a session: octets in, octets out, hooks in between.

It hands the events of `smtp.protocol` to the `conversation`, sends what that answers, and keeps the
session's deadlines and accounts. It knows no socket: `connection` and `testing` drive it alike.
"""

from __future__ import annotations

from typing import Final

from minismtp.mail.events import SessionClosed, SessionOpened
from minismtp.mail.session import Session, TlsInfo
from minismtp.runtime.decision_log import Record
from minismtp.runtime.thread_activity import Activity
from minismtp.session.conversation import Conversation
from minismtp.session.listener_context import ListenerContext
from minismtp.smtp.commands import Bdat, Command
from minismtp.smtp.protocol import (
    CLOSED,
    DATA,
    NEED_DATA,
    TLS,
    Event,
    Protocol,
    SessionState,
)
from minismtp.values.reply import Reply
from minismtp.values.threads import report, surviving

_FLUSH: Final = 65536  # octets of replies that wait for the end of a batch, at most


class Receiver:
    """Drives one session. `deadline` is when the peer must have finished what it is doing now."""

    def __init__(self, service: ListenerContext, session: Session, activity: Activity) -> None:
        self.session = session
        self._service = service
        self._activity = activity
        self._protocol = Protocol(lmtp=service.lmtp, line_length=service.limits.line_length)
        self._conversation = Conversation(service, session, activity, self._protocol)
        self._tracing = service.tracing
        self._starved = True  # no event before more input
        self._output: list[bytes] = []
        self._commands = 0
        self._begun = service.clock()
        limits = service.limits
        self._command_timeout = limits.command_timeout.total_seconds()
        self._data_timeout = limits.data_timeout.total_seconds()
        self._content_timeout = limits.content_timeout.total_seconds()
        self._second = 1 / limits.min_data_rate  # what an octet of content is worth
        self._content_end = 0.0  # of the content that comes in now, 0 while none does
        self._opened = False
        self._farewell = ""  # the last words, where no command has called for them
        self._answered = self._begun
        self._end = self._begun + limits.session_timeout.total_seconds()
        self.deadline = min(self._begun + self._command_timeout, self._end)

    @property
    def reason(self) -> str:
        """One word for how the session ended."""
        return self._conversation.reason

    @reason.setter
    def reason(self, word: str) -> None:
        self._conversation.reason = word

    @property
    def closing(self) -> bool:
        """Whether the connection is to be closed once the replies have left."""
        return self._protocol.state is CLOSED

    @property
    def wants_tls(self) -> bool:
        """Whether a TLS handshake is to follow, answered by `secured`."""
        return self._protocol.state is TLS

    def take_delay(self) -> float:
        """Return the seconds to hold back what is to be sent next, for its errors; once."""
        return min(
            self._conversation.errors.take_delay(), max(0.0, self.deadline - self._service.clock())
        )

    @property
    def pending(self) -> bool:
        """Whether `proceed` has input left to work on."""
        return not self._starved and not self.closing and not self.wants_tls

    @property
    def at_boundary(self) -> bool:
        """Whether the peer is between two commands: nothing half said."""
        return not self._protocol.in_content and not self._protocol.buffered

    @property
    def messages(self) -> int:
        """How many messages were accepted."""
        return self._conversation.messages

    @property
    def unread(self) -> bool:
        """Whether the peer has said more than was answered."""
        return self._protocol.buffered

    def greet(self, *, early: bool = False) -> bytes:
        """Return the banner, or the refusal of a peer that is unwelcome or talked `early`."""
        service, session = self._service, self.session
        self._opened = True
        self._tracing.happened(session, f"connected to {session.listener}")
        self._conversation.origin = session.peer  # now: a PROXY header has come before the banner
        service.metrics.active(1)
        if service.hooks.observed:
            service.hooks.observe(SessionOpened(session.id, session.listener, session.peer))
        reply = self._conversation.banner(early=early)
        service.metrics.connections["accepted" if reply.code == 220 else "refused"](1)  # noqa: PLR2004
        return self._send([reply])

    def limited(self) -> bytes:
        """Return the refusal of a peer that has too many sessions, and close."""
        self._service.metrics.connections["limited"](1)
        return self.interrupt("too many connections, try again later", "4.7.0", "limited")

    def receive(self, data: bytes) -> bytes:
        """Take octets from the peer and give the replies that they call for."""
        self._protocol.receive(data)
        if self._content_end:
            now = self._service.clock()
            bought = self.deadline + len(data) * self._second
            self.deadline = min(bought, now + self._data_timeout, self._content_end)
        return self.proceed()

    def proceed(self) -> bytes:
        """Work on what has come in until more is needed or enough replies wait to be sent."""
        output = self._output
        errors, size = self._conversation.errors, 0
        self._starved = False
        while size < _FLUSH:
            event = self._watched_event() if self._tracing.outlets else self._protocol.next_event()
            if event is NEED_DATA:
                self._starved = True
                break
            answers = self._conversation.decide(event)
            if answers:
                sent = self._send(answers)
                output.append(sent)
                size += len(sent)
                if errors.delays:
                    break
            elif event.__class__ is Bdat and self._protocol.state is SessionState.RCPT:
                self._begin_content(self._service.clock())  # and one deadline for all chunks
        return self.take()

    def take(self) -> bytes:
        """Return what has not been given by `proceed`, because it raised."""
        output, self._output = self._output, []
        return output[0] if len(output) == 1 else b"".join(output)

    def _watched_event(self) -> Event | Command:
        line = self._protocol.upcoming
        event = self._protocol.next_event()
        self._tracing.heard(self.session, event, line)
        return event

    def secured(self, tls: TlsInfo) -> None:
        """Start again inside TLS; forget all that was said before it (RFC 3207 section 4.2)."""
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
        reply = Reply(421, f"{self._service.hostname} {text}", enhanced)
        if reason == "limited":
            self._conversation.refusals.tell("connection limited", reply, limit="address")
        elif reason != "lost":  # when nobody hears it
            self._farewell = str(reply)
        reply = reply.about(self.session.id)
        self._tracing.answered(self.session, reply)
        return reply.encode()

    def report(self) -> dict[str, object]:
        """Say how the session stands: for other threads, hence nothing that may just be changing.

        `idle` is how many seconds ago the last reply was.
        """
        session, transaction = self.session, self._conversation.transaction
        now = self._service.clock()
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
        with surviving():
            self._conversation.end()
            self._conversation.refusals.settle()
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
            "transactions": self._conversation.transactions,
            "helo": session.helo,
            **({"tls": session.tls.version} if session.tls else {}),
            **({"reply": self._farewell} if self._farewell else {}),
        }
        self._tracing.happened(session, f"closed: {self.reason}")
        accepted = self._conversation.messages > 0
        if service.quiet:
            service.log.debug("session closed", **fields)
        elif accepted or service.admits_refusal(session.peer):
            service.log.info("session closed", **fields)
            if service.chronicle is not None:
                now, steps = service.wall(), self._activity.steps
                record = Record("session closed", session.id, now, self._begun, fields, steps)
                service.chronicle.keep(record, accepted=accepted)
        service.settle_refusals()
        if service.hooks.observed:
            service.hooks.observe(
                SessionClosed(session.id, session.listener, session.peer, duration, self.reason)
            )

    def _send(self, answers: list[Reply]) -> bytes:
        protocol = self._protocol
        verb = protocol.verb
        if answers[0].code >= 400 or len(answers) > 1:  # noqa: PLR2004
            self._tell(verb, answers[0])
            answers = [self._named(reply) for reply in answers]
        if self._conversation.transaction is None:
            self._conversation.subject = self.session.id
        sent = protocol.send_each(answers) if len(answers) > 1 else protocol.send(answers[0])
        if protocol.state is CLOSED and self.reason == "lost":
            self.reason = "refused"
        self._answered = now = self._service.clock()
        if protocol.state is DATA:
            self._begin_content(now)
        elif protocol.state is not SessionState.CHUNKS:
            self._content_end = 0.0
            self.deadline = min(now + self._command_timeout, self._end)
        try:
            if self._tracing.outlets:
                for reply in answers:
                    self._tracing.answered(self.session, reply)
            if verb != "CONNECT":
                self._count(verb, answers[0])
        except Exception as error:  # noqa: BLE001 - what was decided is said all the same
            report(error)
        return sent

    def _tell(self, verb: str, reply: Reply) -> None:
        """Write the line of a refusal that nobody has told so far."""
        conversation = self._conversation
        if reply.code >= 400:  # noqa: PLR2004
            with surviving():
                conversation.tell(verb, reply)
        conversation.refusals.told = False

    def _begin_content(self, now: float) -> None:
        """Set the deadline of a content: what arrives may move it beyond that of the session."""
        self._content_end = now + self._content_timeout if now < self._end else self._end
        self.deadline = min(now + self._data_timeout, self._content_end, self._end)

    def _named(self, reply: Reply) -> Reply:
        """Return a refusal with what it is about: the message under way, else the session."""
        return reply.about(self._conversation.subject) if reply.code >= 400 else reply  # noqa: PLR2004

    def _count(self, verb: str, reply: Reply) -> None:
        self._commands += 1
        self._service.metrics.commands[self._conversation.name(verb), reply.category](1)
