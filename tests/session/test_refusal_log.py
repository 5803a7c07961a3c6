"""Log lines and decision records that strangers can cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from fakes import Clock
from minismtp_plugins.mailboxes import Mailboxes

from minismtp import Reject, hookimpl, plugin
from minismtp.config import Limits
from minismtp.runtime.decision_log import DecisionLog, Record, recall
from minismtp.runtime.log import Log
from minismtp.session.listener_context import RefusalLog
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from _pytest.capture import CaptureFixture
    from conftest import Launch, Running

    Capture = CaptureFixture[str]


def admitted(refusals: RefusalLog, peer: str, count: int, now: float) -> int:
    return sum(refusals.admits(Log(), peer, now) for _ in range(count))


def test_each_peer_has_its_share_of_a_minute(capfd: Capture) -> None:
    refusals = RefusalLog(3)
    assert admitted(refusals, "192.0.2.1", 10, 0.0) == 3
    assert admitted(refusals, "192.0.2.2", 2, 30.0) == 2
    assert admitted(refusals, "192.0.2.1", 10, 59.0) == 0
    assert "more refusals" not in capfd.readouterr().err
    assert admitted(refusals, "192.0.2.1", 10, 60.0) == 3
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(" info more refusals peer=192.0.2.1 count=17")


def test_addresses_of_an_ipv6_network_share(capfd: Capture) -> None:
    refusals = RefusalLog(3)
    for number in range(10):
        refusals.admits(Log(), f"2001:db8::{number:x}", 0.0)
    assert admitted(refusals, "unix", 5, 0.0) == 3
    refusals.settle(Log(), 61.0)
    assert [line.partition("peer=")[2] for line in capfd.readouterr().err.splitlines()] == [
        "2001:db8::0 count=7",
        "unix count=2",
    ]


def test_peers_are_bounded_and_none_is_forgotten_untold(capfd: Capture) -> None:
    refusals = RefusalLog(1)
    log = Log()
    for number in range(10_010):
        peer = f"10.0.{number >> 8}.{number & 255}"
        for _ in range(2):
            refusals.admits(log, peer, 0.0)
    assert capfd.readouterr().err.count("more refusals") == 10
    refusals.settle(log, 60.0)
    assert capfd.readouterr().err.count("more refusals") == 10_000


def guess(dialogue: Dialogue, count: int) -> None:
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example>")
    for number in range(count):
        dialogue.send(f"RCPT TO:<guess{number}@example.org>")


def guessing(chronicle: DecisionLog | None = None) -> Dialogue:
    """Begin a session without a limit for guesses."""
    plugins = (Mailboxes(domains=["example.org"], users=["user"]), Mailroom())
    limits = Limits(errors=1_000_000, error_delay=timedelta(0))
    service = Dialogue(*plugins, limits=limits, log=Log()).service
    service = replace(service, decision_log=chronicle, refusal_log=RefusalLog(50), clock=Clock())
    return Dialogue(service=service)


def test_first_refused_recipients_have_a_line_each_and_the_rest_one(capfd: Capture) -> None:
    dialogue = guessing()
    guess(dialogue, 10_000)
    dialogue.close()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 22
    assert all("550 5.1.1" in line or "550 5.7.1" in line for line in lines[:20])
    assert "recipient=guess19@example.org" in lines[19]
    assert " info more recipients refused " in lines[20]
    assert lines[20].endswith(" peer=192.0.2.1 count=9980")
    assert " session closed " in lines[21]


def test_sessions_of_a_guesser_have_their_share_of_lines(capfd: Capture, tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 10_000_000, Log())
    first = guessing(chronicle)
    service = first.service
    clock = service.clock
    assert isinstance(clock, Clock)
    for _ in range(100):
        session = Dialogue(service=service)
        guess(session, 10)
        session.close()
    chronicle.flush()
    lines = capfd.readouterr().err.splitlines()
    assert 40 < len(lines) <= 50  # a session without a message has a record, but no line
    written = (tmp_path / "chronicle" / "refused-current.jsonl").read_text().count("\n")
    assert written <= 50
    clock.now += 60
    Dialogue(service=service).close()
    more = capfd.readouterr().err.splitlines()
    assert " info more refusals peer=192.0.2.1 count=" in more[0]
    # 10 recipients, the transaction and the session, a hundred times
    assert int(more[0].rpartition("=")[2]) == 100 * 12 - 50


def test_messages_that_are_accepted_have_a_line_whatever_the_peer_had_refused(
    capfd: Capture,
) -> None:
    dialogue = guessing()
    for _ in range(20):
        guess(dialogue, 20)
        dialogue.send("RSET")
    capfd.readouterr()
    assert dialogue.mail("hi", to=("user@example.org",)).startswith("250")
    dialogue.close()
    told = capfd.readouterr().err
    assert " info stored " in told
    assert " info session closed " in told


def test_refused_messages_have_their_share_too(capfd: Capture) -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_message(self) -> None:
            raise Reject("spam")

    limits = Limits(errors=1_000_000, junk_commands=1_000_000)
    service = Dialogue(Refusing(), Mailroom(), limits=limits, log=Log()).service
    dialogue = Dialogue(service=replace(service, refusal_log=RefusalLog(50), clock=Clock()))
    for _ in range(200):
        assert dialogue.mail("x").startswith("550 5.7.1 spam")
    assert len(capfd.readouterr().err.splitlines()) == 50


# The decision log


def record(number: int) -> Record:
    return Record("stored", f"{number:012x}.1", float(number), 0.0, {"text": "x" * 80}, [])


def test_flood_of_refusals_pushes_out_nothing_that_was_accepted(tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 80_000, Log())
    for number in range(100):
        chronicle.keep(record(number))
    for number in range(1000, 200_000):  # more than may wait, too
        chronicle.keep(record(number), accepted=False)
    chronicle.flush()
    for number in range(200_000, 203_000):
        chronicle.keep(record(number), accepted=False)
        if number % 20 == 0:
            chronicle.flush()
    chronicle.flush()
    for number in (0, 50, 99, 202_999):
        assert recall(tmp_path, f"{number:012x}.1") == [record(number)]
    assert recall(tmp_path, f"{200_000:012x}.1") == []


def test_explain_knows_what_was_refused(tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 1_000_000, Log())
    dialogue = guessing(chronicle)
    guess(dialogue, 3)
    dialogue.close()
    chronicle.flush()
    found = recall(tmp_path, dialogue.session.id)
    assert [each.event for each in found] == [
        *["recipient rejected"] * 3,
        "no message",
        "session closed",
    ]


LIMITS: Final = """
[limits]
sessions_per_ip = 1

[log]
refusals = 5
"""


@pytest.fixture(scope="module")
def bounded(launch: Launch) -> Iterator[Running]:
    with launch(LIMITS) as server:
        yield server


def test_connections_beyond_the_limits_have_their_share_and_are_told_at_the_end(
    bounded: Running,
) -> None:
    with bounded.connect() as first:
        first.reply()
        for _ in range(50):
            with bounded.connect() as client:
                client.rest()
        first.command("QUIT")
    bounded.process.terminate()
    assert bounded.wait() == 0
    bounded.wait_for_log(r"more refusals peer=127\.0\.0\.1 count=\d+")
    assert bounded.log.count("connection limited") == 5
