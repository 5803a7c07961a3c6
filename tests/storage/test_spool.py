import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from minismtp.mail.content import Content, ContentWriter
from minismtp.mail.envelope import Envelope
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.storage import spool as module
from minismtp.storage.spool import BusyError, DamagedError, Spool, Trigger, UnreadableError
from minismtp.values.address import Address
from minismtp.values.durable_files import MisdirectedError


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path)
    spool.prepare()
    return spool


def entry(name: str = "m.1", **changes: Any) -> QueueEntry:  # noqa: ANN401 - any field
    given: dict[str, Any] = {
        "id": name,
        "sender": "a@example.org",
        "listener": "submission",
        "peer": "192.0.2.1",
        "helo": "client",
        "login": "a",
        "arrived": 1234.5,
        "targets": (
            QueuedRecipient(
                kind="relay",
                address="b@example.net",
                recipient="b@example.net",
                notify=("FAILURE", "DELAY"),
                original="rfc822;B@example.net",
            ),
        ),
        **changes,
    }
    return QueueEntry(**given)


def message(content: bytes = b"Subject: x\r\n\r\nhello\r\n") -> Message:
    return Message("m.1", Content.of(content), b"Received: from x\r\n")


def test_a_message_comes_back_as_it_was_queued(spool: Spool) -> None:
    spool.add(entry(), message())
    found, stored = spool.open("m.1")
    assert found == entry()
    assert stored.open().read() == b"Received: from x\r\nSubject: x\r\n\r\nhello\r\n"
    assert stored.headers.get("Subject") == "x"


class Closed(Message):
    """A message during whose writing a plugin closes our descriptor, and a file gets its number."""

    def __init__(self, other: Path) -> None:
        super().__init__("m.1", Content.of(b"Subject: x\r\n\r\nhello\r\n"))
        self.other = other

    def write_to(self, fd: int, before: bytes = b"", after: bytes = b"") -> int:
        with self.other.open("wb") as file:
            os.dup2(file.fileno(), fd)
        self.taken = fd
        return super().write_to(fd, before, after)


def test_message_that_went_into_the_file_of_another_is_not_queued(
    spool: Spool, tmp_path: Path
) -> None:
    message = Closed(tmp_path / "other")
    with pytest.raises(MisdirectedError):
        spool.add(entry(), message)
    assert list(spool.names()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    os.close(message.taken)  # because it belongs to another owner, who still uses it


def test_message_is_queued_though_nobody_can_be_told(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("made by a test")

    monkeypatch.setattr(Trigger, "notify", fails)
    spool.add(entry(), message())
    assert spool.open("m.1")[0] == entry()


def target(**changes: Any) -> tuple[QueuedRecipient, ...]:  # noqa: ANN401 - any field
    return (replace(entry().targets[0], **changes),)


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": "a" * 513 + "@example.org"},
        {"sender": "a@" + "i\u0307." * 85 + "x"},
        {"sender": "no address"},
        {"targets": target(address="b")},
        {"targets": target(recipient="")},
        {"targets": target(sender='"' + "a b" * 200 + '"@example.org')},
        {"targets": target(original="\ud800")},
        {"helo": "\udcff"},
        {"arrived": float("nan")},
        {"arrived": float("inf")},
        {"targets": [entry().targets[0]]},
    ],
    ids=[
        *("long-local-part", "long-domain", "no-sender", "no-target", "no-recipient"),
        *("no-target-sender", "surrogate-in-orcpt", "surrogate-in-helo", "nan", "inf", "list"),
    ],
)
def test_what_would_not_come_back_is_not_queued(
    spool: Spool, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnreadableError):
        spool.add(entry(**changes), message())
    assert not list(tmp_path.glob("*/*"))


