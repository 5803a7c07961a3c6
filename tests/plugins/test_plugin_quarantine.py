"""Mail in quarantine: kept with its envelope, shown, released, deleted, expired."""

from __future__ import annotations

import errno
import json
import mailbox as standard_mailbox
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from fakes import envelope as make_envelope
from minismtp_plugins.maildir import Maildir
from minismtp_plugins.quarantine import Quarantine

from minismtp import Address, Content, Defer, Envelope, Local, Message, QuarantineStore, ServerInfo
from minismtp.cli.main import main
from minismtp.storage.quarantine import Kept
from minismtp.storage.spool import DamagedError, Spool

if TYPE_CHECKING:
    from conftest import Launch, Running

ALICE, BOB = Address("alice", "example.org"), Address("bob", "example.org")
TEXT = b"Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\n.dot\r\n8-bit \xff\r\n"
WORRIED = '''
"""Quarantine what says so."""
from minismtp import Message, hookimpl, plugin

@plugin
class Worried:
    @hookimpl
    def on_message(self, message: Message) -> None:
        if message.headers.get("X-Odd"):
            message.quarantine(message.headers.get("X-Odd"))
'''
PLUGINS = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "worried"

[[plugins]]
use = "quarantine"

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""


def make_message(content: bytes = TEXT, reason: str = "looks odd") -> Message:
    message = Message("1a2b.1", Content.of(content), b"Received: by us\r\n")
    message.quarantine(reason)
    return message


def to_both(name: str = "1a2b.1") -> Envelope:
    """Return an envelope for two mailboxes."""
    envelope = make_envelope("alice@example.org", "bob@example.org")
    envelope.id = name
    for recipient in envelope.recipients:
        recipient.route = Local()
    return envelope


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


@pytest.fixture
def store(directory: Path) -> QuarantineStore:
    return QuarantineStore(directory)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


@pytest.fixture
def plugin(directory: Path) -> Quarantine:
    return Quarantine(path=directory)


def only(store: QuarantineStore) -> Kept:
    [kept] = store.find()
    return kept


# What is kept


def test_message_is_kept_once_for_all_its_mailboxes(
    plugin: Quarantine, store: QuarantineStore
) -> None:
    envelope, message = to_both(), make_message()
    assert plugin.deliver(envelope, message, ALICE) is True
    assert plugin.deliver(envelope, message, BOB) is True
    entry, found = store.open(only(store))
    assert [target.address for target in entry.targets] == ["bob@example.org", "alice@example.org"]
    assert (entry.id, entry.sender, entry.quarantined) == (
        "1a2b.1",
        "sender@client.example",
        "looks odd",
    )
    with found.open() as reader:
        assert reader.read() == b"Received: by us\r\n" + TEXT


@pytest.mark.parametrize("path", [None, "state/own/quarantine"])
def test_state_directory_that_was_moved_is_not_made_again(path: str | None, tmp_path: Path) -> None:
    state = tmp_path / "state"
    plugin = Quarantine(path=tmp_path / path if path else None)
    plugin.on_start(ServerInfo("mx.example.org", state, "worker", 1))
    with pytest.raises(Defer):
        plugin.deliver(to_both(), make_message(), ALICE)
    assert not state.exists()
    state.mkdir()
    assert plugin.deliver(to_both(), make_message(), ALICE)


def test_quarantine_in_another_place_is_made_with_its_parents(tmp_path: Path) -> None:
    plugin = Quarantine(path=tmp_path / "other" / "quarantine")
    plugin.on_start(ServerInfo("mx.example.org", tmp_path / "state", "worker", 1))
    assert plugin.deliver(to_both(), make_message(), ALICE)


def test_other_messages_are_left_to_the_next_plugin(plugin: Quarantine, directory: Path) -> None:
    assert plugin.deliver(to_both(), Message("x", Content.of(TEXT)), ALICE) is None
    assert not directory.exists()


def test_mailbox_that_the_envelope_does_not_know_has_its_own_copy(
    plugin: Quarantine, store: QuarantineStore
) -> None:
    envelope = to_both()
    for box in (ALICE, Address("else", "example.org")):
        plugin.deliver(envelope, make_message(), box)
    assert sorted(len(store.open(kept)[0].targets) for kept in store.find()) == [1, 2]


def test_repeated_delivery_keeps_one(plugin: Quarantine, directory: Path) -> None:
    envelope = replace(to_both(), queued=True)
    for box in (ALICE, BOB):
        plugin.deliver(replace(envelope), make_message(), box)
    [path] = (directory / "new").iterdir()
    path.rename(directory / "cur" / f"{path.name}:2,S")
    envelope.stash = type(envelope.stash)()
    plugin.deliver(envelope, make_message(), ALICE)
    assert len(list(QuarantineStore(directory).find())) == 1


def test_mail_programs_read_it(plugin: Quarantine, directory: Path) -> None:
    plugin.deliver(to_both(), make_message(), ALICE)
    [message] = standard_mailbox.Maildir(directory, create=False)
    assert message["Subject"].startswith("=?utf-8")
    assert message["X-Quarantine"].startswith("minismtp-1 ")


