"""Every plugin that asks a scanner: faults of the scanner do not affect other mail."""

from __future__ import annotations

import re
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest
from fakes import (
    FAILURES,
    Names,
    Talk,
    after_all,
    after_request,
    envelope,
    http,
    listen,
    serving,
)
from minismtp_plugins.clamav import Clamav
from minismtp_plugins.rspamd import Rspamd
from minismtp_plugins.spamassassin import Spamassassin
from ports import free_port

from minismtp import ByteSize, Message, SocketAddress
from minismtp.config import PluginConfig
from minismtp.mail.content import ContentWriter
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Launch

SHORT: Final = timedelta(milliseconds=300)
LONG: Final = timedelta(seconds=60)
MAIL: Final = "Subject: hello\n\nA message.\n"
DEFERRED: Final = "451 4.3.0 temporary failure, try again later"
PIECE: Final = 65536
MEMORY: Final = 8 * 1024 * 1024  # octets at any time, for messages of five times that


@dataclass(frozen=True)
class Scanner:
    """A plugin, the option that says where its service is, and a service that finds nothing."""

    make: Callable[[SocketAddress, timedelta], object]
    option: str
    content: Talk


SCANNERS: Final = {
    "clamav": Scanner(
        lambda address, patience: Clamav(address=address, patience=patience),
        'address = "{address}"',
        after_all(bytes(4), b"stream: OK\0"),
    ),
    "rspamd": Scanner(
        lambda address, patience: Rspamd(
            url=f"http://{address}", patience=patience, largest=ByteSize(2**30)
        ),
        'url = "http://{address}"',
        after_request(http({"action": "no action", "score": 1.0, "required_score": 15})),
    ),
    "spamassassin": Scanner(
        lambda address, patience: Spamassassin(
            address=address, patience=patience, largest=ByteSize(2**30)
        ),
        'address = "{address}"',
        after_request(b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 1 / 5\r\n\r\n"),
    ),
}


@pytest.fixture(params=SCANNERS)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of each plugin."""
    found: str = request.param
    return found


@pytest.fixture
def scanner(name: str) -> Scanner:
    """Return each of the plugins."""
    return SCANNERS[name]


def dialogue_with(
    scanner: Scanner, address: SocketAddress, patience: timedelta = LONG, on_error: str = "defer"
) -> Dialogue:
    table = PluginConfig(use="scanner", on_error="ignore" if on_error == "ignore" else "defer")
    return Dialogue((table, scanner.make(address, patience)), Mailroom(), resolver=Names())


def errors(dialogue: Dialogue) -> float:
    return dialogue.count("hook_errors_total", plugin="scanner", hook="on_message")


@pytest.mark.parametrize("failure", FAILURES)
def test_scanner_that_fails_defers_and_is_counted(scanner: Scanner, failure: str) -> None:
    with serving(FAILURES[failure]) as address:
        dialogue = dialogue_with(scanner, address, SHORT if failure == "slow" else LONG)
        assert dialogue.mail(MAIL) == DEFERRED
    assert errors(dialogue) == 1


def test_scanner_that_is_away_defers(scanner: Scanner) -> None:
    dialogue = dialogue_with(scanner, SocketAddress("127.0.0.1", free_port()))
    assert dialogue.mail(MAIL) == DEFERRED
    assert errors(dialogue) == 1


def test_scanner_that_fails_again_and_again_is_left_alone_for_a_while(scanner: Scanner) -> None:
    asked: list[int] = []

    def talk(_: socket.socket) -> None:
        asked.append(1)

    with serving(talk) as address:
        dialogue = dialogue_with(scanner, address)
        assert [dialogue.mail(MAIL) for _ in range(8)] == [DEFERRED] * 8
    assert len(asked) == 5
    assert errors(dialogue) == 8


def test_mail_passes_a_scanner_whose_failures_are_ignored(scanner: Scanner) -> None:
    nobody = SocketAddress("127.0.0.1", free_port())
    dialogue = dialogue_with(scanner, nobody, on_error="ignore")
    assert dialogue.mail(MAIL).startswith("250 ")
    assert errors(dialogue) == 1


def test_mail_in_which_nothing_is_found_is_taken(scanner: Scanner) -> None:
    with serving(scanner.content) as address:
        dialogue = dialogue_with(scanner, address)
        assert dialogue.mail(MAIL).startswith("250 ")
    assert errors(dialogue) == 0


def test_session_that_waits_for_a_slow_scanner_holds_up_no_other(
    launch: Launch, name: str, scanner: Scanner
) -> None:
    first: list[socket.socket] = []

    def slow_once(sock: socket.socket) -> None:
        if not first:
            first.append(sock)
            listen(sock)
        else:
            scanner.content(sock)

    with serving(slow_once) as address:
        table = f'[[plugins]]\nuse = "{name}"\npatience = "10m"\n'
        with (
            launch(table + scanner.option.format(address=address)) as server,
            server.connect() as waiting,
            server.connect() as other,
        ):
            waiting.begin_data("slow@example.org")
            waiting.send("Subject: slow\r\n\r\n.\r\n")
            server.wait_until(lambda: first)
            other.begin_data("quick@example.org")
            assert other.command("Subject: quick\r\n\r\n.").startswith("250 ")
            assert len(server.mail("quick")) == 1
            first[0].shutdown(socket.SHUT_RDWR)  # the scanner dies
            assert re.match(re.escape(DEFERRED), waiting.reply())
            assert server.mail("slow") == []


def deep_parts() -> Iterator[bytes]:
    """Yield a message of 10,000 parts, each inside the one before, with text of 20 MB."""
    yield b"MIME-Version: 1.0\r\n"
    for depth in range(10_000):
        yield b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (depth, depth)
    yield b"\r\n"
    for _ in range(300):
        yield b"A line of text that a bomb has a great many of.\r\n" * 1400


def long_header() -> Iterator[bytes]:
    """Yield a message whose header has 100,000 fields and one of 10 MB."""
    for number in range(100_000):
        yield b"X-Spam-%d: a field that is one of many, and each of them is spam\r\n" % number
    yield b"X-Spam-Long:" + b"\r\n"
    for _ in range(2000):
        yield b" a line of a very long field, and so on" * 128 + b"\r\n"
    yield b"\r\nText.\r\n"


def long_line() -> Iterator[bytes]:
    """Yield a message whose body is one line of 20 MB."""
    yield b"Subject: one line\r\nContent-Type: text/html\r\n\r\n"
    for _ in range(300):
        yield b"<p>and so on" * 6000
    yield b"\r\n"


@pytest.mark.parametrize("bomb", [deep_parts, long_header, long_line])
def test_bomb_passes_in_little_memory(
    scanner: Scanner, bomb: Callable[[], Iterator[bytes]]
) -> None:
    writer = ContentWriter()
    for piece in bomb():
        writer.write(piece)
    message = Message("1", writer.finish())
    with serving(scanner.content) as address:
        dialogue = dialogue_with(scanner, address)
        tracemalloc.start()
        try:
            dialogue.service.hooks.on_message(dialogue.session, envelope(), message)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert message.size > 16_000_000
    assert peak < MEMORY
