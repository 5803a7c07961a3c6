"""The interface of a store for shared state, and how a limit counts.

A `Store` takes keys as octets and times as seconds; plugins see it as a `State`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

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


class Store(Protocol):
    """Keeps values under keys until they expire; every call is atomic, threads may share it.

    `errors` are the exceptions that it raises when it is down or refuses a call.
    """

    name: str
    errors: tuple[type[Exception], ...]

    def get(self, key: bytes) -> str | None:
        """Return the value, None if there is no such key."""

    def put(self, key: bytes, value: str, seconds: float, *, durable: bool = False) -> None:
        """Keep a value in place of an earlier one; `durable` asks for it to be on disk."""

    def setdefault(self, key: bytes, value: str, seconds: float) -> str:
        """Return the stored value, or keep this one and return it."""

    def add(self, key: bytes, amount: int, seconds: float) -> int:
        """Add to the number and return the sum; `seconds` counts from the first addition."""

    def take(self, claims: Sequence[tuple[bytes, Window, int]]) -> list[float]:
        """Take an amount from each window, or nothing at all; return the seconds to wait."""

    def delete(self, key: bytes) -> None:
        """Forget a key."""

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
