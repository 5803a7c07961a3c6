"""Verdicts of plugins on the content of a message for one of several recipients alone."""

from __future__ import annotations

import email
import email.policy
import itertools
from dataclasses import field, replace
from typing import TYPE_CHECKING, Literal

import pytest
from minismtp_plugins.quarantine import Quarantine

from minismtp import (
    Address,
    AuthResult,
    Defer,
    Disconnect,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Relay,
    hookimpl,
    plugin,
    results_of,
)
from minismtp.config import PluginConfig
from minismtp.events import Event, RecipientJudged
from minismtp.runtime.decision_log import DecisionLog, Record, recall
from minismtp.runtime.log import Log
from minismtp.storage.quarantine import QuarantineStore
from minismtp.storage.spool import Spool
from minismtp.testing import Dialogue, Dialogues, Mailroom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import EmailMessage
    from pathlib import Path

Kind = Literal["mx", "lmtp"]
MAIL = "Subject: lottery\nMessage-ID: <1@client.example>\n\nYou won.\n"
NO = Reject("no lottery here")
LATER = Defer("not before noon")
SENDER = "sender@client.example"


@plugin
class Wishes:
    """Judges the content as the beginning of each recipient's name says."""

    if_forged: Literal["quarantine", "discard"] = "quarantine"
    reason: str = "lottery"
    results: tuple[AuthResult, ...] = ()

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        results_of(envelope).extend(self.results)
        for recipient in envelope.recipients:
            match recipient.address.local[:2]:
                case "no":
                    envelope.refuse(recipient.address, NO, if_forged=self.if_forged)
                case "la":
                    envelope.refuse(recipient.address, LATER)
                case "qu":
                    text = f"{self.reason}{recipient.address.local[2:]}"
                    envelope.quarantine(recipient.address, text)
                case "re":
                    envelope.remove(recipient.address)


@plugin
class Room:
    """Takes mail as the end of a name says: "away" leaves, "full" has no room."""

    stored: dict[str, str | None] = field(default_factory=dict)
    events: list[RecipientJudged] = field(default_factory=list)

    @hookimpl
    def route(self, recipient: Recipient) -> Local | Relay:
        local = recipient.address.local
        if local.endswith("-one"):
            return Local(Address("one", "example.org"))
        return Relay() if local.endswith("-away") else Local()

    @hookimpl
    def deliver(self, message: Message, mailbox: Address) -> bool:
        if mailbox.local.endswith("-full"):
            raise Defer("full", code=452, enhanced="4.2.2")
        assert mailbox.local not in self.stored
        self.stored[mailbox.local] = message.quarantined
        return True

    @hookimpl
    def observe(self, event: Event) -> None:
        if isinstance(event, RecipientJudged):
            self.events.append(event)


def to(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}@example.org" for name in names)


def send(dialogue: Dialogue, *names: str) -> list[str]:
    """Send a message and return the replies, without the identifier of an accepted one."""
    return [
        "250" if line.startswith("250") else line
        for line in dialogue.mail(MAIL, sender=SENDER, to=to(*names)).splitlines()
    ]


def outcomes(dialogue: Dialogue) -> dict[str, str]:
    return {address.partition("@")[0]: name for address, name in dialogue.outcomes.items()}


def spf(result: str, domain: str = "client.example") -> AuthResult:
    return AuthResult("spf", result, properties={"smtp.mailfrom": f"sender@{domain}"})


def reports(notice: bytes) -> list[EmailMessage]:
    """Return the groups of fields of a notification, that of the message first."""
    parsed = email.message_from_bytes(notice, policy=email.policy.default)
    assert parsed.get_content_type() == "multipart/report"
    return list([*parsed.iter_parts()][1].iter_parts())  # type: ignore[arg-type]


