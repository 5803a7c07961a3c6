"""What the log and the decision log say about a session and its messages.

The session's thread only puts the values into a record. The threads that write the logs make the
fields of it, the first of them for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from minismtp.mail.queue_entry import QueuedRecipient
from minismtp.runtime import decision_log
from minismtp.runtime.thread_activity import Step, summary
from minismtp.values.address import Address
from minismtp.values.reply import Reply

_LINE = 400  # octets that a line takes roughly, without the addresses of recipients
_ADDRESS = 40


class Record(msgspec.Struct, kw_only=True, gc=False):
    """A line of the log, and the steps that led to it. See `decision_log.Record`."""

    event: str
    id: str
    peer: str
    time: float
    begun: float
    seconds: float
    steps: list[Step]
    made: dict[str, str | int] = {}

    @property
    def size(self) -> int:
        """The octets that the line takes roughly."""
        return _LINE

    def fields(self) -> dict[str, str | int]:
        """Return the fields of both logs."""
        if not self.made:
            self.made = self._make()
        return self.made

    def line(self) -> dict[str, str | int]:
        """Return the fields of the line of the log."""
        return self.fields()

    def decision(self) -> decision_log.Record:
        """Return the record of the decision log."""
        fields = self.fields()
        return decision_log.Record(self.event, self.id, self.time, self.begun, fields, self.steps)

    def _make(self) -> dict[str, str | int]:
        raise NotImplementedError


class MessageRecord(Record, kw_only=True, gc=False):
    """The end of a transaction. `receiving` is in seconds, `refusal` says more about a refusal."""

    login: str | None
    reverse_path: Address | None
    to: list[Address]
    octets: int = 0
    reply: Reply | None = None
    stored: Sequence[Address] = ()
    queued: Sequence[QueuedRecipient] = ()
    refusal: dict[str, str | int] = {}
    receiving: float = 0.0

    @property
    def size(self) -> int:
        """The octets that the line takes roughly."""
        return _LINE + _ADDRESS * (len(self.to) + len(self.stored) + len(self.queued))

    def line(self) -> dict[str, str | int]:
        """Return the fields of the line of the log, with the time of the content and each hook."""
        spent = {"receive": f"{self.receiving:.4f}", "hooks": summary(self.steps)}
        return self.fields() | spent

    def _make(self) -> dict[str, str | int]:
        return {
            "id": self.id,
            "peer": self.peer,
            **({} if self.login is None else {"login": self.login}),
            "sender": f"<{self.reverse_path or ''}>",
            "to": ",".join(map(str, self.to)),
            "size": self.octets,
            "seconds": f"{self.seconds:.4f}",
            **({} if self.reply is None else {"reply": str(self.reply)}),
            **({"stored": ",".join(map(str, self.stored))} if self.stored else {}),
            **({"queued": ",".join([each.address for each in self.queued])} if self.queued else {}),
            **self.refusal,
        }


class SessionRecord(Record, kw_only=True, gc=False):
    """The end of a session. `reply` is the last one, if it ended the session from outside."""

    listener: str
    reason: str
    commands: int
    transactions: int
    helo: str
    tls: str
    reply: str

    def _make(self) -> dict[str, str | int]:
        return {
            "peer": self.peer,
            "listener": self.listener,
            "reason": self.reason,
            "seconds": f"{self.seconds:.3f}",
            "commands": self.commands,
            "transactions": self.transactions,
            "helo": self.helo,
            **({"tls": self.tls} if self.tls else {}),
            **({"reply": self.reply} if self.reply else {}),
        }
