"""How one recipient of a waiting message stands: the one record of it in memory and in queue.db."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

#: An operator decides "held", "returning" and "removed"; the runner carries the last two out.
State: TypeAlias = Literal["queued", "held", "returning", "removed", "delivered", "failed"]
#: The states of a recipient whose mail is neither delivered, returned nor removed.
OPEN: Final = frozenset({"queued", "held", "returning"})


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """The status of recipient `number` of a message, in the order of the envelope.

    `destination` is what its jobs are for. `tried` and `next` are the times of the last and the
    next attempt in epoch seconds, 0 if there is none. `host` gave the last `reply`, or is empty.
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

    @property
    def shown_state(self) -> str:
        """The state as operators and metrics know it: a queued recipient is deferred once tried."""
        return "deferred" if self.state == "queued" and self.attempts else self.state

    def attempted(
        self, state: State, reply: str, host: str = "", *, at: float, again: float = 0.0
    ) -> RecipientStatus:
        """Return the status after one more attempt, at a time; `again` is that of the next one."""
        return replace(
            self,
            state=state,
            attempts=self.attempts + 1,
            next=again,
            tried=at,
            reply=reply,
            host=host,
        )
