"""Which waiting recipients an operator means, as a condition in SQL."""

# ruff: noqa: S608 - the conditions are made here, values are always parameters

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from minismtp.values.address import Address, to_ascii, to_unicode


def _state(tried: str) -> str:
    """Return the state of a recipient in the words of `State`, which are not all in the file."""
    return (
        f"CASE recipients.state WHEN 'queued' THEN CASE WHEN {tried} THEN 'deferred'"
        " ELSE 'queued' END WHEN 'returning' THEN 'bounced' WHEN 'removed' THEN 'failed'"
        " ELSE recipients.state END"
    )


STATE: Final = _state("attempts > 0")
#: What operators see. A recipient counts as deferred for them too if another job found that its
#: destination cannot be reached.
WAITING: Final = (
    "(SELECT message, number, sender, arrived, size, address, recipients.destination,"
    f" {_state('attempts > 0 OR until IS NOT NULL')} AS state, attempts, next, tried,"
    " recipients.reply, host, COALESCE(until, 0) AS closed_until,"
    " COALESCE(closed.reply, '') AS closed_reply FROM recipients JOIN messages ON id = message"
    " LEFT JOIN closed ON closed.destination = recipients.destination"
    " WHERE recipients.state IN ('queued', 'held'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The recipients that meet every condition that is given.

    `to_domain` and `sender` ignore case; `sender` is an address or "@domain". `older_than` is in
    seconds, and `reason` is a part of the last reply.
    """

    ids: tuple[str, ...] = ()
    to_domain: str = ""
    sender: str | None = None
    older_than: float | None = None
    state: str = ""
    reason: str = ""

    def where(self, now: float) -> tuple[str, list[object]]:
        """Return the condition and its values."""
        parts, values = ["1"], list[object]()
        if self.ids:
            parts.append(f"message IN ({','.join('?' * len(self.ids))})")
            values.extend(self.ids)
        if self.to_domain:
            self._add(parts, values, "address", f"@{self.to_domain}")
        if self.sender is not None:
            self._add(parts, values, "sender", self.sender)
        if self.older_than is not None:
            parts.append("arrived <= ?")
            values.append(now - self.older_than)
        if self.state:
            parts.append("state = ?")
            values.append(self.state)
        if self.reason:
            parts.append("COALESCE(NULLIF(reply, ''), closed_reply) LIKE ? ESCAPE '\\'")
            values.append(f"%{_escaped(self.reason)}%")
        return " AND ".join(parts), values

    @staticmethod
    def _add(parts: list[str], values: list[object], column: str, wanted: str) -> None:
        """Add the condition for an address or "@domain", with A-labels and with U-labels."""
        with contextlib.suppress(ValueError):
            wanted = str(Address.parse(wanted))  # as the database has it, with its quotes
        local, at, domain = wanted.rpartition("@")
        forms = dict.fromkeys([to_ascii(domain), to_unicode(domain)])
        parts.append("(" + " OR ".join([f"{column} LIKE ? ESCAPE '\\'"] * len(forms)) + ")")
        start = "" if local else "%"
        values.extend(start * bool(at) + _escaped(f"{local}{at}{form}") for form in forms)


def _escaped(text: str) -> str:
    for special in ("\\", "%", "_"):
        text = text.replace(special, f"\\{special}")
    return text
