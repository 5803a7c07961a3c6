"""What a place that keeps shared state can do, and how a limit counts.

A `Store` knows keys as octets and times as seconds; `state` is what plugins see of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

#: Parts of the span of a limit. What was taken comes free with the whole part it was taken in.
PARTS: Final = 20
MICROSECONDS: Final = 1_000_000
#: Seconds by which clocks may differ. What lies further ahead was noted by a clock that was wrong.
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
        """After so long nothing of what was taken counts any more."""
        return (PARTS + 1) * self.length / MICROSECONDS

    def current(self, taken: Mapping[int, int], now: int) -> dict[int, int]:
        """Return the parts of `taken` (number: amount) that count at `now`, in microseconds."""
        oldest, newest = now // self.length - PARTS, (now + AHEAD * MICROSECONDS) // self.length
        return {part: amount for part, amount in taken.items() if oldest <= part <= newest}

    def wait(self, taken: Mapping[int, int], now: int, amount: int) -> float:
        """Return the seconds until `amount` fits beside what is taken; inf when it never does."""
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

    `errors` are the exceptions that say that it is away or does not take the call.
    """

    name: str
    errors: tuple[type[Exception], ...]

    def get(self, key: bytes) -> str | None:
        """Return the value, None when there is none."""

    def put(self, key: bytes, value: str, seconds: float, *, durable: bool = False) -> None:
        """Keep a value, whatever was there; `durable` asks for it to be on disk."""

    def setdefault(self, key: bytes, value: str, seconds: float) -> str:
        """Return the value; when there is none, keep this one."""

    def add(self, key: bytes, amount: int, seconds: float) -> int:
        """Add to the number and give the sum; `seconds` counts from the first addition."""

    def take(self, claims: Sequence[tuple[bytes, Window, int]]) -> list[float]:
        """Take an amount from each window, or nothing at all; gives the seconds to wait."""

    def delete(self, key: bytes) -> None:
        """Forget a key."""

    def close(self) -> None:
        """Close connections; a later call opens new ones."""
