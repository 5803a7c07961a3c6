"""Shared state in Redis or Valkey, for all hosts that use the same one (extra `redis`).

An operation of several commands is a script, which the server runs as one, with its own clock. A
call, including the connection and the login, ends after 5 seconds whatever the server does.
"""

from __future__ import annotations

import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.retry import Retry

from minismtp.services.state_window import AHEAD, MICROSECONDS, PARTS, Window

_SECONDS: Final = 5.0  # for a whole call
_SETDEFAULT: Final = """
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
_ADD: Final = """
local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return sum
"""
# The same as `Window.wait` and `SqliteStore.take`. For each key: capacity, length, amount.
_TAKE: Final = f"""
local time = redis.call('TIME')
local now = time[1] * {MICROSECONDS} + time[2]
local waits, fits = {{}}, true
for i, key in ipairs(KEYS) do
    local capacity, length = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
    local excess = tonumber(ARGV[3 * i]) - capacity
    local wait, oldest, parts = 0, math.floor(now / length) - {PARTS}, {{}}
    local newest = math.floor((now + {AHEAD * MICROSECONDS}) / length)
    if excess > 0 then wait = -1 end
    local found = redis.call('HGETALL', key)
    for j = 1, #found, 2 do
        local part, amount = tonumber(found[j]), tonumber(found[j + 1])
        if part < oldest or part > newest then
            redis.call('HDEL', key, found[j])
        else
            excess = excess + amount
            parts[#parts + 1] = {{part, amount}}
        end
    end
    table.sort(parts, function(a, b) return a[1] < b[1] end)
    for _, each in ipairs(parts) do
        if wait < 0 or excess <= 0 then break end
        excess = excess - each[2]
        wait = (each[1] + {PARTS} + 1) * length - now
    end
    waits[i] = wait
    fits = fits and wait == 0
end
for i, key in ipairs(KEYS) do
    if not fits then break end
    local length = tonumber(ARGV[3 * i - 1])
    redis.call('HINCRBY', key, string.format('%.0f', math.floor(now / length)), ARGV[3 * i])
    redis.call('PEXPIRE', key, string.format('%.0f', ({PARTS} + 1) * length / 1000 + 1))
end
return waits
"""


class RedisStore:
    """A database of a server at a URL: redis, rediss (TLS) or unix.

    Raise ValueError or TypeError for URL parameters that the library does not know.
    """

    errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)

    def __init__(self, url: str, *, seconds: float = _SECONDS) -> None:
        self.name = _without_password(url)
        self._seconds = seconds
        self._clock = _Clock()
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        kind = _TIMED[options.pop("connection_class", Connection)]
        # The server may have carried out a call that failed, so no call is retried.
        retry = Retry(NoBackoff(), 0)
        options |= {"clock": self._clock, "socket_timeout": seconds, "retry": retry, "protocol": 2}
        kind(**options)  # raises now if the URL has an unknown parameter
        self._pool = ConnectionPool(connection_class=kind, **options)
        client = redis.Redis(connection_pool=self._pool)
        self._client: Any = client  # its types mix in those of asyncio
        self._setdefault: Any = client.register_script(_SETDEFAULT)
        self._add: Any = client.register_script(_ADD)
        self._take: Any = client.register_script(_TAKE)

    def get(self, key: bytes) -> str | None:
        """Return the value, None if there is no such key."""
        found = self._ask(self._client.get, key)
        return None if found is None else _text(found)

    def put(self, key: bytes, value: str, seconds: float, *, durable: bool = False) -> None:
        """Keep a value in place of an earlier one; the server decides how durable it is."""
        del durable
        self._ask(self._client.set, key, value, px=_milliseconds(seconds))

    def setdefault(self, key: bytes, value: str, seconds: float) -> str:
        """Return the stored value, or keep this one and return it."""
        return _text(self._ask(self._setdefault, [key], [value, _milliseconds(seconds)]))

    def add(self, key: bytes, amount: int, seconds: float) -> int:
        """Add to the number and return the sum; `seconds` counts from the first addition."""
        return int(self._ask(self._add, [key], [amount, _milliseconds(seconds)]))

    def take(self, claims: Sequence[tuple[bytes, Window, int]]) -> list[float]:
        """Take an amount from each window, or nothing at all; return the seconds to wait."""
        numbers: list[int] = []
        for _, window, amount in claims:
            numbers += [window.capacity, window.length, amount]
        waits = self._ask(self._take, [key for key, _, _ in claims], numbers)
        return [float("inf") if wait < 0 else wait / MICROSECONDS for wait in waits]

    def delete(self, key: bytes) -> None:
        """Forget a key."""
        self._ask(self._client.delete, key)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._pool.disconnect()

    def _ask(self, command: Callable[..., Any], *arguments: object, **options: object) -> Any:  # noqa: ANN401 - what Redis answers
        self._clock.due = time.monotonic() + self._seconds
        return command(*arguments, **options)


class _Clock(threading.local):
    """The deadline of this thread's call."""

    due = 0.0

    def left(self) -> float:
        left = self.due - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        return left


class _TimedSocket:
    """A socket whose waits together end at the deadline of the call."""

    def __init__(self, sock: socket.socket, clock: _Clock) -> None:
        self._socket = sock
        self._clock = clock

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all that sockets have
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        self._limit_wait()
        self._socket.sendall(data)

    def recv(self, *arguments: int) -> bytes:
        self._limit_wait()
        return self._socket.recv(*arguments)

    def recv_into(self, *arguments: Any) -> int:  # noqa: ANN401 - hands them on
        self._limit_wait()
        return self._socket.recv_into(*arguments)

    def _limit_wait(self) -> None:
        if self._socket.gettimeout() != 0:  # 0 for a caller that polls
            self._socket.settimeout(self._clock.left())


class _Timed:
    """Gives a class of connections the deadline of the call."""

    def __init__(self, *, clock: _Clock, **options: Any) -> None:  # noqa: ANN401 - hands them on
        super().__init__(**options)
        self._clock = clock

    def _connect(self) -> socket.socket:
        connection: Any = super()
        vars(self)["socket_connect_timeout"] = self._clock.left()
        connected: socket.socket = connection._connect()  # noqa: SLF001 - there is no other way
        return cast("socket.socket", _TimedSocket(connected, self._clock))


_TIMED: Final = {
    kind: type(kind.__name__, (_Timed, kind), {})
    for kind in (Connection, SSLConnection, UnixDomainSocketConnection)
}


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"
