"""What became of each parameter of Postfix: three lists, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

_HEADS: Final = {
    "carried": "Carried over:",
    "by_hand": "Needs your hand:",
    "without_counterpart": "Has no counterpart, or needs none:",
}


class Entry(NamedTuple):
    """A parameter, its place, and a text: a key of minismtp, what to do, or a reason."""

    parameter: str
    place: str
    text: str


@dataclass(slots=True)
class Report:
    """The three lists. An entry that is there already is not added again."""

    carried: dict[Entry, None] = field(default_factory=dict)
    by_hand: dict[Entry, None] = field(default_factory=dict)
    without_counterpart: dict[Entry, None] = field(default_factory=dict)

    def lists(self) -> dict[str, list[Entry]]:
        """Return the lists under their names."""
        return {name: list(getattr(self, name)) for name in _HEADS}

    def parameters(self) -> set[str]:
        """Return the parameters that are in a list."""
        return {entry.parameter for entries in self.lists().values() for entry in entries}

    def lines(self) -> list[str]:
        """Return the lists as text."""
        lines: list[str] = []
        for name, entries in self.lists().items():
            if entries:
                lines += [_HEADS[name], *(f"  {line}" for line in _aligned(entries, name)), ""]
        return lines

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """Return the lists as plain values."""
        return {
            name: [entry._asdict() for entry in entries] for name, entries in self.lists().items()
        }


def _aligned(entries: Iterable[Entry], name: str) -> list[str]:
    arrow = "-> " if name == "carried" else ""
    return [f"{each.place}: {each.parameter}: {arrow}{each.text}" for each in entries]
