"""Keep the last messages that were rejected, for a page of one's own."""

from collections import deque
from dataclasses import field

from minismtp import Reject, hookimpl, plugin
from minismtp.events import Event, MessageDecided
from minismtp.testing import Dialogues, Mailroom


@plugin
class Latest:
    rejected: deque[str] = field(default_factory=lambda: deque(maxlen=100), init=False)

    @hookimpl
    def observe(self, event: Event) -> None:
        if isinstance(event, MessageDecided) and event.outcome == "rejected":
            self.rejected.append(f"{event.envelope}: {event.reply}")


@plugin
class Refusing:
    @hookimpl
    def on_message(self) -> None:
        raise Reject("no")


def test_rejected_message_is_kept(dialogue: Dialogues, mailroom: Mailroom) -> None:
    latest = Latest()
    dialogue(latest, Refusing(), mailroom).mail("Subject: x\n\ny\n")
    assert latest.rejected[0].endswith(".1: 550 5.7.1 no")
