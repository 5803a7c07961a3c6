"""Storage in Maildirs: the format, the names, and the state after every kind of failure."""

import errno
import fcntl
import mailbox as standard_mailbox
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins import maildir
from minismtp_plugins._maildir_paths import path_component
from minismtp_plugins.maildir import Maildir

from minismtp import Address, Content, Defer, Envelope, GroupSync, Message, ServerInfo
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build

ALICE = Address("alice", "example.org")
TEXT = b"Subject: x\r\n\r\n.dot\r\nsome 8-bit \xff\r\n"
TRACE = b"Return-Path: <bob@example.net>\r\nDelivered-To: alice@example.org\r\nReceived: by us\r\n"


def make_envelope(**changes: str | float | Address | bool | None) -> Envelope:
    fields = {
        "id": "1a2b",
        "reverse_path": Address("bob", "example.net"),
        "listener": "smtp",
        "peer": "192.0.2.1",
        "helo": "client",
        "login": None,
        "arrived": time.time(),
    }
    return Envelope(**fields | changes)  # type: ignore[arg-type]


def make_message(content: bytes = TEXT) -> Message:
    return Message("1a2b", Content.of(content), b"Received: by us\r\n")


def files(root: Path) -> list[Path]:
    """Return every file below a directory that should contain only messages."""
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.fixture
def plugin(tmp_path: Path) -> Maildir:
    return Maildir(path=tmp_path / "{domain}" / "{local}")


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return tmp_path / "example.org" / "alice"


# Place, name and content of stored messages


def test_message_is_stored_in_new_below_the_fields_of_final_delivery(
    plugin: Maildir, box: Path
) -> None:
    """RFC 5321 section 4.4; the content is what the client sent."""
    assert plugin.deliver(make_envelope(), make_message(), ALICE) is True
    (path,) = files(box)
    assert path.parent == box / "new"
    assert path.read_bytes() == TRACE + TEXT


def test_null_reverse_path_is_written_as_such(plugin: Maildir, box: Path) -> None:
    plugin.deliver(make_envelope(reverse_path=None), make_message(), ALICE)
    assert files(box)[0].read_bytes().startswith(b"Return-Path: <>\r\n")


def test_address_cannot_add_a_header_field(plugin: Maildir, tmp_path: Path) -> None:
    plugin.deliver(make_envelope(), make_message(), Address("a\r\nSubject: forged", "example.org"))
    (path,) = files(tmp_path)
    assert b'\r\nDelivered-To: "a  Subject: forged"@example.org\r\n' in path.read_bytes()


def test_internationalized_address_is_written_as_utf8(plugin: Maildir, tmp_path: Path) -> None:
    """RFC 6532 section 3.2."""
    plugin.deliver(make_envelope(), make_message(), Address("jürgen", "bücher.example"))
    (path,) = (tmp_path / "xn--bcher-kva.example" / "j%C3%BCrgen" / "new").iterdir()
    assert "\r\nDelivered-To: jürgen@bücher.example\r\n".encode() in path.read_bytes()


def test_large_message_is_stored_whole(plugin: Maildir, box: Path) -> None:
    content = os.urandom(3_000_000)
    plugin.deliver(make_envelope(), make_message(content), ALICE)
    assert files(box)[0].read_bytes() == TRACE + content


def test_state_directory_that_was_moved_is_not_made_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    plugin = Maildir(path=state / "mail" / "{domain}" / "{local}")
    plugin.on_start(ServerInfo("mx.example.org", state, role="worker", slot=1))
    with pytest.raises(Defer):
        plugin.deliver(make_envelope(), make_message(), ALICE)
    assert not state.exists()
    state.mkdir()
    assert plugin.deliver(make_envelope(), make_message(), ALICE)


def test_maildir_in_another_place_is_made_with_its_parents(tmp_path: Path) -> None:
    plugin = Maildir(path=tmp_path / "other" / "mail" / "{local}")
    plugin.on_start(ServerInfo("mx.example.org", tmp_path / "state", role="worker", slot=1))
    assert plugin.deliver(make_envelope(), make_message(), ALICE)


