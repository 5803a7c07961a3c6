"""Messages for several mailboxes of which some fail, in every order."""

from __future__ import annotations

import itertools
from dataclasses import field, replace
from typing import TYPE_CHECKING, Literal

import pytest

from minismtp import (
    Address,
    Defer,
    Local,
    Recipient,
    Reject,
    Relay,
    Several,
    hookimpl,
    plugin,
)
from minismtp.storage.spool import Spool
from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Kind = Literal["mx", "lmtp"]
FULL = Defer("full", code=452, enhanced="4.2.2")
OVER = Reject("over quota", code=552, enhanced="5.2.2")
#: The outcomes of a copy: it is stored, sent, or fails in one of three ways.
FATES = ("ok", "away", "full", "over", "crash")
FAILURES: dict[str, Exception] = {"full": FULL, "over": OVER, "crash": ValueError("made by a test")}
REPLIES = {"full": "452 4.2.2", "over": "552 5.2.2", "crash": "451 4.3.0"}


@plugin
class Storage:
    """Handles a copy as the beginning of its mailbox's name says; `aliases` have routes."""

    aliases: dict[str, Local | Relay | Several] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @hookimpl
    def route(self, recipient: Recipient) -> Local | Relay | Several:
        name = recipient.address.local
        if name in self.aliases:
            return self.aliases[name]
        return Relay() if name.startswith("away") else Local()

    @hookimpl
    def deliver(self, mailbox: Address) -> bool:
        self.asked.append(mailbox.local)
        failure = FAILURES.get(mailbox.local.rstrip("0123456789"))
        if failure is not None:
            raise failure
        self.stored.append(mailbox.local)
        return True


def box(name: str) -> Address:
    return Address(name, "example.org")


