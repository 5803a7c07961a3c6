r"""Services that plugins ask over a socket, within a time and not while they are down.

    self._scanner = Remote(self.address, timeout=self.timeout)
    ...
    with self._scanner.connect() as line:
        line.send(b"zPING\0")
        answer = line.read_until(b"\0")

`timeout` is absolute: a service that sends an octet now and then gains nothing. After several
failures in a row nobody is asked for a while; what the plugin then does is for its `on_error`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from minismtp.values.reply import Verdict

if TYPE_CHECKING:
    from datetime import timedelta

    from minismtp.config.types import SocketAddress

_FAILURES: Final = 5  # in a row, until a service is left alone
_PAUSE: Final = 30.0  # seconds
_PIECE: Final = 65536
_log: Final = logging.getLogger(__name__)


class RemoteError(OSError):
    """A service is away, too slow, cut off in the middle, or talks nonsense, as the text says."""


class RemoteTimeoutError(RemoteError, TimeoutError):
    """A service did not do what it was asked to do within the time."""


class Breaker:
    """Stops calls to a service that has failed several times in a row, for a while.

    Then one call is let through; when it succeeds, so are all. Threads share one.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = _FAILURES,
        pause: float = _PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call the service `name` in messages; `pause` in seconds."""
        self._name = name
        self._limit = failures
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Run a call to the service: an exception in it is a failure, unless it is a verdict.

        Raise RemoteError at once while the service is left alone.
        """
        self._enter()
        try:
            yield
        except Verdict:
            self._succeeded()
            raise
        except Exception:
            self._failed()
            raise
        self._succeeded()

    def _enter(self) -> None:
        with self._lock:
            if self._failures < self._limit:
                return
            now = self._clock()
            if now < self._closed_until:
                raise RemoteError(
                    f"{self._name} has failed {self._failures} times in a row and is not asked for"
                    f" {self._closed_until - now:.0f} s"
                )
            self._closed_until = now + self._pause  # for all but this one

    def _failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._closed_until = self._clock() + self._pause
            broken = self._failures == self._limit
        if broken:
            _log.warning("%s is left alone for a while", self._name)

    def _succeeded(self) -> None:
        with self._lock:
            recovered, self._failures = self._failures >= self._limit, 0
        if recovered:
            _log.info("%s answers again", self._name)


