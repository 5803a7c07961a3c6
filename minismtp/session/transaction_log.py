"""What the log, the metrics, the observers and `minismtp explain` learn about a transaction."""

from __future__ import annotations

from collections.abc import Sequence

from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.events import MessageDecided, RecipientDecided
from minismtp.mail.session import Session
from minismtp.runtime.decision_log import Record
from minismtp.runtime.log import bind, unbind
from minismtp.runtime.thread_activity import Activity, summary
from minismtp.session.listener_context import ListenerContext
from minismtp.session.refusals import Refusals, outcome_of
from minismtp.session.storage import MessageStorage
from minismtp.values.reply import Reply
from minismtp.values.threads import surviving


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
        bind(id=envelope.id)

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
        if self._context.may_log_refusal(self._envelope.peer):
            self._keep("no message", self.facts(0), accepted=False)
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
        with surviving():
            outcome = outcome or _outcome(answers)
            reply = min(answers, key=lambda each: each.category)
            self._log_message(outcome, size, receiving, reply)
            self._log_recipients(recipients, answers, reply)
            if self._context.hooks.observed:
                session, message = self._session.id, self._envelope.id
                for each in answers:
                    event = MessageDecided(session, message, size, outcome, each)
                    self._context.hooks.observe(event)
        self._end()

    def facts(self, size: int) -> dict[str, str | int]:
        """Return what every line about the message says of it."""
        envelope, login = self._envelope, self._session.login
        return {
            "id": envelope.id,
            "peer": envelope.peer,
            **({} if login is None else {"login": login}),
            "sender": f"<{envelope.sender}>",
            "to": ",".join([str(recipient.address) for recipient in envelope.recipients]),
            "size": size,
            "seconds": f"{self._context.clock() - self._begun:.4f}",
        }

    def _log_message(self, outcome: str, size: int, receiving: float, reply: Reply) -> None:
        context, storage, metrics = self._context, self.storage, self._context.metrics
        sized = ((metrics.message_size, float(size)),) if size else ()
        metrics.add(metrics.messages[outcome] + sized)
        facts = self.facts(size) | {"reply": str(reply)}
        if storage is not None and storage.stored:
            facts["stored"] = ",".join(map(str, storage.stored))
        if storage is not None and storage.queued:
            facts["queued"] = ",".join([target.address for target in storage.queued])
        accepted = reply.category == 2  # noqa: PLR2004
        if not accepted:
            facts |= self._refusals.facts(reply)
            self._refusals.logged = True
        if accepted or context.may_log_refusal(self._envelope.peer):
            spent = {"receive": f"{receiving:.4f}", "hooks": summary(self._activity.steps)}
            context.log.info(outcome, **facts, **spent)
            self._keep(outcome, facts, accepted=accepted)

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

    def _keep(self, event: str, facts: dict[str, str | int], *, accepted: bool) -> None:
        context = self._context
        if context.decision_log is not None:
            steps, now = self._activity.steps, context.wall()
            record = Record(event, self._envelope.id, now, self._begun, facts, steps)
            context.decision_log.keep(record, accepted=accepted)

    def _end(self) -> None:
        """Let the log lines and steps of the thread belong to the session again."""
        self._refusals.log_surplus()
        unbind("id")
        self._activity.steps = self._steps_before


def _outcome(answers: Sequence[Reply]) -> str:
    """Name the ending of a message, which is stored as soon as one copy is."""
    best = min(reply.category for reply in answers)
    return {2: "stored", 4: "deferred"}.get(best, "rejected")