def test_name_is_made_from_the_envelope_and_the_host(plugin: Maildir, box: Path) -> None:
    plugin.on_start(ServerInfo("mx:1/a", box.parent, role="worker", slot=0))
    plugin.deliver(make_envelope(arrived=1700000000.000042, id="a:/b"), make_message(), ALICE)
    size = len(TRACE + TEXT)
    name = rf"1700000000.M000042Ia\072\057b.mx\0721\057a,S={size}"
    assert [path.name for path in files(box)] == [name]


def test_name_is_short_enough_whatever_the_host_is_called(plugin: Maildir, box: Path) -> None:
    plugin.on_start(ServerInfo("x" * 253, box, role="worker", slot=0))
    plugin.deliver(make_envelope(), make_message(), ALICE)
    assert len(files(box)[0].name) < 200  # readers append flags


def test_different_messages_never_share_a_name(plugin: Maildir, box: Path) -> None:
    now = time.time()
    for identity in ("a", "b"):
        plugin.deliver(make_envelope(arrived=now, id=identity), make_message(), ALICE)
    assert len(files(box)) == 2


def test_python_reads_what_was_stored(plugin: Maildir, box: Path) -> None:
    plugin.deliver(make_envelope(), make_message(), ALICE)
    plugin.deliver(make_envelope(id="other"), make_message(), ALICE)
    found = standard_mailbox.Maildir(box, create=False)
    assert [message["Delivered-To"] for message in found] == ["alice@example.org"] * 2
    assert {message.get_subdir() for message in found} == {"new"}


def test_files_and_directories_are_for_the_server_alone(plugin: Maildir, tmp_path: Path) -> None:
    plugin.deliver(make_envelope(), make_message(), ALICE)
    modes = {
        path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.rglob("*"))
    }
    assert modes == {True: 0o700, False: 0o600}


def test_quarantined_message_goes_to_the_folder_of_that_name(plugin: Maildir, box: Path) -> None:
    message = make_message()
    message.quarantine("virus")
    assert plugin.deliver(make_envelope(), message, ALICE) is True
    found = standard_mailbox.Maildir(box, create=False)
    assert len(found) == 0
    assert found.list_folders() == ["Quarantine"]
    assert len(found.get_folder("Quarantine")) == 1
    assert (box / ".Quarantine" / "maildirfolder").is_file()


def test_relative_path_starts_at_the_configuration_file(tmp_path: Path) -> None:
    table = {"path": "mail/{local}", "sync": "file"}
    plugin = build(Maildir, table, file="", key="", base=tmp_path)
    plugin.deliver(make_envelope(), make_message(), ALICE)
    assert len(files(tmp_path / "mail" / "alice" / "new")) == 1


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/mail/{user}", "known placeholders are {domain}, {local}"),
        ("/mail/{local.domain}", "known placeholders"),
        ("/mail/{local!r}", "known placeholders"),
        ("/mail/{local:>9}", "known placeholders"),
        ("/mail/{}", "known placeholders"),
        ("/mail/{local", "expected '}'"),
        ("/mail/{local}-{domain}", "expected / or @ between the placeholders"),
        ("/mail/{local}{domain}", "expected / or @ between the placeholders"),
    ],
)
def test_wrong_template_is_refused_at_load(tmp_path: Path, path: str, problem: str) -> None:
    with pytest.raises(ConfigError) as fault:
        build(Maildir, {"path": path}, file="c.toml", key="plugins[0]", base=tmp_path)
    assert f"path: {path!r}: " in str(fault.value)
    assert problem in str(fault.value)


@pytest.mark.parametrize("path", ["{local}@{domain}", "{domain}/{local}/Maildir", "all"])
def test_other_templates_are_allowed(tmp_path: Path, path: str) -> None:
    plugin = Maildir(path=tmp_path / path)
    plugin.deliver(make_envelope(), make_message(), ALICE)
    expected = path.format(local="alice", domain="example.org")
    assert len(list((tmp_path / expected / "new").iterdir())) == 1


# Values that could lead to another directory


