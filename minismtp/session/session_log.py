"""What the log, the metrics, the observers and `minismtp explain` learn about a session.

The part that knows most about a refusal logs it: the transaction a refused message, the
authentication a failed login. The conversation logs all others before it returns a 4yz or 5yz, so
no refusal is without a line. `minismtp explain` finds the lines by the session or by an address.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from msgspec import Struct

from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.events import MessageDecided, RecipientDecided, RecipientJudged
from minismtp.mail.queue_entry import QueuedRecipient
from minismtp.mail.recipient_verdict import RecipientVerdict
from minismtp.mail.session import Session
from minismtp.runtime.decision_log import Record
from minismtp.runtime.dialogue_trace import abbreviated
from minismtp.runtime.log import bound
from minismtp.runtime.thread_activity import Activity, Step, summary
from minismtp.session.listener_context import ListenerContext
from minismtp.session.recipient_verdicts import Outcome
from minismtp.session.refusal_reasons import reason_of
from minismtp.session.storage import MessageStorage
from minismtp.smtp.commands import Command, Mail, Rcpt
from minismtp.smtp.protocol import Refused, SaslResponse
from minismtp.values.address import Address
from minismtp.values.reply import Reply
from minismtp.values.threads import report

_MOST_RECIPIENTS: Final = 20  # refused recipients of one message that have a line each
_LONGEST: Final = 700  # characters of a client's text, enough for any address
_LINE: Final = 400  # octets that a line takes roughly, without the addresses of recipients
_NAME: Final = 80  # of each recipient, who may appear more than once
_OUTCOMES: Final = {2: "stored", 4: "deferred"}


class SessionLog:
    """The log of one session, in its thread, with one line for each refusal.

    `logged` says whether the refusal that is about to be sent has its line, and `recipients` counts
    the refused recipients of the message.
    """

    def __init__(self, context: ListenerContext, session: Session, activity: Activity) -> None:
        self.context = context
        self.session = session
        self.activity = activity
        self.recipients = 0
        self.logged = False

    def refused(self, event: str, reply: Reply, **fields: str | int) -> None:
        """Write the line of the refusal that is about to be sent."""
        self.logged = True
        context, session = self.context, self.session
        if context.may_log_refusal(session.peer):
            facts = {"peer": session.peer, **fields, "reply": str(reply), **self.facts(reply)}
            about = str(bound().get("id", session.id))
            context.record(Record(event, about, context.wall(), context.clock(), facts, []))

    def log_recipient(self, event: str, reply: Reply, **fields: str | int) -> None:
        """Write the line of a refused recipient, unless its message has enough of them."""
        self.logged = True
        self.recipients += 1
        if self.recipients <= _MOST_RECIPIENTS:
            self.refused(event, reply, **fields)

    def log_quarantined(self, verdict: RecipientVerdict, facts: dict[str, str]) -> None:
        """Write the line of a recipient whose copy alone was quarantined."""
        self.recipients += 1
        context, peer = self.context, self.session.peer
        if self.recipients <= _MOST_RECIPIENTS and context.may_log_refusal(peer):
            about = str(bound().get("id", self.session.id))
            found: dict[str, str | int] = {
                "peer": peer,
                **facts,
                "plugin": verdict.plugin,
                "reason": verdict.reason,
            }
            event = "recipient quarantined"
            context.record(Record(event, about, context.wall(), context.clock(), found, []))

    def log_command(
        self,
        name: str,
        reply: Reply,
        envelope: Envelope | None,
        event: Command | SaslResponse | Refused,
        line: bytes,
    ) -> None:
        """Write the line of a refused command, and note it for `explain`.

        `name` is what the metrics call the event, `line` is what the client sent, and `envelope`
        that of the transaction under way.
        """
        outcome, path = outcome_of(reply), ""
        match name:
            case "MAIL":
                known = event.reverse_path if isinstance(event, Mail) else None
                path = _path_as_it_came(line, str(known or ""))
                self.refused(f"sender {outcome}", reply, sender=path)
            case "RCPT":
                known = event.forward_path if isinstance(event, Rcpt) else None
                path = _path_as_it_came(line, str(known or ""))
                sender = {"sender": envelope.sender} if envelope else {}
                self.log_recipient(f"recipient {outcome}", reply, **sender, recipient=path)
            case _:
                self.log_other(name, reply, envelope, said=_shortened(abbreviated(event, line)))
        if path and not isinstance(event, Rcpt):
            self.activity.note((name, path, perf_counter(), 0.0, "", ""))
        self.activity.note(("reply", name, perf_counter(), 0.0, str(reply.code), reply.text))

    def log_other(self, name: str, reply: Reply, envelope: Envelope | None, **said: str) -> None:
        """Write the line of a refused command, unless the refusal has one."""
        if self.logged:
            return
        fields = {"command": name} | said
        if envelope is not None:
            to = ",".join(str(each.address) for each in envelope.recipients)
            fields |= {"sender": envelope.sender, "to": to}
        self.refused(f"command {outcome_of(reply)}", reply, **fields)

    def log_surplus(self) -> None:
        """Log how many refused recipients of the message had no line."""
        surplus, self.recipients = self.recipients - _MOST_RECIPIENTS, 0
        if surplus > 0:
            self.context.log_refusal(
                "more recipients refused", peer=self.session.peer, count=surplus
            )

    def facts(self, reply: Reply) -> dict[str, str | int]:
        """Return the client's name and login, and which plugin refused for what reason."""
        session, origin = self.session, reply.origin
        found = {
            "helo": session.helo[:_LONGEST],
            "login": session.login or "",
            "plugin": origin.plugin,
            "hook": origin.hook,
            "reason": origin.reason,
        }
        return {name: value for name, value in found.items() if value}


