"""The events that plugins can observe; the public name of `minismtp.mail.events`.

    @hookimpl
    def observe(self, event: events.Event) -> None:
        if isinstance(event, events.MessageDecided):
            self.messages[event.outcome] += 1

Observers are called after the decision, so they cannot change it.
"""

from minismtp.mail.events import (
    Authenticated,
    DeliveryAttempted,
    Event,
    HookFailed,
    MessageDecided,
    RecipientDecided,
    SessionClosed,
    SessionOpened,
)

__all__ = [
    "Authenticated",
    "DeliveryAttempted",
    "Event",
    "HookFailed",
    "MessageDecided",
    "RecipientDecided",
    "SessionClosed",
    "SessionOpened",
]
