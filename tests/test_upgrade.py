"""An upgrade from the previous release, while clients send: all that was acknowledged arrives."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from fakes import Wire, serving

if TYPE_CHECKING:
    import socket

    from conftest import Configure, Running, Start

ROOT: Final = Path(__file__).parents[1]
#: The commit of the previous release: the last one before the state directory told its format.
PREVIOUS: Final = "be304b925eec"
CLIENTS: Final = 3
NUMBER: Final = re.compile(rb"\r\nMessage-ID: <(\d+)@client\.example>\r\n")
RECIPIENTS: Final = ("a@example.org", "b@example.net")
SIZES: Final = (100, 300_000)  # octets; on both sides of the 256 KiB that are kept in memory
PLUGINS: Final = """
[[plugins]]
use = "first_start"

[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "maildir"
path = "mail/{{local}}"

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]

[outbound]
retry = ["200ms"]

[[outbound.routes]]
domain = "example.net"
host = "{host}"
"""
#: Tells clients which version first used the state.
FIRST_START: Final = """
from datetime import timedelta

from minismtp import ServerInfo, Session, hookimpl, plugin


@plugin
class FirstStart:
    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self.state = server.state
        self.number = self.state.add("starts", 1, timedelta(days=1))

    @hookimpl
    def ehlo_keywords(self, session: Session) -> list[str]:
        return [f"STARTS {self.number}"]
"""


class Host:
    """The other server. It defers all mail until it is `open`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.arrived: Counter[int] = Counter()

    def __call__(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        if not self.open.is_set():
            sock.sendall(b"421 come back later\r\n")
            return
        sock.sendall(b"220 host\r\n")
        while line := wire.read_until(b"\r\n"):
            if line.upper().startswith(b"DATA"):
                sock.sendall(b"354 go on\r\n")
                self.arrived[number_of(wire.read_until(b"\r\n.\r\n"))] += 1
            sock.sendall(b"250 ok\r\n")


class Sender(threading.Thread):
    """A client that sends messages until the server ends its session."""

    def __init__(self, server: Running, numbers: Iterator[int]) -> None:
        super().__init__()
        self.accepted: set[int] = set()
        self._server = server
        self._numbers = numbers
        self.start()

    def run(self) -> None:
        # The session ends in 421, or the connection with the server.
        with contextlib.suppress(OSError, AssertionError), self._server.connect() as client:
            client.greet()
            for number in self._numbers:
                for line in ("MAIL FROM:<>", *map("RCPT TO:<{}>".format, RECIPIENTS), "DATA"):
                    assert client.command(line)[0] in "23"
                client.send(content(number) + b".\r\n")
                assert client.reply().startswith("250")
                self.accepted.add(number)


def content(number: int) -> bytes:
    """Return the message of a number, which differs in every line from all others."""
    line = b"line of message %d\r\n" % number
    body = line * (SIZES[number % len(SIZES)] // len(line))
    return b"Message-ID: <%d@client.example>\r\n\r\n" % number + body


def number_of(message: bytes) -> int:
    """Return the number of a message, which must be whole."""
    found = NUMBER.search(message)
    assert found is not None
    number = int(found[1])
    assert content(number) in message
    return number


def starts(server: Running) -> int:
    """Return how often plugins were started on this state, as the server knows."""
    with server.connect() as client:
        found = re.search(r"STARTS (\d+)", client.greet())
    assert found is not None
    return int(found[1])


def entries(server: Running) -> list[str]:
    """Return the names of the messages that wait for the other host."""
    return [path.name for path in (server.directory / "state/spool/queue").iterdir()]


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """Return a directory with the packages of the previous release."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", PREVIOUS, "minismtp", "plugins"],
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip("needs the history of the repository")
    directory = tmp_path / "previous"
    directory.mkdir()
    subprocess.run(["tar", "-x"], cwd=directory, input=archive.stdout, check=True)
    (directory / "plugins").rename(directory / "minismtp_plugins")
    return directory


def test_upgrade_under_load_loses_nothing(
    previous: Path, configure: Configure, start: Start
) -> None:
    host, numbers = Host(), itertools.count()
    with serving(host) as address:
        config = configure(plugins=PLUGINS.format(host=address))
        (config.parent / "local_plugins" / "first_start.py").write_text(FIRST_START)
        senders: list[Sender] = []
        old = start(config, command=("env", f"PYTHONPATH={previous}"))
        before = starts(old)
        senders += [Sender(old, numbers) for _ in range(CLIENTS)]
        old.wait_for_log(r"delivery deferred", 5)
        old.signal(signal.SIGTERM)
        old.wait()
        (config.parent / "log").unlink()
        assert not (config.parent / "state" / "format").exists()  # else this is no earlier release
        new = start(config)
        waiting = entries(new)
        senders += [Sender(new, numbers) for _ in range(CLIENTS)]
        assert waiting
        assert starts(new) > before
        new.wait_until(lambda: all(sender.accepted for sender in senders))
        host.open.set()
        new.wait_until(lambda: not set(waiting) & set(entries(new)))
        new.signal(signal.SIGTERM)
        new.wait()
        for sender in senders:
            sender.join()
        last = start(config)
        last.wait_until(lambda: not entries(last))
        accepted = set[int]().union(*(sender.accepted for sender in senders))
        stored = Counter(number_of(message) for message in last.mail("a"))
        for arrived in (host.arrived, stored):
            assert accepted <= arrived.keys()
            assert set(arrived.values()) == {1}
