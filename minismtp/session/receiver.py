"""The receiving end of a session: octets in, octets out, deadlines in between.

It hands the events of `smtp.protocol` to the `conversation`, sends what that decides, and keeps the
session's deadlines and accounts. It knows no socket: `connection` and `in_memory` drive it alike.
"""

from __future__ import annotations

from typing import Final

from minismtp.mail.events import SessionClosed, SessionOpened
from minismtp.mail.session import Session, TlsInfo
from minismtp.runtime.decision_log import Record
from minismtp.runtime.thread_activity import Activity
from minismtp.session.conversation import Conversation, Decision
from minismtp.session.listener_context import ListenerContext
from minismtp.session.session_log import SessionLog
from minismtp.smtp.commands import Bdat
from minismtp.smtp.protocol import CHUNKS, CLOSED, DATA, TLS, Event, Protocol, SessionState
from minismtp.values.reply import Reply
from minismtp.values.threads import report

_FLUSH: Final = 65536  # octets of replies that wait for the end of a batch, at most
#: What ends a session from outside: the reason, and the text and enhanced code of its 421.
_INTERRUPTIONS: Final = {
    "draining": ("service shutting down", "4.3.2"),
    "fault": ("local error in processing", "4.3.0"),
    "limited": ("too many connections, try again later", "4.7.0"),
    "lost": ("connection lost", "4.4.2"),
    "timeout": ("timeout", "4.4.2"),
}


