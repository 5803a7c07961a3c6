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
from minismtp.values.threads import report


class TransactionLog:
    """The account of one transaction, from MAIL until `aborted` or `finished`.

    Meanwhile the lines that the thread logs name the message, and the steps that it notes belong to
    it. `storage` is what stores the message, None before that.
    """

    def __init__(
        self,
        service: ListenerContext,
        session: Session,
        envelope: Envelope,
        activity: Activity,
        refusals: Refusals,
    ) -> None:
        self.storage: MessageStorage | None = None
        self._service = service
        self._session = session
        self._envelope = envelope
        self._activity = activity
        self._refusals = refusals
        self._steps_before, activity.steps = activity.steps, []
        self._begun = service.clock()
        bind(id=envelope.id)

    def decided(self, recipient: Recipient, reply: Reply) -> None:
        """Count a recipient and tell the observers of it."""
        service = self._service
        outcome = "accepted" if reply.category == 2 else outcome_of(reply)  # noqa: PLR2004
        service.metrics.recipients[outcome](1)
        if service.hooks.observed:
            service.hooks.observe(
                RecipientDecided(self._session.id, self._envelope.id, recipient.address, reply)
            )

    def aborted(self) -> None:
        """Keep the steps of a transaction without a message."""
        if self._service.admits_refusal(self._envelope.peer):
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
        """Tell what became of a message: its `outcome`, by default the one that its replies say.

        `size` is in octets, and `receiving` in seconds. Over LMTP each recipient has one of the
        `answers`. Nothing is raised, because the replies are sent in any case.
        """
        try:
            self._tell(outcome or _outcome(answers), size, receiving, answers, recipients)
        except Exception as error:  # noqa: BLE001 - see above
            report(error)
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
            "seconds": f"{self._service.clock() - self._begun:.4f}",
        }

    def _tell(
        self,
        outcome: str,
        size: int,
        receiving: float,
        answers: Sequence[Reply],
        recipients: Sequence[Recipient],
    ) -> None:
        service, envelope, storage = self._service, self._envelope, self.storage
        service.metrics.messages[outcome](1)
        if size:
            service.metrics.message_size(size)
        reply = min(answers, key=lambda each: each.category)
        facts = self.facts(size) | {"reply": str(reply)}
        if storage is not None and storage.stored:
            facts["stored"] = ",".join(map(str, storage.stored))
        if storage is not None and storage.queued:
            facts["queued"] = ",".join([target.address for target in storage.queued])
        accepted = reply.category == 2  # noqa: PLR2004
        if not accepted:
            facts |= self._refusals.facts(reply)
            self._refusals.told = True
        if accepted or service.admits_refusal(envelope.peer):
            spent = {"receive": f"{receiving:.4f}", "hooks": summary(self._activity.steps)}
            service.log.info(outcome, **facts, **spent)
            self._keep(outcome, facts, accepted=accepted)
        self._tell_recipients(recipients, answers, reply)
        if service.hooks.observed:
            for each in answers:
                service.hooks.observe(
                    MessageDecided(self._session.id, envelope.id, size, outcome, each)
                )

    def _tell_recipients(
        self, recipients: Sequence[Recipient], answers: Sequence[Reply], told: Reply
    ) -> None:
        """Write a line for each recipient, over LMTP, that has fared worse than the message."""
        for recipient, reply in zip(recipients, answers, strict=False):
            if reply.category != 2 and reply != told:  # noqa: PLR2004
                self._refusals.tell_recipient(
                    f"recipient {outcome_of(reply)}",
                    reply,
                    sender=self._envelope.sender,
                    recipient=str(recipient.address),
                )

    def _keep(self, event: str, facts: dict[str, str | int], *, accepted: bool) -> None:
        service = self._service
        if service.decision_log is not None:
            steps, now = self._activity.steps, service.wall()
            record = Record(event, self._envelope.id, now, self._begun, facts, steps)
            service.decision_log.keep(record, accepted=accepted)

    def _end(self) -> None:
        """Let the log lines and steps of the thread belong to the session again."""
        self._refusals.settle()
        unbind("id")
        self._activity.steps = self._steps_before


def _outcome(answers: Sequence[Reply]) -> str:
    """Name the ending of a message, which is stored as soon as one copy is."""
    best = min(reply.category for reply in answers)
    return {2: "stored", 4: "deferred"}.get(best, "rejected")
