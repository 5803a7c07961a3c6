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
    listener: str
    peer: str


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A connection ended; `duration` in seconds, `reason` one word (quit, timeout, lost ...)."""

    session: str
    listener: str
    peer: str
    duration: float
    reason: str


@dataclass(frozen=True, slots=True)
class Authenticated:
    """An AUTH exchange ended; `result` is success, failure, error or cancelled."""

    session: str
    peer: str
    mechanism: str
    username: str
    result: str


@dataclass(frozen=True, slots=True)
class RecipientDecided:
    """RCPT was answered."""

    session: str
    envelope: str
    recipient: Address
    reply: Reply


@dataclass(frozen=True, slots=True)
class MessageDecided:
    """The message was answered; `outcome` is a value of the metric messages_total."""

    session: str
    envelope: str
    size: int
    outcome: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class HookFailed:
    """A plugin raised an exception other than a verdict; `policy` is defer or ignore."""

    plugin: str
    hook: str
    error: str
    policy: str


@dataclass(frozen=True, slots=True)
class DeliveryAttempted:
    """An attempt for one recipient of a queued message: `state` is delivered, queued or failed."""

    envelope: str
    recipient: str
    state: str
    host: str
    reply: str


Event: TypeAlias = (
    SessionOpened
    | SessionClosed
    | Authenticated
    | RecipientDecided
    | MessageDecided
    | HookFailed
    | DeliveryAttempted
)
