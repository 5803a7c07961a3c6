"""Notifications of the success that is certain when a message is accepted, and their routes.

The process that delivers copies from the spool sends the notifications about those.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator

from msgspec.structs import replace

from minismtp.hooks.facade import Hooks
from minismtp.mail.dsn import Action, Report, notification
from minismtp.mail.envelope import Recipient
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.session import Session
from minismtp.values.address import Address
from minismtp.values.reply import Verdict


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