@pytest.fixture
def queue(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


def with_queue(dialogue: Dialogue, queue: Spool) -> Dialogue:
    return Dialogue(service=replace(dialogue.service, queue=queue, notices=None))


ORDERS = list(itertools.permutations(["ann", "no-1", "later-1", "qu"]))


@pytest.mark.parametrize("names", ORDERS, ids=",".join)
def test_client_of_lmtp_has_a_reply_for_each_recipient(names: Sequence[str]) -> None:
    """RFC 2033 section 4.2."""
    room = Room()
    dialogue = Dialogue(Wishes(), room, kind="lmtp")
    expected = {"no-1": "550 5.7.1 no lottery here", "later-1": "451 4.7.1 not before noon"}
    assert send(dialogue, *names) == [expected.get(name, "250") for name in names]
    assert room.stored == {"ann": None, "qu": "lottery"}
    assert outcomes(dialogue) == {"no-1": "rejected", "later-1": "deferred", "qu": "quarantined"}
    assert dialogue.notifications == []


@pytest.mark.parametrize("names", [["no-1"], ["no-1", "no-2"], ["later", "no-1"]], ids=",".join)
def test_client_of_lmtp_is_refused_when_nobody_wants_the_message(names: Sequence[str]) -> None:
    room = Room()
    dialogue = Dialogue(Wishes(), room, kind="lmtp")
    assert [reply[:3] for reply in send(dialogue, *names)] == [
        "550" if name.startswith("no") else "451" for name in names
    ]
    assert room.stored == {}
    outcome = "deferred" if "later" in names else "rejected"
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1


def test_client_of_lmtp_hears_of_a_removed_recipient_that_all_is_well() -> None:
    dialogue = Dialogue(Wishes(), Room(), kind="lmtp")
    assert send(dialogue, "removed", "no") == ["250", "550 5.7.1 no lottery here"]
    assert dialogue.count("messages_total", listener="test", outcome="discarded") == 1


def test_client_of_lmtp_hears_of_a_refusal_and_of_a_full_mailbox() -> None:
    dialogue = Dialogue(Wishes(), Room(), kind="lmtp")
    replies = send(dialogue, "a-full", "no", "ann")
    assert [reply[:9] for reply in replies] == ["452 4.2.2", "550 5.7.1", "250"]


@pytest.mark.parametrize("names", list(itertools.permutations(["ann", "no", "bob"])), ids=",".join)
def test_refused_recipient_is_left_out_and_the_sender_is_notified(names: Sequence[str]) -> None:
    room = Room()
    dialogue = Dialogue(Wishes(), room, login="alice")
    assert send(dialogue, *names) == ["250"]
    assert room.stored == {"ann": None, "bob": None}
    assert outcomes(dialogue) == {"no": "notified"}
    [notice] = dialogue.notifications
    _, fields = reports(notice)
    # RFC 3464 section 2.3
    assert fields["Final-Recipient"] == "rfc822; no@example.org"
    assert fields["Action"] == "failed"
    assert fields["Status"] == "5.7.1"
    assert fields["Diagnostic-Code"] == "X-minismtp; 550 5.7.1 no lottery here"
    assert f"To: <{SENDER}>\r\n".encode() in notice
    assert b"You won." in notice


def test_one_notification_tells_of_all_refused_recipients() -> None:
    dialogue = Dialogue(Wishes(), Room(), login="alice")
    send(dialogue, "no-1", "ann", "no-2")
    [notice] = dialogue.notifications
    refused = [fields["Final-Recipient"] for fields in reports(notice)[1:]]
    assert refused == ["rfc822; no-1@example.org", "rfc822; no-2@example.org"]


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        ((spf("pass"),), "notified"),
        ((spf("pass", "CLIENT.example"),), "notified"),
        ((), "quarantined"),
        ((spf("none"),), "quarantined"),
        ((spf("softfail"),), "quarantined"),
        ((spf("pass", "other.example"),), "quarantined"),
        ((spf("pass", "notclient.example"),), "quarantined"),
        ((AuthResult("spf", "pass", properties={"smtp.helo": "client.example"}),), "quarantined"),
        ((spf("pass"), AuthResult("dmarc", "pass")), "notified"),
        ((spf("pass"), AuthResult("dmarc", "fail")), "quarantined"),
        ((AuthResult("dkim", "pass", properties={"header.d": "client.example"}),), "quarantined"),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, tuple) else value,
)
def test_stranger_is_notified_only_if_the_sender_is_surely_not_forged(
    results: tuple[AuthResult, ...], outcome: str
) -> None:
    room = Room()
    dialogue = Dialogue(Wishes(results=results), room)
    assert send(dialogue, "ann", "no") == ["250"]
    assert outcomes(dialogue) == {"no": outcome}
    kept = {"no": "refused for the recipient: no lottery here"}
    assert room.stored == {"ann": None} | (kept if outcome == "quarantined" else {})
    assert len(dialogue.notifications) == (outcome == "notified")
    # Not a word of a stranger, except the identifier of the message.
    assert all(b"You won." not in notice for notice in dialogue.notifications)


