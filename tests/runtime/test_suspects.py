"""Messages that workers are handling, and messages on which workers died."""

from __future__ import annotations

import os
import threading

import pytest

from minismtp.mail.content import Content
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.runtime.suspects import PLACES, Suspects, fingerprint
from minismtp.values.address import Address

MAIL = Content.of(b"Subject: poison\r\n\r\ntext\r\n")


def envelope(identifier: str = "a1b2.1", sender: str = "sender@client.example") -> Envelope:
    found = Envelope(
        id=identifier,
        reverse_path=Address.parse(sender),
        listener="smtp",
        peer="192.0.2.1",
        helo="client.example",
        login=None,
        arrived=0.0,
    )
    found.recipients.append(Recipient(Address("alice", "example.org")))
    return found


def die(suspects: Suspects, slot: int, mark: int, identifier: str = "a1b2.1") -> None:
    """Let a worker die while it handles a message."""
    pid = os.fork()
    if not pid:
        suspects.of(slot).begin(mark, identifier)
        os._exit(0)
    os.waitpid(pid, 0)


def test_message_of_a_dead_worker_is_named_and_its_deaths_are_counted() -> None:
    suspects = Suspects()
    mark = fingerprint(envelope(), MAIL)
    for deaths in (1, 2, 3):
        die(suspects, 5, mark, f"a1b2.{deaths}")
        assert suspects.blame(5) == [(f"a1b2.{deaths}", deaths)]
        suspects.clear_notes(5)
        assert suspects.of(0).is_fatal(mark) == (deaths >= 2)
    assert suspects.blame(5) == []


def test_message_that_came_through_is_forgotten() -> None:
    suspects = Suspects()
    mark = fingerprint(envelope(), MAIL)
    die(suspects, 1, mark)
    suspects.blame(1)
    notes = suspects.of(2)
    notes.end(notes.begin(mark, "a"), mark)
    assert suspects.deaths(mark) == 0
    assert suspects.blame(2) == []


def test_another_configuration_gives_every_message_another_chance() -> None:
    suspects = Suspects()
    for _ in range(2):
        die(suspects, 1, 77)
        suspects.blame(1)
    suspects.clear_all()
    assert not suspects.of(1).is_fatal(77)


def test_only_messages_of_the_threads_that_ran_are_blamed() -> None:
    suspects = Suspects()
    notes = suspects.of(3)
    notes.begin(1, "mine")
    thread = threading.Thread(target=notes.begin, args=(2, "other"))
    thread.start()
    thread.join()
    mine = threading.current_thread().native_id
    assert mine is not None
    assert suspects.blame(3, {mine}) == [("mine", 1)]
    assert suspects.blame(3, set()) == []
    assert len(suspects.blame(3)) == 2


def test_more_messages_than_there_are_places_for_go_on_without_a_note() -> None:
    suspects = Suspects()
    notes = suspects.of(0)
    places = [notes.begin(number + 1, "a") for number in range(PLACES + 6)]
    assert places.count(-1) == 6
    for number, place in enumerate(places):
        notes.end(place, number + 1)
    assert suspects.blame(0) == []
    assert notes.begin(1, "a") >= 0


def test_the_newest_suspects_take_the_places_of_the_oldest() -> None:
    suspects = Suspects()
    for number in range(1, 2101):
        suspects.of(0).begin(number, "a")
        suspects.blame(0)
        suspects.clear_notes(0)
    assert [suspects.deaths(number) for number in (1, 52, 53, 2100)] == [0, 0, 1, 1]


def test_octets_across_two_rows_are_no_suspect() -> None:
    suspects = Suspects()
    first, second = 0x1122334455667788, 0x0102030405060708
    for mark in (first, second):
        suspects.of(0).begin(mark, "a")
        suspects.blame(0)
        suspects.clear_notes(0)
    across = int.from_bytes(second.to_bytes(8, "little")[2:] + b"\x01\x00", "little")
    assert suspects.deaths(across) == 0
    assert suspects.deaths(second) == 1


@pytest.mark.parametrize(
    ("sender", "content"),
    [
        ("other@client.example", MAIL),
        ("sender@client.example", Content.of(b"Subject: another\r\n\r\ntext\r\n")),
        ("sender@client.example", Content.of(b"x" * 100_000)),
    ],
)
def test_other_message_has_another_fingerprint(sender: str, content: Content) -> None:
    other = envelope("c3d4.7", sender)
    assert fingerprint(other, content) != fingerprint(envelope(), MAIL)
    assert fingerprint(envelope("c3d4.7"), MAIL) == fingerprint(envelope(), MAIL)