class Receiver:
    """Drives one session.

    `deadline` is when the peer must have finished what it is doing now. `reason` says in one word
    how the session ended, or would end if the connection were lost. `messages` is how many messages
    were accepted.

    What is to be done next: `pending` says that `proceed` has input left to work on, `wants_tls`
    that a TLS handshake is to follow, which `secured` answers, and `closing` that the connection is
    to be closed once the replies have left. If `delay` is not 0, `take_delay` says how long these
    wait.
    """

    def __init__(self, context: ListenerContext, session: Session, activity: Activity) -> None:
        limits = context.limits
        self.session = session
        self.reason = "lost"
        self.messages = 0
        self.pending = self.wants_tls = self.closing = False
        self._context = context
        self._metrics = context.metrics
        self._activity = activity
        self._protocol = Protocol(
            lmtp=context.lmtp,
            line_length=limits.line_length,
            strict_pipelining=context.strict_pipelining,
        )
        self._log = SessionLog(context, session, activity)
        self._conversation = Conversation(self._log)
        self._tracing = context.tracing
        self._output: list[bytes] = []
        self.delay = 0.0
        self._commands = 0
        self._begun = context.clock()
        self._command_timeout = limits.command_timeout.total_seconds()
        self._data_timeout = limits.data_timeout.total_seconds()
        self._content_timeout = limits.content_timeout.total_seconds()
        self._seconds_per_octet = 1 / limits.min_data_rate
        self._content_end = 0.0  # of the content that comes in now, 0 while none does
        self._opened = False
        self._last_reply = ""  # the 421 that ended the session from outside
        self._answered = self._begun
        self._end = self._begun + limits.session_timeout.total_seconds()
        self.deadline = min(self._begun + self._command_timeout, self._end)

    @property
    def at_boundary(self) -> bool:
        """Whether the peer is between two commands, with neither of them begun."""
        return not self._protocol.in_content and not self._protocol.buffered

    @property
    def outcomes(self) -> dict[str, str]:
        """What became of recipients of the latest message with a verdict of their own."""
        return {str(each.recipient.address): each.name for each in self._conversation.verdicts}

    @property
    def unread(self) -> bool:
        """Whether the peer has sent more than was answered."""
        return self._protocol.buffered

    def take_delay(self) -> float:
        """Return the seconds to hold back what is sent next, because of errors; 0 the next time."""
        delay, self.delay = self.delay, 0.0
        return min(delay, max(0.0, self.deadline - self._context.clock())) if delay else 0.0

    def greet(self, *, early: bool = False) -> bytes:
        """Return the banner, or the refusal of a peer that is unwelcome or talked `early`."""
        context, session = self._context, self.session
        self._opened = True
        if self._tracing.outlets:
            self._tracing.happened(session, f"connected to {session.listener}")
        if context.hooks.observed:
            context.hooks.observe(SessionOpened(session.id, session.listener, session.peer))
        decision = self._conversation.greet(early=early)
        metrics = context.metrics
        result = "refused" if decision.reason else "accepted"
        metrics.add((*metrics.connections[result], (metrics.active, 1.0)))
        if metrics.buffer.idle:
            metrics.buffer.announce()
        sent = self._send(decision)
        self.closing = self._protocol.state is CLOSED
        self._set_deadline()
        return sent

    def receive(self, data: bytes) -> bytes:
        """Take octets from the peer and return the replies that they call for."""
        self._protocol.receive(data)
        if self._content_end:
            now = self._context.clock()
            bought = self.deadline + len(data) * self._seconds_per_octet
            self.deadline = min(bought, now + self._data_timeout, self._content_end)
        return self.proceed()

    def proceed(self) -> bytes:
        """Work on the input until more is needed or enough replies wait to be sent."""
        protocol, output, tracing, size = self._protocol, self._output, self._tracing, 0
        event: Event | None = None
        began = False  # whether the input ends in a content that began in it
        while size < _FLUSH:
            event = protocol.next_event()
            if event is None:
                break
            if tracing.outlets:
                tracing.heard(self.session, event, protocol.line)
            decision = self._conversation.decide(event, protocol.line)
            if decision is None:
                # The chunks of a message have one deadline.
                began = began or (event.__class__ is Bdat and protocol.state is SessionState.RCPT)
                continue
            sent = self._send(decision)
            output += [sent]
            size += len(sent)
            began = protocol.state is DATA or (began and protocol.state is CHUNKS)
            if decision.delay:
                break
        if output or began:
            self._set_deadline(content_began=began)
        buffer = self._metrics.buffer
        if buffer.idle:
            buffer.announce()
        self._output = []
        self.messages = self._conversation.messages
        state = protocol.state
        self.closing, self.wants_tls = state is CLOSED, state is TLS
        self.pending = not (event is None or self.closing or self.wants_tls)
        return b"".join(output)

    def take(self) -> bytes:
        """Return the replies that `proceed` did not return, because it raised."""
        output, self._output = self._output, []
        return b"".join(output)

    def secured(self, tls: TlsInfo) -> None:
        """Start again inside TLS, without anything that was said in clear."""
        self._context.metrics.add(self._context.metrics.tls[tls.version])
        self._conversation.secured(tls)
        self._tracing.happened(self.session, f"{tls.version} {tls.cipher}")
        if self.wants_tls:
            self.wants_tls = False
            self._protocol.restart()
            self.deadline = min(self._context.clock() + self._command_timeout, self._end)

    def interrupt(self, reason: str) -> bytes:
        """End the session from outside. Return the 421 that says why, if a client can read it."""
        self.reason = reason
        self._protocol.close()
        self.pending, self.wants_tls, self.closing = False, False, True
        text, enhanced = _INTERRUPTIONS[reason]
        reply = Reply(421, f"{self._context.hostname} {text}", enhanced)
        if reason == "limited":
            metrics = self._context.metrics
            metrics.add(metrics.connections["limited"])
            self._log.refused("connection limited", reply, limit="address")
        elif reason != "lost":
            self._last_reply = str(reply)
        reply = reply.about(self.session.id)
        self._tracing.answered(self.session, reply)
        return b"" if reason == "lost" else reply.encode()

    def report(self) -> dict[str, object]:
        """Return how the session stands, for other threads: only values that are safe to read.

        `idle` is how many seconds ago the last reply was.
        """
        session, transaction = self.session, self._conversation.transaction
        now = self._context.clock()
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

    def finished(self, reason: str = "") -> None:
        """Tell the log, the metrics and the observers that the session is over.

        `reason` is the connection's own word for how it ended, "" if it has none.
        """
        try:
            self._conversation.end()
            self._log.log_surplus()
        except Exception as error:  # noqa: BLE001 - the rest is told all the same
            report(error)
        self._protocol.close()
        self.pending, self.wants_tls, self.closing = False, False, True
        self.reason = reason or self.reason
        context, session = self._context, self.session
        if self._opened and context.hooks.disconnects:
            context.hooks.on_disconnect(session, self.reason)
        duration = context.clock() - self._begun
        metrics = context.metrics
        if self._opened:
            metrics.add(((metrics.active, -1.0), (metrics.session_duration, duration)))
        if metrics.buffer.idle:
            metrics.buffer.announce()
        fields: dict[str, str | int] = {
            "peer": session.peer,
            "listener": session.listener,
            "reason": self.reason,
            "seconds": f"{duration:.3f}",
            "commands": self._commands,
            "transactions": self._conversation.transactions,
            "helo": session.helo,
            **({"tls": session.tls.version} if session.tls else {}),
            **({"reply": self._last_reply} if self._last_reply else {}),
        }
        if self._tracing.outlets:
            self._tracing.happened(session, f"closed: {self.reason}")
        accepted = self._conversation.messages > 0
        if accepted or context.quiet or context.may_log_refusal(session.peer):
            now, steps = context.wall(), self._activity.steps
            record = Record("session closed", session.id, now, self._begun, fields, steps)
            context.record(record, accepted=accepted)
        context.log_surplus_refusals()
        if context.hooks.observed:
            context.hooks.observe(
                SessionClosed(session.id, session.listener, session.peer, duration, self.reason)
            )

    def _send(self, decision: Decision) -> bytes:
        protocol, answers = self._protocol, decision.replies
        several = self._context.lmtp and len(answers) > 1
        sent = protocol.send_each(answers) if several else protocol.send(answers[0])
        if decision.close:
            protocol.close()
        if decision.reason:
            self.reason = decision.reason
        elif protocol.state is CLOSED and self.reason == "lost":
            self.reason = "refused"
        self.delay = decision.delay
        try:
            if self._tracing.outlets:
                for reply in answers:
                    self._tracing.answered(self.session, reply)
            if decision.command:
                self._commands += 1
                metrics = self._metrics
                metrics.add(metrics.commands[decision.command, answers[0].category])
        except Exception as error:  # noqa: BLE001 - the decision is sent all the same
            report(error)
        return sent

    def _set_deadline(self, *, content_began: bool = False) -> None:
        """Set the deadline of what the peer does next, after the last reply to its input.

        What arrives of a content moves its deadline, even beyond that of the session.
        """
        self._answered = now = self._context.clock()
        if content_began:
            self._content_end = now + self._content_timeout if now < self._end else self._end
            self.deadline = min(now + self._data_timeout, self._content_end, self._end)
            return
        state = self._protocol.state
        if state is not DATA and state is not CHUNKS:
            self._content_end = 0.0
            due = now + self._command_timeout
            self.deadline = min(self._end, due)
