r"""Services that plugins ask over a socket, within a time limit and not while they are down.

    self._scanner = Remote(self.address, timeout=self.timeout)
    ...
    with self._scanner.connect() as line:
        line.send(b"zPING\0")
        answer = line.read_until(b"\0")

`timeout` is absolute, so a service that sends an octet now and then gains nothing. After several
failures in a row a service is not asked for a while; the plugin's `on_error` decides what happens.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from minismtp.values.reply import Verdict

if TYPE_CHECKING:
    from datetime import timedelta

    from minismtp.config.types import SocketAddress

_FAILURES: Final = 5  # in a row, before a service is not asked
_PAUSE: Final = 30.0  # seconds
_PIECE: Final = 65536
_LONGEST_WAIT: Final = 1.0  # seconds
_TIMEVAL: Final = struct.Struct("@ll")  # struct timeval
_TCP_INFO: Final = struct.Struct("=B127xQ")  # struct tcp_info: its state and bytes_received
_ESTABLISHED: Final = 1
_log: Final = logging.getLogger(__name__)


class RemoteError(OSError):
    """A service is down, too slow, hangs up early, or answers nonsense, as the text says."""


class RemoteTimeoutError(RemoteError, TimeoutError):
    """A service did not do what it was asked to do within the time."""


class Breaker:
    """Stops calls to a service for a while after several failures in a row.

    Then one call is let through, and after its success all are. Threads may share a breaker.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = _FAILURES,
        pause: float = _PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the service's `name` for messages, and the `pause` in seconds."""
        self._name = name
        self._limit = failures
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0

    def watch(self) -> Breaker:
        """Return a context for a call; an exception other than a verdict counts as a failure.

        Entering it raises RemoteError during a pause.
        """
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Count the outcome of a call. The end of the process is no outcome."""
        if error is None or isinstance(error, Verdict):
            self._succeeded()
        elif isinstance(error, Exception):
            self._failed()

    def __enter__(self) -> None:
        """Begin a call. Raise RemoteError during a pause."""
        with self._lock:
            if self._failures < self._limit:
                return
            now = self._clock()
            if now < self._closed_until:
                raise RemoteError(
                    f"{self._name} failed {self._failures} times in a row and is not asked for"
                    f" {self._closed_until - now:.0f} s"
                )
            self._closed_until = now + self._pause  # for all but this one

    def _failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._closed_until = self._clock() + self._pause
            broken = self._failures == self._limit
        if broken:
            _log.warning(
                "%s failed several times in a row and is not asked for a while", self._name
            )

    def _succeeded(self) -> None:
        with self._lock:
            recovered, self._failures = self._failures >= self._limit, 0
        if recovered:
            _log.info("%s answers again", self._name)


class Remote:
    """A service at an address, with its breaker; `timeout` is for a whole connection."""

    def __init__(
        self,
        address: SocketAddress,
        *,
        timeout: timedelta,
        tls: ssl.SSLContext | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Take the address of a TCP or unix socket; nothing is opened before `connect`.

        With `tls`, TLS begins with the first octet, and the certificate must be for the host.
        Raise ValueError for the host "*", which is for listening sockets.
        """
        if address.host == "*":
            raise ValueError(f'expected the address of a server, not "{address}"')
        self.address = address
        self.breaker = breaker or Breaker(str(address))
        self._seconds = timeout.total_seconds()
        self._tls = tls

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        """Yield a connection and close it afterwards. Raise RemoteError, in the block as well."""
        with self.breaker.watch():
            line = self.open()
            try:
                yield line
            finally:
                line.close()

    def open(self) -> Line:
        """Return a connection that the caller closes; its failures do not count for the breaker."""
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
    """A connection with a deadline, for one thread. All methods raise RemoteError.

    In clear, the kernel lets each call of the socket wait for a second at most, and the call is
    repeated until the deadline. So sending or receiving is one system call. A timeout of Python
    would make it two, and a third for each change of the timeout; TLS needs that.
    """

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
        self.is_secure = isinstance(sock, ssl.SSLSocket)  #: whether TLS is spoken
        self._socket = sock
        self._buffer = b""
        self._wait = 0.0  # seconds that a call in clear waits at most
        self._limited = False  # whether this is `_LONGEST_WAIT`, which `_limit` need not repeat
        self._received = 0  # octets
        if not self.is_secure:
            sock.settimeout(None)

    def extend(self, timeout: timedelta) -> None:
        """Set the deadline to `timeout` from now, for exchanges that pause or take long."""
        self.due = self.clock() + timeout.total_seconds()

    def send(self, data: bytes) -> None:
        """Send all of the octets."""
        sent, size = 0, len(data)
        while sent < size:  # `sendall` of TLS would wait as long as this for each record
            try:
                if not self._limited or self.due - self.clock() < _LONGEST_WAIT:
                    self._limit()
                sent += self._socket.send(memoryview(data)[sent:] if sent else data)
            except OSError as error:
                self._check(error)

    def receive(self, size: int = _PIECE) -> bytes:
        """Return at most `size` octets as soon as some are there; no octets at the end."""
        if self._buffer:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
            return data
        while True:
            try:
                if not self._limited or self.due - self.clock() < _LONGEST_WAIT:
                    self._limit()
                data = self._socket.recv(size)
            except OSError as error:
                self._check(error)
            else:
                self._received += len(data)
                return data

    def is_readable(self) -> bool:
        """Return whether `receive` would return at once: with octets, or at the end without."""
        if self._buffer:
            return True
        if not self.is_secure:
            try:
                # Unlike a call that receives, the question does not release the interpreter lock.
                info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                if _TCP_INFO.unpack(info) == (_ESTABLISHED, self._received):
                    return False  # everything that came was received, and no end
            except (OSError, struct.error):  # a unix socket, or an old kernel
                pass
        return self._finds_input()

    def _finds_input(self) -> bool:
        try:
            if self.is_secure:  # which knows no flags
                self._socket.settimeout(0)
                self._buffer = self._socket.recv(_PIECE)
            else:
                self._buffer = self._socket.recv(_PIECE, socket.MSG_DONTWAIT)
                self._received += len(self._buffer)
        except ssl.SSLWantReadError:
            return False
        except OSError as error:
            self._check(error)
            return False
        return True

    def read(self, size: int) -> bytes:
        """Return exactly `size` octets."""
        pieces, missing = [], size
        while missing:
            pieces.append(self._next(missing))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def read_until(self, end: bytes, limit: int = _PIECE) -> bytes:
        """Return the octets before the next `end`, at most `limit`, and drop the `end`."""
        found = self._buffer
        self._buffer = b""
        while end not in found:
            if len(found) > limit:
                raise RemoteError(f"{self.name} sends more than {limit} octets at once")
            found += self._next(_PIECE)
        data, _, self._buffer = found.partition(end)
        return data

    def read_all(self, limit: int) -> bytes:
        """Return all octets until the service closes the connection, at most `limit`."""
        pieces, size = [], 0
        while data := self.receive():
            size += len(data)
            if size > limit:
                raise RemoteError(f"{self.name} sends more than {limit} octets")
            pieces.append(data)
        return b"".join(pieces)

    def secure(self, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
        """Speak TLS from here on, with a certificate for `host`; return what shows it."""
        if self._buffer:  # sent in clear, and it would pass for an answer inside TLS
            raise RemoteError(f"{self.name} sends clear text after it agreed to TLS")
        with _named(self.name):
            self._socket.settimeout(_left(self.due, self.clock))
            self._socket = secured = context.wrap_socket(self._socket, server_hostname=host)
            self.is_secure, self._limited = True, False
        return secured

    def end(self) -> None:
        """Tell the service that nothing more will be sent."""
        with _named(self.name):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _limit(self) -> None:
        """Limit the next call of the socket. Raise TimeoutError after the deadline."""
        left = self.due - self.clock()
        if left <= 0:
            raise TimeoutError
        if self.is_secure:
            self._socket.settimeout(left)
            return
        wait = min(_LONGEST_WAIT, left)
        if wait != self._wait:
            limit = _TIMEVAL.pack(int(wait), max(1, int(wait % 1 * 1e6)))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._wait, self._limited = wait, wait == _LONGEST_WAIT

    def _check(self, error: OSError) -> None:
        """Raise an error of a call as RemoteError, unless it says to call again."""
        if not isinstance(error, BlockingIOError):
            with _named(self.name):
                raise error

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


class _named:  # noqa: N801 - stands in a `with`, like contextlib.suppress
    """Raises errors of a block as RemoteError with the name of the service."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, RemoteError):
            if isinstance(error, TimeoutError):
                raise RemoteTimeoutError(f"{self._name} is too slow") from None
            raise RemoteError(f"{self._name}: {error.strerror or error}") from error


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