class _Account(Struct, gc=False):  # no part of it refers back to it
    """The values from which the threads that write the logs make a message's line and its record.

    It keeps no envelope and no message in memory. `time` is the end in epoch seconds, `begun` the
    beginning by the session's clock, and `seconds` the time between them, of which the content took
    `receiving`.
    """

    id: str
    peer: str
    login: str | None
    sender: Address | None
    to: list[Address]
    stored: list[Address]
    queued: list[QueuedRecipient]
    judged: dict[str, list[Address]]
    steps: list[Step]
    size: int
    time: float
    begun: float
    seconds: float
    receiving: float
    event: str
    reply: Reply | None
    refusal: dict[str, str | int] | None
    made: dict[str, str | int] | None = None

    def fields(self) -> dict[str, str | int]:
        """Return the fields of the message, which both logs have."""
        if self.made is None:
            self.made = self._fields()
        return self.made

    def line(self) -> dict[str, str | int]:
        """Return the fields of the line of the log."""
        return self.fields() | {"receive": f"{self.receiving:.4f}", "hooks": summary(self.steps)}

    def record(self) -> Record:
        """Return the record for `minismtp explain`."""
        return Record(self.event, self.id, self.time, self.begun, self.fields(), self.steps)

    def _fields(self) -> dict[str, str | int]:
        made: dict[str, str | int] = {"id": self.id, "peer": self.peer}
        if self.login is not None:
            made["login"] = self.login
        made["sender"], made["to"] = f"<{self.sender or ''}>", ",".join(map(str, self.to))
        made["size"], made["seconds"] = self.size, f"{self.seconds:.4f}"
        if self.reply:
            made["reply"] = str(self.reply)
        if self.stored:
            made["stored"] = ",".join(map(str, self.stored))
        if self.queued:
            made["queued"] = ",".join([each.address for each in self.queued])
        for name, addresses in self.judged.items():
            made[name] = ",".join(map(str, addresses))
        if self.refusal:
            made.update(self.refusal)
        return made


