"""The promise about crashes: whatever was answered with 250 is stored, and stored whole.

Processes are killed at random moments, and the power is cut: ext4 on an image is shut down without
writing what it still has in memory, and mounted again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import re
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Configure, Running, Start

ROUNDS: Final = 5
CLIENTS: Final = 5
#: Octets of the bodies, on both sides of the 256 KiB that are kept in memory.
SIZES: Final = (100, 300_000, 1_000_000)
LAST_LINE: Final = b"this is the last line\r\n"
EXT4_IOC_SHUTDOWN: Final = 0x8004587D
WITHOUT_LOG_FLUSH: Final = 2
PLUGINS: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "maildir"
path = "mail/{{local}}"
sync = "{sync}"
"""


def content(number: int) -> bytes:
    """Give the message of a number, which is told apart from a part of it and from all others."""
    line = b"line of message %d\r\n" % number
    body = line * (SIZES[number % len(SIZES)] // len(line))
    return b"Message-ID: <%d@client.example>\r\n\r\n" % number + body + LAST_LINE


class Sender:
    """Sends one message after the other until the server is gone, and notes which it took."""

    def __init__(self, server: Running, numbers: Iterator[int]) -> None:
        self.acknowledged: set[int] = set()
        self.refused: list[str] = []
        self._server = server
        self._numbers = numbers
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        # The connection breaks (OSError) or ends (AssertionError of the client) with the server.
        with contextlib.suppress(OSError, AssertionError), self._server.connect() as client:
            client.greet()
            for number in self._numbers:
                client.send("MAIL FROM:<>\r\nRCPT TO:<a@example.org>\r\n")
                client.send("RCPT TO:<b@example.org>\r\nDATA\r\n")
                replies = [client.reply() for _ in range(4)]
                client.send(content(number) + b".\r\n")
                replies.append(client.reply())
                if [reply[:3] for reply in replies] != ["250", "250", "250", "354", "250"]:
                    self.refused = replies
                    return
                self.acknowledged.add(number)


def crash(
    server: Running, numbers: Iterator[int], before: Callable[[], None] = lambda: None
) -> set[int]:
    """Kill a server at a random moment of its work; give the messages it had acknowledged."""
    senders = [Sender(server, numbers) for _ in range(CLIENTS)]
    for sender in senders:
        sender.start()
    enough = random.randint(1, 30)  # noqa: S311 - no secret
    server.wait_until(
        lambda: (
            sum(len(sender.acknowledged) for sender in senders) >= enough
            or any(sender.refused for sender in senders)
        )
    )
    assert [sender.refused for sender in senders if sender.refused] == []
    before()
    server.kill()
    for sender in senders:
        sender.join()
    # After a power cut, and before the server is gone too, mail is deferred.
    assert all(sender.refused[-1].startswith("45") for sender in senders if sender.refused)
    return set().union(*(sender.acknowledged for sender in senders))


def numbers_of(server: Running, user: str) -> list[int]:
    """Give the numbers of the messages in new/, each of which has to be whole."""
    numbers = []
    for message in server.mail(user):
        found = re.search(rb"\r\nMessage-ID: <(\d+)@client\.example>\r\n\r\n", message)
        assert found is not None, message[:1000]
        number = int(found[1])
        assert message[found.start() + 2 :] == content(number)
        assert message.startswith(b"Return-Path: <>\r\nDelivered-To: ")
        numbers.append(number)
    return numbers


def restart(start: Start, config: Path) -> Running:
    """Start on the same directory; a new log tells the new ports."""
    (config.parent / "log").unlink(missing_ok=True)
    return start(config)


class Disk:
    """An ext4 file system in an image, mounted on a directory."""

    def __init__(self, image: Path, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        with image.open("wb") as file:
            file.truncate(512 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        self._image = image

    def mount(self) -> None:
        """Mount it; the journal brings it into the state of its last commit."""
        subprocess.run(["mount", "-o", "loop,noatime", self._image, self._directory], check=True)

    def cut_power(self) -> None:
        """Let it forget all that is not written, and take nothing any more."""
        descriptor = os.open(self._directory, os.O_RDONLY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
        os.close(descriptor)

    def unmount(self) -> bool:
        """Unmount it, if nobody uses it any more."""
        umount = subprocess.run(["umount", self._directory], check=False, capture_output=True)
        return umount.returncode == 0


@pytest.fixture
def disk(
    tmp_path: Path, configure: Configure, require_program: Callable[[str], str]
) -> Iterator[Disk]:
    """Give a file system for the mail of the configured server."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    require_program("mkfs.ext4")
    disk = Disk(tmp_path / "image", configure().parent / "mail")
    disk.mount()
    yield disk
    disk.unmount()


@pytest.mark.parametrize("sync", ["file", "group"])
def test_no_power_cut_loses_what_was_acknowledged_or_leaves_half_a_message(
    configure: Configure, start: Start, disk: Disk, sync: str
) -> None:
    config = configure(workers=2, plugins=PLUGINS.format(sync=sync))
    numbers = itertools.count()
    acknowledged: set[int] = set()
    for _ in range(3):
        server = restart(start, config)
        acknowledged |= crash(server, numbers, before=disk.cut_power)
        server.wait_until(disk.unmount)
        disk.mount()
    server = restart(start, config)
    # What the cut has put back into tmp/ comes when the server has looked for it.
    for user in ("a", "b"):
        server.wait_until(lambda: acknowledged <= set(numbers_of(server, user)))  # noqa: B023
        stored = numbers_of(server, user)
        assert len(stored) == len(set(stored))
    server.kill()


@pytest.mark.parametrize("sync", ["file", "group"])
def test_no_crash_loses_what_was_acknowledged_or_leaves_half_a_message(
    configure: Configure, start: Start, sync: str
) -> None:
    config = configure(workers=2, plugins=PLUGINS.format(sync=sync))
    numbers = itertools.count()
    acknowledged: set[int] = set()
    for _ in range(ROUNDS):
        acknowledged |= crash(restart(start, config), numbers)
    # The server starts on what was left, and takes mail as before.
    server = restart(start, config)
    with server.connect() as client:
        client.begin_data("after@example.org", sender="")
        client.send(content(0) + b".\r\n")
        assert client.reply().startswith("250 ")
    assert numbers_of(server, "after") == [0]
    for user in ("a", "b"):
        stored = numbers_of(server, user)
        assert acknowledged - set(stored) == set()
        assert len(stored) == len(set(stored))
