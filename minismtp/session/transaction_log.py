"""What the log, the metrics, the observers and `minismtp explain` learn about a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.events import MessageDecided, RecipientDecided
from minismtp.mail.queue_entry import QueuedRecipient
from minismtp.mail.session import Session
from minismtp.runtime.decision_log import Record
from minismtp.runtime.log import bound
from minismtp.runtime.thread_activity import Activity, Step, summary
from minismtp.session.listener_context import ListenerContext
from minismtp.session.refusals import Refusals, outcome_of
from minismtp.session.storage import MessageStorage
from minismtp.values.address import Address
from minismtp.values.reply import Reply
from minismtp.values.threads import report

_LINE: Final = 400  # octets that a line takes roughly, without the addresses of recipients
_NAME: Final = 40
_OUTCOMES: Final = {2: "stored", 4: "deferred"}


class MessageRecord(msgspec.Struct, kw_only=True, gc=False):
    """The values of a message, from which the threads that write the logs make the fields.

    `size` is in octets, `seconds` since MAIL, `receiving` the seconds of the content.
    """

    event: str
    id: str
    peer: str
    login: str | None
    reverse_path: Address | None
    to: list[Address]
    size: int
    reply: Reply | None
    stored: Sequence[Address]
    queued: Sequence[QueuedRecipient]
    time: float
    begun: float
    seconds: float
    steps: list[Step]
    receiving: float = 0.0
    refusal: dict[str, str | int] = {}
    made: dict[str, str | int] = {}

    def fields(self) -> dict[str, str | int]:
        """Return the fields of both logs, made by the first thread that asks."""
        if not self.made:
            self.made = {
                "id": self.id,
                "peer": self.peer,
                **({} if self.login is None else {"login": self.login}),
                "sender": f"<{self.reverse_path or ''}>",
                "to": ",".join(map(str, self.to)),
                "size": self.size,
                "seconds": f"{self.seconds:.4f}",
                **({} if self.reply is None else {"reply": str(self.reply)}),
                **({"stored": ",".join(map(str, self.stored))} if self.stored else {}),
                **({"queued": ",".join([e.address for e in self.queued])} if self.queued else {}),
                **self.refusal,
            }
        return self.made

    def line(self) -> dict[str, str | int]:
        """Return the fields of the line, with the time of the content and of each hook."""
        spent = {"receive": f"{self.receiving:.4f}", "hooks": summary(self.steps)}
        return self.fields() | spent

    def decision(self) -> Record:
        """Return the record of the decision log."""
        return Record(self.event, self.id, self.time, self.begun, self.fields(), self.steps)


class TransactionLog:
    """The account of one transaction, from MAIL until `aborted` or `finished`.

    Meanwhile the lines that the thread logs name the message, and the steps that it notes belong to
    it. `storage` is what stores the message, None before that.
    """

    def __init__(
        self,
        context: ListenerContext,
        session: Session,
        envelope: Envelope,
        activity: Activity,
        refusals: Refusals,
    ) -> None:
        self.storage: MessageStorage | None = None
        self._context = context
        self._session = session
        self._envelope = envelope
        self._activity = activity
        self._refusals = refusals
        self._steps_before, activity.steps = activity.steps, []
        self._begun = context.clock()
        self._bound = bound()
        self._bound["id"] = envelope.id

    def decided(self, recipient: Recipient, reply: Reply) -> None:
        """Count a recipient, and tell the observers."""
        context = self._context
        outcome = "accepted" if reply.category == 2 else outcome_of(reply)  # noqa: PLR2004
        context.metrics.add(context.metrics.recipients[outcome])
        if context.hooks.observed:
            context.hooks.observe(
                RecipientDecided(self._session.id, self._envelope.id, recipient.address, reply)
            )

    def aborted(self) -> None:
        """Keep the steps of a transaction without a message."""
        context = self._context
        if context.may_log_refusal(self._envelope.peer) and context.decision_log is not None:
            context.decision_log.later(self.record("no message").decision, accepted=False)
        self._end()

    def finished(
        self,
        outcome: str,
        size: int,
        receiving: float,
        answers: Sequence[Reply],
        recipients: Sequence[Recipient],
    ) -> None:
        """Tell the `outcome` of a message, by default the one that its replies say.

        `size` is in octets, and `receiving` in seconds. Over LMTP each recipient has one of the
        `answers`. Nothing is raised, because the replies are sent in any case.
        """
        try:
            reply = answers[0]
            if len(answers) > 1:
                # A message is stored as soon as one copy is.
                reply = min(answers, key=lambda each: each.category)
            outcome = outcome or _OUTCOMES.get(reply.category, "rejected")
            self._log_message(outcome, size, receiving, reply)
            if len(answers) > 1:
                self._log_recipients(recipients, answers, reply)
            if self._context.hooks.observed:
                session, message = self._session.id, self._envelope.id
                for each in answers:
                    event = MessageDecided(session, message, size, outcome, each)
                    self._context.hooks.observe(event)
        except Exception as error:  # noqa: BLE001 - the replies are sent
            report(error)
        self._end()

    def record(self, event: str, size: int = 0, reply: Reply | None = None) -> MessageRecord:
        """Return what is known of the message now. `size` is in octets."""
        context, envelope, storage = self._context, self._envelope, self.storage
        return MessageRecord(
            event=event,
            id=envelope.id,
            peer=envelope.peer,
            time=context.wall(),
            begun=self._begun,
            seconds=context.clock() - self._begun,
            steps=self._activity.steps,
            login=self._session.login,
            reverse_path=envelope.reverse_path,
            to=[recipient.address for recipient in envelope.recipients],
            size=size,
            reply=reply,
            stored=() if storage is None else storage.stored,
            queued=() if storage is None else storage.queued,
        )

    def _log_message(self, outcome: str, size: int, receiving: float, reply: Reply) -> None:
        context, metrics = self._context, self._context.metrics
        sized = ((metrics.message_size, float(size)),) if size else ()
        metrics.add(metrics.messages[outcome] + sized)
        accepted = reply.category == 2  # noqa: PLR2004
        if not accepted:
            self._refusals.logged = True
        if accepted or context.may_log_refusal(self._envelope.peer):
            record = self.record(outcome, size, reply)
            record.receiving = receiving
            if not accepted:
                record.refusal = self._refusals.facts(reply)
            names = len(record.to) + len(record.stored) + len(record.queued)
            context.log.later(outcome, record.line, _LINE + _NAME * names)
            if context.decision_log is not None:
                context.decision_log.later(record.decision, accepted=accepted)

    def _log_recipients(
        self, recipients: Sequence[Recipient], answers: Sequence[Reply], logged: Reply
    ) -> None:
        """Log each recipient, over LMTP, whose reply is worse than that of the message."""
        for recipient, reply in zip(recipients, answers, strict=False):
            if reply.category != 2 and reply != logged:  # noqa: PLR2004
                self._refusals.log_recipient(
                    f"recipient {outcome_of(reply)}",
                    reply,
                    sender=self._envelope.sender,
                    recipient=str(recipient.address),
                )

    def _end(self) -> None:
        """Let the log lines and steps of the thread belong to the session again."""
        if self._refusals.recipients:
            self._refusals.log_surplus()
        self._bound.pop("id", None)
        self._activity.steps = self._steps_before
