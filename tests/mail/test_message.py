"""Content in memory and on disk, and the message as plugins see it."""

import errno
import fcntl
import io
import os
import resource
import signal
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minismtp.mail.content import Content, ContentWriter
from minismtp.mail.headers import SIZE_LIMIT
from minismtp.mail.message import Message

TRACE = b"Received: from a by b;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\n"
MAIL = b"Subject: x\r\nTo: me@example.org\r\n\r\nbody\r\n"
LONG = MAIL + bytes(range(256)) * 4096  # 1 MiB, which differs at every 256 KiB border

PIECES = (
    b'\r\n|\n|\r|\r\n\r\n| |\0|\xff|=?utf-8?b?|?=|To:|"|<|(|;|*0*=|charset=x|message/rfc822'
    b"|Content-Type:|Content-Type: multipart/mixed; boundary=b\r\n|--b\r\n|--b--"
    b"|message/delivery-status|Content-Transfer-Encoding: base64\r\n"
).split(b"|")

same_directory = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def stored(directory: Path, data: bytes, memory: int = 1000) -> Content:
    """Write data as a session does, by default on disk when it is above a kilobyte."""
    writer = ContentWriter(directory, memory)
    for start in range(0, len(data), 60_000):
        writer.write(data[start : start + 60_000])
    return writer.finish()