class Remote:
    """A service at an address, with its breaker; `timeout` is for a whole conversation."""

    def __init__(
        self,
        address: SocketAddress,
        *,
        timeout: timedelta,
        tls: ssl.SSLContext | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Take the address of a TCP or unix socket; nothing is opened before `connect`.

        `tls` has TLS spoken from the first octet, with a certificate for the address's host.
        """
        self.address = address
        self.breaker = breaker or Breaker(str(address))
        self._seconds = timeout.total_seconds()
        self._tls = tls

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        """Yield a connection for one conversation. Raise RemoteError, in the block as well."""
        with self.breaker.watch():
            line = self.open()
            try:
                yield line
            finally:
                line.close()

    def open(self) -> Line:
        """Return a connection that the caller closes, and that no breaker watches."""
        due = time.monotonic() + self._seconds
        with _named(str(self.address)):
            sock = _connected(self.address, due)
            try:
                if self._tls is not None:
                    sock.settimeout(_left(due))
                    sock = self._tls.wrap_socket(sock, server_hostname=self.address.host)
            except BaseException:
                sock.close()
                raise
        return Line(sock, due, str(self.address))


class Line:
    """A connection that ends at a deadline; it belongs to one thread. All raise RemoteError."""

    def __init__(
        self,
        sock: socket.socket,
        due: float,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a connected socket; `due` is the deadline by the `clock`, in seconds."""
        self.due = due
        self.name = name
        self.clock = clock
        self._socket = sock
        self._buffer = b""

    @property
    def is_secure(self) -> bool:
        """Whether TLS is spoken."""
        return isinstance(self._socket, ssl.SSLSocket)

    def extend(self, timeout: timedelta) -> None:
        """Have the deadline so far from now: for conversations that pause, or go on for long."""
        self.due = self.clock() + timeout.total_seconds()

    def send(self, data: bytes) -> None:
        """Send all of the octets."""
        with _named(self.name):
            rest = memoryview(data)
            while rest:  # `sendall` of TLS would wait as long as this for each record
                self._socket.settimeout(self._left())
                rest = rest[self._socket.send(rest) :]

    def receive(self, size: int = _PIECE) -> bytes:
        """Return what has come, at most `size` octets; none at the end."""
        if self._buffer:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
            return data
        with _named(self.name):
            self._socket.settimeout(self._left())
            return self._socket.recv(size)

    def is_readable(self) -> bool:
        """Return whether `receive` would return at once: with octets, or at the end without."""
        if not self._buffer:
            with _named(self.name):
                self._socket.settimeout(0)
                try:
                    self._buffer = self._socket.recv(_PIECE)
                except (BlockingIOError, ssl.SSLWantReadError):
                    return False
        return True

    def read(self, size: int) -> bytes:
        """Return just so many octets."""
        pieces, missing = [], size
        while missing:
            pieces.append(self._next(missing))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def read_until(self, end: bytes, limit: int = _PIECE) -> bytes:
        """Return what comes before the next `end`, which is taken away; at most `limit` octets."""
        found = self._buffer
        self._buffer = b""
        while end not in found:
            if len(found) > limit:
                raise RemoteError(f"{self.name} says more than {limit} octets at once")
            found += self._next(_PIECE)
        data, _, self._buffer = found.partition(end)
        return data

    def read_all(self, limit: int) -> bytes:
        """Return all that comes until the other side closes; at most `limit` octets."""
        pieces, size = [], 0
        while data := self.receive():
            size += len(data)
            if size > limit:
                raise RemoteError(f"{self.name} says more than {limit} octets")
            pieces.append(data)
        return b"".join(pieces)

    def secure(self, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
        """Speak TLS from here on, with a certificate for `host`; return what shows it."""
        if self._buffer:  # said in clear, and it would be taken for an answer inside TLS
            raise RemoteError(f"{self.name} mixes clear text into TLS")
        with _named(self.name):
            self._socket.settimeout(self._left())
            self._socket = secured = context.wrap_socket(self._socket, server_hostname=host)
        return secured

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with _named(self.name):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _left(self) -> float:
        return _left(self.due, self.clock)

    def _next(self, size: int) -> bytes:
        data = self.receive(size)
        if not data:
            raise RemoteError(f"{self.name} hung up in the middle")
        return data


def reason(error: BaseException) -> str:
    """Return in a few words why something failed."""
    error = error.__cause__ or error
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Have an error say which service it is about."""
    try:
        yield
    except RemoteError:
        raise
    except TimeoutError:
        raise RemoteTimeoutError(f"{name} is too slow") from None
    except OSError as error:
        raise RemoteError(f"{name}: {error.strerror or error}") from error


def _left(due: float, clock: Callable[[], float] = time.monotonic) -> float:
    left = due - clock()
    if left <= 0:
        raise TimeoutError
    return left


def _connected(address: SocketAddress, due: float) -> socket.socket:
    if address.path is not None:
        return _connect(socket.AF_UNIX, str(address.path), due)
    problem: OSError | None = None
    for family, _, _, _, target in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        try:
            return _connect(family, target, due)
        except OSError as error:
            problem = error
    assert problem is not None  # noqa: S101 - getaddrinfo gives one at least
    raise problem


def _connect(family: socket.AddressFamily, target: Any, due: float) -> socket.socket:  # noqa: ANN401 - as socket has it
    sock = socket.socket(family)
    try:
        sock.settimeout(_left(due))
        sock.connect(target)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