_TEXT = st.text(max_size=50)
_ADDRESS = st.builds(
    lambda local, domain: str(Address(local, domain)),
    st.text(max_size=40),
    st.sampled_from(["example.org", "İ.example", "straße.example", "[192.0.2.1]", "x\u00ad", "☃"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sender=_ADDRESS | st.just(""),
    target=st.builds(
        QueuedRecipient,
        kind=st.sampled_from(["local", "relay"]),
        address=_ADDRESS,
        recipient=_ADDRESS,
        notify=st.sampled_from([(), ("NEVER",), ("DELAY", "SUCCESS")]),
        original=_TEXT,
        sender=_ADDRESS | st.just(""),
    ),
    texts=st.fixed_dictionaries({"peer": _TEXT, "helo": _TEXT, "dsn_id": _TEXT, "login": _TEXT}),
    arrived=st.floats(),
)
def test_whatever_is_queued_comes_back_as_it_was(
    spool: Spool, sender: str, target: QueuedRecipient, texts: dict[str, str], arrived: float
) -> None:
    spool.remove("m.1")
    added = entry(sender=sender, targets=(target,), arrived=arrived, **texts)
    try:
        spool.add(added, message())
    except UnreadableError:
        return
    found, _ = spool.open("m.1")
    assert found == added
    assert str(found.envelope().recipients[0].address) == target.recipient


def test_a_large_message_is_read_piece_by_piece(spool: Spool, tmp_path: Path) -> None:
    writer = ContentWriter(tmp_path, memory=1000)
    for _ in range(100):
        writer.write(b"x" * 1000)
    spool.add(entry(), Message("m.1", writer.finish()))
    _, stored = spool.open("m.1")
    assert stored.size == 100_000
    with stored.open() as reader:
        assert reader.read() == b"x" * 100_000


@pytest.mark.parametrize("size", [100, 100_000], ids=["small", "large"])
def test_what_is_known_of_the_content_waits_with_it(
    spool: Spool, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the sender reads a large message once more to choose BODY (RFC 6152 section 3)."""
    for number, line in enumerate((b"short line\r\n", b"f\xe9e\r\n")):
        writer = ContentWriter(tmp_path, 10)
        for _ in range(size // len(line)):
            writer.write(line)
        found = Message(f"m.{number}", writer.finish())
        queued = replace(entry(found.id), is_7bit=found.is_7bit)
        assert queued.is_7bit == (not number)
        spool.add(queued, found)
    monkeypatch.setattr(Message, "open", None)
    opened, message = spool.open("m.0")
    assert opened.is_7bit
    assert message.is_7bit
    assert Form.of(message) == Form(wide=False, long=False)
    opened, message = spool.open("m.1")
    assert not opened.is_7bit
    assert not message.is_7bit


def test_a_file_of_an_earlier_version_is_read(spool: Spool, tmp_path: Path) -> None:
    """It does not say whether the message is 7bit data."""
    spool.add(entry(), message())
    path = tmp_path / "queue" / "m.1"
    old = path.read_bytes().replace(b',"is_7bit":false', b"")
    shorter = path.stat().st_size - len(old)
    assert shorter
    size = int(old.split()[-1])
    path.write_bytes(old[:-11] + b"%10d\n" % (size - shorter))
    opened, _ = spool.open("m.1")
    assert opened == entry()


def test_an_envelope_keeps_what_the_hooks_and_the_reports_need() -> None:
    envelope = Envelope(
        id="m.1",
        reverse_path=None,
        listener="mx",
        peer="192.0.2.1",
        helo="h",
        login=None,
        arrived=1.0,
        body="8BITMIME",
        smtputf8=True,
        require_tls=True,
        submitter="s@example.org",
        dsn_return="HDRS",
        dsn_id="QQ314159",
    )
    held = message()
    held.quarantine("looks odd")
    target = QueuedRecipient(kind="local", address="box@example.org", recipient="nick@example.org")
    kept = QueueEntry.of(envelope, held, [target])
    again = kept.envelope()
    assert kept.quarantined == "looks odd"
    assert [str(recipient.address) for recipient in again.recipients] == ["nick@example.org"]
    assert again.recipients[0].route is not None
    assert again.queued
    for name in Envelope.__slots__:
        if name not in {"recipients", "stash", "size", "queued"}:
            assert getattr(again, name) == getattr(envelope, name), name


def test_the_quarantine_mark_waits_with_the_message(spool: Spool) -> None:
    spool.add(entry(quarantined="odd"), message())
    assert spool.open("m.1")[1].quarantined == "odd"


def test_an_address_with_odd_characters_survives() -> None:
    odd = Address('a "b" c', "example.org")
    target = QueuedRecipient(kind="relay", address=str(odd), recipient=str(odd))
    assert entry(targets=(target,)).envelope().recipients[0].address == odd


def test_a_message_is_synced_before_it_is_queued(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path.parent.name, os.fstat(descriptor).st_size, spool_names(tmp_path)))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    spool.add(entry(), message())
    size = (tmp_path / "queue" / "m.1").stat().st_size
    assert seen == [("tmp", size, [])]


def spool_names(directory: Path) -> list[str]:
    return [path.name for path in (directory / "queue").iterdir()]


def test_a_failed_sync_leaves_nothing(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="broken disk"):
        spool.add(entry(), message())
    assert [*(tmp_path / "tmp").iterdir(), *(tmp_path / "queue").iterdir()] == []


def test_a_disk_that_would_become_too_full_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path, reserve=1 << 60)
    spool.prepare()
    assert not spool.has_space()
    with pytest.raises(OSError, match="No space left") as caught:
        spool.add(entry(), message())
    assert caught.value.errno == errno.ENOSPC


def test_a_start_queues_what_is_whole_and_drops_what_is_not(spool: Spool, tmp_path: Path) -> None:
    spool.add(entry("whole"), message())
    spool.add(entry("partial"), message())
    for name in ("whole", "partial"):
        (tmp_path / "queue" / name).rename(tmp_path / "tmp" / name)
    partial = tmp_path / "tmp" / "partial"
    partial.write_bytes(partial.read_bytes()[:-1])
    assert sorted(spool.recover()) == [("partial", False), ("whole", True)]
    assert list(spool.names()) == ["whole"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_start_in_the_moment_a_file_is_made_disturbs_nobody(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, bool]] = []

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        found.extend(Spool(tmp_path).recover())  # between the open and the lock
        fcntl.flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    spool.add(entry(), message())
    assert found == [("m.1", False)]
    assert spool.open("m.1")[0] == entry()


def test_a_start_leaves_alone_what_is_being_written(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.extend(Spool(tmp_path).recover())
        real(descriptor)

    monkeypatch.setattr(module, "sync_directory", lambda _: None)
    monkeypatch.setattr("os.fsync", fsync)
    spool.add(entry(), message())
    assert found == []
    assert list(spool.names()) == ["m.1"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda _: b"", "end is missing"),
        (lambda octets: octets[:-1], "end is missing"),
        (lambda octets: octets[1:], "sizes do not fit"),
        (lambda octets: octets.replace(b'"sender"', b'"Sender"'), "sender"),
        (lambda octets: octets.replace(b"a@example.org", b"a example.org"), "no|not an address"),
        (lambda octets: octets.replace(b'"id":"m.1"', b'"id":"m.2"'), "m.2"),
    ],
    ids=["empty", "cut", "shifted", "key", "address", "other"],
)
def test_a_damaged_file_is_told_and_set_aside(
    spool: Spool, tmp_path: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    spool.add(entry(), message())
    path = tmp_path / "queue" / "m.1"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedError, match=problem):
        spool.open("m.1")
    spool.set_aside("m.1")
    assert list(spool.names()) == []
    assert (tmp_path / "damaged" / "m.1").exists()


def test_a_part_that_never_reached_the_disk_is_damage(spool: Spool, tmp_path: Path) -> None:
    spool.add(entry(), Message("m.1", Content.of(b"x" * 100_000)))
    path = tmp_path / "queue" / "m.1"
    octets = path.read_bytes()
    with path.open("wb") as file:
        file.seek(65536)
        file.write(octets[65536:])
    with pytest.raises(DamagedError, match="never written"):
        spool.open("m.1")


def test_only_one_process_takes_messages_out(spool: Spool, tmp_path: Path) -> None:
    descriptor = spool.lock()
    with pytest.raises(BusyError):
        Spool(tmp_path).lock()
    os.close(descriptor)
    os.close(Spool(tmp_path).lock())


def test_the_reader_hears_of_new_messages(spool: Spool) -> None:
    descriptor = spool.trigger.open()
    spool.add(entry("m.1"), message())
    spool.add(entry("m.2"), message())
    assert spool.trigger.read(descriptor) == (["m.1", "m.2"], False)
    spool.trigger.notify()
    assert spool.trigger.read(descriptor) == ([], True)
    assert spool.trigger.read(descriptor) == ([], False)
    os.close(descriptor)


def test_a_message_is_queued_when_nobody_listens(spool: Spool) -> None:
    spool.add(entry(), message())
    assert not spool.trigger.overflowed()
    descriptor = spool.trigger.open()
    spool.add(entry("m.2"), message())
    os.close(descriptor)
    spool.add(entry("m.3"), message())
    descriptor = spool.trigger.open()
    spool.add(entry("m.4"), message())
    assert spool.trigger.read(descriptor)[0] == ["m.4"]
    assert sorted(spool.names()) == ["m.1", "m.2", "m.3", "m.4"]
    os.close(descriptor)


def test_a_full_pipe_is_noticed_by_the_reader(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0)
    descriptor = spool.trigger.open()
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)  # soon full
    while not spool.trigger.overflowed():
        spool.trigger.notify()
    assert spool.trigger.read(descriptor) == ([], True)
    os.close(descriptor)


def test_removing_twice_is_fine(spool: Spool) -> None:
    spool.add(entry(), message())
    spool.remove("m.1")
    spool.remove("m.1")
    with pytest.raises(FileNotFoundError):
        spool.open("m.1")


def test_state_directory_that_is_moved_meanwhile_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    made = Path.mkdir

    def make_and_move(path: Path, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as mkdir
        made(path, *args, **options)
        if path == state / "spool":
            state.rename(tmp_path / "moved")

    monkeypatch.setattr(Path, "mkdir", make_and_move)
    with pytest.raises(FileNotFoundError):
        Spool(state / "spool").prepare()
    assert not state.exists()
