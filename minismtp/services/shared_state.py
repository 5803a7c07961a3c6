"""Values, counters and limits that plugins share among all workers, or among several hosts.

    state.put("last", "192.0.2.1", timedelta(hours=1))
    failures = state.add(f"failures {session.peer}", 1, timedelta(minutes=10))
    if wait := state.take(f"mail {session.login}", 100, timedelta(hours=1)):
        raise Defer(f"try again in {wait:.0f} s")

The state lies in the file state.db in the state directory, or with `[state] url` in a Redis or
Valkey that several hosts share. Nothing is opened before the first call. On a busy virtual machine
with two cores the file takes 25 us for `get`, 0.1 ms for a write and 0.15 ms for `take`. Redis on
the same machine takes 0.2 to 0.6 ms, most of it in the client library.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from minismtp.config.mistakes import ConfigError
from minismtp.config.tables import StateConfig
from minismtp.services.remote import Breaker, RemoteError
from minismtp.services.state_sqlite import SqliteStore
from minismtp.services.state_window import Window
from minismtp.values.clock import steady_time
from minismtp.values.installation import how_to_install

if TYPE_CHECKING:
    from minismtp.services.state_redis import RedisStore

    #: Takes keys as octets and times as seconds, and raises its `errors`. Threads may share it.
    Store: TypeAlias = SqliteStore | RedisStore

FILE: Final = "state.db"
_LONGEST_KEY: Final = 256  # octets; a longer key ends in a digest of the whole
_DIGEST: Final = 20


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for `amount` of the limit `key`, which allows `capacity` in any span of `per`."""

    key: str
    capacity: int
    per: timedelta
    amount: int = 1


class State:
    """Values by key, each with an expiry; threads may share it.

    Every call is atomic. It raises RemoteError if the store is down, too slow or full. After
    several failures in a row the store is not asked for a while. A key has one purpose: a value of
    `put` and `setdefault`, a counter of `add`, or a limit of `take`. Plugins find theirs in
    `ServerInfo.state`, where the keys belong to this plugin alone, by the name in its table.
    """

    def __init__(self, store: Store, prefix: str = "", breaker: Breaker | None = None) -> None:
        """Keep all keys in `store`, with `prefix` in front."""
        self._store = store
        self._prefix = self._shared = prefix
        self._breaker = breaker or Breaker(store.name)

    @classmethod
    def of(
        cls, table: StateConfig, directory: Path, *, clock: Callable[[], float] = steady_time
    ) -> State:
        """Return the state that the configuration asks for. Raise ConfigError.

        `clock` returns epoch seconds; Redis has a clock of its own.
        """
        if not table.url:
            return cls(SqliteStore(directory / FILE, clock=clock))
        try:
            from minismtp.services.state_redis import RedisStore  # noqa: PLC0415 - of an extra
        except ModuleNotFoundError as error:
            problem = f"needs the module {error.name!r}; {how_to_install('redis')}"
            raise ConfigError(problem, key="state.url") from error
        try:
            return cls(RedisStore(table.url), table.prefix)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error), key="state.url") from error

    @classmethod
    def in_memory(cls, *, clock: Callable[[], float] = steady_time) -> State:
        """Return a state for this process alone, for tests; `clock` returns seconds."""
        return cls(SqliteStore(None, clock=clock))

    def at(self, name: str) -> State:
        """Return a state in the same store whose keys cannot collide with others."""
        return State(self._store, f"{self._prefix}{name}:", self._breaker)

    def of_plugin(self, name: str) -> State:
        """Return the state of one plugin, the same for every call with this name."""
        own = State(self._store, f"{self._shared}{name}:", self._breaker)
        own._shared = self._shared
        return own

    def get(self, key: str) -> str | None:
        """Return the value, or a counter as text; None if it does not exist or expired."""
        with self._asking():
            return self._store.get(self._key(key))

    def put(self, key: str, value: str, expires: timedelta, *, durable: bool = False) -> None:
        """Keep a value until it expires, in place of an earlier one.

        With `durable` it survives a power cut once this returns, which takes a sync. In Redis that
        depends on the server's configuration.
        """
        with self._asking():
            self._store.put(self._key(key), value, _seconds(expires), durable=durable)

    def setdefault(self, key: str, value: str, expires: timedelta) -> str:
        """Return the stored value, or keep this one until it expires and return it.

        Of several calls at once, one stores its value and all return that.
        """
        with self._asking():
            return self._store.setdefault(self._key(key), value, _seconds(expires))

    def add(self, key: str, amount: int, expires: timedelta) -> int:
        """Add to a counter and return the sum. It begins at 0, and again after it expired.

        `expires` counts from the first addition; later ones do not change it.
        """
        with self._asking():
            return self._store.add(self._key(key), amount, _seconds(expires))

    def take(self, key: str, capacity: int, per: timedelta, amount: int = 1) -> float:
        """Take an amount from a limit and return 0, or return the seconds to wait.

        No span of `per`, wherever it begins, has more than `capacity`. An amount is free again
        after `per`, or up to a twentieth of it later. A refused call takes nothing. For an amount
        above the capacity the wait is `math.inf`.
        """
        return self.take_all([Claim(key, capacity, per, amount)])[0]

    def take_all(self, claims: Sequence[Claim]) -> list[float]:
        """Take from all limits or from no limit, and return the seconds to wait for each.

        The keys must differ from each other.
        """
        wishes = [
            (self._key(each.key), Window.of(each.capacity, _seconds(each.per)), each.amount)
            for each in claims
        ]
        with self._asking():
            return self._store.take(wishes)

    def delete(self, key: str) -> None:
        """Forget a value, a counter or a limit."""
        with self._asking():
            self._store.delete(self._key(key))

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._store.close()

    def _key(self, key: str) -> bytes:
        whole = f"{self._prefix}{key}".encode(errors="backslashreplace")
        if len(whole) <= _LONGEST_KEY:
            return whole
        digest = hashlib.blake2b(whole, digest_size=_DIGEST).hexdigest().encode()
        return whole[: _LONGEST_KEY - len(digest)] + digest

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Count failures in the breaker, and raise them with the name of the store."""
        with self._breaker.watch():
            try:
                yield
            except self._store.errors as error:
                raise RemoteError(f"{self._store.name}: {error}") from error


def _seconds(time: timedelta) -> float:
    if time <= timedelta(0):
        raise ValueError(f"expected a time above 0, not {time}")
    return time.total_seconds()
