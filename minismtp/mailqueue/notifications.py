"""Delivery status notifications: tells senders what happened to their messages.

A notification is a message in the spool like any other; `mail.dsn` writes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from minismtp.delivery.attempt import DeliveryContext
from minismtp.mail.dsn import Action, Report, notification
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.runtime.log import Log
from minismtp.storage.spool import Spool, UnreadableError


class Notifier:
    """Queues notifications."""

    def __init__(self, delivery: DeliveryContext, spool: Spool, log: Log) -> None:
        self._delivery = delivery
        self._spool = spool
        self._log = log

    def report(
        self,
        entry: QueueEntry,
        message: Message,
        statuses: Sequence[RecipientStatus],
        reported: Iterable[bool],
    ) -> None:
        """Report failures, and successes that no other host reports. Raise OSError."""
        by_action: dict[Action, list[Report]] = {}
        for status, elsewhere in zip(statuses, reported, strict=True):
            target = entry.targets[status.number]
            if status.state == "failed":
                action: Action = "failed"
            elif status.state == "delivered" and not elsewhere and "SUCCESS" in target.notify:
                action = "delivered" if target.kind == "local" else "relayed"
            else:
                continue
            report = Report(target, status.reply, status.host)
            by_action.setdefault(action, []).append(report)
        for action, reports in by_action.items():
            self._notify(entry, message, action, reports)

    def warn(
        self, entry: QueueEntry, message: Message, statuses: Iterable[RecipientStatus]
    ) -> None:
        """Report that recipients still wait. Raise OSError."""
        reports = [Report(entry.targets[each.number], each.reply, each.host) for each in statuses]
        self._notify(entry, message, "delayed", reports)

    def _notify(
        self, entry: QueueEntry, message: Message, action: Action, reports: list[Report]
    ) -> None:
        config = self._delivery.config
        made = notification(
            entry,
            message,
            action,
            reports,
            hostname=config.hostname,
            now=time.time(),
            until=entry.arrived + config.outbound.expire.total_seconds(),
        )
        if made is None:
            return
        notice, content = made
        try:
            self._spool.add(self._delivery.routed(notice), content)
        except UnreadableError as error:  # by a plugin's route, so another try would not help
            self._log.error("notification not possible", about=entry.id, error=str(error))
            return
        self._log.info("notification", id=notice.id, about=entry.id, action=action, to=entry.sender)


def with_last_reply(text: str, reply: str) -> str:
    """Return the reply of a decision of this server, with what the last host answered."""
    return f"{text} (the last attempt: {reply})" if reply else text
