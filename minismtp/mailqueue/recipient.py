"""How one recipient of a waiting message stands: the one record of it in memory and in queue.db."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, TypeAlias

#: "bounced" is what an operator wants returned to the sender. When it is, it has "failed".
State: TypeAlias = Literal["queued", "deferred", "held", "bounced", "delivered", "failed"]
#: The states of a recipient that is tried: not yet, or again.
TRIED: Final[frozenset[State]] = frozenset({"queued", "deferred"})
#: The states of a recipient whose mail is neither delivered, returned nor removed.
OPEN: Final[frozenset[State]] = TRIED | {"held", "bounced"}
#: The states by which messages are counted, everywhere. The first one that a recipient has counts.
#: A queued recipient counts as deferred if its destination could not be reached.
COUNTED: Final[tuple[State, ...]] = ("deferred", "queued", "held")
#: The states of `minismtp_queue_messages`: those of messages, and deliveries under way.
QUEUE_STATES: Final = ("queued", "deferred", "held", "active")


def message_state(states: Iterable[State]) -> State | None:
    """Return the state of `COUNTED` under which a message with these recipients is counted."""
    found = {*states}
    for state in COUNTED:
        if state in found:
            return state
    return None


class RecipientStatus(NamedTuple):
    """The status of recipient `number` of a message, in the order of the envelope.

    `destination` is what its jobs are for. `tried` and `next` are the times of the last and the
    next attempt in epoch seconds, 0 if there is none. `host` gave the last `reply`, or is empty.
    It is a tuple, because there may be 50,000 that are read from queue.db and written there.
    """

    message: str
    number: int
    address: str
    destination: str
    state: State = "queued"
    attempts: int = 0
    next: float = 0.0
    tried: float = 0.0
    reply: str = ""
    host: str = ""

    def attempted(
        self, state: State, reply: str, host: str = "", *, at: float, again: float = 0.0
    ) -> RecipientStatus:
        """Return the status after one more attempt, at a time; `again` is that of the next one."""
        attempts = self.attempts + 1
        return RecipientStatus(*self[:4], state, attempts, again, at, reply, host)
