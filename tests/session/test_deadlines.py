"""The time of a client: RFC 5321 section 4.5.3.2, and absolute limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from client_script import (
    MAIL_FROM,
    RCPT_TO,
    Kind,
    at_data,
    rules,
)
from fakes import Clock

from minismtp.config import Limits
from minismtp.config.types import ByteSize
from minismtp.testing import Dialogue, Mailroom


def timed() -> tuple[Dialogue, Clock]:
    clock = Clock()
    limits = Limits(
        command_timeout=timedelta(seconds=10),
        data_timeout=timedelta(seconds=50),
        session_timeout=timedelta(seconds=200),
    )
    return Dialogue(service=replace(rules(Mailroom(), limits=limits), clock=clock)), clock


def test_each_command_has_its_own_time() -> None:
    dialogue, clock = timed()
    assert dialogue.receiver.deadline == 1010
    clock.now = 1009
    dialogue.send("EHLO client.example")
    assert dialogue.receiver.deadline == 1019


def test_half_a_command_buys_no_time() -> None:
    dialogue, clock = timed()
    clock.now = 1009
    dialogue.send_raw(b"EHL")
    assert dialogue.receiver.deadline == 1010


def test_content_has_time_from_354_on_and_each_octet_buys_a_little() -> None:
    dialogue, clock = timed()
    at_data(dialogue).send("DATA")
    assert dialogue.receiver.deadline == 1050
    clock.now = 1049
    dialogue.send("x" * 498)
    assert dialogue.receiver.deadline == 1051  # 500 octets at 500 octets a second
    dialogue.send(".")
    assert dialogue.receiver.deadline == 1059


def test_all_chunks_have_one_time() -> None:
    dialogue, clock = timed()
    at_data(dialogue).send_raw(b"BDAT 1\r\nx")
    clock.now = 1040
    dialogue.send_raw(b"BDAT 491\r\n" + b"x" * 490)
    assert dialogue.receiver.deadline == 1051
    dialogue.send_raw(b"x")
    assert dialogue.receiver.deadline == pytest.approx(1051, abs=0.1)
    dialogue.send_raw(b"BDAT 0 LAST\r\n")
    assert dialogue.receiver.deadline == 1050


@pytest.mark.parametrize("form", ["data", "one-chunk", "many-chunks"])
@pytest.mark.parametrize("kind", ["mx", "lmtp"])
@pytest.mark.parametrize(
    ("octets", "seconds"),
    [(2048, 0.25), (512, 1.0), (65536, 8.0), (262_144, 290.0), (65536, 20.0)],
    ids=["64kbit", "4kbit", "64kbit-in-large-pieces", "long-gaps", "26kbit"],
)
def test_large_message_over_a_slow_line_comes_in(
    tmp_path: Path, kind: Kind, form: str, octets: int, seconds: float
) -> None:
    # Within the two hours of `content_timeout`; the session has one hour.
    size = min(25 * 2**20 - 2000, int(7000 / seconds) * octets)
    room = Mailroom()
    clock = Clock()
    service = replace(rules(room, kind=kind), clock=clock, spool=tmp_path)
    dialogue = at_data(Dialogue(service=service))
    text = (b"Subject: slow\r\n\r\n" + (b"x" * 62 + b"\r\n") * (octets // 64))[:octets]
    last = b"\r\n.\r\n" if form == "data" else b"BDAT 2 LAST\r\n\r\n"
    if form == "data":
        dialogue.send("DATA")
    if form == "one-chunk":
        dialogue.send_raw(b"BDAT %d\r\n" % (size // octets * octets))
    for _ in range(size // octets):
        clock.now += seconds
        assert clock.now < dialogue.receiver.deadline
        dialogue.send_raw((b"BDAT %d\r\n" % octets) * (form == "many-chunks") + text)
    assert dialogue.send_raw(last).startswith(b"250")
    assert len(room.stored["user@example.org"]) == 1


@pytest.mark.parametrize("form", ["data", "one-chunk", "many-chunks"])
@pytest.mark.parametrize(
    ("octets", "seconds", "lasts"),
    [
        (1, 1.0, 700),
        (1, 30.0, 700),
        (64, 1.0, 800),
        (400, 1.0, 4000),
        (0, 1.0, 610),
        (600, 1.0, 7300),
        (2**16, 1.0, 7300),
    ],
    ids=["1-a-second", "1-in-30", "64-a-second", "just-below", "silence", "endless", "fast"],
)
def test_content_that_trickles_or_never_ends_is_cut(
    form: str, octets: int, seconds: float, lasts: float
) -> None:
    clock = Clock()
    limits = Limits(message_size=ByteSize(10_000))
    dialogue = at_data(Dialogue(service=replace(rules(Mailroom(), limits=limits), clock=clock)))
    dialogue.send_raw({"data": b"DATA\r\n", "one-chunk": b"BDAT 9999999999\r\n"}.get(form, b""))
    if form == "many-chunks":
        dialogue.send_raw(b"BDAT 1\r\nx")
    begun = clock.now
    while clock.now < dialogue.receiver.deadline:
        clock.now += seconds
        if octets:
            chunk = b"BDAT %d\r\n" % octets if form == "many-chunks" and octets > 64 else b""
            dialogue.send_raw(chunk + b"x" * octets if form != "many-chunks" or chunk else b"\r")
        assert clock.now - begun < 10_000
    assert clock.now - begun <= lasts


def test_burst_buys_no_silence_beyond_the_timeout() -> None:
    clock = Clock()
    dialogue = at_data(Dialogue(service=replace(rules(Mailroom()), clock=clock)))
    dialogue.send("DATA")
    for _ in range(20):
        dialogue.send_raw(b"x" * 10**6)
    assert dialogue.receiver.deadline == clock.now + 600


def test_absolute_limit_holds_however_fast_the_content_comes() -> None:
    clock = Clock()
    limits = Limits(content_timeout=timedelta(minutes=1))
    dialogue = at_data(Dialogue(service=replace(rules(Mailroom(), limits=limits), clock=clock)))
    dialogue.send("DATA")
    clock.now += 59
    dialogue.send_raw(b"x" * 10**6)
    assert dialogue.receiver.deadline == 1060


def test_content_outlasts_its_session_only_when_it_began_before() -> None:
    dialogue, clock = timed()
    for line in ("EHLO client.example", MAIL_FROM, RCPT_TO):
        dialogue.send(line)
    clock.now = 1190
    dialogue.send("DATA")
    assert dialogue.receiver.deadline == 1200
    clock.now = 1199
    dialogue.send_raw((b"x" * 98 + b"\r\n") * 100)
    assert dialogue.receiver.deadline == 1220
    assert dialogue.send(".").startswith("250")
    clock.now = 1201  # over: the client hears 421, unless it is very fast
    for line in (MAIL_FROM, RCPT_TO, "DATA"):
        dialogue.send(line)
    dialogue.send("x" * 10_000)
    assert dialogue.receiver.deadline == 1200


def test_no_time_goes_beyond_that_of_the_session() -> None:
    dialogue, clock = timed()
    clock.now = 1195
    at_data(dialogue)
    assert dialogue.receiver.deadline == 1200
    dialogue.send("DATA")
    assert dialogue.receiver.deadline == 1200
