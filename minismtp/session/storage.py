"""The storage of an accepted message: in mailboxes, in the queue, with its notifications.

Of the notifications, only those of the success that is certain now are made here. The process that
delivers copies from the spool sends those about the copies.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from minismtp.hooks.facade import Hooks
from minismtp.mail.dsn import Action, Report, notification
from minismtp.mail.envelope import Envelope, Local, Recipient
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.session import Session
from minismtp.runtime.log import describe
from minismtp.session import replies
from minismtp.session.listener_context import ListenerContext
from minismtp.storage.spool import Spool, UnreadableError
from minismtp.values.address import Address
from minismtp.values.reply import Defer, Disconnect, Reply, Verdict
from minismtp.values.threads import report, surviving

_PATIENCE: Final = 120.0  # seconds for all copies; a client waits at least 600 (RFC 5321 4.5.3.2.6)


class Share(Struct, frozen=True):
    """The recipients who get the message in one form: as it is, or quarantined for them alone."""

    envelope: Envelope
    message: Message
    recipients: Sequence[Recipient]


class MessageStorage:
    """Stores each mailbox's copy once, and queues the copies for other hosts.

    Of several shares, a mailbox gets its copy in the form of the first one that has it. `stored`
    and `queued` say what is done so far. `close` says whether a plugin wants the connection closed
    after the reply.
    """

    def __init__(self, context: ListenerContext, shares: Sequence[Share]) -> None:
        self.stored: list[Address] = []
        self.queued: list[QueuedRecipient] = []
        self.close = False
        first, *others = shares
        self._context = context
        self._shares = shares
        self._several = others != []
        self._envelope = first.envelope
        self._message = first.message
        self._recipients = first.recipients
        if others:
            self._recipients = [each for share in shares for each in share.recipients]

    def run(self, accepted: Reply, named: Sequence[Recipient]) -> list[Reply]:
        """Store the message and return the replies.

        Each mailbox that can take its copy gets it, in any order of the recipients. The copies that
        failed wait in the queue, which tries them again or tells the sender. Over SMTP a failure is
        the reply only if no copy could be stored or queued; then the client keeps the whole
        message. Over LMTP there is a reply for each recipient that the client has `named`, and the
        client keeps the message for those without any copy. Raise OSError and Verdict.
        """
        relays = self._relayed()
        if relays or len(self._recipients) > 1 or self._recipients[0].expands:
            self._check(relays)
        failures = self._deliver_all()
        if not relays and not failures:
            self._notify(self._recipients)
            return [accepted] * (len(named) if self._context.lmtp else 1)
        own = set(map(id, named)) if self._context.lmtp else ()
        kept = [
            each for each in self._recipients if id(each) in own and self._is_kept(each, failures)
        ]
        waiting = self._waiting(kept, failures)
        if waiting and (self._context.queue is None or not (self.stored or relays)):
            return [_most_hopeful(failures.values())]
        refused = {}
        for each in kept:
            failed = [mailbox for mailbox in each.mailboxes if mailbox in failures]
            if not waiting.keys() >= set(failed):  # else it waits because of an alias
                refused[id(each)] = _most_hopeful([failures[mailbox] for mailbox in failed])
        if waiting or relays:
            self._enqueue(relays, waiting, failures, refused)
        self._notify([each for each in self._recipients if id(each) not in refused])
        if not self._context.lmtp:
            return [accepted]
        return [refused.get(id(each), accepted) for each in named]

    def _deliver_all(self) -> dict[Address, Reply]:
        """Store each mailbox's copy once, and return the replies for those that failed.

        The client waits meanwhile, so no copy is begun after its patience ends.
        """
        clock = self._context.clock
        failures: dict[Address, Reply] = {}
        mailboxes = [box for recipient in self._recipients for box in recipient.mailboxes]
        several = len(mailboxes) > 1
        due = clock() + _PATIENCE if several else inf
        share = self._shares[0]
        forms = self._forms() if self._several else None
        for number, mailbox in enumerate(dict.fromkeys(mailboxes) if several else mailboxes):
            late = number and clock() > due
            if forms is not None:
                share = forms[mailbox]
            failure = replies.SLOW if late else self._deliver(share, mailbox)
            if failure is not None:
                failures[mailbox] = failure
        return failures

    def _forms(self) -> dict[Address, Share]:
        """Return the first share that has each mailbox."""
        found: dict[Address, Share] = {}
        for share in self._shares:
            for recipient in share.recipients:
                for mailbox in recipient.mailboxes:
                    found.setdefault(mailbox, share)
        return found

    def _is_kept(self, recipient: Recipient, failures: Mapping[Address, Reply]) -> bool:
        """Return whether the client keeps a recipient's mail, because its reply is a failure.

        An alias with one copy that is stored or leaves counts as delivered, or the client would
        send that copy again.
        """
        failed = [mailbox in failures for mailbox in recipient.mailboxes]
        if self._context.queue is None:
            return any(failed)
        return any(failed) and all(failed) and not recipient.relays

    def _waiting(
        self, kept: Sequence[Recipient], failures: Mapping[Address, Reply]
    ) -> dict[Address, QueuedRecipient]:
        """Return the failed copies that are for the queue, each once."""
        own = set(map(id, kept))
        found: dict[Address, QueuedRecipient] = {}
        for recipient in self._recipients if failures else ():
            for mailbox in recipient.mailboxes if id(recipient) not in own else ():
                if mailbox in failures:
                    found.setdefault(mailbox, QueuedRecipient.of("local", mailbox, recipient))
        return found

    def _relayed(self) -> list[QueuedRecipient]:
        """Return the targets at other hosts, each once even if several aliases lead there."""
        rewritable = self._envelope.reverse_path is not None
        found: dict[object, QueuedRecipient] = {}
        for recipient in self._recipients:
            if type(recipient.route) is Local:
                continue
            for target in QueuedRecipient.relays(recipient, rewritable=rewritable):
                found.setdefault((target.address, target.sender, target.notify), target)
        return list(found.values())

    def _check(self, relays: list[QueuedRecipient]) -> None:
        """Raise Defer or OSError for copies that cannot be queued, before any copy is stored."""
        if not any(recipient.mailboxes for recipient in self._recipients):
            return  # `Spool.add` checks the same before it writes
        queue = self._context.queue
        if relays:
            try:
                QueueEntry.of(self._envelope, self._message, relays).check()
            except ValueError as error:
                raise self._unqueued(error) from None
        if queue is not None and not queue.has_space(self._message.size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _unqueued(self, error: ValueError) -> Defer:
        self._context.log.error("message cannot be queued", id=self._envelope.id, error=str(error))
        deferred = Defer("the message cannot be queued", enhanced="4.3.0")
        deferred.reply = deferred.reply.because(str(error))
        return deferred

    def _enqueue(
        self,
        relays: list[QueuedRecipient],
        waiting: Mapping[Address, QueuedRecipient],
        failures: Mapping[Address, Reply],
        refused: dict[int, Reply],
    ) -> None:
        """Queue copies. Raise OSError, but over LMTP refuse the recipients that depend on them."""
        context, name = self._context, self._envelope.id
        assert context.queue is not None  # noqa: S101 - else nothing waits
        targets = [*relays, *waiting.values()]
        try:
            if self._several:
                self._enqueue_shares(context.queue, targets)
            else:
                entry = QueueEntry.of(self._envelope, self._message, targets)
                context.queue.add(entry, self._message)
        except UnreadableError as error:
            raise self._unqueued(error) from None
        except OSError as error:
            if not context.lmtp or self._envelope.added:
                raise
            context.log.error("content not written", id=name, error=str(error))
            for recipient in self._recipients:
                if recipient.relays or not waiting.keys().isdisjoint(recipient.mailboxes):
                    refused.setdefault(id(recipient), replies.NO_SPACE.because(str(error)))
            return
        self.queued = targets
        with surviving():
            for mailbox in waiting:
                reply = str(failures[mailbox])
                context.log.warning("copy waits", id=name, mailbox=str(mailbox), reply=reply)

    def _enqueue_shares(self, queue: Spool, targets: Iterable[QueuedRecipient]) -> None:
        """Queue the copies of each share under a name of its own."""
        numbers = {
            str(recipient.address): number
            for number, share in enumerate(self._shares)
            for recipient in share.recipients
        }
        parts: dict[int, list[QueuedRecipient]] = {}
        for target in targets:
            parts.setdefault(numbers[target.recipient], []).append(target)
        for number, part in parts.items():
            share = self._shares[number]
            entry = QueueEntry.of(share.envelope, share.message, part)
            name = f"{entry.id}.r{number}" if number else entry.id
            queue.add(replace(entry, id=name), share.message)

    def _notify(self, recipients: Sequence[Recipient]) -> None:
        """Queue the notifications of success that were asked for.

        This is done before the reply, so after a crash in between they may come twice, but they are
        never missing. Nothing is raised, because the message is stored already.
        """
        if self._context.queue is None:
            return
        asked = [each for each in recipients if "SUCCESS" in each.notify]
        if asked:
            with surviving():
                self._queue_notices(asked, self._context.queue)

    def _queue_notices(self, asked: Sequence[Recipient], queue: Spool) -> None:
        context = self._context
        entry = QueueEntry.of(self._envelope, self._message, [])
        notices = success_notices(entry, self._message, asked, self.stored, context.hostname)
        for notice, content in notices:
            routed = route_notice(notice, context.hooks, context.hostname)
            try:
                queue.add(routed, content)
            except (OSError, UnreadableError) as error:
                context.log.error("notification not queued", id=entry.id, error=str(error))
            else:
                context.log.info("notification", id=notice.id, about=entry.id, to=entry.sender)

    def _deliver(self, share: Share, mailbox: Address) -> Reply | None:
        """Store one copy, or return why not. An unexpected exception fails only this copy."""
        try:
            stored = self._context.hooks.deliver(share.envelope, share.message, mailbox)
        except Verdict as verdict:
            self.close = self.close or isinstance(verdict, Disconnect)
            return verdict.reply
        except Exception as error:  # noqa: BLE001 - the next copy may succeed
            report(error)
            return replies.FAULT.because(describe(error))
        if not stored:
            return replies.NO_STORAGE
        self.stored.append(mailbox)
        return None


def _most_hopeful(failures: Iterable[Reply]) -> Reply:
    """Return the one reply to several failures, a temporary one if any of them is."""
    return min(failures, key=lambda reply: reply.category)


def success_notices(
    entry: QueueEntry,
    message: Message,
    recipients: Iterable[Recipient],
    stored: Container[Address],
    hostname: str,
) -> Iterator[tuple[QueueEntry, Message]]:
    """Yield the notifications that the sender of a message gets at once, each with its content.

    An alias of several targets is "expanded", and a mailbox that has its copy "delivered". The fate
    of all others is told later (RFC 3461 sections 5.2.3 and 5.2.7.2).
    """
    by_action: dict[Action, list[Report]] = {}
    for recipient in recipients:
        target = QueuedRecipient(
            kind="local",
            address=str(recipient.address),
            recipient=str(recipient.address),
            notify=tuple(sorted(recipient.notify)),
            original=recipient.original,
        )
        if recipient.expands:
            by_action.setdefault("expanded", []).append(Report(target, ""))
        elif any(mailbox in stored for mailbox in recipient.mailboxes):
            by_action.setdefault("delivered", []).append(Report(target, ""))
    now = time.time()
    for action, reports in by_action.items():
        made = notification(entry, message, action, reports, hostname=hostname, now=now, until=now)
        if made is not None:
            yield made


def route_notice(notice: QueueEntry, hooks: Hooks, hostname: str) -> QueueEntry:
    """Return a notification with its route: to local mailboxes, or else to other hosts."""
    session = Session(id=notice.id, listener="", kind="mx", hostname=hostname, peer="127.0.0.1")
    try:
        recipient = Recipient(Address.parse(notice.targets[0].recipient))
        recipient.route = hooks.route(session, notice.envelope(), recipient)
    except (Verdict, ValueError):  # `Spool.add` says what is wrong with an address
        return notice
    targets = [QueuedRecipient.of("local", mailbox, recipient) for mailbox in recipient.mailboxes]
    targets += QueuedRecipient.relays(recipient, rewritable=False)
    return replace(notice, targets=tuple(targets)) if targets else notice