@pytest.fixture
def queue(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


def talk(storage: Storage, queue: Spool | None, kind: Kind = "mx") -> Dialogue:
    return Dialogue(service=replace(Dialogue(storage, kind=kind).service, queue=queue))


def send(dialogue: Dialogue, names: Sequence[str]) -> list[str]:
    """Send a message and return the replies to its content, without their texts."""
    reply = dialogue.mail("Subject: x\n\nx", to=tuple(f"{name}@example.org" for name in names))
    return [line[:9] for line in reply.splitlines()]


def waiting(queue: Spool) -> list[str]:
    """Return the addresses of the waiting copies, sorted."""
    targets = [target for name in queue.names() for target in queue.open(name)[0].targets]
    return sorted(target.address.partition("@")[0] for target in targets)


#: Every three outcomes in every order, with a number after each to distinguish them.
ORDERS = [
    tuple(f"{fate}{number}" for number, fate in enumerate(fates))
    for fates in itertools.product(FATES, repeat=3)
]


def fate(name: str) -> str:
    return name.rstrip("0123456789")


@pytest.mark.parametrize("names", ORDERS, ids=",".join)
def test_who_can_have_the_message_gets_it_and_the_other_copies_wait(
    names: tuple[str, ...], queue: Spool
) -> None:
    storage = Storage()
    [reply] = send(talk(storage, queue), names)
    fates = {fate(name) for name in names}
    assert storage.asked == [name for name in names if fate(name) != "away"]
    assert storage.stored == [name for name in names if fate(name) == "ok"]
    if fates & {"ok", "away"}:
        assert reply == "250 2.0.0"
        assert waiting(queue) == sorted(name for name in names if fate(name) != "ok")
    else:  # the client keeps the message while this may help one of them
        hopeful = [each for each in map(fate, names) if each != "over"]
        assert reply == REPLIES[hopeful[0] if hopeful else "over"]
        assert waiting(queue) == []


@pytest.mark.parametrize("names", ORDERS, ids=",".join)
def test_client_of_lmtp_hears_of_each_recipient_and_nothing_else_waits(
    names: tuple[str, ...], queue: Spool
) -> None:
    storage = Storage()
    answers = send(talk(storage, queue, "lmtp"), names)
    assert answers == [REPLIES.get(fate(name), "250 2.0.0") for name in names]
    assert waiting(queue) == sorted(name for name in names if fate(name) == "away")


ALIASES: dict[str, Local | Relay | Several] = {
    "team": Local(box("ok1"), box("full1"), box("over1")),
    "last": Local(box("full1"), box("ok2")),
    "mixed": Several(Local(box("full1")), Relay(Address("x", "example.net"))),
    "lost": Local(box("over2"), box("full1"), box("over1")),
}


@pytest.mark.parametrize("kind", ["mx", "lmtp"])
@pytest.mark.parametrize(
    ("names", "stored", "queued"),
    [
        (["team"], ["ok1"], ["full1", "over1"]),
        (["last"], ["ok2"], ["full1"]),
        (["mixed"], [], ["full1", "x"]),
        (["team", "last", "full1"], ["ok1", "ok2"], ["full1", "over1"]),
        (["full1", "team"], ["ok1"], ["full1", "over1"]),
    ],
    ids=",".join,
)
def test_alias_of_several_targets_is_taken_when_one_of_them_can_have_the_message(
    kind: Kind, names: list[str], stored: list[str], queued: list[str], queue: Spool
) -> None:
    storage = Storage(aliases=ALIASES)
    answers = send(talk(storage, queue, kind), names)
    # A copy that waits because of an alias waits once, and a client of LMTP does not resend it.
    assert set(answers) == {"250 2.0.0"}
    assert storage.stored == stored
    assert waiting(queue) == queued


@pytest.mark.parametrize("kind", ["mx", "lmtp"])
def test_alias_none_of_whose_targets_can_have_the_message_is_refused(
    kind: Kind, queue: Spool
) -> None:
    assert send(talk(Storage(aliases=ALIASES), queue, kind), ["lost"]) == ["452 4.2.2"]
    assert waiting(queue) == []


def test_copy_that_waits_says_for_whom_it_is(queue: Spool) -> None:
    send(talk(Storage(aliases=ALIASES), queue), ["team"])
    [name] = queue.names()
    targets = queue.open(name)[0].targets
    assert {target.kind for target in targets} == {"local"}
    assert {target.recipient for target in targets} == {"team@example.org"}


@pytest.mark.parametrize(
    "names", list(itertools.permutations(["ok1", "full1", "ok2"])), ids=",".join
)
def test_without_a_queue_the_failure_is_the_reply(names: Sequence[str]) -> None:
    assert send(talk(Storage(), None), names) == ["452 4.2.2"]


@pytest.mark.parametrize("names", [["ok1", "full1"], ["away1"], ["team"]], ids=",".join)
def test_nobody_gets_a_copy_while_the_queue_could_not_take_the_others(
    names: list[str], tmp_path: Path
) -> None:
    storage = Storage(aliases=ALIASES)
    full = Spool(tmp_path / "spool", reserve=1 << 62)
    full.prepare()
    service = replace(Dialogue(storage).service, queue=full)
    dialogue = Dialogue(service=service)
    full._free = (1 << 63, float("inf"))  # noqa: SLF001 - there was space at MAIL
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example>")
    for name in names:
        assert dialogue.send(f"RCPT TO:<{name}@example.org>").startswith("250")
    dialogue.send("DATA")
    full._free = (0, 0.0)  # noqa: SLF001
    assert dialogue.send_raw(b"x\r\n.\r\n").startswith(b"452 4.3.1")
    assert storage.stored == []


def test_copies_that_the_client_would_wait_too_long_for_wait_in_the_queue(queue: Spool) -> None:
    @plugin
    class Slow:
        @hookimpl
        def deliver(self) -> None:
            times.append(times[-1] + 100.0)

    times = [0.0]
    storage = Storage()
    service = replace(Dialogue(Slow(), storage).service, queue=queue, clock=lambda: times[-1])
    names = [f"ok{number}" for number in range(5)]
    assert send(Dialogue(service=service), names) == ["250 2.0.0"]
    assert storage.stored == ["ok0", "ok1"]
    assert waiting(queue) == ["ok2", "ok3", "ok4"]


class InFolder(Local):
    """A route that a plugin derives from `Local`."""


@pytest.mark.parametrize("kind", [Local, InFolder])
def test_recipient_has_the_mailboxes_of_its_route(kind: type[Local]) -> None:
    alice, bob = Address("alice", "example.org"), Address("bob", "example.org")
    assert Recipient(alice, kind()).mailboxes == (alice,)
    assert Recipient(alice, kind(bob)).mailboxes == (bob,)
    assert not Recipient(alice, kind(bob)).expands
    assert Recipient(alice, kind(alice, bob)).expands
    assert Recipient(alice, kind(bob)).relays == ()