def test_copy_of_a_forged_sender_may_be_dropped_instead() -> None:
    room = Room()
    dialogue = Dialogue(Wishes(if_forged="discard"), room)
    assert send(dialogue, "ann", "no") == ["250"]
    assert outcomes(dialogue) == {"no": "dropped"}
    assert room.stored == {"ann": None}
    assert dialogue.notifications == []


def talk(dialogue: Dialogue, sender: str, *recipients: str) -> str:
    """Send a message with parameters, and return the last reply."""
    for line in ("EHLO client.example", f"MAIL FROM:{sender}", *recipients, "DATA"):
        assert dialogue.send(line)[:1] in "23"
    return dialogue.send("\r\n.")


@pytest.mark.parametrize(
    ("notify", "outcome"),
    [
        ("NEVER", "dropped"),
        ("SUCCESS,DELAY", "dropped"),
        ("FAILURE", "notified"),
        ("SUCCESS,FAILURE", "notified"),
    ],
)
def test_sender_gets_the_notifications_that_it_asked_for(notify: str, outcome: str) -> None:
    """RFC 3461 section 4.1."""
    dialogue = Dialogue(Wishes(), Room(), login="alice")
    refused = f"RCPT TO:<no@example.org> NOTIFY={notify} ORCPT=rfc822;wish@example.org"
    reply = talk(dialogue, f"<{SENDER}> ENVID=abc", refused, "RCPT TO:<ann@example.org>")
    assert reply.startswith("250 ")
    assert outcomes(dialogue) == {"no": outcome}
    for notice in dialogue.notifications:
        message, fields = reports(notice)
        assert message["Original-Envelope-Id"] == "abc"
        assert fields["Original-Recipient"] == "rfc822; wish@example.org"
    assert len(dialogue.notifications) == (outcome == "notified")


def test_null_sender_is_never_notified() -> None:
    """RFC 5321 section 6.1."""
    room = Room()
    dialogue = Dialogue(Wishes(), room, login="alice")
    talk(dialogue, "<>", "RCPT TO:<no@example.org>", "RCPT TO:<ann@example.org>")
    assert outcomes(dialogue) == {"no": "quarantined"}
    assert dialogue.notifications == []


