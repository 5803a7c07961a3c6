"""The promise about power cuts: whatever was answered with 250 is stored, and stored whole."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Configure, Running, Start

ROUNDS: Final = 5
CLIENTS: Final = 5
#: Octets of the bodies, on both sides of the 256 KiB that are kept in memory.
SIZES: Final = (100, 300_000, 1_000_000)
LAST_LINE: Final = b"this is the last line\r\n"


def content(number: int) -> bytes:
    """Give the message of a number, which is told apart from a part of it and from all others."""
    line = b"line of message %d\r\n" % number
    body = line * (SIZES[number % len(SIZES)] // len(line))
    return b"Message-ID: <%d@client.example>\r\n\r\n" % number + body + LAST_LINE


class Sender:
    """Sends one message after the other until the server is gone, and notes which it took."""

    def __init__(self, server: Running, numbers: Iterator[int]) -> None:
        self.acknowledged: set[int] = set()
        self.problem = ""
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
                    self.problem = f"{replies}"
                    return
                self.acknowledged.add(number)


def crash(server: Running, numbers: Iterator[int]) -> set[int]:
    """Kill a server at a random moment of its work; give the messages it had acknowledged."""
    senders = [Sender(server, numbers) for _ in range(CLIENTS)]
    for sender in senders:
        sender.start()
    enough = random.randint(1, 30)  # noqa: S311 - no secret
    server.wait_until(
        lambda: (
            sum(len(sender.acknowledged) for sender in senders) >= enough
            or any(sender.problem for sender in senders)
        )
    )
    server.kill()
    for sender in senders:
        sender.join()
    assert [sender.problem for sender in senders if sender.problem] == []
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


def test_no_crash_loses_what_was_acknowledged_or_leaves_half_a_message(
    configure: Configure, start: Start
) -> None:
    config = configure(workers=2)
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
