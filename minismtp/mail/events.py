"""Events for `observe` plugins, as frozen values.

An event tells about the past, so an observer cannot change a session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from minismtp.values.address import Address
from minismtp.values.reply import Reply


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A connection was accepted."""

    session: str
    """The identifier of the session."""
    listener: str
    """The `name` of the listener."""
    peer: str
    """The client's address."""


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A connection ended."""

    session: str
    """The identifier of the session."""
    listener: str
    """The `name` of the listener."""
    peer: str
    """The client's address."""
    duration: float
    """The length of the session in seconds."""
    reason: str
    """How it ended: quit, timeout, lost, refused and so on."""


@dataclass(frozen=True, slots=True)
class Authenticated:
    """An AUTH exchange ended."""

    session: str
    """The identifier of the session."""
    peer: str
    """The client's address."""
    mechanism: str
    """The SASL mechanism."""
    username: str
    """The name that the client gave, "" if it gave none."""
    result: str
    """success, failure, error or cancelled."""


@dataclass(frozen=True, slots=True)
class RecipientDecided:
    """RCPT was answered."""

    session: str
    """The identifier of the session."""
    envelope: str
    """The identifier of the transaction."""
    recipient: Address
    """The address in RCPT."""
    reply: Reply
    """The reply to RCPT."""


@dataclass(frozen=True, slots=True)
class MessageDecided:
    """The message was answered."""

    session: str
    """The identifier of the session."""
    envelope: str
    """The identifier of the transaction."""
    size: int
    """The octets of the content."""
    outcome: str
    """A value of the metric `messages_total`, such as stored."""
    reply: Reply
    """The reply to the content."""


@dataclass(frozen=True, slots=True)
class RecipientJudged:
    """A plugin decided on the content of a message for one recipient alone."""

    session: str
    """The identifier of the session."""
    envelope: str
    """The identifier of the transaction."""
    recipient: Address
    """The address in RCPT."""
    outcome: str
    """A value of the metric `recipient_verdicts_total`, such as notified."""
    reply: Reply | None
    """The refusal, None for a copy that the plugin quarantined."""


@dataclass(frozen=True, slots=True)
class HookFailed:
    """A plugin raised an exception other than a verdict."""

    plugin: str
    """The `name` of the plugin."""
    hook: str
    """The hook that raised."""
    error: str
    """The type and the text of the exception."""
    policy: str
    """defer or ignore."""


@dataclass(frozen=True, slots=True)
class DeliveryAttempted:
    """An attempt for one recipient of a queued message ended."""

    envelope: str
    """The identifier of the message."""
    recipient: str
    """The address."""
    state: str
    """delivered, queued (to be tried again) or failed."""
    host: str
    """The host that replied, "" if none did."""
    reply: str
    """The reply, or why there is none."""


Event: TypeAlias = (
    SessionOpened
    | SessionClosed
    | Authenticated
    | RecipientDecided
    | MessageDecided
    | RecipientJudged
    | HookFailed
    | DeliveryAttempted
)
