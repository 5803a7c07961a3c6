"""Typed values that plugins attach to a session or an envelope for each other."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
D = TypeVar("D")


class StashKey(Generic[T]):
    """A key with the type of its value. It equals only itself, so modules never collide."""

    __slots__ = ()


class Stash:
    """Values by `StashKey`. A missing key raises KeyError.

    It belongs to one session or one envelope, and so to one thread at a time.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: MutableMapping[StashKey[Any], Any] = {}

    def __setitem__(self, key: StashKey[T], value: T) -> None:
        self._values[key] = value

    def __getitem__(self, key: StashKey[T]) -> T:
        found: T = self._values[key]
        return found

    def __delitem__(self, key: StashKey[T]) -> None:
        del self._values[key]

    def __contains__(self, key: StashKey[Any]) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: StashKey[T], default: D) -> T | D:
        """Return the value of `key`, or `default`."""
        found: T | D = self._values.get(key, default)
        return found

    def setdefault(self, key: StashKey[T], default: T) -> T:
        """Return the value of `key`, after setting it to `default` if it is missing."""
        found: T = self._values.setdefault(key, default)
        return found

    def copy(self) -> Stash:
        """Return another stash with the same values."""
        twin = Stash()
        twin._values.update(self._values)
        return twin

    def behind(self, own: Stash) -> Stash:
        """Return a stash with the values of both, those of `own` first; it stores into `own`."""
        both = Stash()
        both._values = ChainMap(own._values, self._values)
        return both
