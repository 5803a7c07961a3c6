"""What becomes of a message that no plugin has refused: mailboxes, the queue, notices (layer 4)."""

from __future__ import annotations

from collections.abc import Container, Sequence

from minismtp import replies
from minismtp.address import Address
from minismtp.entry import Entry, Target
from minismtp.envelope import Envelope, Recipient
from minismtp.log import describe
from minismtp.message import Message
from minismtp.reply import Defer, Disconnect, Reply, Verdict
from minismtp.reporting import route_notice, success_notices
from minismtp.service import Service
from minismtp.spool import UnreadableError
from minismtp.threads import report, surviving


class Storing:
    """Stores each mailbox's copy once, and queues what goes to other hosts.

    `stored` and `queued` say what has been done so far. `disconnects` says that a plugin wants the
    connection closed after the reply.
    """

    def __init__(
        self,
        service: Service,
        envelope: Envelope,
        message: Message,
        recipients: Sequence[Recipient],
    ) -> None:
        self.stored: list[Address] = []
        self.queued: list[Target] = []
        self.disconnects = False
        self._service = service
        self._envelope = envelope
        self._message = message
        self._recipients = recipients

    def run(self, accepted: Reply, named: Sequence[Recipient]) -> tuple[bool, list[Reply]]:
        """Store it and give the answers; True says that all of it is queued. Raises OSError.

        SMTP has one reply: a failure before anything was stored is that reply, and the client keeps
        the whole message; after it, that copy waits in the queue. LMTP has one for each recipient
        that the client has `named`; the failure of one that a plugin has added is as with SMTP.
        """
        own = set(map(id, named)) if self._service.lmtp else ()
        waiting = self._relayed()
        if waiting:
            self._check(waiting)
        done: dict[Address, Reply] = {}
        answers: list[Reply] = []
        for recipient in self._recipients:
            reply = accepted
            for mailbox in recipient.mailboxes:
                if mailbox not in done:
                    done[mailbox] = self._deliver(mailbox, accepted)
                if done[mailbox] is accepted:
                    continue
                if id(recipient) in own:
                    reply = done[mailbox]
                elif self._service.queue is None or accepted not in done.values():
                    return False, [done[mailbox]]
                else:
                    waiting.append(Target.of("local", mailbox, recipient))
            answers.append(reply)
        if waiting:
            self._enqueue(waiting, answers)
        with surviving():  # the message is ours already
            self._tell([mailbox for mailbox, reply in done.items() if reply is accepted])
        queued = bool(waiting) and accepted not in done.values()
        if not self._service.lmtp:
            return queued, [accepted]
        said = {id(each): reply for each, reply in zip(self._recipients, answers, strict=True)}
        return queued, [said.get(id(each), accepted) for each in named]

    def _relayed(self) -> list[Target]:
        """Give the targets at other hosts: each once, though several aliases lead there."""
        rewritable = self._envelope.reverse_path is not None
        found: dict[object, Target] = {}
        for recipient in self._recipients:
            for target in Target.relays(recipient, rewritable=rewritable):
                found.setdefault((target.address, target.sender, target.notify), target)
        return list(found.values())

    def _check(self, waiting: list[Target]) -> None:
        """Raise Defer for targets that could not be queued, before anybody else has a copy."""
        try:
            Entry.of(self._envelope, self._message, waiting).check()
        except ValueError as error:
            raise self._unqueued(error) from None

    def _unqueued(self, error: ValueError) -> Defer:
        self._service.log.error("message cannot be queued", id=self._envelope.id, error=str(error))
        deferred = Defer("the message cannot be queued", enhanced="4.3.0")
        deferred.reply = deferred.reply.because(str(error))
        return deferred

    def _enqueue(self, waiting: list[Target], answers: list[Reply]) -> None:
        """Queue copies. Raises OSError, but with LMTP changes the answers that depend on it."""
        queue = self._service.queue
        assert queue is not None  # noqa: S101 - else nothing waits
        try:
            queue.add(Entry.of(self._envelope, self._message, waiting), self._message)
            self.queued = waiting
        except UnreadableError as error:
            raise self._unqueued(error) from None
        except OSError as error:
            if not self._service.lmtp or self._envelope.added:
                raise
            self._service.log.error("content not written", id=self._envelope.id, error=str(error))
            for number, recipient in enumerate(self._recipients):
                if recipient.relays:
                    answers[number] = replies.NO_SPACE.because(str(error))

    def _tell(self, stored: Container[Address]) -> None:
        """Queue the notifications of what has succeeded already, where they were asked for.

        They go before the reply: after a crash in between they come twice, never not at all.
        """
        service, queue = self._service, self._service.queue
        asked = [each for each in self._recipients if "SUCCESS" in each.notify]
        if queue is None or not asked:
            return
        entry = Entry.of(self._envelope, self._message, [])
        notices = success_notices(entry, self._message, asked, stored, service.hostname)
        for notice, content in notices:
            routed = route_notice(notice, service.hooks, service.hostname)
            try:
                queue.add(routed, content)
            except (OSError, UnreadableError) as error:
                service.log.error("notification not queued", id=entry.id, error=str(error))
            else:
                service.log.info("notification", id=notice.id, about=entry.id, to=entry.sender)

    def _deliver(self, mailbox: Address, accepted: Reply) -> Reply:
        """Store one copy; what nobody expected is a failure of this one only."""
        try:
            stored = self._service.hooks.deliver(self._envelope, self._message, mailbox)
        except Verdict as verdict:
            self.disconnects = self.disconnects or isinstance(verdict, Disconnect)
            return verdict.reply
        except Exception as error:  # noqa: BLE001 - the next may go well
            report(error)
            return replies.FAULT.because(describe(error))
        if not stored:
            return replies.NO_STORAGE
        self.stored.append(mailbox)
        return accepted
