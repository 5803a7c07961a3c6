"""The header of an incoming message is completed as by Postfix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field, replace
from email import policy
from email.errors import MissingHeaderBodySeparatorDefect
from email.parser import BytesParser
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settled import KINDER, POSTFIX

from minismtp import Content, Message, Relay, hookimpl, plugin
from minismtp.mail.cleanup import clean
from minismtp.storage.spool import Spool
from minismtp.testing import Dialogue, Mailroom

LIMIT: Final = 1 << 20
USER: Final = "user@example.org"
SETTLED: Final = POSTFIX | KINDER


@pytest.mark.parametrize(("came", "settled"), SETTLED.values(), ids=SETTLED.keys())
def test_header_is_settled_as_postfix_settles_it(came: bytes, settled: bytes) -> None:
    cleaned = clean(Content.of(came), LIMIT)
    assert cleaned is not None
    section, content = cleaned
    octets = content.open().read()
    assert octets == settled
    assert octets.startswith(section)


@plugin
class Looking:
    """Keeps the fields in order and the text below them, as filters see them."""

    seen: list[tuple[list[tuple[str, str]], bytes]] = field(default_factory=list)

    @hookimpl
    def on_message(self, message: Message) -> None:
        length = sum(map(len, message.headers.raw_all()))
        self.seen.append((list(message.headers), message.open().read()[length:]))


def stored_of(looking: Looking, pieces: Iterable[bytes]) -> bytes:
    """Send `pieces` after the recipient, and return the stored text below our field."""
    mailroom = Mailroom()
    dialogue = Dialogue(looking, mailroom)
    for command in ("EHLO c.example", "MAIL FROM:<a@b.example>", f"RCPT TO:<{USER}>"):
        assert dialogue.send(command).startswith("250")
    reply = [dialogue.send_raw(piece) for piece in pieces][-1]
    assert reply.startswith(b"250 2.0.0 message accepted")
    [stored] = mailroom.stored[USER]
    return re.sub(rb"\AReceived: (?:[^\n]*\n[ \t])*[^\n]*\n", b"", stored)


def by_data(content: bytes, size: int) -> Iterator[bytes]:
    """Yield DATA, and the content in packets of a size."""
    yield b"DATA\r\n"
    stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"
    yield from (stuffed[at : at + size] for at in range(0, len(stuffed), size))


def by_bdat(content: bytes, size: int) -> Iterator[bytes]:
    """Yield the content in chunks of a size."""
    for at in range(0, len(content), size):
        piece = content[at : at + size]
        yield b"BDAT %d\r\n" % len(piece) + piece
    yield b"BDAT 0 LAST\r\n"


@pytest.mark.parametrize("way", [by_data, by_bdat])
@pytest.mark.parametrize("more", [b"", b"more\r\n" * 60_000], ids=["in-memory", "on-disk"])
@pytest.mark.parametrize(("came", "settled"), SETTLED.values(), ids=SETTLED.keys())
def test_it_is_settled_for_filters_and_mailboxes_however_it_came(
    came: bytes, settled: bytes, more: bytes, way: Callable[[bytes, int], Iterator[bytes]]
) -> None:
    more = more if b"\r\n\r\n" in settled else b""  # else it is no body
    looking = Looking()
    assert stored_of(looking, way(came + more, 50_000)) == settled + more
    [(names, body)] = looking.seen
    assert (settled + more).endswith(body)
    assert names[1:] == fields_of(settled)


def fields_of(octets: bytes) -> list[tuple[str, str]]:
    """Return the fields as another parser of messages reads them."""
    read = BytesParser(policy=policy.compat32).parsebytes(octets, headersonly=True)
    assert not [each for each in read.defects if isinstance(each, MissingHeaderBodySeparatorDefect)]
    return [(name, re.sub(r"\r?\n", "", str(value)).strip(" \t")) for name, value in read.items()]


LINES: Final = (
    *(b"", b" ", b"\t", b" folded", b"Subject: x", b"To :y", b"Cc\t: z", b"From a@b", b">From c"),
    *(b"text", b"text: more", b"\xef\xbb\xbfA: b", b"\xef\xbb\xbf", b": c", b".", b"..", b".A: b"),
    *(
        b"Return-Path: <r@s>",
        b"return-path :<t@u>",
        b"Two words: v",
        b"L" * 3000,
        b"N" * 2050 + b":",
    ),
    b"Received: from u",
)


@given(
    lines=st.lists(st.sampled_from(LINES), max_size=8),
    ended=st.booleans(),
    size=st.sampled_from([1, 2, 3, 7, 1000]),
)
def test_every_way_and_every_packet_gives_one_header_that_every_reader_finds(
    lines: list[bytes], ended: bool, size: int
) -> None:
    content = b"".join(line + b"\r\n" for line in lines) + b"\r\nbody: of it\r\n" * ended
    size = max(size, len(content) // 100)  # a hundred packets tell as much as thousands
    looking = Looking()
    stored = {stored_of(looking, by_data(content, each)) for each in (size, 1 << 20)}
    stored |= {stored_of(looking, by_bdat(content, each)) for each in (size, 1 << 20)}
    [settled] = stored
    names, body = looking.seen[0]
    assert all((others[1:], same) == (names[1:], body) for others, same in looking.seen)
    assert names[1:] == fields_of(settled)
    assert "return-path" not in [name.lower() for name, _ in names]
    assert settled.endswith(body)
    assert body.startswith(b"\r\n") or not body
    # The text of the client is text for every reader, and no part of it is lost.
    assert content.endswith(body.removeprefix(b"\r\n"))


@pytest.mark.parametrize(("came", "settled"), SETTLED.values(), ids=SETTLED.keys())
def test_queue_has_the_header_that_filters_saw(came: bytes, settled: bytes, tmp_path: Path) -> None:
    @plugin
    class Elsewhere:
        @hookimpl
        def route(self) -> Relay:
            return Relay()

    queue = Spool(tmp_path)
    queue.prepare()
    looking = Looking()
    service = replace(Dialogue(looking, Elsewhere()).service, queue=queue)
    dialogue = Dialogue(service=service)
    for command in ("EHLO c.example", "MAIL FROM:<a@b.example>", f"RCPT TO:<{USER}>"):
        dialogue.send(command)
    assert dialogue.send_raw(b"BDAT %d LAST\r\n%b" % (len(came), came)).startswith(b"250")
    [name] = queue.names()
    _, message = queue.open(name)
    assert message.open().read().endswith(b"+0000\r\n" + settled)
    assert list(message.headers) == looking.seen[0][0]


def test_header_that_is_settled_already_is_not_copied() -> None:
    content = Content.of(b"Subject: x\r\nX-Return-Path: y\r\n folded\r\n\r\nbody\r\n")
    assert clean(content, LIMIT) == (b"Subject: x\r\nX-Return-Path: y\r\n folded\r\n\r\n", content)


@pytest.mark.parametrize("at", [65_536 - 3, 65_536, 65_536 + 4096, 300_000])
@pytest.mark.parametrize("line", [b"text\r\n", b"Subject :x\r\n", b"\r\n", b"N" * 5000 + b"\r\n"])
def test_header_ends_where_it_ends_beyond_the_first_look_too(line: bytes, at: int) -> None:
    fields = b"X: y\r\n" * (at // 6) + b"Z" * (at % 6 + 1) + b":\r\n"
    came = fields + line + b"Q: body\r\n" + b"more\r\n" * 20_000
    cleaned = clean(Content.of(came), LIMIT)
    assert cleaned is not None
    section, content = cleaned
    if line == b"Subject :x\r\n":
        assert section == fields + b"Subject:x\r\nQ: body\r\n\r\n"
    else:
        assert section == fields + b"\r\n"
        assert content.open().read() == section + came[len(fields) :].removeprefix(b"\r\n")


def test_text_without_a_header_may_be_as_long_as_any_message() -> None:
    line = b"x" * (2 * LIMIT) + b"\r\n"
    cleaned = clean(Content.of(line), LIMIT)
    assert cleaned is not None
    assert (cleaned[0], cleaned[1].size) == (b"\r\n", len(line) + 2)
