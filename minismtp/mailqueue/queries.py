"""Which waiting recipients an operator means, as a condition in SQL."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from minismtp.values.address import Address, to_ascii, to_unicode

# A recipient counts as tried too if another job found that its destination cannot be reached.
_TRIED: Final = "(attempts > 0 OR closed.reply IS NOT NULL)"
_REPLY: Final = "COALESCE(NULLIF(recipients.reply, ''), closed.reply, '')"
WAITING: Final = (
    "recipients JOIN messages ON id = message"
    " LEFT JOIN closed ON closed.destination = recipients.destination"
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
        parts, values = ["state IN ('queued', 'held')"], list[object]()
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
        if self.state == "deferred":
            parts.append(f"state = 'queued' AND {_TRIED}")
        elif self.state == "queued":
            parts.append(f"state = 'queued' AND NOT {_TRIED}")
        elif self.state:
            parts.append("state = ?")
            values.append(self.state)
        if self.reason:
            parts.append(f"{_REPLY} LIKE ? ESCAPE '\\'")
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
