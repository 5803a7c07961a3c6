"""One mail transaction, from MAIL to the reply after the content.

That reply is 250 only if every copy is on disk and synced, or if a plugin discarded the message. It
is a 4yz or 5yz in all other cases, so nothing acknowledged can be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from minismtp.mail.cleanup import RETURN_PATH, clean
from minismtp.mail.content import Content, ContentWriter
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.headers import FIELD_LIMIT, too_many_fields
from minismtp.mail.message import Message
from minismtp.mail.trace_fields import hops, received
from minismtp.runtime.log import describe
from minismtp.runtime.suspects import fingerprint
from minismtp.session import replies
from minismtp.session.recipient_verdicts import Outcome, judge, queue_notice
from minismtp.session.session_log import SessionLog, TransactionLog
from minismtp.session.storage import MessageStorage, Share
from minismtp.session.submission import add_sender, complete, owns_authors, owns_sender
from minismtp.smtp.commands import Mail, Rcpt
from minismtp.smtp.dot_stuffing import ChunkLines, LineChecks, fix_newlines
from minismtp.values.address import Address
from minismtp.values.reply import Defer, Disconnect, Reply, Verdict
from minismtp.values.threads import report


class Transaction:
    """A transaction under way. It begins once MAIL was accepted by the syntax and the rules."""

    def __init__(self, log: SessionLog, mail: Mail, number: int) -> None:
        context, session = log.context, log.session
        self._context = context
        self._session = session
        self._activity = log.activity
        self._receiving = 0.0  # when the content began, and from `finish` on its seconds
        self._writer: ContentWriter | None = None
        self._lines: ChunkLines | None = None  # of content by BDAT, but not if it is binary
        self._fix = False  # whether bare newlines of content by DATA become CRLF
        self._accepted: list[Recipient] = []
        self._recipients = self._accepted  # who gets the message, see `_readdress`
        self._asked = False
        self._close = False  # after the reply to the content, because a plugin wants it
        self.verdicts: Sequence[Outcome] = ()  # for single recipients that were applied
        self.refused: Reply | None = None  # the reply to the content, if it is refused already
        sender, known = mail.reverse_path, session.login is not None
        self.envelope = Envelope(
            id=f"{session.id}.{number}",
            reverse_path=sender if sender is None or sender.domain else self._at_home(sender),
            listener=session.listener,
            peer=session.peer,
            helo=session.helo,
            login=session.login,
            arrived=context.wall(),
            size=mail.size,
            body=mail.body,
            smtputf8=mail.smtputf8,
            require_tls=mail.require_tls,
            # RFC 4954 section 5: without a login as AUTH=<>, because it is not authenticated.
            submitter=mail.submitter if known else "",
            dsn_return=mail.dsn_return,
            dsn_id=mail.dsn_id,
            trusted=session.trusted or known,
        )
        self._log = TransactionLog(log, self.envelope)

    def _at_home(self, address: Address) -> Address:
        """Return the address that a local part alone means, as in <Postmaster>.

        RFC 5321 section 4.5.1 has only <Postmaster>, but local programs write other names too.
        """
        return Address(address.local, self._context.hostname)

    def begin(self) -> Reply:
        """Ask the plugins about the reverse-path. Raise Verdict."""
        context, session = self._context, self._session
        if context.match_sender and not owns_sender(context.hooks, session, self.envelope):
            return replies.NOT_YOURS
        if context.queue is not None and not context.queue.has_space(self.envelope.size or 0):
            return replies.NO_SPACE
        context.hooks.on_mail(session, self.envelope)
        return replies.SENDER_OK

    def recipient(self, command: Rcpt) -> Reply:
        """Judge and route one recipient. Accepted ones join the envelope."""
        address = command.forward_path
        if not address.domain:
            address = self._at_home(address)
        self._activity.note(("RCPT", str(address), perf_counter(), 0.0, "", ""))
        notify = command.notify
        if "SUCCESS" in notify and not self.envelope.trusted:
            # The sender may be forged, and a notification would go to somebody who sent nothing.
            notify = notify - {"SUCCESS"} or frozenset({"NEVER"})
        recipient = Recipient(address, notify=notify, original=command.original)
        try:
            reply = self._judge(recipient)
        except Verdict as verdict:
            self._log.decided(recipient, verdict.reply)
            raise
        self._log.decided(recipient, reply)
        return reply

    def _judge(self, recipient: Recipient) -> Reply:
        context, session, envelope = self._context, self._session, self.envelope
        if len(self._accepted) >= context.limits.recipients:
            return replies.TOO_MANY  # RFC 5321 section 4.5.3.1.10
        in_ascii = recipient.address.is_ascii and recipient.original.isascii()
        if not (envelope.smtputf8 or in_ascii):
            return replies.NEEDS_UTF8  # RFC 6531 section 3.5, RFC 6533 section 3
        context.hooks.on_rcpt(session, envelope, recipient)
        problem = self._route(recipient)
        if problem is not None:
            return problem
        context.hooks.on_routed(session, envelope, recipient)
        envelope.recipients.append(recipient)
        self._accepted.append(recipient)
        return replies.RECIPIENT_OK

    def _route(self, recipient: Recipient) -> Reply | None:
        """Set the route of a recipient. Return the refusal, if there is no route that works."""
        context = self._context
        recipient.route = context.hooks.route(self._session, self.envelope, recipient)
        if recipient.route is None:
            return replies.NO_ROUTE
        if context.queue is None and recipient.relays:
            return replies.NO_OUTBOUND
        return None

    def begin_data(self) -> Reply:
        """Ask the plugins before 354. Raise Verdict."""
        if self.envelope.body == "BINARYMIME":
            return replies.BINARY_DATA  # RFC 3030 section 3
        self._open()
        self._fix = self._context.fix_newlines
        return replies.GO_AHEAD

    def begin_chunk(self) -> None:
        """Ask the plugins before the first chunk. Their refusal becomes the reply to it."""
        try:
            self._open()
        except Verdict as verdict:
            self.refuse(self._refusal(verdict))
        if self._lines is None and self.envelope.body != "BINARYMIME":
            context = self._context
            self._lines = ChunkLines(
                fix=context.fix_newlines, line_length=context.limits.line_length
            )

    def _open(self) -> None:
        if not self._asked:
            self._context.hooks.on_data(self._session, self.envelope)
            self._asked = True
        if self._writer is None:
            self._receiving = self._context.clock()
            self._writer = ContentWriter(self._context.spool)

    def refuse(self, reply: Reply) -> None:
        """Keep nothing of the content, and answer its end with `reply`."""
        self.refused = self.refused or reply
        self._writer = None

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Take some content. `last` says that no more chunks of BDAT follow."""
        writer, lines = self._writer, self._lines
        if writer is None:
            return
        if lines is not None:
            data = lines.take(data, last=last)
            if lines.bare_newline and not self._context.fix_newlines:
                self.refuse(replies.BARE_NEWLINE)
                return
            if lines.long_line:
                self.refuse(replies.LONG_LINE)
                return
        elif self._fix:
            data = fix_newlines(data)
        if writer.size + len(data) > self._context.limits.message_size:
            self.refuse(replies.TOO_BIG)  # RFC 1870 section 6.3: enforced while receiving
            return
        try:
            writer.write(data)
        except OSError as error:
            self.refuse(self._not_written(error))

    def abort(self) -> None:
        """End without a message, because the client left, asked for it, or was refused."""
        self._writer = None
        self._log.aborted()

    def finish(
        self, *, bare_newline: bool = False, long_line: bool = False
    ) -> tuple[list[Reply], bool]:
        """Judge the whole message and store it. Return the replies, and whether to close then.

        There is one reply, or over LMTP one for each recipient.
        """
        if bare_newline and not self._context.fix_newlines:
            self.refuse(replies.BARE_NEWLINE)
        if long_line:
            self.refuse(replies.LONG_LINE)
        size, outcome = 0, ""
        if self._receiving:
            self._receiving = self._context.clock() - self._receiving
        writer, self._writer = self._writer, None
        if writer is None:
            answers = [self.refused or replies.NO_SPACE]
        else:
            size = writer.size
            try:
                outcome, answers = self._accept(writer)
            except Verdict as verdict:
                answers = [self._refusal(verdict)]
            except OSError as error:
                answers = [self._not_written(error)]
            except Exception as error:  # noqa: BLE001 - unexpected, so the client tries again
                report(error)
                answers = [replies.FAULT.because(describe(error))]
        if self._context.lmtp and len(answers) == 1:
            answers *= len(self._accepted)
        self._log.finished(outcome, size, self._receiving, answers, self._accepted)
        return answers, self._close

    def _accept(self, writer: ContentWriter) -> tuple[str, list[Reply]]:
        """Take a message, or set it aside unread if workers died on it."""
        context, envelope = self._context, self.envelope
        # Over LMTP the message is delivered here, even for a trusted client.
        submitted = envelope.trusted and not context.lmtp
        dropped = context.dropped if submitted else RETURN_PATH
        cleaned = clean(writer.finish(), context.limits.headers, dropped)
        if cleaned is None:
            return "rejected", [replies.LONG_HEADER]
        head, content = cleaned
        notes = context.suspects
        if notes is None:
            return self._take(head, content, submitted=submitted)
        mark = fingerprint(envelope, content)
        if notes.is_fatal(mark):
            return self._set_aside(content)
        note = notes.begin(mark, f"{envelope.id}\n{envelope.peer}\n<{envelope.sender}>")
        try:
            return self._take(head, content, submitted=submitted)
        finally:
            notes.end(note, mark)

    def _set_aside(self, content: Content) -> tuple[str, list[Reply]]:
        """Quarantine a message, or defer it if there is no quarantine."""
        context, envelope = self._context, self.envelope
        facts = self._log.fields(content.size)
        context.log.error("message that workers died on is set aside", **facts)
        if not context.quarantines:
            return "deferred", [replies.FATAL]
        message = Message(envelope.id, content, received(self._session, envelope))
        message.quarantine("workers died on it")
        return self._store(message)

    def _take(self, head: bytes, content: Content, *, submitted: bool) -> tuple[str, list[Reply]]:
        """Check a message, ask the plugins about it, and store it. Raise Verdict and OSError."""
        context, session, envelope = self._context, self._session, self.envelope
        if problem := self._header_problem(head):
            return "rejected", [problem]
        message = Message(envelope.id, content, received(session, envelope))
        if submitted:
            complete(envelope, message, head, context.hostname)
        if context.match_from and not owns_authors(context.hooks, session, envelope, message):
            return "rejected", [replies.AUTHOR_NOT_YOURS]
        if context.add_sender:
            add_sender(envelope, message)
        context.hooks.on_message(session, envelope, message)
        discarded = message.discarded
        if discarded is None and (envelope.added or envelope.removed or envelope.verdicts):
            self._readdress()
            if envelope.verdicts and self._recipients:
                return self._judge_each(message)
            discarded = None if self._recipients else "no recipient is left"
        if discarded is not None:
            context.log.info("discarded", id=envelope.id, reason=discarded)
            return "discarded", [replies.accepted(envelope.id)]
        return self._store(message)

    def _judge_each(self, message: Message) -> tuple[str, list[Reply]]:
        """Apply the verdicts for single recipients, and store the message for the others."""
        context, envelope = self._context, self.envelope
        named = [each for each in self._accepted if each.address not in envelope.removed]
        judged = judge(context, envelope, message, named, envelope.added)
        if judged.refusal is not None:
            self._log.verdicts = self.verdicts = judged.outcomes
            return "", [judged.refusal]
        shares = judged.shares
        ordinary = [share for share in shares if share.envelope is envelope]
        envelope.recipients = [*ordinary[0].recipients] if ordinary else []
        outcome, stored = "discarded", [replies.accepted(envelope.id)]
        if shares:
            outcome, stored = self._store(message, shares)
        if judged.notice is not None and stored[0].category == 2:  # noqa: PLR2004
            queue_notice(context, judged.notice)
        if context.lmtp:
            stored *= len(self._accepted) if len(stored) == 1 else 1
            pairs = zip(self._accepted, stored, strict=True)
            stored = [judged.answers.get(id(each), reply) for each, reply in pairs]
            outcome = outcome if any(reply.category == 2 for reply in stored) else ""  # noqa: PLR2004
        if context.lmtp or stored[0].category == 2:  # noqa: PLR2004
            self._log.verdicts = self.verdicts = judged.outcomes
        return outcome, stored

    def _store(
        self, message: Message, shares: Sequence[Share] | None = None
    ) -> tuple[str, list[Reply]]:
        envelope = self.envelope
        accepted = replies.accepted(envelope.id)
        shares = shares or [Share(envelope, message, self._recipients)]
        storage = MessageStorage(self._context, shares)
        self._log.storage = storage
        answers = storage.run(accepted, self._accepted)
        self._close = self._close or storage.close
        # The ordinary share, if there is one, is the first.
        if shares[0].message.quarantined is not None and accepted in answers:
            return "quarantined", answers
        return "queued" if storage.queued and not storage.stored else "", answers

    def _header_problem(self, head: bytes) -> Reply | None:
        limits = self._context.limits
        if self.envelope.body == "BINARYMIME":
            # RFC 3030 section 3 lifts the limits of lines for the body, but not for the header.
            lines = LineChecks(limits.line_length)
            lines.check(head)
            if lines.bare_newline:
                return replies.BARE_NEWLINE
            if lines.long_line:
                return replies.LONG_LINE
        # Each field has a line at least, so most headers need no second look.
        lines_of_header = head.count(b"\n")
        if lines_of_header >= FIELD_LIMIT and too_many_fields(head):
            return replies.MANY_FIELDS
        if lines_of_header >= limits.hops and hops(head) > limits.hops:
            return replies.LOOP  # RFC 5321 section 6.3
        return None

    def _readdress(self) -> None:
        """Add and remove the recipients as plugins asked.

        An added recipient is routed like any other, so it opens no relay. If it cannot be routed,
        the whole message is deferred, because it may replace all other recipients.
        """
        envelope = self.envelope
        kept = [each for each in self._accepted if each.address not in envelope.removed]
        for recipient in envelope.added:
            try:
                reply = self._route(recipient) or replies.RECIPIENT_OK
            except Verdict as verdict:
                reply = verdict.reply
            self._log.decided(recipient, reply)
            if reply is not replies.RECIPIENT_OK:
                deferred = Defer("a recipient that was added cannot be reached", enhanced="4.3.5")
                deferred.reply = deferred.reply.because(
                    f"{recipient.address}: {reply}",
                    plugin=reply.origin.plugin,
                    hook=reply.origin.hook,
                )
                raise deferred
        self._recipients = [*kept, *envelope.added]
        envelope.recipients = [*self._recipients]

    def _refusal(self, verdict: Verdict) -> Reply:
        self._close = self._close or isinstance(verdict, Disconnect)
        return verdict.reply

    def _not_written(self, error: OSError) -> Reply:
        self._context.log.error("content not written", id=self.envelope.id, error=str(error))
        return replies.NO_SPACE.because(str(error))