def test_success_that_was_told_is_not_told_again(
    plugin: Quarantine, store: QuarantineStore
) -> None:
    envelope = to_both()
    envelope.recipients[0].notify = frozenset({"SUCCESS"})
    envelope.recipients[1].notify = frozenset({"SUCCESS", "FAILURE"})
    plugin.deliver(envelope, make_message(), ALICE)
    targets = store.open(only(store))[0].targets
    assert [target.notify for target in targets] == [("FAILURE",), ("NEVER",)]


def test_storage_that_fails_defers(
    plugin: Quarantine, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    plugin.deliver(to_both("first"), make_message(), ALICE)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Defer, match=r"451 4\.3\.0"):
        plugin.deliver(to_both(), make_message(), ALICE)
    assert len([path for path in directory.rglob("*") if path.is_file()]) == 1


# Release


def test_release_puts_the_message_into_the_spool_as_a_new_one(
    plugin: Quarantine, store: QuarantineStore, spool: Spool, directory: Path
) -> None:
    plugin.deliver(to_both(), make_message(), ALICE)
    before = time.time() - 1
    name = store.release(only(store), spool)
    entry, message = spool.open(name)
    assert name.startswith("1a2b.1.q")
    assert entry.arrived > before
    assert message.quarantined is None
    assert {target.address for target in entry.targets} == {"alice@example.org", "bob@example.org"}
    with message.open() as reader:
        assert reader.read() == b"Received: by us\r\n" + TEXT
    assert list(store.find()) == []
    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_release_that_was_cut_off_goes_on_and_delivers_once(
    plugin: Quarantine,
    store: QuarantineStore,
    spool: Spool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin.deliver(to_both(), make_message(), ALICE)
    maildir = Maildir(path=tmp_path / "mail" / "{local}")

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    names = []
    for _ in range(2):  # interrupted after it is in the spool, from where it is delivered
        kept = only(store)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", crash)
            with pytest.raises(KeyboardInterrupt):
                store.release(kept, spool)
        assert only(store).is_being_released
        names += list(spool.names())
        entry, message = spool.open(names[-1])
        maildir.deliver(entry.envelope(), message, ALICE)
        spool.remove(names[-1])
    store.release(only(store), spool)
    names += list(spool.names())
    entry, message = spool.open(names[-1])
    maildir.deliver(entry.envelope(), message, ALICE)
    assert len(set(names)) == 1
    assert len(list(tmp_path.glob("mail/alice/new/*"))) == 1
    assert list(store.find()) == []


def test_release_that_cannot_be_queued_keeps_the_message(
    plugin: Quarantine, store: QuarantineStore, tmp_path: Path
) -> None:
    plugin.deliver(to_both(), make_message(), ALICE)
    with pytest.raises(OSError, match="No space left"):
        store.release(only(store), Spool(tmp_path / "nowhere"))
    assert only(store).is_being_released


@pytest.mark.parametrize("damage", [b"", b"X-Quarantine: minismtp-1 0000000040\r\n\tAAAA\r\n"])
def test_damaged_file_is_never_released(
    plugin: Quarantine, store: QuarantineStore, spool: Spool, damage: bytes
) -> None:
    plugin.deliver(to_both(), make_message(), ALICE)
    kept = only(store)
    whole = kept.path.read_bytes()
    kept.path.write_bytes((damage + whole[len(damage) :]) if damage else whole[:-1])
    with pytest.raises(DamagedError):
        store.release(kept, spool)
    assert list(spool.names()) == []
    assert kept.path.exists()


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "loop"])
def test_what_is_no_file_is_damaged_and_hinders_nothing(
    plugin: Quarantine, store: QuarantineStore, kind: str
) -> None:
    plugin.deliver(replace(to_both("old"), arrived=1.0), make_message(), ALICE)
    path = only(store).path
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, 0o140600)
        case "loop":
            path.symlink_to(path)
    with pytest.raises(DamagedError):
        store.open(only(store))
    plugin.deliver(replace(to_both("older"), arrived=0.5), make_message(), ALICE)
    assert store.expire(50) == (1 if kind == "directory" else 2)


# Expiry


def test_what_is_too_old_goes_and_what_is_being_released_stays(
    plugin: Quarantine, store: QuarantineStore, directory: Path
) -> None:
    for name, age in (("old", 100.0), ("young", 10.0), ("leaving", 100.0)):
        envelope = replace(to_both(name), arrived=time.time() - age)
        plugin.deliver(envelope, make_message(), ALICE)
    [path] = directory.glob("new/*Ileaving.*")
    path.rename(directory / "cur" / f"{path.name}:2,P")
    part = directory / "tmp" / path.name
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    assert store.expire(50) == 1
    assert {kept.id for kept in store.find()} == {"young", "leaving"}
    assert not part.exists()


def test_server_looks_for_what_is_too_old_at_its_start(tmp_path: Path) -> None:
    plugin = Quarantine()
    plugin.on_start(ServerInfo("mx", tmp_path, role="worker", slot=1))
    plugin.deliver(to_both(), make_message(), ALICE)  # of the year 2023
    [path] = (tmp_path / "quarantine" / "new").iterdir()
    plugin.on_start(ServerInfo("mx", tmp_path, role="worker", slot=0))
    deadline = time.monotonic() + 60
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    plugin.on_stop()