def open_files(directory: Path) -> list[int]:
    """Return the descriptors of this process whose files are, or were, in a directory."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if link.readlink().is_relative_to(directory):
                found.append(int(link.name))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make the system refuse to enlarge a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Content and its writer


@same_directory
@given(
    chunks=st.lists(st.binary(max_size=30)), memory=st.integers(0, 60), limit=st.integers(0, 400)
)
def test_content_is_what_was_written_in_whatever_chunks(
    tmp_path: Path, chunks: list[bytes], memory: int, limit: int
) -> None:
    writer = ContentWriter(tmp_path, memory)
    for chunk in chunks:
        writer.write(chunk)
    content = writer.finish()
    data = b"".join(chunks)
    assert content.open().read() == data
    assert content.head(limit) == data[:limit]
    assert content.size == writer.size == len(data)


def test_small_content_needs_no_directory(tmp_path: Path) -> None:
    assert stored(tmp_path / "missing", MAIL).open().read() == MAIL


def test_large_content_is_a_file_without_a_name(tmp_path: Path) -> None:
    content = stored(tmp_path, LONG)
    assert open_files(tmp_path) != []
    assert list(tmp_path.iterdir()) == []
    assert content.open().read() == LONG


def test_file_is_gone_with_its_last_reader(tmp_path: Path) -> None:
    content = stored(tmp_path, LONG)
    reader = content.open()
    del content
    assert reader.read() == LONG
    del reader
    assert open_files(tmp_path) == []


def test_discarded_writer_lets_go_of_its_file(tmp_path: Path) -> None:
    writer = ContentWriter(tmp_path, 10)
    writer.write(LONG)
    assert len(open_files(tmp_path)) == 1
    writer.discard()
    assert open_files(tmp_path) == []


def test_full_disk_is_an_error_that_leaves_no_file_open(tmp_path: Path) -> None:
    writer = ContentWriter(tmp_path, 1000)
    writer.write(LONG)
    with largest_file(len(LONG) + 10), pytest.raises(OSError, match="too large"):
        writer.write(LONG)
    assert open_files(tmp_path) == []


def test_full_disk_at_the_last_piece_is_an_error(tmp_path: Path) -> None:
    writer = ContentWriter(tmp_path, 1000)
    writer.write(LONG)
    writer.write(b"last")
    with largest_file(len(LONG)), pytest.raises(OSError, match="too large"):
        writer.finish()
    assert open_files(tmp_path) == []


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    writer = ContentWriter(tmp_path / "missing", 10)
    with pytest.raises(FileNotFoundError):
        writer.write(MAIL)


@pytest.mark.parametrize("chunk", [bytes(64 * 1024), b"xy"], ids=["recv", "tiny"])
def test_memory_stays_below_a_mebibyte(tmp_path: Path, chunk: bytes) -> None:
    writer = ContentWriter(tmp_path)
    tracemalloc.start()
    try:
        for _ in range(60_000 if len(chunk) == 2 else 100):
            writer.write(bytes(bytearray(chunk)))  # an object of its own, as from recv
        writer.finish()
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_readers_in_several_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    content = stored(tmp_path, LONG)

    def read(step: int) -> bytes:
        with content.open() as reader:
            return b"".join(iter(lambda: reader.read(step), b""))

    with ThreadPoolExecutor(8) as pool:
        assert all(data == LONG for data in pool.map(read, [1000, 4096, 9999, 65536, 10**6] * 4))


@pytest.mark.parametrize("memory", [10, 10**7], ids=["disk", "memory"])
def test_reader_seeks_as_a_file_does(tmp_path: Path, memory: int) -> None:
    message = Message("1", stored(tmp_path, LONG, memory), TRACE)
    data = TRACE + LONG
    reader = message.open()
    assert reader.readline() == TRACE[: TRACE.index(b"\n") + 1]
    border, end = len(TRACE), len(data)
    for offset in (10, border - 1, border, 100_000, end - 1, end, end + 5):
        assert reader.seek(offset) == reader.tell() == offset
        assert reader.read(20) == data[offset : offset + 20]
    assert reader.seek(-3, io.SEEK_END) == len(data) - 3
    assert reader.seek(1, io.SEEK_CUR) == len(data) - 2
    assert reader.read() == data[-2:]
    with pytest.raises((ValueError, OSError)):
        reader.seek(-1)


# Message


def test_message_is_its_content_under_the_trace_field() -> None:
    message = Message("1", Content.of(MAIL), TRACE)
    assert message.open().read() == TRACE + MAIL
    assert message.size == len(TRACE + MAIL)
    assert message.prefix == TRACE
    assert message.content.open().read() == MAIL
    assert list(message.headers)[1:] == [("Subject", "x"), ("To", "me@example.org")]
    assert "Received" in message.headers


def test_prepended_field_is_on_top_of_all() -> None:
    message = Message("1", Content.of(MAIL), TRACE)
    assert message.headers.get_all("X-A") == []
    message.prepend("X-A", "1")
    message.prepend("X-A", "2")
    assert message.open().read() == b"X-A: 2\r\nX-A: 1\r\n" + TRACE + MAIL
    assert message.headers.get_all("X-A") == ["2", "1"]
    assert message.size == len(message.open().read())


def test_field_above_a_line_that_continues_it_is_read_with_that_line() -> None:
    message = Message("1", Content.of(b" more\r\n\r\nbody"))
    assert list(message.headers) == []
    message.prepend("X-A", "1")
    assert message.headers.get("X-A") == "1 more"


def test_refused_field_leaves_the_message_as_it_was() -> None:
    message = Message("1", Content.of(MAIL), TRACE)
    with pytest.raises(ValueError, match="bare CR or LF"):
        message.prepend("X-A", "a\nTo: b")
    assert message.open().read() == TRACE + MAIL


@pytest.mark.parametrize("kind", [bytes, Content.of])
def test_replaced_content_keeps_the_prefix(kind: Callable[[bytes], bytes | Content]) -> None:
    message = Message("1", Content.of(MAIL), TRACE)
    assert message.headers.get("Subject") == "x"
    message.replace(kind(b"Subject: y\r\n\r\nnew\r\n"))
    assert message.open().read() == TRACE + b"Subject: y\r\n\r\nnew\r\n"
    assert message.headers.get("Subject") == "y"


@pytest.mark.parametrize("fields", [300, 3000], ids=["some", "many"])
def test_long_header_on_disk_is_read_to_its_end(tmp_path: Path, fields: int) -> None:
    data = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 80) for n in range(fields)) + b"\r\n" + LONG
    headers = Message("1", stored(tmp_path, data), TRACE).headers
    assert len(headers) == fields + 1
    assert not headers.truncated


def test_endless_header_is_truncated(tmp_path: Path) -> None:
    content = stored(tmp_path, b"Subject: x\r\n" + b"A: " + b"x" * 2 * SIZE_LIMIT)
    headers = Message("1", content).headers
    assert headers.truncated
    assert list(headers) == [("Subject", "x")]


def test_first_line_of_white_space_continues_the_trace_field() -> None:
    """Every reader of the stored message sees it in this way."""
    headers = Message("1", Content.of(b" (forged)\r\nTo: x\r\n\r\n"), b"Received: us\r\n").headers
    assert headers.get("Received") == "us (forged)"


def test_message_is_neither_quarantined_nor_discarded_at_first() -> None:
    message = Message("1", Content.of(MAIL))
    assert message.quarantined is None
    assert message.discarded is None


def test_verdict_of_a_plugin_keeps_its_reason() -> None:
    message = Message("1", Content.of(MAIL))
    message.quarantine("spam")
    message.discard("virus")
    assert message.quarantined == "spam"
    assert message.discarded == "virus"


def test_changes_of_a_copy_do_not_touch_the_original() -> None:
    message = Message("1", Content.of(MAIL), TRACE)
    message.quarantine("spam")
    twin = message.copy()
    assert (twin.id, twin.quarantined, twin.open().read()) == ("1", "spam", TRACE + MAIL)
    twin.prepend("X-A", "1")
    twin.replace(b"")
    twin.discard("virus")
    twin.email()["X-B"] = "2"
    assert message.open().read() == TRACE + MAIL
    assert message.discarded is None
    assert "X-B" not in message.email()


def test_message_shows_its_id_and_size() -> None:
    assert repr(Message("1A", Content.of(b"12345"))) == "<Message 1A: 5 octets>"


# The parsed message


def test_email_is_parsed_once_until_the_message_changes(tmp_path: Path) -> None:
    message = Message("1", stored(tmp_path, LONG), TRACE)
    parsed = message.email()
    assert parsed["To"].addresses[0].domain == "example.org"
    assert message.email() is parsed
    message.prepend("X-A", "1")
    assert message.email()["X-A"] == "1"
    message.replace(b"Subject: y\r\n\r\n")
    assert message.email()["Subject"] == "y"


def test_email_has_the_parts() -> None:
    data = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\n\r\nhello\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>\r\n--b--\r\n"
    )
    parts = list(Message("1", Content.of(data)).email().iter_parts())
    assert [part.get_content() for part in parts] == ["hello", "<p>"]


@pytest.mark.parametrize(
    "field", ["To", "Content-Type", "Content-Disposition", "Message-ID", "Date"]
)
@pytest.mark.parametrize(
    "value",
    ["(" * 2000, "<" * 2000, "a" * 20_000, "; a=b" * 1000, "=?hex?q?3d?=", "\xff\0 @:;,", ""],
    ids=lambda value: ascii(value[:8]),
)
def test_field_that_cannot_be_parsed_reads_as_text(field: str, value: str) -> None:
    data = f"{field}: {value}\r\nSubject: x\r\n\r\n".encode("latin-1")
    parsed = Message("1", Content.of(data)).email()
    assert isinstance(parsed[field], str)
    assert parsed["Subject"] == "x"


def test_parts_nested_beyond_all_use_are_left_as_text() -> None:
    level = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n"
    data = b"Subject: x\r\n" + b"".join(level % (n, n) for n in range(2000))
    parsed = Message("1", Content.of(data)).email()
    assert parsed["Subject"] == "x"
    assert not parsed.is_multipart()
    assert "boundary=b1999" in str(parsed.get_payload())
    assert str(parsed.defects[-1]) == "body not parsed: parts nested too deeply"


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=5)), max_size=60).map(b"".join)
)
def test_nothing_a_sender_writes_makes_email_raise(data: bytes) -> None:
    message = Message("1", Content.of(data), TRACE)
    assert "Received" in message.email()
    assert all(isinstance(value, str) for value in message.email().values())


# Writing


@same_directory
@given(
    data=st.binary(max_size=200),
    trace=st.binary(max_size=50),
    before=st.binary(max_size=50),
    memory=st.integers(0, 200),
)
def test_what_is_written_is_what_open_reads(
    tmp_path: Path, data: bytes, trace: bytes, before: bytes, memory: int
) -> None:
    writer = ContentWriter(tmp_path, memory)
    writer.write(data)
    message = Message("1", writer.finish(), trace)
    with (tmp_path / "mail").open("wb+", buffering=0) as file:
        assert message.write_to(file.fileno(), before) == len(before) + message.size
        file.seek(0)
        assert file.read() == before + message.open().read() == before + trace + data


@pytest.mark.parametrize("memory", [10, 10**7], ids=["disk", "memory"])
@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["plain", "append"])
def test_long_content_is_written_to_a_file(tmp_path: Path, flags: int, memory: int) -> None:
    """A file opened to append takes neither copy_file_range nor sendfile."""
    message = Message("1", stored(tmp_path, LONG, memory), TRACE)
    path = tmp_path / "mail"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flags)
    try:
        assert message.write_to(descriptor, b"Return-Path: <>\r\n") == 17 + message.size
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"Return-Path: <>\r\n" + TRACE + LONG


@pytest.mark.parametrize("memory", [10, 10**7], ids=["disk", "memory"])
def test_long_content_is_written_to_a_socket(tmp_path: Path, memory: int) -> None:
    message = Message("1", stored(tmp_path, LONG, memory), TRACE)
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool, theirs, theirs.makefile("rb") as stream:
        received = pool.submit(stream.read)
        with ours:
            assert message.write_to(ours.fileno()) == message.size
        assert received.result() == TRACE + LONG


def test_message_in_memory_is_written_by_one_system_call() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        Message("1", Content.of(MAIL), TRACE).write_to(ours.fileno(), b"before\r\n")
        assert theirs.recv(10_000) == b"before\r\n" + TRACE + MAIL


def test_write_that_a_signal_cuts_short_goes_on(tmp_path: Path) -> None:
    """The reader empties the full pipe only after the signal ended the first write early."""
    readable, writable = os.pipe()
    capacity = fcntl.fcntl(writable, fcntl.F_GETPIPE_SZ)
    writer, interrupted = threading.get_ident(), threading.Event()

    def read() -> bytes:
        while int.from_bytes(fcntl.ioctl(readable, 0x541B, b"\0" * 4), "little") < capacity:
            continue  # FIONREAD
        signal.pthread_kill(writer, signal.SIGUSR1)
        assert interrupted.wait(60)
        with open(readable, "rb") as stream:  # noqa: PTH123 - a descriptor
            return stream.read()

    handler = signal.signal(signal.SIGUSR1, lambda *_: interrupted.set())
    try:
        with ThreadPoolExecutor(1) as pool:
            received = pool.submit(read)
            message = Message("1", stored(tmp_path, LONG, 10**7), TRACE)
            assert message.write_to(writable) == message.size
            os.close(writable)
            assert received.result() == TRACE + LONG
    finally:
        signal.signal(signal.SIGUSR1, handler)


@pytest.mark.parametrize("memory", [10, 10**7], ids=["disk", "memory"])
def test_full_disk_while_writing_is_an_error(tmp_path: Path, memory: int) -> None:
    message = Message("1", stored(tmp_path, LONG, memory), TRACE)
    with (tmp_path / "mail").open("wb", buffering=0) as file, largest_file(100_000):
        with pytest.raises(OSError, match="too large") as failure:
            message.write_to(file.fileno())
        assert failure.value.errno == errno.EFBIG


@pytest.mark.parametrize("memory", [10, 10**7], ids=["disk", "memory"])
def test_closed_descriptor_is_an_error(tmp_path: Path, memory: int) -> None:
    message = Message("1", stored(tmp_path, LONG, memory))
    with pytest.raises(OSError, match="Bad file descriptor"):
        message.write_to(os.sysconf("SC_OPEN_MAX"))


def test_file_that_lost_its_end_is_an_error(tmp_path: Path) -> None:
    message = Message("1", stored(tmp_path, LONG), TRACE)
    (descriptor,) = open_files(tmp_path)
    os.truncate(descriptor, 1000)
    path = tmp_path / "mail"
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="shorter"):
        message.write_to(file.fileno())


EDITED = b"Subject: x\r\nX-Spam: no\r\nTo: me@example.org\r\nX-Spam:\r\n yes\r\n\r\n"


@pytest.mark.parametrize("memory", [1000, 10_000_000], ids=["disk", "memory"])
def test_fields_are_removed_by_name_and_value(tmp_path: Path, memory: int) -> None:
    content = stored(tmp_path, EDITED + LONG, memory)
    message = Message("1", content, TRACE)
    assert message.remove("x-spam", lambda value: value == "yes") == 1
    expected = TRACE + EDITED.replace(b"X-Spam:\r\n yes\r\n", b"") + LONG
    assert message.open().read() == expected
    assert message.size == len(expected)
    assert message.prefix == TRACE
    assert message.content.head(20) == expected[len(TRACE) :][:20]


@pytest.mark.parametrize("memory", [1000, 10_000_000], ids=["disk", "memory"])
def test_header_is_replaced_and_the_body_kept(tmp_path: Path, memory: int) -> None:
    message = Message("1", stored(tmp_path, EDITED + LONG, memory), TRACE)
    message.edit([b"A: 1\r\n", *message.headers.raw_all("Subject")])
    message.edit([*message.headers.raw_all(), b"B: 2\r\n"])
    message.prepend("C", "3")
    expected = b"C: 3\r\nA: 1\r\nSubject: x\r\nB: 2\r\n\r\n" + LONG
    assert message.open().read() == expected
    with (tmp_path / "written").open("wb") as file:
        message.write_to(file.fileno(), b"D: 4\r\n")
    assert (tmp_path / "written").read_bytes() == b"D: 4\r\n" + expected
    reader = message.open()
    reader.seek(len(expected) - 10)
    assert reader.read() == expected[-10:]


def test_what_is_no_field_does_not_get_into_the_header() -> None:
    message = Message("1", Content.of(EDITED))
    with pytest.raises(ValueError, match="is not a header field"):
        message.edit([b"A: 1\r\n\r\nbody"])
    assert message.open().read() == EDITED


def test_lines_that_are_no_fields_survive_an_edit() -> None:
    message = Message("1", Content.of(b"no field\r\nX: 1\r\n\r\nbody"), TRACE)
    assert message.remove("X") == 1
    assert message.open().read() == TRACE + b"no field\r\n\r\nbody"


def test_message_without_a_header_keeps_its_body_in_an_edit() -> None:
    message = Message("1", Content.of(b" body\r\n"), TRACE + b"\r\n")
    message.edit([b"A: 1\r\n"])
    assert message.open().read() == b"A: 1\r\n\r\n body\r\n"


LINE = st.one_of(
    st.sampled_from([b"", b".", "é".encode(), b"\0"]), st.integers(990, 1000).map(b"x".__mul__)
)


@same_directory
@given(
    lines=st.lists(LINE, max_size=5),
    trace=st.sampled_from([b"", TRACE, "X: é\r\n".encode()]),
    step=st.integers(1, 1500),
    memory=st.sampled_from([0, 10, 2000, 10**7]),
)
def test_content_that_is_known_to_be_7bit_data_is(
    tmp_path: Path, lines: list[bytes], trace: bytes, step: int, memory: int
) -> None:
    data = b"".join(line + b"\r\n" for line in lines)
    writer = ContentWriter(tmp_path, memory)
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
    content = writer.finish()
    message = Message("1", content, trace)
    whole = trace + data
    true = whole.isascii() and b"\0" not in data and all(len(line) <= 998 for line in lines)
    if memory == 10**7 or step == 1500:
        assert message.is_7bit == true
    else:  # of a line in two pieces this may not be known
        assert not message.is_7bit or true
    cut = Message("1", content.behind(b"Subject: x\r\n", len(lines[0]) + 2) if lines else content)
    rest = all(line.isascii() and b"\0" not in line and len(line) <= 998 for line in lines[1:])
    assert not cut.is_7bit or rest
