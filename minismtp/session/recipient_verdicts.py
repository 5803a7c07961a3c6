"""What becomes of a message that plugins refused or quarantined for some of its recipients alone.

Over LMTP such a refusal is the reply for the recipient (RFC 2033 section 4.2). SMTP has one reply,
so it is a refusal only if no recipient gets the message, or if one of them is to get it later. Else
the sender is notified about the recipients without it. A notification to somebody who sent nothing
would be spam of our own, so a sender who may be forged gets none: the copy goes to the quarantine,
or is dropped. A notification is on disk before the client gets 250, after the copies.
"""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from minismtp.mail.dsn import Report, notification, wanted
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.recipient_verdict import RecipientVerdict
from minismtp.mail.results import results_of
from minismtp.session.listener_context import ListenerContext
from minismtp.session.storage import Share, route_notice
from minismtp.storage.spool import Spool, UnreadableError
from minismtp.values.reply import Reply

_MOST_FORMS: Final = 8  # reasons for which copies are quarantined apart, so a message is not
# stored once for each recipient; recipients with further reasons share the last copy

OutcomeName: TypeAlias = Literal["rejected", "deferred", "notified", "quarantined", "dropped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recipient's copy."""

    recipient: Recipient
    verdict: RecipientVerdict
    name: OutcomeName


@dataclass(slots=True)
class Judgement:
    """The recipients of one message, sorted by what becomes of their copies.

    `refusal` is the reply to the content, if nobody gets the message now. `answers` are the replies
    over LMTP to refused recipients, by the `id` of the recipient.
    """

    shares: list[Share] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    answers: dict[int, Reply] = field(default_factory=dict)
    refusal: Reply | None = None
    notice: tuple[QueueEntry, Message] | None = None


def judge(
    context: ListenerContext,
    envelope: Envelope,
    message: Message,
    named: Sequence[Recipient],
    added: Sequence[Recipient],
) -> Judgement:
    """Apply the verdicts for single recipients. Nothing is stored yet.

    `named` are the recipients of the client, `added` those of plugins. Raise OSError if a
    notification is due and the queue has no space for it.
    """
    found = Judgement()
    verdicts = envelope.verdicts
    kept = [each for each in named if each.address not in verdicts]
    judged = [(each, verdicts[each.address]) for each in named if each.address in verdicts]
    aside = [(each, verdict.reason) for each, verdict in judged if verdict.reply is None]
    refused = [(each, verdict) for each, verdict in judged if verdict.reply is not None]
    kept += added
    if context.lmtp:
        for each, verdict in refused:
            assert verdict.reply is not None  # noqa: S101 - see above
            found.answers[id(each)] = verdict.reply
            found.outcomes.append(Outcome(each, verdict, _refusal_name(verdict.reply)))
    elif refused:
        found.refusal = _refusal(refused, alone=not (kept or aside))
        if found.refusal is not None:
            name = _refusal_name(found.refusal)
            found.outcomes += [Outcome(each, verdict, name) for each, verdict in refused]
            return found
        _settle(context, envelope, message, refused, found)
        aside += [
            (each.recipient, f"refused for the recipient: {each.verdict.reason}")
            for each in found.outcomes
            if each.name == "quarantined"
        ]
    found.outcomes += [
        Outcome(each, verdict, "quarantined") for each, verdict in judged if verdict.reply is None
    ]
    found.shares = _shares(envelope, message, kept, aside)
    return found


def is_verified(envelope: Envelope) -> bool:
    """Return whether a notification to the sender reaches somebody who sent this message.

    That is so for a user who logged in and for a trusted network, and for a stranger if SPF says
    that the client may send for the domain of the reverse-path, and DMARC does not fail. A DKIM
    signature says nothing about the reverse-path.
    """
    if envelope.reverse_path is None or envelope.trusted:
        return envelope.reverse_path is not None
    domain, results = f"@{envelope.reverse_path.domain}", results_of(envelope)
    if any(each.method == "dmarc" and each.result == "fail" for each in results):
        return False
    return any(
        each.method == "spf"
        and each.result == "pass"
        and f"@{each.properties.get('smtp.mailfrom', '')}".lower().endswith(domain.lower())
        for each in results
    )


def queue_notice(context: ListenerContext, notice: tuple[QueueEntry, Message]) -> None:
    """Queue a notification, which is on disk then. Raise OSError."""
    entry, content = notice
    queue = _queue(context)
    assert queue is not None  # noqa: S101 - else there is no notice
    try:
        queue.add(route_notice(entry, context.hooks, context.hostname), content)
    except UnreadableError as error:  # by a plugin's route, so it goes the way of other mail
        context.log.error("notification not routed", id=entry.id, error=str(error))
        queue.add(entry, content)
    context.log.info("notification", id=entry.id, to=entry.targets[0].recipient)


def _refusal(refused: list[tuple[Recipient, RecipientVerdict]], *, alone: bool) -> Reply | None:
    """Return the one reply of SMTP, if verdicts for single recipients make it a refusal."""
    answers = [verdict.reply for _, verdict in refused if verdict.reply is not None]
    later = [reply for reply in answers if reply.category == 4]  # noqa: PLR2004
    if later:
        return later[0]
    return answers[0] if alone else None


def _refusal_name(reply: Reply) -> OutcomeName:
    return "deferred" if reply.category == 4 else "rejected"  # noqa: PLR2004


def _settle(
    context: ListenerContext,
    envelope: Envelope,
    message: Message,
    refused: Iterable[tuple[Recipient, RecipientVerdict]],
    found: Judgement,
) -> None:
    """Decide about refused recipients while others get the message, and make the notification."""
    queue, reports = _queue(context), list[Report]()
    may_notify = queue is not None and is_verified(envelope)
    for recipient, verdict in refused:
        name: OutcomeName = "quarantined" if verdict.if_forged == "quarantine" else "dropped"
        if may_notify:
            target = _target(recipient)
            name = "notified" if wanted(target, "failed") else "dropped"
            if name == "notified":
                reports.append(Report(target, str(verdict.reply)))
        found.outcomes.append(Outcome(recipient, verdict, name))
    if not reports:
        return
    entry, now = QueueEntry.of(envelope, message, []), context.wall()
    found.notice = notification(
        entry, message, "failed", reports, hostname=context.hostname, now=now, until=now
    )
    if queue is not None and not queue.has_space(2 * message.size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _target(recipient: Recipient) -> QueuedRecipient:
    return QueuedRecipient(
        kind="local",
        address=str(recipient.address),
        recipient=str(recipient.address),
        notify=tuple(sorted(recipient.notify)),
        original=recipient.original,
    )


def _queue(context: ListenerContext) -> Spool | None:
    return context.notices or context.queue


def _shares(
    envelope: Envelope,
    message: Message,
    kept: list[Recipient],
    aside: Iterable[tuple[Recipient, str]],
) -> list[Share]:
    """Return the forms in which the message is stored, the ordinary one first."""
    if message.quarantined is not None:  # it is for all, and one file is enough
        kept, aside = [*kept, *(recipient for recipient, _ in aside)], ()
    shares = [Share(envelope, message, kept)] if kept else []
    forms: dict[str, list[Recipient]] = {}
    for recipient, reason in aside:
        last = next(reversed(forms), reason)
        forms.setdefault(reason if len(forms) < _MOST_FORMS else last, []).append(recipient)
    for reason, recipients in forms.items():
        own, form = copy.copy(envelope), message.copy()
        own.recipients = recipients
        form.quarantine(reason)
        shares.append(Share(own, form, recipients))
    return shares