# The command, beside a server that runs


@pytest.fixture(scope="module")
def running(launch: Launch) -> Iterator[Running]:
    with launch(plugins=PLUGINS, files={"local_plugins/worried.py": WORRIED}, workers=2) as server:
        server.wait_for_log(" queue opened ")
        yield server


def send(server: Running, *users: str, reason: str, sender: str = "bob@client.example") -> str:
    """Send a message that is quarantined, and return its ID."""
    with server.connect() as client:
        client.greet()
        client.command(f"MAIL FROM:<{sender}>")
        for user in users:
            client.command(f"RCPT TO:<{user}@example.org>")
        client.command("DATA")
        client.send(f"X-Odd: {reason}\r\nSubject: Hello\r\n\r\n{reason}\r\n.\r\n")
        reply = client.reply()
    assert reply.startswith("250 2.0.0 message accepted as ")
    return reply.split()[-1]


class Quarantining(Protocol):
    """Runs `minismtp quarantine`, and returns its output."""

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Run it. With a `status` other than 0, return its standard error."""


@pytest.fixture
def command(running: Running, capsys: pytest.CaptureFixture[str]) -> Quarantining:
    def command(*arguments: str, status: int = 0) -> str:
        assert main(["quarantine", *arguments, "--config", str(running.config)]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return command


def test_released_message_comes_to_its_mailboxes_while_the_server_runs(
    running: Running, command: Quarantining
) -> None:
    name = send(running, "r1", "r2", reason="virus")
    assert running.mail("r1") == []
    assert command("release", name) == "1 message released\n"
    for user in ("r1", "r2"):
        [message] = running.wait_until(lambda: running.mail(user))  # noqa: B023
        assert message.endswith(b"Subject: Hello\r\n\r\nvirus\r\n")
        assert b"X-Quarantine" not in message
    assert name not in command("list")


def test_list_and_show_tell_what_is_known(running: Running, command: Quarantining) -> None:
    name = send(running, "seen", reason="strange & rare")
    [line] = [line for line in command("list").splitlines() if name in line]
    assert "<bob@client.example>" in line
    assert line.endswith("seen@example.org  strange & rare")
    shown = command("show", name)
    assert "  subject    Hello\n" in shown
    assert "  X-Odd: strange & rare\n" in shown
    [found] = json.loads(command("list", "--json", "--reason", "STRANGE"))
    assert (found["id"], found["recipients"]) == (name, ["seen@example.org"])


def test_filters_choose(running: Running, command: Quarantining) -> None:
    one = send(running, "f1", reason="filter one", sender="a@one.example")
    two = send(running, "f2", reason="filter two", sender="b@two.example")

    def chosen(*arguments: str) -> set[str]:
        found = {each["id"] for each in json.loads(command("list", "--json", *arguments))}
        return found & {one, two}

    assert chosen("--from", "@one.example") == {one}
    assert chosen("--from", "b@two.example") == {two}
    assert chosen("--reason", "filter") == chosen("--to-domain", "example.org") == {one, two}
    assert chosen("--to-domain", "example.net") == chosen("--older-than", "1h") == set()


def test_deleted_message_is_gone(running: Running, command: Quarantining) -> None:
    name = send(running, "d", reason="deleted")
    assert command("delete", name) == "1 message deleted\n"
    assert f"no message {name} is in quarantine" in command("release", name, status=1)
    assert running.mail("d") == []


@pytest.mark.parametrize("arguments", [["release"], ["delete"], ["show"]])
def test_nothing_is_done_to_everything_by_accident(
    command: Quarantining, arguments: list[str]
) -> None:
    assert "expected" in command(*arguments, status=2)


def test_configuration_without_quarantine_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "minismtp.toml"
    path.write_text('[[listeners]]\nname = "x"\naddress = "127.0.0.1:0"\ntls = "none"\n')
    assert main(["quarantine", "list", "--config", str(path)]) == 78
    assert 'no [[plugins]] table uses "quarantine"' in capsys.readouterr().err


def test_more_messages_than_a_process_may_open_are_listed_and_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], few_open_files: int
) -> None:
    path = tmp_path / "minismtp.toml"
    listener = '[[listeners]]\nname = "x"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    table = '[[plugins]]\nuse = "quarantine"\n'
    path.write_text(f'state_directory = "state"\n{listener}{table}')
    (tmp_path / "state").mkdir()
    Spool(tmp_path / "state" / "spool").prepare()
    store = QuarantineStore(tmp_path / "state" / "quarantine")
    for number in range(few_open_files + 10):
        store.keep(replace(make_envelope(), id=f"{number:012x}.1"), make_message(), ALICE)
    for verb in ("list", "release"):
        assert main(["quarantine", verb, "--all", "--config", str(path)]) == 0
        assert f"{few_open_files + 10} messages" in capsys.readouterr().out


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """Let this process open few files more than it has. Return how many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    yield 20
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
