"""The quota of a mailbox: the file maildirsize, which other processes and programs share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from minismtp_plugins import _quota
from minismtp_plugins.maildir import Maildir

from minismtp import Address, ByteSize, Content, Defer, Envelope, Message, Reject
from minismtp.config.toml_values import build

ALICE = Address("alice", "example.org")
TRACE = len(b"Return-Path: <>\r\nDelivered-To: alice@example.org\r\n")
FULL = "452 4.2.2 mailbox full"


def make_envelope(name: str, *, queued: bool = False) -> Envelope:
    return Envelope(
        id=name,
        reverse_path=None,
        listener="smtp",
        peer="192.0.2.1",
        helo="client",
        login=None,
        arrived=1700000000.0,
        queued=queued,
    )


def deliver(plugin: Maildir, name: str, size: int, *, queued: bool = False) -> str:
    """Deliver a message of that size, and return the refusal."""
    message = Message(name, Content.of(b"x" * (size - TRACE)))
    try:
        assert plugin.deliver(make_envelope(name, queued=queued), message, ALICE)
    except (Defer, Reject) as verdict:
        return str(verdict.reply)
    return ""


def used(box: Path) -> tuple[int, int]:
    """Return the sum of maildirsize, as its readers calculate it."""
    definition, *lines = (box / "maildirsize").read_text().splitlines()
    assert definition.endswith("S")
    pairs = [line.split() for line in lines]
    return sum(int(size) for size, _ in pairs), sum(int(count) for _, count in pairs)


def stored(box: Path) -> tuple[int, int]:
    """Return the true size of a Maildir."""
    sizes = [path.stat().st_size for path in box.rglob("*/*") if path.parent.name in {"new", "cur"}]
    return sum(sizes), len(sizes)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return tmp_path / "alice"


@pytest.fixture
def plugin(tmp_path: Path) -> Maildir:
    return Maildir(path=tmp_path / "{local}", quota=ByteSize(10_000))


def test_mailbox_takes_what_fits_to_the_octet(plugin: Maildir, box: Path) -> None:
    """RFC 3463 section 3.3: X.2.2 mailbox full."""
    replies = [deliver(plugin, str(number), 4000) for number in range(3)]
    assert replies == ["", "", FULL]
    assert deliver(plugin, "small", 2000) == ""
    assert deliver(plugin, "one octet", TRACE + 1) == FULL
    assert used(box) == stored(box) == (10_000, 3)


def test_message_that_never_fits_is_refused_for_good(plugin: Maildir) -> None:
    assert deliver(plugin, "a", 10_001) == "552 5.2.3 message is larger than the mailbox"
    assert deliver(plugin, "b", 10_000) == ""


def test_without_quota_there_is_no_such_file(tmp_path: Path, box: Path) -> None:
    plugin = build(Maildir, {"path": "{local}"}, file="", key="", base=tmp_path)
    assert deliver(plugin, "a", 4000) == ""
    assert not (box / "maildirsize").exists()


def test_folders_count_as_well(plugin: Maildir, box: Path) -> None:
    message = Message("q", Content.of(b"x" * (9000 - TRACE)))
    message.quarantine("virus")
    plugin.deliver(make_envelope("q"), message, ALICE)
    (box / "maildirsize").unlink()
    assert deliver(plugin, "a", 2000) == FULL
    assert used(box) == stored(box) == (9000, 1)


def test_mail_from_before_counts_and_names_without_size_are_measured(
    plugin: Maildir, box: Path
) -> None:
    deliver(Maildir(path=plugin.path), "old", 4000)
    (box / "cur" / "1.a.host:2,S").write_bytes(b"x" * 3000)
    (box / "cur" / "2.a.host,S=1000,W=1010:2,S").write_bytes(b"the name is believed")
    assert deliver(plugin, "a", 2001) == FULL
    assert deliver(plugin, "b", 2000) == ""
    assert used(box) == (10_000, 4)


def test_no_directory_is_walked_for_a_message(
    plugin: Maildir, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(plugin, "first", 1000)
    monkeypatch.setattr(_quota, "_count", None)
    for number in range(9):
        assert deliver(plugin, str(number), 1000) == ""
    assert deliver(plugin, "last", 1000) == FULL
    assert used(box) == (10_000, 10)


def test_what_another_program_has_noted_counts(plugin: Maildir, box: Path) -> None:
    for number in range(2):
        deliver(plugin, str(number), 5000)
    with (box / "maildirsize").open("a") as file:
        file.write("        -5000           -1\n")  # as Courier pads it
    assert deliver(plugin, "a", 5000) == ""


@pytest.mark.parametrize(("minutes", "reply"), [(14, FULL), (16, "")])
def test_full_mailbox_is_counted_again_after_a_quarter_of_an_hour(
    plugin: Maildir, box: Path, minutes: int, reply: str
) -> None:
    """A program without support for maildirsize may remove mail."""
    for number in range(2):
        deliver(plugin, str(number), 5000)
    next((box / "new").iterdir()).unlink()
    then = time.time() - minutes * 60
    os.utime(box / "maildirsize", (then, then))
    assert deliver(plugin, "a", 5000) == reply


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20000S\n1 1\n",
        "10000S,5C\n1 1\n",
        "10000S\n-5 1\n",
        "10000S\nnonsense 1\n",
        "10000S\n1 1",
        "10000S\n" + "9" * 5000,
        "10000S\n" + "0 0\n" * 2000,
        "10000S\n\xff\n",
    ],
)
def test_file_that_says_something_else_is_made_anew(plugin: Maildir, box: Path, text: str) -> None:
    deliver(plugin, "a", 4000)
    (box / "maildirsize").write_bytes(text.encode("latin-1"))
    assert deliver(plugin, "b", 4000) == ""
    assert (box / "maildirsize").read_text() == "10000S\n4000 1\n4000 1\n"
    assert list((box / "tmp").iterdir()) == []


def test_delivery_that_fails_frees_its_room(
    plugin: Maildir, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(plugin, "a", 1000)

    def fail(*_: object) -> None:
        raise OSError(5, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert deliver(plugin, "b", 4000) == "451 4.3.0 mailbox cannot be written"
    assert used(box) == (1000, 1)


def test_repeated_delivery_takes_room_once(plugin: Maildir, box: Path) -> None:
    for _ in range(3):
        assert deliver(plugin, "a", 4000, queued=True) == ""
    assert used(box) == stored(box) == (4000, 1)


def test_message_that_is_being_written_counts(plugin: Maildir, box: Path) -> None:
    deliver(plugin, "a", 1000)
    (box / "tmp" / "1700000000.M000000Ib.host,S=8000").write_bytes(b"")
    (box / "tmp" / "unknown").write_bytes(b"x" * 5000)
    (box / "maildirsize").unlink()
    assert deliver(plugin, "c", 1001) == FULL
    assert deliver(plugin, "d", 1000) == ""


WORKERS = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from test_maildir_quota import deliver
from minismtp import ByteSize
from minismtp_plugins.maildir import Maildir
plugin = Maildir(path=Path(sys.argv[2], "{local}"), quota=ByteSize(100_000), sync="file")
print(sum(deliver(plugin, f"{sys.argv[3]}.{number}", 500) == "" for number in range(100)))
"""


def test_several_workers_together_store_just_what_fits(tmp_path: Path) -> None:
    """They deliver 300 messages to a mailbox that does not exist yet, and 200 fit."""
    command = [sys.executable, "-c", WORKERS, str(Path(__file__).parent), str(tmp_path)]
    workers = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    taken = sum(int(worker.communicate()[0]) for worker in workers)
    assert taken == 200
    assert used(tmp_path / "alice") == stored(tmp_path / "alice") == (100_000, 200)
