"""The clients of the benchmarks: C programs for the load, and idle sessions."""

from __future__ import annotations

import base64
import json
import resource
import select
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
BUILD: Final = HERE.parents[1] / "build" / "bench"
LIBRARIES: Final = {"tls": ("-lssl", "-lcrypto")}
USER: Final = "user0@example.org"
PASSWORD: Final = "correct horse"  # noqa: S105 - of a server that lives for seconds
_LINE: Final = 4096


def program(name: str) -> Path:
    """Compile a program of this directory, if its source has changed. Raise CalledProcessError."""
    source, target = HERE / f"{name}.c", BUILD / name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        libraries = LIBRARIES.get(name, ())
        subprocess.run(
            ["cc", "-O2", "-pthread", "-o", str(target), str(source), *libraries], check=True
        )
    return target


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Run a program and return the JSON object that it printed, which also reports failures."""
    command = [str(program(name)), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not done.stdout:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    if done.stderr:
        found["said"] = done.stderr.splitlines()[0]
    return found


def plain_response() -> str:
    """Return the initial response of AUTH PLAIN for the user of the benchmarks (RFC 4616)."""
    return base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()


@dataclass(frozen=True)
class Idle:
    """The results of idle sessions; times are in seconds."""

    wanted: int
    opened: int
    opening: float
    answered: int
    slowest: float


class IdleSessions:
    """Sessions that said EHLO and then nothing."""

    def __init__(self, port: int, wanted: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted + 100:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted + 1000), hard))
        self.wanted = wanted
        start = time.monotonic()
        self._sockets = self._open(port, wanted)
        self._exchange(b"", b"220")
        self._exchange(b"EHLO idle.example\r\n", b"250 ")
        self.opening = time.monotonic() - start

    def ask(self) -> Idle:
        """Send NOOP in all sessions at once and time the replies."""
        opened = len(self._sockets)
        start = time.monotonic()
        answered = self._exchange(b"NOOP\r\n", b"250")
        return Idle(self.wanted, opened, self.opening, answered, time.monotonic() - start)

    def close(self) -> None:
        """Hang up."""
        for each in self._sockets:
            each.close()

    @staticmethod
    def _open(port: int, wanted: int) -> list[socket.socket]:
        opened = []
        for number in range(wanted):
            each = socket.socket()
            # 127.0.0.1 alone has too few ports for all the sessions and the load beside them.
            each.bind((f"127.0.1.{1 + number % 200}", 0))
            try:
                each.connect(("127.0.0.1", port))
            except OSError:
                each.close()
                break
            each.setblocking(False)
            opened.append(each)
        return opened

    def _exchange(self, line: bytes, wanted: bytes, patience: float = 60.0) -> int:
        poller = select.epoll()
        waiting = {}
        for each in self._sockets:
            if line:
                each.send(line)
            waiting[each.fileno()] = each
            poller.register(each, select.EPOLLIN)
        answered = 0
        heard: dict[int, bytes] = {}
        end = time.monotonic() + patience
        while waiting and time.monotonic() < end:
            for number, _ in poller.poll(1.0, 1000):
                data = waiting[number].recv(_LINE)
                heard[number] = heard.get(number, b"") + data
                last = heard[number].rstrip().rpartition(b"\n")[2]
                if not data or (heard[number].endswith(b"\r\n") and last[3:4] == b" "):
                    answered += last.startswith(wanted)
                    poller.unregister(number)
                    del waiting[number]
        poller.close()
        return answered
