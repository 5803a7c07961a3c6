"""The events that plugins can observe; the public name of `minismtp.mail.events`."""

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
