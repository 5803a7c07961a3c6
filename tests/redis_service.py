"""A redis-server for tests, on a loopback port and without files, which a test can kill."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

_DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
T = TypeVar("T")


def eventually(condition: Callable[[], T | None]) -> T:
    """Return the first true value of `condition`; fail if it takes too long."""
    deadline = time.monotonic() + _DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


class RedisServer:
    """A server that can be stopped, and started again at the same port with no data."""

    def __init__(self, program: str, directory: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = directory / "redis.sock"
        self._command = [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--dir", str(directory), "--unixsocket", str(self.socket), *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Return when it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_DEADLINE)

    def say(self, *words: str) -> bytes:
        """Return the raw reply to one command."""
        with socket.create_connection(("127.0.0.1", self.port), _DEADLINE) as sock:
            sock.sendall(" ".join(words).encode() + b"\r\n")
            return sock.recv(65536)

    def _answers(self) -> bool:
        try:
            return bool(self.say("PING"))
        except OSError:
            return False


@contextlib.contextmanager
def redis_running(program: str, directory: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server while the block runs."""
    server = RedisServer(program, directory, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
