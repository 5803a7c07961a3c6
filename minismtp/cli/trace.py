"""The dialogues of sessions as they happen: `minismtp trace`."""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from minismtp.config import Config
from minismtp.runtime.control_socket import connect, processes
from minismtp.server.open_sessions import nobody_answers
from minismtp.values.printable import one_line

_TICK: Final = 0.5  # seconds between two looks for processes that have come


def run(config: Config, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield one line of text after the other until nobody wants more."""
    lost = 0
    for said in _said(config.state_directory / "control", arguments.peer):
        if "text" in said:
            yield _line(said)
        elif said.get("lost", 0) > lost:
            yield f"({said['lost'] - lost} lines were lost: more came than could be shown)"
            lost = said["lost"]


def _line(said: dict[str, Any]) -> str:
    seconds, fraction = divmod(said["at"], 1)
    at = time.strftime("%H:%M:%S", time.localtime(seconds))
    return one_line(
        f"{at}.{int(fraction * 1000):03}  {said['session']}  {said['peer']}"
        f"  {said['said']}: {said['text']}"
    )


def _said(directory: Path, peers: list[str]) -> Iterator[dict[str, Any]]:
    """Listen to all processes, and to those that a reload or a death brings."""
    question = json.dumps({"ask": "trace", "peers": peers}).encode() + b"\n"
    known: set[tuple[str, int]] = set()
    with selectors.DefaultSelector() as selector:
        while True:
            for name in processes(directory):
                _listen(directory, name, known, selector, question)
            if not known:
                raise nobody_answers(directory)
            for key, _ in selector.select(_TICK):
                sock, buffer = key.fileobj, key.data
                assert isinstance(sock, socket.socket)  # noqa: S101 - what was registered
                data = sock.recv(1 << 20)
                if not data:
                    selector.unregister(sock)
                    sock.close()
                buffer += data
                *lines, rest = buffer.split(b"\n")
                buffer[:] = rest
                yield from map(json.loads, lines)


def _listen(
    directory: Path,
    name: str,
    known: set[tuple[str, int]],
    selector: selectors.BaseSelector,
    question: bytes,
) -> None:
    """Begin to listen to a process, unless that is done; name and inode of its socket tell."""
    try:
        identity = (name, (directory / f"{name}.sock").stat().st_ino)
        if identity in known:
            return
        sock = connect(directory, name)
        if sock is not None:
            sock.sendall(question)
            selector.register(sock, selectors.EVENT_READ, bytearray())
            known.add(identity)
    except OSError:
        return  # it has gone, or hangs: the next look may find it