@pytest.mark.parametrize(
    ("value", "component"),
    [
        ("alice", "alice"),
        ("a.b-c_d+e=f", "a.b-c_d+e=f"),
        ("..", "%2E."),
        (".Quarantine", "%2EQuarantine"),
        ("../../etc", "%2E.%2F..%2Fetc"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a\0b", "a%00b"),
        ("[192.0.2.1]", "%5B192.0.2.1%5D"),
        ("a@b", "a%40b"),
        ("{local}", "%7Blocal%7D"),
        ("é", "%C3%A9"),
        ("", "%"),
    ],
)
def test_value_is_one_harmless_path_component(value: str, component: str) -> None:
    assert path_component(value) == component


@given(st.text(st.characters(), max_size=400))
def test_component_never_leaves_its_directory(value: str) -> None:
    component = path_component(value)
    assert component
    assert component.isascii()
    assert not component.startswith(".")
    assert not {"/", "\0", "@"} & set(component)
    assert len(component) <= 120


@given(st.lists(st.text(st.sampled_from("a.%/2EF@\udc80é"), max_size=60), unique=True, min_size=2))
def test_different_values_are_different_components(values: list[str]) -> None:
    assert len({path_component(value) for value in values}) == len(values)


def test_long_values_stay_different() -> None:
    assert path_component("x" * 300 + "a") != path_component("x" * 300 + "b")
    assert path_component("x" * 300 + "a") == path_component("x" * 300 + "a")


def test_mailbox_with_a_hostile_name_stays_below_the_root(tmp_path: Path) -> None:
    plugin = Maildir(path=tmp_path / "root" / "{domain}" / "{local}")
    for local in ("../../escaped", "..", "/etc/passwd", "a\0b", "x" * 300):
        assert plugin.deliver(make_envelope(), make_message(), Address(local, "example.org"))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["example.org"]
    assert len(list((tmp_path / "root" / "example.org").iterdir())) == 5


# The same delivery again


def test_repeated_delivery_stores_one_copy(plugin: Maildir, box: Path) -> None:
    envelope = make_envelope(queued=True)
    for _ in range(2):
        assert plugin.deliver(envelope, make_message(), ALICE) is True
    assert len(files(box)) == 1


@pytest.mark.parametrize("flags", ["", ":2,", ":2,S", ":2,RSab"])
def test_copy_that_a_reader_has_moved_is_found(plugin: Maildir, box: Path, flags: str) -> None:
    envelope = make_envelope(arrived=time.time() - 100, queued=True)
    plugin.deliver(envelope, make_message(), ALICE)
    (path,) = files(box)
    path.rename(box / "cur" / f"{path.name}{flags}")
    assert plugin.deliver(envelope, make_message(), ALICE) is True
    assert len(files(box)) == 1


def test_directory_that_no_reader_has_touched_since_is_not_listed(
    plugin: Maildir, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing cur/ for each message would cost more than storing it."""
    plugin.deliver(make_envelope(), make_message(), ALICE)
    os.utime(box / "cur", (1000, 1000))
    monkeypatch.delattr(os, "listdir")
    assert plugin.deliver(make_envelope(id="other", queued=True), make_message(), ALICE) is True


def test_each_mailbox_has_its_own_copy(plugin: Maildir, tmp_path: Path) -> None:
    envelope = make_envelope()
    for local in ("alice", "bob"):
        plugin.deliver(envelope, make_message(), Address(local, "example.org"))
    assert len(files(tmp_path)) == 2


def test_unfinished_file_of_the_same_name_is_replaced(plugin: Maildir, box: Path) -> None:
    envelope = make_envelope()
    plugin.deliver(envelope, make_message(), ALICE)
    (path,) = files(box)
    path.rename(box / "tmp" / path.name).write_bytes(b"half a mess")
    assert plugin.deliver(envelope, make_message(), ALICE) is True
    assert files(box) == [path]
    assert path.read_bytes() == TRACE + TEXT


def test_delivery_beside_another_of_the_same_message_keeps_one(
    plugin: Maildir, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that both found no file."""
    envelope = make_envelope(queued=True)
    plugin.deliver(envelope, make_message(), ALICE)
    monkeypatch.setattr(maildir, "_stored", lambda *_: False)
    assert plugin.deliver(envelope, make_message(), ALICE) is True
    assert [path.read_bytes() for path in files(box)] == [TRACE + TEXT]


# Killed at every step

KILLED_CONTENT = b"Subject: x" + b"\r\nline" * 500
# For each step a mailbox of its own; a child dies before the system call of that number.
KILLED_DELIVERIES = """
import itertools, os, signal, sys
from pathlib import Path
from minismtp import Address, ServerInfo
from minismtp_plugins.maildir import Maildir
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from test_plugin_maildir import KILLED_CONTENT, make_envelope, make_message
calls = 0
def deadly(real, fatal):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
def slow(descriptor, piece, real=os.write):
    return real(descriptor, piece[:700])
for fatal in itertools.count(1):
    if not os.fork():
        os.write = slow
        os.writev = lambda descriptor, pieces: slow(descriptor, b"".join(pieces))
        for name in "access close fsync fstat listdir mkdir open rename stat unlink write".split():
            setattr(os, name, deadly(getattr(os, name), fatal))
        os.writev = deadly(os.writev, fatal)
        envelope = make_envelope(arrived=1700000000.5)
        plugin = Maildir(path=Path(sys.argv[2], "{local}"), sync=sys.argv[3])
        plugin.on_start(ServerInfo("mx", Path(sys.argv[4]), role="worker", slot=1))
        plugin.deliver(envelope, make_message(KILLED_CONTENT), Address(str(fatal), "example.org"))
        os._exit(0)
    if os.wait()[1] == 0:
        break
"""


@pytest.fixture(scope="module", params=["file", "group"])
def killed_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, state = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("state")
    arguments = [Path(__file__).parent, root, request.param, state]
    subprocess.run([sys.executable, "-c", KILLED_DELIVERIES, *arguments], check=True)
    return root


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """Return a directory with a mailbox for each system call before which a delivery was killed."""
    return shutil.copytree(killed_once, tmp_path / "killed")


def test_delivery_killed_at_any_step_shows_no_partial_message(killed: Path) -> None:
    shown = [
        path.read_bytes().partition(b"Received: by us\r\n")[2] for path in killed.glob("*/new/*")
    ]
    assert set(shown) == {KILLED_CONTENT}
    unfinished = {path.stat().st_size for path in killed.glob("*/tmp/*")}
    assert len(unfinished) > 3, "no delivery was killed while it wrote"


def test_delivery_repeated_after_a_kill_leaves_exactly_one_copy(
    killed: Path, tmp_path: Path
) -> None:
    plugin = Maildir(path=killed / "{local}")
    plugin.on_start(ServerInfo("mx", tmp_path, role="worker", slot=1))
    boxes = list(killed.iterdir())
    assert len(boxes) > 20
    for box in boxes:
        mailbox = Address(box.name, "example.org")
        envelope = make_envelope(arrived=1700000000.5, queued=True)
        assert plugin.deliver(envelope, make_message(KILLED_CONTENT), mailbox) is True
        (path,) = files(box)
        assert path.parent == box / "new"
        assert path.read_bytes().endswith(b"Received: by us\r\n" + KILLED_CONTENT)


# Files that a crash left in tmp/


def rescue(plugin: Maildir, state: Path, slot: int = 0) -> None:
    """Start the plugin as a worker does, and wait for the end of its start."""
    plugin.on_start(ServerInfo("mx.example.org", state, role="worker", slot=slot))
    for thread in threading.enumerate():
        if thread.name == "maildir":
            thread.join()


def put_back(plugin: Maildir, folder: Path, *, quarantined: bool = False) -> Path:
    """Deliver a message and move it back into tmp/, as a power cut may. Return its old path."""
    message = make_message()
    if quarantined:
        message.quarantine("suspicious")
    plugin.deliver(make_envelope(), message, ALICE)
    (path,) = folder.glob("new/*")
    path.rename(folder / "tmp" / path.name)
    return path


@pytest.mark.parametrize("quarantined", [False, True])
def test_whole_message_in_tmp_comes_back_at_the_start(
    plugin: Maildir, box: Path, tmp_path: Path, *, quarantined: bool
) -> None:
    path = put_back(plugin, box / ".Quarantine" if quarantined else box, quarantined=quarantined)
    rescue(plugin, tmp_path)
    assert path.read_bytes() == TRACE + TEXT
    assert not list(box.rglob("tmp/*"))


def test_one_worker_looks_for_them(plugin: Maildir, box: Path, tmp_path: Path) -> None:
    path = put_back(plugin, box)
    rescue(plugin, tmp_path, slot=1)
    assert not path.exists()


def test_message_that_is_being_written_stays_in_tmp(
    plugin: Maildir, box: Path, tmp_path: Path
) -> None:
    path = put_back(plugin, box)
    with (box / "tmp" / path.name).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rescue(plugin, tmp_path)
    assert not path.exists()


def test_writer_keeps_its_file_locked(
    plugin: Maildir, box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Message.write_to

    def write_and_look(message: Message, descriptor: int, before: bytes) -> int:
        written = write(message, descriptor, before)
        rescue(Maildir(path=plugin.path), tmp_path)
        return written

    monkeypatch.setattr(Message, "write_to", write_and_look)
    assert plugin.deliver(make_envelope(), make_message(), ALICE) is True
    assert len(files(box)) == 1


def test_file_whose_content_was_not_written_stays_in_tmp(
    plugin: Maildir, box: Path, tmp_path: Path
) -> None:
    path = put_back(plugin, box)
    empty = box / "tmp" / path.name
    size = empty.stat().st_size
    empty.write_bytes(b"")
    os.truncate(empty, size)
    rescue(plugin, tmp_path)
    assert files(box) == [empty]


@pytest.mark.parametrize(("hours", "kept"), [(35, True), (37, False)])
def test_part_of_a_message_never_comes_back_and_goes_when_it_is_stale(
    plugin: Maildir, box: Path, tmp_path: Path, hours: int, *, kept: bool
) -> None:
    path = put_back(plugin, box)
    part = box / "tmp" / path.name
    part.write_bytes(b"half a mess")
    then = time.time() - hours * 3600
    os.utime(part, (then, then))
    rescue(plugin, tmp_path)
    assert files(box) == [part] * kept


def test_file_of_another_program_in_tmp_is_left_alone(
    plugin: Maildir, box: Path, tmp_path: Path
) -> None:
    plugin.deliver(make_envelope(), make_message(), ALICE)
    foreign = box / "tmp" / "1700000000.P1Q2.host,S=3"
    foreign.write_bytes(b"abc")
    os.utime(foreign, (0, 0))
    rescue(plugin, tmp_path)
    assert foreign.exists()


def test_a_file_is_synced_before_anybody_sees_it(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Maildir(path=tmp_path / "{domain}" / "{local}", sync="file")
    plugin.deliver(make_envelope(id="first"), make_message(), ALICE)
    (first,) = files(box)
    seen: list[tuple[int, set[Path]]] = []

    def look(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_ino, {*files(box)} - {first}))

    monkeypatch.setattr(os, "fsync", look)
    plugin.deliver(make_envelope(), make_message(), ALICE)
    (new,) = {*files(box)} - {first}
    assert seen == [(new.stat().st_ino, {box / "tmp" / new.name})]


def test_group_syncs_what_is_written_before_anybody_sees_it(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []

    def look(_: GroupSync, __: int) -> None:
        seen.append(files(box))

    monkeypatch.setattr(GroupSync, "commit", look)
    plugin = Maildir(path=tmp_path / "{domain}" / "{local}", sync="group")
    plugin.on_start(ServerInfo("mx.example.org", tmp_path, role="worker", slot=1))
    plugin.deliver(make_envelope(), make_message(), ALICE)
    (new,) = files(box)
    assert seen == [[box / "tmp" / new.name]]


def test_group_whose_sync_fails_stores_nothing(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: GroupSync, __: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(GroupSync, "commit", fail)
    plugin = Maildir(path=tmp_path / "{domain}" / "{local}", sync="group")
    plugin.on_start(ServerInfo("mx.example.org", tmp_path, role="worker", slot=1))
    assert_deferred(plugin, make_message(), "451 4.3.0 mailbox cannot be written")
    assert files(box) == []


# Storage that fails


@pytest.mark.parametrize("gone", ["", "tmp", "new", "cur"])
def test_directory_that_was_removed_is_made_again(plugin: Maildir, box: Path, gone: str) -> None:
    plugin.deliver(make_envelope(), make_message(), ALICE)
    shutil.rmtree(box / gone)
    assert plugin.deliver(make_envelope(id="other"), make_message(), ALICE) is True
    assert len(list((box / "new").glob("*Iother.*"))) == 1
    assert not list((box / "tmp").iterdir())


def assert_deferred(plugin: Maildir, message: Message, reply: str) -> None:
    with pytest.raises(Defer) as refusal:
        plugin.deliver(make_envelope(), message, ALICE)
    assert str(refusal.value.reply) == reply


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 128 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_is_452_and_leaves_nothing(small_disk: Path) -> None:
    """RFC 5321 section 4.2.3, RFC 3463 section 3.4: X.3.1 mail system full."""
    plugin = Maildir(path=small_disk / "{local}")
    assert_deferred(plugin, make_message(bytes(200_000)), "452 4.3.1 mailbox storage is full")
    assert files(small_disk) == []
    assert plugin.deliver(make_envelope(), make_message(), ALICE) is True


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """Let no file grow beyond 64 KiB; Python ignores SIGXFSZ, so the write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_size_limit")
def test_file_size_limit_counts_as_full(plugin: Maildir, tmp_path: Path) -> None:
    assert_deferred(plugin, make_message(bytes(200_000)), "452 4.3.1 mailbox storage is full")
    assert files(tmp_path) == []


def test_mailbox_that_cannot_be_written_is_451_and_the_reason_is_logged(
    plugin: Maildir, box: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box.parent.mkdir()
    box.write_text("no directory")
    assert_deferred(plugin, make_message(), "451 4.3.0 mailbox cannot be written")
    (line,) = caplog.messages
    assert line.startswith("id=1a2b mailbox=alice@example.org not stored: [Errno 20]")


def test_interrupted_delivery_leaves_nothing(
    plugin: Maildir, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Message, "write_to", interrupt)
    with pytest.raises(KeyboardInterrupt):
        plugin.deliver(make_envelope(), make_message(), ALICE)
    assert files(box) == []


@pytest.mark.parametrize("sync", ["file", "group"])
def test_copy_that_went_into_the_file_of_another_is_not_stored(
    sync: Literal["file", "group"], tmp_path: Path, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_to, taken = Message.write_to, []

    def closed(message: Message, fd: int, before: bytes = b"") -> int:
        """Act as if a plugin closed our descriptor and a file took its number."""
        with (tmp_path / "other").open("wb") as file:
            os.dup2(file.fileno(), fd)
        taken.append(fd)
        return write_to(message, fd, before)

    plugin = Maildir(path=tmp_path / "{domain}" / "{local}", sync=sync)
    plugin.on_start(ServerInfo("mx.example.org", tmp_path, "outbound", 0))
    with monkeypatch.context() as patch:
        patch.setattr(Message, "write_to", closed)
        with pytest.raises(Defer):
            plugin.deliver(make_envelope(), make_message(), ALICE)
    assert files(box) == []
    os.close(taken[0])  # because it belongs to another owner, who still uses it
    assert plugin.deliver(make_envelope(), make_message(), ALICE)


# Folders by header

Rule: TypeAlias = dict[str, str | float]

JUNK: Rule = {"folder": "Junk", "header": "X-Spam-Flag", "value": "YES"}


def sorting(root: Path, *folders: Rule) -> Maildir:
    """Make a plugin as the configuration does, for one mailbox."""
    table = {"path": "box", "folders": list(folders)}
    return build(Maildir, table, file="", key="", base=root)


@pytest.mark.parametrize(
    ("rule", "field", "taken"),
    [
        (JUNK, "X-Spam-Flag: YES", True),
        (JUNK, "x-spam-flag:yes", True),
        (JUNK, "X-Spam-Flag: YES, but", False),
        (JUNK, "X-Other: YES", False),
        (JUNK, "X-Spam-Flag: NO\r\nX-Spam-Flag: YES", False),
        (JUNK | {"value": "yes, *"}, "X-Spam-Flag: Yes, score=7", True),
        ({"folder": "Junk", "header": "X-Score", "least": 5}, "X-Score: 5.0", True),
        ({"folder": "Junk", "header": "X-Score", "least": 5}, "X-Score: 12.25 / 6", True),
        ({"folder": "Junk", "header": "X-Score", "least": 5}, "X-Score: 4.99", False),
        ({"folder": "Junk", "header": "X-Score", "least": -1.5}, "X-Score: -1.5", True),
        ({"folder": "Junk", "header": "X-Score", "least": 0}, "X-Score: none", False),
        ({"folder": "Junk", "header": "X-Score", "least": 0}, "Subject: no such field", False),
    ],
)
def test_folder_takes_what_its_header_says(
    tmp_path: Path, rule: Rule, field: str, *, taken: bool
) -> None:
    message = make_message(f"{field}\r\n\r\ntext\r\n".encode())
    sorting(tmp_path, rule).deliver(make_envelope(), message, ALICE)
    (path,) = tmp_path.glob("box/**/new/*")
    assert (path.parent.parent.name == ".Junk") == taken


def test_first_folder_that_fits_is_taken(tmp_path: Path) -> None:
    other: Rule = {"folder": "Lists.News", "header": "List-Id", "value": "*"}
    message = make_message(b"List-Id: <news.example.net>\r\nX-Spam-Flag: YES\r\n\r\n")
    sorting(tmp_path, other, JUNK).deliver(make_envelope(), message, ALICE)
    found = standard_mailbox.Maildir(tmp_path / "box", create=False)
    assert found.list_folders() == ["Lists.News"]
    assert (tmp_path / "box" / ".Lists.News" / "maildirfolder").is_file()


def test_quarantine_comes_before_all_folders(tmp_path: Path) -> None:
    message = make_message(b"X-Spam-Flag: YES\r\n\r\n")
    message.quarantine("virus")
    sorting(tmp_path, JUNK).deliver(make_envelope(), message, ALICE)
    assert len(list(tmp_path.glob("box/.Quarantine/new/*"))) == 1


def test_repeated_delivery_finds_the_copy_in_its_folder(tmp_path: Path) -> None:
    plugin, envelope = sorting(tmp_path, JUNK), make_envelope(queued=True)
    for _ in range(2):
        plugin.deliver(envelope, make_message(b"X-Spam-Flag: YES\r\n\r\n"), ALICE)
    assert len(list(tmp_path.glob("box/**/new/*"))) == 1


def test_message_in_the_tmp_of_a_folder_comes_back_at_the_start(tmp_path: Path) -> None:
    plugin = sorting(tmp_path, JUNK | {"folder": "Spam [x]"})
    plugin.deliver(make_envelope(), make_message(b"X-Spam-Flag: YES\r\n\r\n"), ALICE)
    (path,) = tmp_path.glob("box/**/new/*")
    path.rename(path.parent.parent / "tmp" / path.name)
    rescue(plugin, tmp_path)
    assert path.exists()


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"folder": "../x"}, "folder: '../x': expected a name"),
        ({"folder": ".Junk"}, "expected a name"),
        ({"folder": "a..b"}, "expected a name"),
        ({"folder": "Entwürfe"}, "expected a name"),
        ({"folder": ""}, "expected a name"),
        ({"header": "X-Spam Flag"}, "header: expected a field's name"),
        ({"value": ""}, "value: expected either value or least"),
        ({"least": 5}, "value: expected either value or least"),
    ],
)
def test_wrong_folder_is_refused_at_load(tmp_path: Path, rule: Rule, problem: str) -> None:
    with pytest.raises(ConfigError) as fault:
        sorting(tmp_path, JUNK | rule)
    assert problem in str(fault.value)
