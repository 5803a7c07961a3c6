"""Questions to the running processes, over a unix socket of each.

The sockets lie in one directory, each called after its process. A question is one line of JSON, the
answer is lines of JSON until the connection ends. Whoever asks needs no list of the processes: what
a dead one has left refuses the connection, and one that hangs is given up after a while.
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

PATIENCE: Final = 2.0  # seconds that one question may take in all
_LONGEST: Final = 65536  # octets of a question
_BACKLOG: Final = 16

Say: TypeAlias = Callable[[object], None]
#: Answers one question by any number of calls of `say`, which raises OSError when nobody listens.
Answerer: TypeAlias = Callable[[dict[str, Any], Say], object]


@dataclass(frozen=True, slots=True)
class ControlAnswer:
    """What one process has said: its lines, or the `problem` that kept it from answering."""

    process: str
    lines: tuple[Any, ...] = ()
    problem: str = ""


class Control(socketserver.ThreadingUnixStreamServer):
    """The end of a process: answers each question in a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(self, directory: Path, name: str, answerers: Mapping[str, Answerer]) -> None:
        """Bind the socket `name`. Raise OSError."""
        self.answerers = answerers
        with _short(directory) as short:
            path = short / f"{name}.sock"
            path.unlink(missing_ok=True)  # of a process that was killed
            super().__init__(str(path), _Handler, bind_and_activate=False)
            self.server_bind()
            path.chmod(0o600)
        self.server_activate()

    def start(self) -> None:
        """Answer from now on."""
        start_thread("control", self.serve_forever)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: whoever asked has gone."""


class _Handler(socketserver.StreamRequestHandler):
    server: Control

    def handle(self) -> None:
        # Whoever asked may have gone.
        with surviving("control"), contextlib.suppress(OSError):
            self.connection.settimeout(PATIENCE)
            question = _question(self.rfile.readline(_LONGEST))
            answerer = self.server.answerers.get(str(question.get("ask")))
            if answerer is not None:
                answerer(question, self._say)

    def _say(self, value: object) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")


def _question(line: bytes) -> dict[str, Any]:
    """Return what a line asks; what is no question asks nothing, and is no failure."""
    try:
        question = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return question if isinstance(question, dict) else {}


def ask(directory: Path, question: Mapping[str, object]) -> list[ControlAnswer]:
    """Put a question to all processes at once; takes at most `PATIENCE`."""
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
    """Return the names of the processes that have a socket, dead ones included."""
    names = [path.stem for path in directory.glob("*.sock")]
    return sorted(names, key=lambda name: (not name.isdigit(), name.zfill(9)))


def connect(directory: Path, name: str) -> socket.socket | None:
    """Connect to a process; None = it is dead. Raise OSError when it has no ear for more."""
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
    """Yield another path of a directory: the name of a socket has room for 107 octets only."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
