"""Services for tests: fakes that misbehave as a test wants, and real ones from Debian."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import dns.rdata
from ports import free_port

from minismtp import (
    Address,
    Envelope,
    Found,
    Recipient,
    Resolver,
    SocketAddress,
    UnansweredError,
)

DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
_START: Final = 200.0  # of a service that compiles first, on a machine that is busy

Talk: TypeAlias = Callable[[socket.socket], None]


@dataclass
class Clock:
    """A clock that stands still until a test sets `now`."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def serving(talk: Talk) -> Iterator[SocketAddress]:
    """Run a service that talks in this way to each client, to several at once."""
    threads: list[threading.Thread] = []
    open_sockets: set[socket.socket] = set()

    def converse(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            talk(sock)
            _hang_up(sock)
        open_sockets.discard(sock)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                open_sockets.add(sock)
                threads.append(threading.Thread(target=converse, args=[sock]))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, args=[listener]))
        threads[0].start()
        try:
            yield SocketAddress("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join(DEADLINE)
            for sock in list(open_sockets):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(DEADLINE)


def _hang_up(sock: socket.socket) -> None:
    """Close so that the peer gets all output, because unread input would cause a reset."""
    sock.shutdown(socket.SHUT_WR)
    listen(sock)


def listen(sock: socket.socket) -> None:
    """Read all input, and never answer."""
    while sock.recv(65536):
        pass


def saying(answer: bytes) -> Talk:
    """Return a talk that reads one piece, sends this, and hangs up."""

    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(answer)

    return talk


def drip(sock: socket.socket) -> None:
    """Send an octet now and then, without end."""
    while True:
        sock.sendall(b".")
        time.sleep(0.01)


class Wire:
    """The service's end of a connection, for a talk that reads its input."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""

    def read_until(self, end: bytes) -> bytes:
        """Return all octets up to and with `end`, or those before the connection ended."""
        while end not in self._buffer and (piece := self.socket.recv(65536)):
            self._buffer += piece
        data, found, self._buffer = self._buffer.partition(end)
        return data + found

    def read(self, size: int) -> bytes:
        """Return `size` octets, or fewer if the connection ends before."""
        while len(self._buffer) < size and (piece := self.socket.recv(65536)):
            self._buffer += piece
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def after_all(end: bytes, answer: bytes) -> Talk:
    """Return a talk that sends this after it read `end`, then hangs up."""

    def talk(sock: socket.socket) -> None:
        heard = b""
        while not heard.endswith(end):
            data = sock.recv(65536)
            if not data:
                return
            heard = (heard + data)[-65536:]
        sock.sendall(answer)

    return talk


def after_request(answer: bytes) -> Talk:
    """Return a talk that sends this after a request with a Content-length."""

    def talk(sock: socket.socket) -> None:
        heard = b""
        while b"\r\n\r\n" not in heard:
            heard += sock.recv(65536)
        head, _, body = heard.partition(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: (\d+)", head)
        missing = int(size[1]) - len(body) if size else 0
        while missing > 0:
            missing -= len(sock.recv(65536))
        sock.sendall(answer)

    return talk


def http(said: object) -> bytes:
    """Return an answer of a web server: a value as JSON."""
    body = json.dumps(said).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


#: The ways in which a service may fail a client that connects.
FAILURES: Final[Mapping[str, Talk]] = {
    "slow": listen,
    "nonsense": saying(b"220 mx.example.org ESMTP\r\n"),
    "cut off": saying(b""),
    "endless": saying(b"x" * 2_000_000),
}


class Daemon:
    """A real service that a test started; `stop` ends it."""

    def __init__(self, *command: str | Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    def await_port(self, port: int) -> None:
        """Return once it listens on a port of 127.0.0.1."""
        deadline = time.monotonic() + _START
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), DEADLINE).close()
            except ConnectionRefusedError:
                said = self.log.read_text(errors="replace")
                assert time.monotonic() < deadline, said
                assert self.process.poll() is None, said
                time.sleep(0.01)
            else:
                return

    def stop(self) -> None:
        """End it with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)


@contextlib.contextmanager
def running_daemon(
    *command: str | Path, port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """Run a service in the foreground that listens on `port` when the block begins."""
    daemon = Daemon(*command, log=log, environment=environment or {})
    try:
        daemon.await_port(port)
        yield daemon
    finally:
        daemon.stop()


def nobody_there() -> SocketAddress:
    """Return an address where nothing listens."""
    return SocketAddress("127.0.0.1", free_port())


class Names(Resolver):
    """A DNS of these names: "a.example A" leads to the records as a zone file has them.

    About a name that is not among them it says nothing when `silent`, else that there is none.
    """

    def __init__(
        self, records: Mapping[str, Sequence[str]] | None = None, *, silent: bool = False
    ) -> None:
        self._records = records or {}
        self._silent = silent

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        del seconds
        texts = self._records.get(f"{name} {kind}")
        if texts is None and self._silent:
            raise UnansweredError(f"the DNS does not answer for {name} {kind}")
        records = [dns.rdata.from_text("IN", kind, text) for text in texts or ()]
        return Found(tuple(records), name, exists=texts is not None)


def envelope(*recipients: str, login: str | None = None) -> Envelope:
    """Return an envelope for hooks that a test calls itself."""
    return Envelope(
        id="1a2b.1",
        reverse_path=Address.parse("sender@client.example"),
        listener="smtp",
        peer="192.0.2.1",
        helo="client.example",
        login=login,
        arrived=1_700_000_000.0,
        recipients=[Recipient(Address.parse(each)) for each in recipients or ("u@example.org",)],
    )
