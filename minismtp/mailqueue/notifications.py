"""Tells senders what became of their messages, as far as they want to know.

Notifications are messages in the spool like all others; `dsn` writes them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from minismtp.delivery.attempt import DeliveryContext
from minismtp.mail.dsn import Action, Report, notification
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.database import Outcome, Row
from minismtp.runtime.log import Log
from minismtp.storage.spool import Spool, UnreadableError


class Notifier:
    """Queues notifications. `expire` is the age in seconds at which messages are returned."""

    def __init__(self, delivery: DeliveryContext, spool: Spool, log: Log, expire: float) -> None:
        self._delivery = delivery
        self._spool = spool
        self._log = log
        self._expire = expire

    def report(
        self,
        entry: QueueEntry,
        message: Message,
        outcomes: Sequence[Outcome],
        reported: Iterable[bool],
    ) -> None:
        """Tell of failures, and of successes that no other host reports. Raise OSError."""
        by_action: dict[Action, list[Report]] = {}
        for outcome, done in zip(outcomes, reported, strict=True):
            target = entry.targets[outcome.number]
            report = Report(target, outcome.reply, outcome.host)
            if outcome.state == "failed":
                by_action.setdefault("failed", []).append(report)
            elif outcome.state == "delivered" and not done:
                action: Action = "delivered" if target.kind == "local" else "relayed"
                by_action.setdefault(action, []).append(report)
        for action, told in by_action.items():
            self._notify(entry, message, action, told)

    def warn(self, entry: QueueEntry, message: Message, rows: Iterable[Row]) -> None:
        """Tell that recipients still wait. Raise OSError."""
        told = [Report(entry.targets[row.number], row.reply, row.host) for row in rows]
        self._notify(entry, message, "delayed", told)

    def _notify(
        self, entry: QueueEntry, message: Message, action: Action, told: list[Report]
    ) -> None:
        made = notification(
            entry,
            message,
            action,
            told,
            hostname=self._delivery.config.hostname,
            now=time.time(),
            until=entry.arrived + self._expire,
        )
        if made is None:
            return
        notice, content = made
        try:
            self._spool.add(self._delivery.routed(notice), content)
        except UnreadableError as error:  # by a plugin's route: another try would not help
            self._log.error("notification not possible", about=entry.id, error=str(error))
            return
        self._log.info("notification", id=notice.id, about=entry.id, action=action, to=entry.sender)


def final(text: str, reply: str) -> str:
    """Return the reply of a decision of ours, with what the last host has said."""
    return f"{text} (the last attempt: {reply})" if reply else text
