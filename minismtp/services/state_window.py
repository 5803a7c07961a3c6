"""How a limit counts, in each store for shared state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Parts of the span of a limit. All amounts that were taken in one part become free together.
PARTS: Final = 20
MICROSECONDS: Final = 1_000_000
#: Seconds by which clocks may differ. An entry further ahead comes from a clock that was wrong.
AHEAD: Final = 60


@dataclass(frozen=True, slots=True)
class Window:
    """A limit: `capacity` in any span of time; `length` is that of a part, in microseconds."""

    capacity: int
    length: int

    @classmethod
    def of(cls, capacity: int, seconds: float) -> Window:
        """Return the window of a span that lasts `seconds`."""
        return cls(capacity, max(1, -(-round(seconds * MICROSECONDS) // PARTS)))

    @property
    def seconds(self) -> float:
        """The time after which an amount that was taken counts no more."""
        return (PARTS + 1) * self.length / MICROSECONDS

    def current(self, taken: Mapping[int, int], now: int) -> dict[int, int]:
        """Return the parts of `taken` (number: amount) that count at `now`, in microseconds."""
        oldest, newest = now // self.length - PARTS, (now + AHEAD * MICROSECONDS) // self.length
        return {part: amount for part, amount in taken.items() if oldest <= part <= newest}

    def wait(self, taken: Mapping[int, int], now: int, amount: int) -> float:
        """Return the seconds until `amount` fits besides what was `taken`; inf if it never does."""
        if amount > self.capacity:
            return float("inf")
        excess, wait = sum(taken.values()) + amount - self.capacity, 0.0
        for part in sorted(taken):
            if excess <= 0:
                break
            excess -= taken[part]
            wait = ((part + PARTS + 1) * self.length - now) / MICROSECONDS
        return wait
