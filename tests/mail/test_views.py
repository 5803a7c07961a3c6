"""A message that leaves is the one that filters parsed, however it came in."""

import io
import re
from dataclasses import field, replace
from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from minismtp import Envelope, Headers, Message, hookimpl, plugin
from minismtp.smtp.dot_stuffing import dotted
from minismtp.testing import Dialogue, Mailroom

_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_PIECES: Final = st.lists(
    st.sampled_from(
        [
            *(b"From: a@example.org", b"From: ceo@bank.example", b"Subject: x", b"no field"),
            *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\n\n", b"\r\r\n", b" ", b"\t", b".", b"\r\n."),
            *(b"\0", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xe2\x80\xa8", b"\xff", b"--b", b":"),
        ]
    ),
    max_size=14,
).map(b"".join)


@plugin
class Filter:
    """Keeps the message and its fields as a filter sees them."""

    seen: list[tuple[bytes, list[tuple[str, str]], str]] = field(default_factory=list)

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        with message.open() as reader:
            self.seen.append((reader.read(), list(message.headers), envelope.body))


def _chunks(content: bytes, size: int) -> bytes:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    wire = b"".join(b"BDAT %d\r\n%s" % (len(piece), piece) for piece in pieces)
    return wire + b"BDAT 0 LAST\r\n"


def _undotted(wire: bytes) -> bytes:
    """Read DATA as the strictest host does."""
    assert not _BARE.search(wire)
    body, end, rest = (b"\r\n" + wire).partition(b"\r\n.\r\n")
    assert (end, rest) == (b"\r\n.\r\n", b"")
    return (body + b"\r\n").replace(b"\r\n.", b"\r\n")[2:]


@settings(max_examples=500)
@given(
    _PIECES,
    st.sampled_from(["DATA", "7BIT", "8BITMIME", "BINARYMIME"]),
    st.integers(1, 9),
    st.booleans(),
)
@example(b"Subject: x\rFrom: ceo@bank.example\r\n\r\n", "8BITMIME", 3, False)
@example(b"S: x\nFrom: ceo@bank.example\r\n\r\n", "BINARYMIME", 3, True)
@example(b"\r\n\r\nMZ\0\r\n.\r\n\n--b\r\n", "BINARYMIME", 1, False)
def test_what_filters_parsed_is_stored_and_sent(
    content: bytes, door: str, size: int, fix: bool
) -> None:
    # RFC 5321 section 2.3.8, RFC 3030 section 3
    filter_, mailroom = Filter(), Mailroom()
    service = replace(Dialogue(filter_, mailroom).service, fix_newlines=fix)
    dialogue = Dialogue(service=service)
    body = "" if door == "DATA" else f" BODY={door}"
    dialogue.send("EHLO client.example")
    dialogue.send(f"MAIL FROM:<a@client.example>{body}")
    dialogue.send("RCPT TO:<user@example.org>")
    if door == "DATA":
        dialogue.send("DATA")
        stuffed = (b"\r\n" + content + b"\r\n").replace(b"\r\n.", b"\r\n..")[2:]
        output = dialogue.send_raw(stuffed + b".\r\n")
    else:
        output = dialogue.send_raw(_chunks(content, size))
    if not filter_.seen:
        assert b"550 5.6.0 message has a bare CR or LF" in output
        assert _BARE.search(content)
        assert not mailroom.stored
        return
    [(octets, fields, kind)] = filter_.seen
    assert [octets] == mailroom.stored["user@example.org"]
    empty_line = re.search(rb"\n\r?\n", octets)
    assert not _BARE.search(octets[: empty_line.end()] if empty_line else octets)
    if kind != "BINARYMIME":  # it is sent unchanged, or not at all
        wire = b"".join(dotted(io.BytesIO(octets)))
        assert _undotted(wire) == octets + (b"" if octets.endswith(b"\r\n") else b"\r\n")
    assert list(Headers.parse(octets)) == fields


@settings(max_examples=300)
@given(_PIECES, st.integers(1, 9))
@example(b"Subject: x\rFrom: ceo@bank.example\n\nbody", 2)
@example(b"From\r: ceo@bank.example\r\n\r\nbody", 1)
def test_content_of_a_plugin_leaves_with_the_fields_that_filters_saw(
    content: bytes, size: int
) -> None:
    # Also not `From` where it has `From\\r:`, hence no space.
    wire = b"".join(dotted(io.BytesIO(content), size))
    sent = Headers.parse(_undotted(wire))
    known = [name for name, _ in sent if "?" not in name]  # which a CR has become
    assert known == [name for name, _ in Headers.parse(content)]
