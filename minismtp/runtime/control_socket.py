"""Questions to the running processes, each of which answers on a unix socket.

The sockets lie in one directory and are named after their processes. A question is one line of
JSON, and the answer is lines of JSON until the connection ends. A command that asks needs no list
of processes: the socket of a dead process refuses the connection, and the answer of a hanging one
is not awaited for long.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from minismtp.values.threads import start_thread, surviving

PATIENCE: Final = 2.0  # seconds for one question with its answer
_LONGEST: Final = 65536  # octets of a question
_BACKLOG: Final = 16

Say: TypeAlias = Callable[[object], None]
#: Answers a question by any number of calls of `say`, which raises OSError if the asker hung up.
Answerer: TypeAlias = Callable[[dict[str, Any], Say], object]


@dataclass(frozen=True, slots=True)
class ControlAnswer:
    """The answer of a process: its lines, or the `problem` that kept it from answering."""

    process: str
    lines: tuple[Any, ...] = ()
    problem: str = ""


class Control(socketserver.ThreadingUnixStreamServer):
    """The server of these questions in a process. It answers each in a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(self, directory: Path, name: str, answerers: Mapping[str, Answerer]) -> None:
        """Bind the socket `name`. Raise OSError."""
        self.answerers = answerers
        with _short(directory) as short:
            path = short / f"{name}.sock"
            path.unlink(missing_ok=True)  # left by a process that was killed
            super().__init__(str(path), _Handler, bind_and_activate=False)
            self.server_bind()
            path.chmod(0o600)
        self.server_activate()

    def start(self) -> None:
        """Start to answer questions."""
        start_thread("control", self.serve_forever)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing, because the asker may hang up at any time."""


class _Handler(socketserver.StreamRequestHandler):
    server: Control

    def handle(self) -> None:
        # An OSError means that the asker hung up.
        with surviving("control"), contextlib.suppress(OSError):
            self.connection.settimeout(PATIENCE)
            question = _question(self.rfile.readline(_LONGEST))
            answerer = self.server.answerers.get(str(question.get("ask")))
            if answerer is not None:
                answerer(question, self._say)

    def _say(self, value: object) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")


def _question(line: bytes) -> dict[str, Any]:
    """Return the question in a line, or an empty one if the line is malformed."""
    try:
        question = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return question if isinstance(question, dict) else {}


def ask(directory: Path, question: Mapping[str, object]) -> list[ControlAnswer]:
    """Ask all processes a question, and return their answers after at most `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    line = json.dumps(question).encode() + b"\n"
    asked, answers = [], []
    for name in processes(directory):
        try:
            sock = connect(directory, name)
            if sock is not None:
                sock.sendall(line)
                asked.append((name, sock))
        except OSError as error:
            answers.append(ControlAnswer(name, problem=str(error)))
    for name, sock in asked:
        with sock:
            answers.append(_answer(name, sock, deadline))
    return answers


def processes(directory: Path) -> list[str]:
    """Return the names of all processes that have a socket, including dead ones."""
    names = [path.stem for path in directory.glob("*.sock")]
    return sorted(names, key=lambda name: (not name.isdigit(), name.zfill(9)))


def connect(directory: Path, name: str) -> socket.socket | None:
    """Connect to a process. Return None if it is dead. Raise OSError if its queue is full."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    try:
        with _short(directory) as short:
            sock.connect(f"{short}/{name}.sock")
    except (ConnectionRefusedError, FileNotFoundError):
        sock.close()
        return None
    except OSError:
        sock.close()
        raise
    return sock


def _answer(name: str, sock: socket.socket, deadline: float) -> ControlAnswer:
    data = b""
    try:
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = sock.recv(1 << 20)
            if not piece:
                return ControlAnswer(name, tuple(json.loads(line) for line in data.splitlines()))
            data += piece
    except OSError as error:
        text = "does not answer" if isinstance(error, TimeoutError) else str(error)
        return ControlAnswer(name, problem=text)


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """Yield a short path of a directory, because the path of a socket has 107 octets at most."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