@plugin
class Own:
    """Refuses the message for each recipient with a reply of its own."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        for recipient in envelope.recipients:
            local = recipient.address.local
            if local.isdigit():
                envelope.refuse(recipient.address, Reject(f"not {local}"))


@pytest.mark.parametrize("login", [None, "alice"])
def test_message_that_nobody_wants_is_refused_with_the_first_verdict(login: str | None) -> None:
    room = Room()
    dialogue = Dialogue(Own(), room, login=login)
    assert send(dialogue, "2", "1") == ["550 5.7.1 not 2"]
    assert room.stored == {}
    assert dialogue.notifications == []
    assert outcomes(dialogue) == {"1": "rejected", "2": "rejected"}
    labels = {"stage": "content", "plugin": "own", "reason": "policy", "code_class": "5xx"}
    assert dialogue.count("refusals_total", listener="test", **labels) == 1


WAITING = list(itertools.permutations(["ann", "later", "no"]))


def test_message_that_nobody_is_left_of_but_removed_ones_is_refused() -> None:
    room = Room()
    assert send(Dialogue(Wishes(), room), "removed", "no") == ["550 5.7.1 no lottery here"]
    assert room.stored == {}


@pytest.mark.parametrize(
    "names", list(itertools.permutations(["ann", "later", "no"])), ids=",".join
)
def test_over_smtp_all_wait_for_the_recipient_who_is_deferred(names: Sequence[str]) -> None:
    room = Room()
    dialogue = Dialogue(Wishes(), room, login="alice")
    assert send(dialogue, *names) == ["451 4.7.1 not before noon"]
    assert room.stored == {}
    assert outcomes(dialogue) == {"later": "deferred", "no": "deferred"}
    assert dialogue.notifications == []


def test_refused_recipient_is_told_of_only_once_the_others_have_the_message() -> None:
    dialogue = Dialogue(Wishes(), Room(), login="alice")
    assert send(dialogue, "no", "a-full") == ["452 4.2.2 full"]
    assert outcomes(dialogue) == {}
    assert dialogue.notifications == []


def test_copy_is_quarantined_for_one_recipient_alone(tmp_path: Path, mailroom: Mailroom) -> None:
    quarantine = Quarantine(path=tmp_path / "quarantine")
    dialogue = Dialogue(Wishes(), quarantine, mailroom)
    assert send(dialogue, "ann", "qu-1", "bob", "qu-2") == ["250"]
    assert sorted(mailroom.stored) == ["ann@example.org", "bob@example.org"]
    store = QuarantineStore(tmp_path / "quarantine")
    entries = [store.open(kept)[0] for kept in store.find()]
    found = {each.targets[0].address: each.quarantined for each in entries}
    assert found == {"qu-1@example.org": "lottery-1", "qu-2@example.org": "lottery-2"}
    assert {len(each.targets) for each in entries} == {1}
    assert dialogue.count("messages_total", listener="test", outcome="stored") == 1


def test_copies_with_one_reason_are_kept_once(tmp_path: Path, mailroom: Mailroom) -> None:
    quarantine = Quarantine(path=tmp_path / "quarantine")
    dialogue = Dialogue(Wishes(), quarantine, mailroom)
    send(dialogue, "ann", "no-1", "no-2")
    store = QuarantineStore(tmp_path / "quarantine")
    [(entry, _)] = [store.open(kept) for kept in store.find()]
    assert {each.address for each in entry.targets} == {*to("no-1", "no-2")}


def test_any_number_of_reasons_makes_a_few_copies_only(tmp_path: Path) -> None:
    quarantine = Quarantine(path=tmp_path / "quarantine")
    dialogue = Dialogue(Wishes(), quarantine, Room())
    send(dialogue, *(f"qu-{number}" for number in range(50)))
    store = QuarantineStore(tmp_path / "quarantine")
    entries = [store.open(kept)[0] for kept in store.find()]
    assert len(entries) == 8
    assert sum(len(each.targets) for each in entries) == 50
    assert dialogue.count("messages_total", listener="test", outcome="quarantined") == 1


def test_mailbox_that_gets_the_message_anyway_gets_it_once() -> None:
    room = Room()
    dialogue = Dialogue(Wishes(), room)
    assert send(dialogue, "qu-one", "no-one", "ann-one") == ["250"]
    assert room.stored == {"one": None}


def test_message_that_is_quarantined_for_all_is_so_for_refused_recipients() -> None:
    @plugin
    class Suspicion:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.quarantine("a virus")

    room = Room()
    dialogue = Dialogue(Suspicion(), Wishes(), room)
    assert send(dialogue, "ann", "no", "qu") == ["250"]
    assert room.stored == dict.fromkeys(["ann", "no", "qu"], "a virus")


def test_message_that_is_discarded_is_discarded_for_all() -> None:
    @plugin
    class Drain:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.discard("a worm")

    room = Room()
    dialogue = Dialogue(Wishes(), Drain(), room, login="alice")
    assert send(dialogue, "ann", "no") == ["250"]
    assert room.stored == {}
    assert dialogue.notifications == []
    assert outcomes(dialogue) == {}


def test_message_that_is_refused_is_refused_for_all() -> None:
    @plugin
    class Wall:
        @hookimpl
        def on_message(self) -> None:
            raise Reject("spam")

    dialogue = Dialogue(Wishes(), Wall(), Room(), login="alice")
    assert send(dialogue, "ann", "no") == ["550 5.7.1 spam"]
    assert dialogue.notifications == []


def queued(queue: Spool) -> dict[str, tuple[str, str | None]]:
    """Return the targets in the queue: each with its kind and why it is quarantined."""
    entries = [queue.open(name)[0] for name in queue.names()]
    return {
        target.address: (target.kind, entry.quarantined)
        for entry in entries
        for target in entry.targets
    }


@pytest.mark.parametrize("login", [None, "alice"])
def test_recipients_at_other_hosts_are_judged_too(queue: Spool, login: str | None) -> None:
    service = Dialogue(Wishes(), Room()).service
    dialogue = Dialogue(service=replace(service, queue=queue, notices=None), login=login)
    assert send(dialogue, "ann-away", "no-away", "qu-away", "bob") == ["250"]
    why = "refused for the recipient: no lottery here"
    refused = {"no-away@example.org": ("relay", why)} if login is None else {}
    notice = {SENDER: ("local", None)} if login else {}
    assert queued(queue) == {
        "ann-away@example.org": ("relay", None),
        "qu-away@example.org": ("relay", "lottery-away"),
        **refused,
        **notice,
    }


def test_copy_that_cannot_be_quarantined_now_waits_as_what_it_is(queue: Spool) -> None:
    dialogue = with_queue(Dialogue(Wishes(), Room()), queue)
    assert send(dialogue, "ann", "qu-full", "b-full") == ["250"]
    assert queued(queue) == {
        "qu-full@example.org": ("local", "lottery-full"),
        "b-full@example.org": ("local", None),
    }


class BrokenSpool(Spool):
    """A queue whose disk fails."""

    def add(self, entry: object, message: object) -> None:
        del entry, message
        raise OSError(5, "Input/output error")


def test_message_is_not_acknowledged_without_the_notification(tmp_path: Path) -> None:
    broken = BrokenSpool(tmp_path / "spool")
    broken.prepare()
    service = Dialogue(Wishes(), Room(), login="alice").service
    dialogue = Dialogue(service=replace(service, queue=broken, notices=None), login="alice")
    assert send(dialogue, "ann", "no") == ["452 4.3.1 no space to receive the message"]
    assert outcomes(dialogue) == {}


def test_nothing_is_stored_without_space_for_the_notification(queue: Spool) -> None:
    room = Room()
    service = Dialogue(Wishes(), room).service
    dialogue = Dialogue(service=replace(service, queue=queue, notices=None), login="alice")
    for line in (f"MAIL FROM:<{SENDER}>", *(f"RCPT TO:<{each}>" for each in to("ann", "no"))):
        dialogue.send("EHLO client.example") if line.startswith("MAIL") else None
        assert dialogue.send(line).startswith("250")
    dialogue.send("DATA")
    queue._free = (0, float("inf"))  # noqa: SLF001 - the disk filled meanwhile
    assert dialogue.send_raw(b"x\r\n.\r\n").startswith(b"452 4.3.1 ")
    assert room.stored == {}


@plugin
class Verdicts:
    """Gives two verdicts for "bob", one after the other."""

    calls: tuple[Reject | Defer | str, ...]

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        for call in self.calls:
            if isinstance(call, str):
                envelope.quarantine(Address("bob", "example.org"), call)
            else:
                envelope.refuse(Address("bob", "example.org"), call)


@pytest.mark.parametrize(
    ("calls", "outcome"),
    [
        ((NO, LATER), "notified"),
        ((LATER, NO), "deferred"),
        ((NO, "why"), "notified"),
        (("why", NO), "notified"),
        (("why", "because"), "quarantined"),
    ],
    ids=str,
)
def test_first_refusal_stands_and_is_stronger_than_quarantine(
    calls: tuple[Reject | Defer | str, ...], outcome: str
) -> None:
    room = Room()
    dialogue = Dialogue(Verdicts(calls=calls), room, login="alice")
    send(dialogue, "ann", "bob")
    assert outcomes(dialogue) == {"bob": outcome}
    assert room.stored.get("bob") == ("why" if outcome == "quarantined" else None)


def test_verdict_for_a_stranger_to_the_message_is_ignored() -> None:
    room = Room()
    assert send(Dialogue(Verdicts(calls=(NO,)), room), "ann") == ["250"]
    assert room.stored == {"ann": None}


@pytest.mark.parametrize("wrong", [Disconnect("go"), "no", Reject], ids=repr)
def test_only_a_refusal_can_be_a_verdict(wrong: object, envelope: Envelope) -> None:
    with pytest.raises(TypeError, match=r"expected Reject\(\.\.\.\) or Defer\(\.\.\.\), not "):
        envelope.refuse(Address("bob", "example.org"), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["bob@example.org", Recipient(Address("bob", "example.org"))])
def test_only_an_address_can_have_a_verdict(wrong: object, envelope: Envelope) -> None:
    """It would be ignored, so that a recipient gets what it must not get."""
    with pytest.raises(TypeError, match="expected the address of a recipient, not "):
        envelope.refuse(wrong, NO)  # type: ignore[arg-type]


@pytest.fixture
def envelope() -> Envelope:
    return Envelope(
        id="0", reverse_path=None, listener="", peer="", helo="", login=None, arrived=0.0
    )


def test_plugin_in_shadow_mode_refuses_nobody(tmp_path: Path) -> None:
    room = Room()
    table = PluginConfig(use="wishes", mode="shadow")
    dialogue, records = recorded(tmp_path, (table, Wishes()), room)
    assert send(dialogue, "ann", "no", "qu") == ["250"]
    assert room.stored == {"ann": None, "no": None, "qu": None}
    assert outcomes(dialogue) == {}
    [remark] = [step[5] for step in records()[0].steps if step[0] == "on_message"]
    assert remark == (
        "would be refused: 550 5.7.1 no lottery here, for no@example.org;"
        " quarantined: lottery, for qu@example.org"
    )


def recorded(
    tmp_path: Path, *plugins: object, kind: Kind = "mx", login: str | None = None
) -> tuple[Dialogue, Callable[[], list[Record]]]:
    """Return a dialogue with a decision log, and a function that returns its records."""
    log = DecisionLog(tmp_path, 1 << 20, Log(level="error"))
    first = Dialogue(*plugins, kind=kind)
    service = replace(first.service, decision_log=log)
    dialogue = Dialogue(service=service, login=login, metrics=first.metrics)

    def records() -> list[Record]:
        log.flush()
        return recall(tmp_path, dialogue.session.id)

    return dialogue, records


def test_records_tell_what_became_of_each_recipient(tmp_path: Path) -> None:
    dialogue, records = recorded(tmp_path, Wishes(), Room(), login="alice")
    send(dialogue, "ann", "no", "qu")
    by_event = {record.event: record for record in records()}
    message = by_event["stored"]
    assert message.fields["notified"] == "no@example.org"
    assert message.fields["quarantined"] == "qu@example.org"
    assert message.fields["to"] == "ann@example.org"
    [remark] = [step[5] for step in message.steps if step[0] == "on_message"]
    assert remark == (
        "refused: 550 5.7.1 no lottery here, for no@example.org;"
        " quarantined: lottery, for qu@example.org"
    )
    rejected = by_event["recipient rejected"].fields
    assert rejected["recipient"] == "no@example.org"
    assert rejected["reply"] == "550 5.7.1 no lottery here"
    assert (rejected["plugin"], rejected["hook"]) == ("wishes", "on_message")
    assert rejected["outcome"] == "notified"
    quarantined = by_event["recipient quarantined"].fields
    assert quarantined["recipient"] == "qu@example.org"
    assert (quarantined["plugin"], quarantined["reason"]) == ("wishes", "lottery")


def test_each_recipient_of_a_refused_message_has_its_true_reason_in_the_log(tmp_path: Path) -> None:
    dialogue, records = recorded(tmp_path, Own(), Room())
    send(dialogue, "1", "2")
    told = [(each.event, each.fields["reply"]) for each in records()]
    assert sorted(told) == [
        ("recipient rejected", "550 5.7.1 not 2"),
        ("rejected", "550 5.7.1 not 1"),
    ]


def test_refusal_of_lmtp_names_the_plugin(tmp_path: Path) -> None:
    dialogue, records = recorded(tmp_path, Wishes(), Room(), kind="lmtp")
    send(dialogue, "ann", "no")
    [line] = [each.fields for each in records() if each.event == "recipient rejected"]
    assert (line["recipient"], line["plugin"]) == ("no@example.org", "wishes")


def test_refusal_after_the_verdicts_has_its_line_too(tmp_path: Path) -> None:
    dialogue, records = recorded(tmp_path, Wishes(), Room(), login="alice")
    send(dialogue, "ann", "no")
    assert dialogue.send("NONSENSE").startswith("500 ")
    dialogue.close()
    assert "command rejected" in [record.event for record in records()]


def test_lines_about_recipients_are_bounded(tmp_path: Path) -> None:
    dialogue, records = recorded(tmp_path, Wishes(), Room(), login="alice")
    send(dialogue, "ann", *(f"no-{number}" for number in range(50)))
    found = records()
    assert sum(record.event == "recipient rejected" for record in found) == 20
    [remark] = [s[5] for record in found for s in record.steps if s[0] == "on_message"]
    assert remark.endswith("; and 40 more")


@pytest.mark.parametrize(
    ("login", "outcome"), [("alice", "notified"), (None, "quarantined")], ids=str
)
def test_refusal_and_outcome_are_counted_and_observed(login: str | None, outcome: str) -> None:
    room = Room()
    dialogue = Dialogue(Wishes(), room, login=login)
    send(dialogue, "ann", "no")
    assert dialogue.count("recipient_verdicts_total", listener="test", outcome=outcome) == 1
    labels = {"stage": "content", "plugin": "wishes", "reason": "policy", "code_class": "5xx"}
    assert dialogue.count("refusals_total", listener="test", **labels) == 1
    [event] = room.events
    assert (str(event.recipient), event.outcome) == ("no@example.org", outcome)
    assert str(event.reply) == "550 5.7.1 no lottery here"


def test_plugin_that_fails_after_a_verdict_is_named_in_it(tmp_path: Path) -> None:
    @plugin
    class Failing:
        @hookimpl
        def on_message(self, envelope: Envelope) -> None:
            envelope.refuse(Address("no", "example.org"), NO)
            raise ZeroDivisionError("made by a test")

    table = PluginConfig(use="failing", on_error="ignore")
    dialogue, records = recorded(tmp_path, (table, Failing()), Room(), login="alice")
    assert send(dialogue, "ann", "no") == ["250"]
    [line] = [each.fields for each in records() if each.event == "recipient rejected"]
    assert line["plugin"] == "failing"


def test_outcomes_are_those_of_the_latest_message(dialogue: Dialogues) -> None:
    session = dialogue(Wishes(), Room(), login="alice")
    send(session, "ann", "no")
    assert outcomes(session) == {"no": "notified"}
    send(session, "bob")
    assert outcomes(session) == {}
    assert len(session.notifications) == 1
