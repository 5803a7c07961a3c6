"""Why mail waits: the recipients in the queue, counted by the reason.

Replies of one kind differ in hosts, addresses and numbers. So these are left out of a reason, and
a thousand recipients behind one failure are one line for an operator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_LONGEST: Final = 160  # characters of a reason
_AROUND: Final = "<>()[]{},;:.'\"="
_GAP: Final = "\u2026"
_UNTRIED: Final = "not tried yet"
_HELD: Final = "held"


class WaitingGroup(NamedTuple):
    """The recipients of one destination with the same reply. `oldest` arrived at epoch seconds.

    `reply` is empty if there was none. `held` says that an operator or a plugin holds them.
    """

    held: bool
    reply: str
    destination: str
    recipients: int
    oldest: float


@dataclass(slots=True)
class Reason:
    """A reason, the number of recipients that wait for it, and the arrival of the oldest.

    `destinations` has the number of recipients for each destination.
    """

    text: str
    recipients: int = 0
    oldest: float = 0.0
    destinations: dict[str, int] = field(default_factory=dict)

    def add(self, group: WaitingGroup) -> None:
        """Add recipients."""
        self.oldest = min(self.oldest, group.oldest) if self.recipients else group.oldest
        self.recipients += group.recipients
        before = self.destinations.get(group.destination, 0)
        self.destinations[group.destination] = before + group.recipients


def reasons(groups: Iterable[WaitingGroup]) -> list[Reason]:
    """Return the reasons, the one with the most recipients first."""
    found: dict[str, Reason] = {}
    for group in groups:
        text = pattern(group.reply)
        if group.held:
            text = f"{_HELD}: {text}" if text else _HELD
        text = text or _UNTRIED
        found.setdefault(text, Reason(text)).add(group)
    return sorted(found.values(), key=lambda each: (-each.recipients, each.oldest))


def pattern(reply: str) -> str:
    """Return a reply without what differs between replies of one kind.

    The codes at its start stay. A word with a digit, a dot or "@" inside becomes an ellipsis.
    """
    words: list[str] = []
    for number, word in enumerate(reply[: 4 * _LONGEST].split()):
        core = word.strip(_AROUND)
        is_code = not number or (number == 1 and core.replace(".", "").isdigit())
        if not is_code and any(each.isdigit() or each in ".@" for each in core):
            word = word.replace(core, _GAP)  # noqa: PLW2901 - the same word, shortened
        if word != _GAP or words[-1:] != [_GAP]:
            words.append(word)
    text = " ".join(words)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}{_GAP}"
