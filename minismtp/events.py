"""What plugins can observe: the public path of `minismtp.mail.events`."""

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