class TransactionLog:
    """The account of one transaction, from MAIL until `aborted` or `finished`.

    Meanwhile the lines that the thread logs name the message, and the steps that it notes belong to
    it. `storage` is what stores the message, None before that. `verdicts` are those for single
    recipients that were applied.
    """

    def __init__(self, log: SessionLog, envelope: Envelope) -> None:
        self.storage: MessageStorage | None = None
        self.verdicts: Sequence[Outcome] = ()
        self._log = log
        self._context = log.context
        self._decision_log = log.context.decision_log
        self._session = log.session
        self._activity = activity = log.activity
        self._envelope = envelope
        self._steps_before, activity.steps = activity.steps, []
        self._begun = log.context.clock()
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
            account = self._account("no message", 0)
            if self._decision_log is not None:
                self._decision_log.later(account.record, accepted=False)
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
            reply, several = answers[0], len(answers) > 1
            if several:
                # A message is stored as soon as one copy is.
                reply = min(answers, key=lambda each: each.category)
            outcome = outcome or _OUTCOMES.get(reply.category, "rejected")
            self._log_message(outcome, size, receiving, reply)
            if several:
                self._log_recipients(recipients, answers, reply)
            if self.verdicts:
                self._log_verdicts(reply)
            if self._context.hooks.observed:
                session, message = self._session.id, self._envelope.id
                for each in answers:
                    event = MessageDecided(session, message, size, outcome, each)
                    self._context.hooks.observe(event)
        except Exception as error:  # noqa: BLE001 - the replies are sent
            report(error)
        self._end()

    def fields(self, size: int) -> dict[str, str | int]:
        """Return the fields of a message of `size` octets that has no reply yet."""
        return self._account("", size).fields()

    def _account(
        self,
        event: str,
        size: int,
        receiving: float = 0.0,
        reply: Reply | None = None,
        refusal: dict[str, str | int] | None = None,
    ) -> _Account:
        context, envelope, storage, begun = self._context, self._envelope, self.storage, self._begun
        judged: dict[str, list[Address]] = {}
        for outcome in self.verdicts:
            judged.setdefault(outcome.name, []).append(outcome.recipient.address)
        return _Account(
            id=envelope.id,
            peer=envelope.peer,
            login=self._session.login,
            sender=envelope.reverse_path,
            to=[recipient.address for recipient in envelope.recipients],
            stored=[] if storage is None else storage.stored,
            queued=[] if storage is None else storage.queued,
            judged=judged,
            steps=self._activity.steps,
            size=size,
            time=context.wall(),
            begun=begun,
            seconds=context.clock() - begun,
            receiving=receiving,
            event=event,
            reply=reply,
            refusal=refusal,
        )

    def _log_message(self, outcome: str, size: int, receiving: float, reply: Reply) -> None:
        context, metrics = self._context, self._context.metrics
        sized = ((metrics.message_size, float(size)),) if size else ()
        metrics.add(metrics.messages[outcome] + sized)
        refusal = None
        if reply.category != 2:  # noqa: PLR2004
            self._log.logged = True
            if not context.may_log_refusal(self._envelope.peer):
                return
            refusal = self._log.facts(reply)
        account = self._account(outcome, size, receiving, reply, refusal)
        context.log.later(outcome, account.line, _LINE + _NAME * len(account.to))
        if self._decision_log is not None:
            self._decision_log.later(account.record, accepted=refusal is None)

    def _log_recipients(
        self, recipients: Sequence[Recipient], answers: Sequence[Reply], logged: Reply
    ) -> None:
        """Log each recipient, over LMTP, whose reply is worse than that of the message."""
        for recipient, reply in zip(recipients, answers, strict=False):
            if reply.category != 2 and reply != logged:  # noqa: PLR2004
                self._log.log_recipient(
                    f"recipient {outcome_of(reply)}",
                    reply,
                    sender=self._envelope.sender,
                    recipient=str(recipient.address),
                )

    def _log_verdicts(self, answer: Reply) -> None:
        """Log and count the verdicts for single recipients, and tell the observers.

        Replies to the client are logged and counted already.
        """
        context, envelope = self._context, self._envelope
        for each in self.verdicts:
            reply, recipient = each.verdict.reply, each.recipient.address
            context.metrics.add(context.metrics.verdicts[each.name])
            facts = {"sender": envelope.sender, "recipient": str(recipient), "outcome": each.name}
            if reply is None:
                self._log.log_quarantined(each.verdict, facts)
            elif each.name not in ("rejected", "deferred"):
                code_class = f"{reply.category}xx"
                reason = reason_of("content", reply)
                context.metrics.refused("content", reply.origin.plugin, reason, code_class)
                self._log.log_recipient("recipient rejected", reply, **facts)
            elif reply != answer and not context.lmtp:
                self._log.log_recipient(f"recipient {each.name}", reply, **facts)
            if context.hooks.observed:
                session = self._session.id
                context.hooks.observe(
                    RecipientJudged(session, envelope.id, recipient, each.name, reply)
                )
        self._log.logged = answer.category != 2  # noqa: PLR2004

    def _end(self) -> None:
        """Let the log lines and steps of the thread belong to the session again."""
        if self._log.recipients:
            self._log.log_surplus()
        self._bound.pop("id", None)
        self._activity.steps = self._steps_before


def outcome_of(reply: Reply) -> str:
    """Return "deferred" for a temporary refusal, and "rejected" for a permanent one."""
    return "deferred" if reply.category == 4 else "rejected"  # noqa: PLR2004


def _shortened(text: str) -> str:
    """Return a client's text, cut to a length that is fit for the log."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _path_as_it_came(line: bytes, parsed: str = "") -> str:
    """Return the path of MAIL or RCPT for the log: `parsed`, if the client spelled it that way.

    A path that is malformed or spelled in another way is returned as it came, with its parameters.
    """
    text = line.rstrip(b"\0").decode("utf-8", "backslashreplace")
    text = text.partition(":")[2].strip(" \t") or text
    usual = f"<{parsed}>"
    if parsed and (text == usual or text.startswith(f"{usual} ")):
        return parsed
    return _shortened(text)
