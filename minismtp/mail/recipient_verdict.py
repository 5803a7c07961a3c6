"""The verdict of a plugin on the content of a message for one of several recipients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from minismtp.values.reply import Reply

#: What happens instead of a notification if the sender may be forged.
IfForged: TypeAlias = Literal["quarantine", "discard"]


@dataclass(frozen=True, slots=True)
class RecipientVerdict:
    """One recipient's copy is refused with `reply`, or quarantined if `reply` is None."""

    reply: Reply | None
    """The refusal, None for the quarantine."""
    reason: str
    """The text of the refusal, or why the copy is quarantined."""
    if_forged: IfForged = "quarantine"
    """What happens to a refused copy, if the sender may be forged and so cannot be notified."""
    plugin: str = ""
    """The `name` of the plugin."""

    def signed(self, plugin: str, hook: str) -> RecipientVerdict:
        """Return this verdict with the plugin and the hook that it comes from, for the log."""
        reply = self.reply and self.reply.because("", plugin=plugin, hook=hook)
        return replace(self, reply=reply, plugin=plugin)

    def __str__(self) -> str:
        """Return what the verdict means, for a trace."""
        return f"quarantined: {self.reason}" if self.reply is None else f"refused: {self.reply}"
