"""What the log, the metrics, the observers and `minismtp explain` learn about a transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.events import MessageDecided, RecipientDecided
from minismtp.mail.session import Session
from minismtp.runtime.decision_log import Record
from minismtp.runtime.log import bound
from minismtp.runtime.thread_activity import Activity, summary
from minismtp.session.listener_context import ListenerContext
from minismtp.session.refusals import Refusals, outcome_of
from minismtp.session.storage import MessageStorage
from minismtp.values.reply import Reply
from minismtp.values.threads import report

_LINE: Final = 400  # octets that a line takes roughly, without the addresses of recipients
_NAME: Final = 80  # of each recipient, who may appear more than once
_OUTCOMES: Final = {2: "stored", 4: "deferred"}


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
        if self._context.may_log_refusal(self._envelope.peer):
            self._keep("no message", self.fields(0), accepted=False)
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

    def fields(
        self, size: int, reply: Reply | None = None, refusal: dict[str, str | int] | None = None
    ) -> Callable[[], dict[str, str | int]]:
        """Return what makes the fields of the message, from the values that they have now.

        The threads that write the logs call it, so it keeps no envelope and no message in memory.
        """
        envelope, login, storage = self._envelope, self._session.login, self.storage
        identifier, peer, sender = envelope.id, envelope.peer, envelope.reverse_path
        to = [recipient.address for recipient in envelope.recipients]
        seconds = self._context.clock() - self._begun
        stored, queued = (storage.stored, storage.queued) if storage is not None else ([], [])
        made: dict[str, str | int] = {}

        def make() -> dict[str, str | int]:
            if not made:
                made.update(
                    {
                        "id": identifier,
                        "peer": peer,
                        **({} if login is None else {"login": login}),
                        "sender": f"<{sender or ''}>",
                        "to": ",".join(map(str, to)),
                        "size": size,
                        "seconds": f"{seconds:.4f}",
                        **({"reply": str(reply)} if reply else {}),
                        **({"stored": ",".join(map(str, stored))} if stored else {}),
                        **({"queued": ",".join([e.address for e in queued])} if queued else {}),
                        **(refusal or {}),
                    }
                )
            return made

        return make

    def _log_message(self, outcome: str, size: int, receiving: float, reply: Reply) -> None:
        context, metrics, steps = self._context, self._context.metrics, self._activity.steps
        sized = ((metrics.message_size, float(size)),) if size else ()
        metrics.add(metrics.messages[outcome] + sized)
        refusal = None
        if reply.category != 2:  # noqa: PLR2004
            self._refusals.logged = True
            if not context.may_log_refusal(self._envelope.peer):
                return
            refusal = self._refusals.facts(reply)
        fields = self.fields(size, reply, refusal)

        def line() -> dict[str, str | int]:
            return fields() | {"receive": f"{receiving:.4f}", "hooks": summary(steps)}

        context.log.later(outcome, line, _LINE + _NAME * len(self._envelope.recipients))
        self._keep(outcome, fields, accepted=refusal is None)

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

    def _keep(
        self, event: str, fields: Callable[[], dict[str, str | int]], *, accepted: bool
    ) -> None:
        if self._context.decision_log is not None:
            identifier, now, begun = self._envelope.id, self._context.wall(), self._begun
            steps = self._activity.steps
            self._context.decision_log.later(
                lambda: Record(event, identifier, now, begun, fields(), steps), accepted=accepted
            )

    def _end(self) -> None:
        """Let the log lines and steps of the thread belong to the session again."""
        if self._refusals.recipients:
            self._refusals.log_surplus()
        self._bound.pop("id", None)
        self._activity.steps = self._steps_before
