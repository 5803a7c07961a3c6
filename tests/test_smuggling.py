"""A second message hidden behind a false end of data, sent to a running server.

The lists are those published in 2023 and 2024 for SMTP smuggling (CVE-2023-51764, -51765, -51766,
CVE-2024-27305) and other sequences that text functions take for a line end. For any input, and in
any packets, there is one message, or none if its line ends are refused.
"""

from __future__ import annotations

import re
import smtplib
import socket
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import Launch, Running

FALSE_ENDS: Final = [
    *(b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r.\n", b"\n.\r"),
    *(b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n.\r\r\n", b"\r\n.\r\0\n", b"\r\r\n.\n", b"\r\n\r.\r\n"),
    *(b"\n\n.\n\n", b"\n\n.\r\n", b"\r\n\n.\n\r\n", b"\r\n.\n\r\n", b"\r\n. \r\n", b"\r\n .\r\n"),
    *(b"\r\n.\t\r\n", b"\r\n\x0b.\x0b\r\n", b"\x0b.\x0b", b"\x0c.\x0c", b"\x1c.\x1c", b"\x1e.\x1e"),
    *(b"\x85.\x85", b"\r\n\x85.\r\n", b"\xc2\x85.\xc2\x85", b"\xe2\x80\xa8.\xe2\x80\xa8"),
    *(
        b"\xe2\x80\xa9.\xe2\x80\xa9",
        b"\r\n.\xe2\x80\xa8",
        b"\r\n.\xff\r\n",
        b"\r\n\xef\xbb\xbf.\r\n",
    ),
    *(
        b"\r\n..\r\n",
        b"\r\n...\r\n",
        b"\n..\n",
        b"=0D=0A.=0D=0A",
        b"\\r\\n.\\r\\n",
        b"%0d%0a.%0d%0a",
    ),
]
SECOND: Final = (
    b"MAIL FROM:<smuggler@client.example>\r\nRCPT TO:<smuggled@example.org>\r\nDATA\r\n"
    b"Subject: smuggled\r\n\r\nyou have been had\r\n"
)
_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_numbers = count()


@pytest.fixture(scope="module")
def refusing(launch: Launch) -> Iterator[Running]:
    """Run a server that refuses bare CR and LF, as by default."""
    with launch() as server:
        yield server


@pytest.fixture(scope="module")
def fixing(launch: Launch) -> Iterator[Running]:
    """Run a server that makes CRLF of bare CR and LF."""
    with launch(top='bare_newline = "fix"') as server:
        yield server


def deliver(server: Running, mailbox: str, *packets: bytes) -> list[str]:
    """Send a content, the true end and QUIT. Return the codes of all replies after 354."""
    with server.connect() as client:
        client.begin_data(f"{mailbox}@example.org")
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            client.send(packet)
        client.send(b".\r\nQUIT\r\n")
        return re.findall(r"^(\d{3} \d\.\d\.\d)", client.rest(), re.MULTILINE)


def packets_of(content: bytes, false_end: bytes, packets: str) -> list[bytes]:
    """Cut a content at the false end, in the way of a test's name."""
    before, _, behind = content.partition(false_end)
    match packets:
        case "one":
            return [content]
        case "around":
            return [before, false_end, behind]
        case _:
            return [before, *(bytes([octet]) for octet in false_end), behind]


def unstuffed(content: bytes) -> bytes:
    """Remove dots as a server does in whole lines (RFC 5321 section 4.5.2)."""
    return content.replace(b"\r\n.", b"\r\n")


@pytest.mark.parametrize("packets", ["one", "around", "octets"])
@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=repr)
def test_second_message_is_refused_with_the_first_or_part_of_it(
    refusing: Running, false_end: bytes, packets: str
) -> None:
    # RFC 5321 sections 2.3.8 and 4.1.1.4
    mailbox = f"smuggling{next(_numbers)}"
    content = b"Subject: first\r\n\r\nfirst" + false_end + SECOND
    replies = deliver(refusing, mailbox, *packets_of(content, false_end, packets))
    if _BARE.search(content):
        assert replies == ["550 5.6.0", "221 2.0.0"]
        assert refusing.mail(mailbox) == []
    else:
        assert replies == ["250 2.0.0", "221 2.0.0"]
        assert refusing.stored(mailbox) == unstuffed(content)
    assert refusing.mail("smuggled") == []


@pytest.mark.parametrize("packets", ["one", "around", "octets"])
@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=repr)
def test_second_message_is_part_of_the_first_where_newlines_are_fixed(
    fixing: Running, false_end: bytes, packets: str
) -> None:
    mailbox = f"smuggling{next(_numbers)}"
    content = b"Subject: first\r\n\r\nfirst" + false_end + SECOND
    replies = deliver(fixing, mailbox, *packets_of(content, false_end, packets))
    assert replies == ["250 2.0.0", "221 2.0.0"]
    assert fixing.stored(mailbox) == _BARE.sub(b"\r\n", unstuffed(content))
    assert fixing.mail("smuggled") == []


def test_line_of_one_dot_that_was_fixed_is_data_on_the_next_hop_too(
    fixing: Running, refusing: Running
) -> None:
    # A stored message may contain CRLF.CRLF; a relay doubles the dot (RFC 5321 section 4.5.2).
    assert deliver(fixing, "fixed", b"Subject: first\r\n\r\nfirst\n.\n" + SECOND)[0] == "250 2.0.0"
    stored = fixing.stored("fixed")
    assert b"\r\n.\r\n" in stored
    with smtplib.SMTP("127.0.0.1", refusing.port()) as relay:
        relay.sendmail("sender@client.example", ["relayed@example.org"], stored)
    assert refusing.stored("relayed") == stored
    assert refusing.mail("smuggled") == []


def test_true_end_within_a_chunk_is_data(refusing: Running) -> None:
    # RFC 3030 section 2: a chunk is counted, not read
    content = b"Subject: first\r\n\r\nfirst\r\n.\r\n" + SECOND + b".\r\n"
    with refusing.connect() as client:
        client.greet()
        client.command("MAIL FROM:<sender@client.example>")
        client.command("RCPT TO:<chunk@example.org>")
        client.send(b"BDAT %d LAST\r\n" % len(content) + content + b"QUIT\r\n")
        assert [client.reply()[:9], client.reply()[:9]] == ["250 2.0.0", "221 2.0.0"]
    assert refusing.stored("chunk") == content
    assert refusing.mail("smuggled") == []


def test_two_messages_that_end_truly_are_two(refusing: Running) -> None:
    # so that the tests above can fail
    first = b"Subject: first\r\n\r\nfirst\r\n.\r\n"
    second = SECOND.replace(b"smuggled@", b"honest@")
    replies = deliver(refusing, "before", first + second)
    assert replies == ["250 2.0.0", "250 2.1.0", "250 2.1.5", "250 2.0.0", "221 2.0.0"]
    assert len(refusing.mail("honest")) == 1
