"""The debugger of Python in a server that runs in a terminal: it stops one session."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from ports import free_port

if TYPE_CHECKING:
    from conftest import Configure

DEADLINE: Final = 60.0
STOPPING: Final = """
from minismtp import Envelope, hookimpl, plugin

@plugin
class Stopping:
    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        if envelope.sender.startswith("stop"):
            breakpoint()
"""


class Terminal:
    """A terminal with a server in it."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self._leader, f"{line}\n".encode())

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + DEADLINE
        while text not in self.shown:
            assert select.select([self._leader], [], [], end - time.monotonic())[0], self.shown
            self.shown += os.read(self._leader, 65536).decode("utf-8", "replace")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def terminal(configure: Configure, port: int, tmp_path: Path) -> Iterator[Terminal]:
    """Run a server with the plugin in a terminal."""
    listeners = f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n'
    config = configure('[[plugins]]\nuse = "stopping"\n', listeners=listeners)
    (tmp_path / "local_plugins" / "stopping.py").write_text(STOPPING)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "minismtp", "serve", "--config", str(config)]
    files = {"stdin": follower, "stdout": follower, "stderr": follower}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **files) as server:  # type: ignore[call-overload]
        os.close(follower)
        try:
            yield Terminal(leader)
        finally:
            server.terminate()
            server.wait(DEADLINE)
            os.close(leader)


def said(client: socket.socket, line: str) -> str:
    client.sendall(line.encode() + b"\r\n")
    return client.recv(4096).decode()


def test_breakpoint_stops_one_session_and_the_others_go_on(terminal: Terminal, port: int) -> None:
    terminal.wait_for(" queue opened ")
    stopped, other = (socket.create_connection(("127.0.0.1", port), DEADLINE) for _ in range(2))
    with stopped, other:
        for client in (stopped, other):
            assert client.recv(4096).startswith(b"220 ")
            assert said(client, "HELO client.example").startswith("250 ")
        stopped.sendall(b"MAIL FROM:<stop@client.example>\r\n")
        terminal.wait_for("(Pdb) ")
        assert said(other, "MAIL FROM:<go@client.example>").startswith("250 ")
        terminal.type("envelope.sender")
        terminal.wait_for("'stop@client.example'")
        terminal.type("continue")
        assert stopped.recv(4096).startswith(b"250 ")
