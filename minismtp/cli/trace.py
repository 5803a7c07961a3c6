"""The dialogues of sessions as they happen: `minismtp trace`."""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from minismtp.cli.common import add_config, argument_type, configuration, say
from minismtp.cli.text import json_line, terminal_width, wrapped
from minismtp.config.types import parse_network
from minismtp.runtime.control_socket import connect, processes
from minismtp.server.open_sessions import nobody_answers

_TICK: Final = 0.5  # seconds between two looks for new processes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=argument_type(parse_network),
        metavar="NET",
        help="only with clients in it, such as 192.0.2.0/24; may be given again",
    )

    parser.add_argument(
        "--session",
        action="append",
        default=[],
        metavar="ID",
        help="only this session, whose ID `minismtp sessions` shows; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for each line")


def run(arguments: argparse.Namespace) -> int:
    """Print each line as it is said, until the user interrupts; raise OSError."""
    lost = 0
    directory = configuration(arguments).state_directory / "control"
    question = {
        "ask": "trace",
        "peers": [str(network) for network in arguments.peer],
        "sessions": [each.partition(".")[0] for each in arguments.session],
    }
    for said in _said(directory, json.dumps(question).encode() + b"\n"):
        if "text" not in said:
            more = said.get("lost", 0) - lost
            if more <= 0:
                continue
            lost += more
            said = {"lost": more}  # noqa: PLW2901
        if arguments.json:
            say(json_line(said))
        elif "text" in said:
            say(*wrapped([line_of(said)], terminal_width()))
        else:
            say(f"({said['lost']} lines were lost: more came than could be shown)")
        sys.stdout.flush()
    return 0


def line_of(said: dict[str, Any]) -> str:
    """Return the line for what a client or the server said."""
    seconds, fraction = divmod(said["at"], 1)
    at = time.strftime("%H:%M:%S", time.localtime(seconds))
    return (
        f"{at}.{int(fraction * 1000):03}  {said['session']}  {said['peer']}"
        f"  {said['said']}: {said['text']}"
    )


def _said(directory: Path, question: bytes) -> Iterator[dict[str, Any]]:
    """Listen to all processes, and to those that a reload or a crash brings later."""
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
    """Listen to a process, unless its socket, told by name and inode, is known already."""
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
        return  # the process ended or hangs; the next look may find it
