import contextlib
import fcntl
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEADLINE, Client, Configure, wait_until
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

from minismtp.runtime.log import Bridge, Log, bound, bridge, capture, complain, describe
from minismtp.runtime.output import Printed

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
ANYTHING = st.text(max_size=20)  # what may come from a peer, a library or an attacker


class Written:
    """A file for a log, and its content."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file = path.open("ab")

    @property
    def descriptor(self) -> int:
        return self.file.fileno()

    @property
    def ends(self) -> int:
        """The number of complete lines; one more may be half written."""
        return self._path.read_bytes().count(b"\n")

    @property
    def lines(self) -> list[str]:
        text = self._path.read_bytes().decode()
        assert not text or text.endswith("\n")
        return text.splitlines()

    @property
    def line(self) -> str:
        [line] = self.lines
        return line


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    found = Written(tmp_path / "log")
    yield found
    found.file.close()


def parse(line: str) -> tuple[str, str, dict[str, str]]:
    """Read a line of text back: level, event and fields."""
    found = re.fullmatch(
        rf'{TIME} (\w+) ("(?:[^"\\]|\\.)*"|[^="]*?)((?: \w+=(?:"(?:[^"\\]|\\.)*"|\S+))*)', line
    )
    assert found is not None, line
    pairs = re.findall(r' (\w+)=("(?:[^"\\]|\\.)*"|\S+)', found[3])
    values = {key: json.loads(value) if value[0] == '"' else value for key, value in pairs}
    return found[1], json.loads(found[2]) if found[2][:1] == '"' else found[2], values


def test_line_is_time_level_event_and_fields(written: Written) -> None:
    Log(descriptor=written.descriptor).info(
        "session closed", peer="192.0.2.1", seconds=1.5, count=3
    )
    assert re.fullmatch(
        rf"{TIME} info session closed peer=192\.0\.2\.1 seconds=1\.5 count=3", written.line
    )


def test_value_that_is_not_plain_is_quoted(written: Written) -> None:
    Log(descriptor=written.descriptor).info("x", a="two words", b="", c='"', d="a=b", e="ü")
    assert written.line.endswith(r' a="two words" b="" c="\"" d="a=b" e="ü"')


def test_json_line_has_the_same_fields(written: Written) -> None:
    log = Log(style="json", descriptor=written.descriptor)
    log.warning("not stored", id="a.1", size=3, path=Path("/x"))
    found = json.loads(written.line)
    assert re.fullmatch(TIME, found.pop("time"))
    assert found == {
        "level": "warning",
        "event": "not stored",
        "id": "a.1",
        "size": 3,
        "path": "/x",
    }


@given(event=ANYTHING, value=ANYTHING)
def test_text_line_gives_every_value_back(
    event: str, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = Written(tmp_path_factory.mktemp("log") / "log")
    with found.file:
        Log(descriptor=found.descriptor).info(event or "event", value=value, last=1)
        level, parsed, fields = parse(found.line)
    assert (level, parsed) == ("info", event or "event")
    assert fields == {"value": value, "last": "1"}


@given(event=ANYTHING, value=ANYTHING)
def test_json_line_gives_every_value_back(
    event: str, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = Written(tmp_path_factory.mktemp("log") / "log")
    with found.file:
        Log(style="json", descriptor=found.descriptor).info(event, value=value)
        line = json.loads(found.line)
    assert (line["event"], line["value"]) == (event, value)


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    "separator",
    ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\0", "\x1b", "\u202e"],
    ids=ascii,
)
def test_nobody_can_begin_a_line_or_steer_a_terminal(
    separator: str, style: str, written: Written
) -> None:
    text = f"a{separator}2026-01-01T00:00:00.000Z info auth success"
    Log(style=style, descriptor=written.descriptor).info(text, helo=text)
    assert len(written.lines) == 1
    assert separator not in written.line


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_level_is_the_least_that_is_logged(
    level: str, expected: list[str], written: Written
) -> None:
    log = Log(level=level, descriptor=written.descriptor)
    log.debug("x")
    log.info("x")
    log.warning("x")
    log.error("x")
    assert [line.split()[1] for line in written.lines] == expected


def test_bound_fields_stand_in_front_on_this_thread_only(written: Written) -> None:
    log = Log(descriptor=written.descriptor)
    bound()["session"] = "abc"
    bound()["id"] = "abc.1"
    log.info("x", peer="p")
    thread = threading.Thread(target=log.info, args=("other",))
    thread.start()
    thread.join()
    del bound()["id"]
    log.info("y")
    bound().clear()
    log.info("z")
    assert [line[25:] for line in written.lines] == [
        "info x session=abc id=abc.1 peer=p",
        "info other",
        "info y session=abc",
        "info z",
    ]


def test_line_whose_fields_are_made_later_keeps_its_place_and_its_time(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.runtime.log.FLUSH_INTERVAL", 3600.0)
    log = Log(descriptor=written.descriptor)
    log.start()
    log.info("first")
    bound()["session"] = "abc"
    log.later("second", lambda: {"thread": threading.current_thread().name}, 100)
    bound().clear()
    log.info("third")
    log.flush(DEADLINE)
    lines = written.lines
    assert [line[25:] for line in lines] == [
        "info first",
        "info second session=abc thread=log",
        "info third",
    ]
    assert sorted(lines) == lines


def test_fields_that_cannot_be_made_cost_only_their_line(written: Written) -> None:
    log = Log(descriptor=written.descriptor)
    log.later("broken", lambda: {"size": 1 // 0}, 100)
    log.info("next")
    assert [line[25:] for line in written.lines] == ["info next"]


def test_exception_is_one_line_with_its_traceback(written: Written) -> None:
    try:
        os.environ["NO_SUCH_KEY"]
    except KeyError as error:
        Log(descriptor=written.descriptor).exception("failed", error, plugin="p")
    level, event, fields = parse(written.line)
    assert (level, event, fields["plugin"]) == ("error", "failed", "p")
    assert fields["error"] == "KeyError: 'NO_SUCH_KEY'"
    assert fields["traceback"].startswith("Traceback (most recent call last):\n")
    assert fields["traceback"].endswith("\nKeyError: 'NO_SUCH_KEY'")


@pytest.mark.parametrize("where", ["unfolded", "terminal"])
def test_traceback_for_people_has_lines_of_its_own(where: str) -> None:
    leader, follower = os.openpty() if where == "terminal" else os.pipe()
    try:
        log = Log(descriptor=follower, unfolded=where == "unfolded")
        try:
            os.environ["NO\x1b[2JKEY"]
        except KeyError as error:
            log.exception("failed", error, plugin="p")  # noqa: TRY401 - it is not of `logging`
        lines = os.read(leader, 65536).decode().splitlines()
    finally:
        os.close(leader)
        os.close(follower)
    assert lines[0].endswith(" plugin=p")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"KeyError: 'NO\x1b[2JKEY'"
    assert not any("\x1b" in line for line in lines)


def test_traceback_in_json_stays_in_its_line(written: Written) -> None:
    log = Log(descriptor=written.descriptor, style="json", unfolded=True)
    log.exception("failed", ValueError("x"))
    assert json.loads(written.line)["traceback"] == "ValueError: x"


def test_lone_surrogate_is_written_as_an_escape(written: Written) -> None:
    Log(descriptor=written.descriptor).info("x", value="a\udc80b")
    assert parse(written.line)[2] == {"value": "a\udc80b"}


def test_description_of_an_exception_never_fails() -> None:
    class Broken(Exception):  # noqa: N818 - its text is what counts
        def __str__(self) -> str:
            raise ValueError

    assert describe(ValueError("boom")) == "ValueError: boom"
    assert describe(Broken()).startswith("Broken: ")


def test_ordinary_lines_may_wait_and_leave_by_themselves() -> None:
    reading, writing = os.pipe()
    log = Log(descriptor=writing)
    log.start()
    log.info("first")
    assert b" info first\n" in os.read(reading, 1000)
    log.info("second")
    assert b" info second\n" in os.read(reading, 1000)
    os.close(reading)
    os.close(writing)


def test_warning_is_on_its_way_at_once_behind_what_waits(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.runtime.log.FLUSH_INTERVAL", 3600.0)
    log = Log(descriptor=written.descriptor)
    log.start()
    for number in range(100):
        log.info("x", number=number)  # waits for an hour, or for a warning
    log.warning("last")
    wait_until(lambda: written.ends == 101)
    assert [line.split()[-1] for line in written.lines] == [
        *[f"number={number}" for number in range(100)],
        "last",
    ]


def test_lines_of_many_threads_stay_whole_and_in_order(written: Written) -> None:
    log = Log(descriptor=written.descriptor)
    log.start()

    def work(name: str) -> None:
        for number in range(100):
            (log.warning if number % 10 == 0 else log.info)("x", thread=name, number=number)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    found: dict[str, list[int]] = {}
    for line in written.lines:
        fields = parse(line)[2]
        found.setdefault(fields["thread"], []).append(int(fields["number"]))
    assert found == {str(n): [*range(100)] for n in range(4)}


def test_closed_descriptor_ends_nothing(tmp_path: Path) -> None:
    found = Written(tmp_path / "log")
    log = Log(descriptor=found.descriptor)
    found.file.close()
    log.error("no reader is left")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Yield the root logger, and restore it after the test."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("root")
def test_lines_of_the_standard_library_come_over_the_bridge(written: Written) -> None:
    bridge(Log(descriptor=written.descriptor), "info")
    bound()["session"] = "abc"
    logging.getLogger("third.party").info("%s of %d", "one", 2)
    logging.getLogger("third.party").debug("not said")
    bound().clear()
    level, event, fields = parse(written.line)
    assert (level, event) == ("info", "one of 2")
    assert fields == {"session": "abc", "logger": "third.party"}


@pytest.mark.parametrize(
    ("number", "level"),
    [(10, "debug"), (15, "debug"), (20, "info"), (25, "info"), (30, "warning"), (50, "error")],
)
def test_levels_of_the_standard_library_become_ours(
    number: int, level: str, written: Written
) -> None:
    log = Log(level="debug", descriptor=written.descriptor)
    record = logging.LogRecord("name", number, "", 0, "text", None, None)
    Bridge(log).emit(record)
    assert parse(written.line)[0] == level


@pytest.mark.usefixtures("root")
def test_traceback_comes_over_the_bridge_on_the_same_line(written: Written) -> None:
    bridge(Log(descriptor=written.descriptor), "info")
    try:
        int("x")
    except ValueError:
        logging.getLogger("third.party").exception("failed\nbadly")
    _, event, fields = parse(written.line)
    assert event == "failed\nbadly"
    assert fields["traceback"].startswith("Traceback")


@pytest.mark.usefixtures("root")
def test_message_that_looks_like_fields_is_quoted(written: Written) -> None:
    bridge(Log(descriptor=written.descriptor), "info")
    logging.getLogger("third.party").info("session=forged")
    assert parse(written.line) == ("info", "session=forged", {"logger": "third.party"})


@pytest.mark.usefixtures("root")
def test_bad_format_string_of_a_library_is_not_the_callers_failure(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge(Log(descriptor=written.descriptor), "info")
    logging.getLogger("third.party").info("%d", "one")
    assert written.lines == []
    assert "Logging error" in capsys.readouterr().err


@pytest.fixture
def journal(written: Written, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Return a file that seems to be the socket of systemd's journal."""
    status = os.fstat(written.descriptor)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    return written


def test_line_for_the_journal_has_its_priority_and_no_time(journal: Written) -> None:
    log = Log(level="debug", descriptor=journal.descriptor)
    log.debug("a", n=1)
    log.info("b", n=2)
    log.warning("c", n=3)
    log.error("d", n=4)
    assert journal.lines == [
        "<7>debug a n=1",
        "<6>info b n=2",
        "<4>warning c n=3",
        "<3>error d n=4",
    ]


def test_json_line_for_the_journal_has_its_priority_and_no_time(journal: Written) -> None:
    Log(style="json", descriptor=journal.descriptor).error("d", n=4)
    assert journal.line == '<3>{"level": "error", "event": "d", "n": 4}'


def test_file_is_not_taken_for_the_journal_that_another_descriptor_has(
    journal: Written, tmp_path: Path
) -> None:
    other = Written(tmp_path / "other")
    with other.file:
        Log(descriptor=other.descriptor).info("x")
        assert re.fullmatch(rf"{TIME} info x", other.line)
    assert journal.lines == []


def test_complaint_to_the_journal_has_its_priority(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    complain("minismtp: a")
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    complain("minismtp: b")
    complain("c", "warning")
    assert capfd.readouterr().err.splitlines() == ["minismtp: a", "<3>minismtp: b", "<4>c"]


# Standard error without a reader


class Pipe:
    """A pipe of the smallest size, and the data that was read from it."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)
        self.text = b""

    def read(self, *, until: bytes = b"") -> None:
        """Read until a text arrived, or without one all available data."""
        os.set_blocking(self.reading, bool(until))
        with contextlib.suppress(BlockingIOError):
            while not until or until not in self.text:
                self.text += os.read(self.reading, 65536)

    def counts(self, text: bytes) -> int:
        """Return how often a text arrived."""
        self.read()
        return self.text.count(text)

    @property
    def events(self) -> list[str]:
        lines = self.text.decode().splitlines()
        return [re.sub(r"^\S+Z \w+ ", "", line) for line in lines]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    os.close(made.writing)


class Stream(Pipe):
    """A socket, as systemd's journal gives one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.reading, self.writing = theirs.detach(), ours.detach()
        self.text = b""


@pytest.fixture(params=[Pipe, Stream])
def stuck(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    made: Pipe = request.param()
    yield made
    os.close(made.reading)
    os.close(made.writing)


def test_impatient_log_waits_for_nobody_and_writes_the_rest_later(stuck: Pipe) -> None:
    log = Log(descriptor=stuck.writing, patient=False)
    for number in range(1000):
        log.warning("x", number=number)
    assert os.get_blocking(stuck.writing)  # for other processes that share it
    while not stuck.text.endswith(b"number=999\n"):
        stuck.read()
        log.flush()
    assert stuck.events == [f"x number={number}" for number in range(1000)]


def test_pipe_of_another_user_gets_no_more_than_it_has_room_for(
    stuck: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbidden)
        log = Log(descriptor=stuck.writing, patient=False)
    for number in range(1000):
        log.warning("x", number=number)
    while not stuck.text.endswith(b"number=999\n"):
        stuck.read()
        log.flush()
    assert stuck.events == [f"x number={number}" for number in range(1000)]


def test_started_log_holds_nobody_up(stuck: Pipe) -> None:
    log = Log(descriptor=stuck.writing)
    log.start()
    for number in range(1000):
        log.warning("x", number=number)
    log.flush(patience=0.01)
    stuck.read(until=b"number=999\n")
    assert stuck.events == [f"x number={number}" for number in range(1000)]


@pytest.mark.parametrize("threaded", [True, False])
def test_what_does_not_fit_is_dropped_counted_and_told(
    threaded: bool, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.runtime.log._ROOM", 10_000)
    counted: list[int] = []
    log = Log(descriptor=pipe.writing, patient=False)
    log.count_dropped = counted.append
    if threaded:
        log.start()
    while len(counted) < 100:
        log.info("x", text="y" * 100)

    def told() -> int:
        log.flush(patience=0.0)
        pipe.read()
        return sum(map(int, re.findall(rb" warning log lines dropped lines=(\d+)\n", pipe.text)))

    wait_until(lambda: told() == 100)
    assert 10_000 < len(pipe.text) < 50_000
    log.info("more")
    wait_until(lambda: told() == 100 and pipe.text.endswith(b" info more\n"))


def test_descriptor_that_others_have_made_impatient_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    log = Log(descriptor=pipe.writing)
    log.start()
    for number in range(1000):
        log.warning("x", number=number)
    pipe.read(until=b"number=999\n")
    assert pipe.events == [f"x number={number}" for number in range(1000)]


def test_nobody_there_to_read_ends_nothing() -> None:
    for patient in (True, False):
        reading, writing = os.pipe()
        log = Log(descriptor=writing, patient=patient)
        os.close(reading)
        log.error("no reader is left")
        os.close(writing)


def test_what_is_printed_on_standard_error_becomes_lines(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    capture(Log(descriptor=written.descriptor))
    sys.stderr.write("half a ")
    sys.stderr.write("line\n\nand another\n")
    assert sys.stderr.fileno() == 2
    assert [parse(line) for line in written.lines] == [
        ("warning", text, {"logger": "stderr"}) for text in ("half a line", "and another")
    ]


def test_finalizer_that_prints_while_something_is_printed_holds_up_nobody() -> None:
    """Python writes the exception of a finalizer to standard error, whenever it runs."""
    said: list[str] = []
    stream = Printed(said.append, 2)

    class Last:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            stream.write("gone\n")

    def work() -> None:
        for number in range(3000):  # the collector may run at any line
            gc.set_threshold(number % 40 + 1)
            Last()
            stream.write("a\nb\n")

    usual = gc.get_threshold()
    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        thread.join(DEADLINE)
    finally:
        gc.set_threshold(*usual)
    assert not thread.is_alive()
    gc.collect()
    assert said.count("a") == said.count("b") == said.count("gone") == 3000


def test_parents_lines_are_not_the_childs(pipe: Pipe) -> None:
    log = Log(descriptor=pipe.writing, patient=False)
    for number in range(1000):
        log.info("x", number=number)
    pipe.read()
    before = pipe.text
    log.forget()
    log.info("mine")
    pipe.read()
    assert re.fullmatch(rb"\S+ info mine\n", pipe.text.removeprefix(before))


FAILING = """
import sys, warnings
from minismtp import Envelope, hookimpl, plugin


@plugin
class Failing:
    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        if envelope.sender.startswith("bad"):
            print("printed", file=sys.stderr)
            warnings.warn("warned", stacklevel=1)
            raise RuntimeError("made by a test" * 10)
"""


def test_server_whose_standard_error_nobody_reads_goes_on(configure: Configure, pipe: Pipe) -> None:
    port, web = free_port(), free_port()
    config = configure(
        '[limits]\nerror_delay = "0s"\n[[plugins]]\nuse = "failing"\n',
        listeners=f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n',
        metrics=f'[metrics]\naddress = "127.0.0.1:{web}"\n',
        workers=2,
    )
    (config.parent / "local_plugins" / "failing.py").write_text(FAILING)

    def ask(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}{path}", timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def ready() -> bool:
        with contextlib.suppress(OSError):
            return ask("/healthz") == "ok\n" and "minismtp_workers 2.0" in ask("/metrics")
        return False

    def loaded() -> list[str]:
        name = "minismtp_config_last_reload_success_timestamp_seconds"
        return re.findall(f"^{name} .*$", ask("/metrics"), re.MULTILINE)

    command = [sys.executable, "-m", "minismtp", "serve", "--config", str(config)]
    with subprocess.Popen(command, cwd=config.parent, stderr=pipe.writing) as server:
        try:
            wait_until(ready)
            for number in range(100):
                with Client(socket.create_connection(("127.0.0.1", port), 20)) as client:
                    client.greet()
                    assert client.command("MAIL FROM:<bad@client.example>").startswith("451")
                    client.command("MAIL FROM:<good@client.example>")
                    assert client.command("RCPT TO:<x@elsewhere.example>").startswith("550")
                    assert client.command("QUIT").startswith("221")
                if number == 50:
                    server.send_signal(signal.SIGUSR2)
            before = loaded()
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: loaded() != before)
            server.terminate()
            assert server.wait(DEADLINE) == 0
        finally:
            server.kill()
    pipe.read()
    assert b" listening listener=smtp" in pipe.text


def test_what_waited_is_written_once_somebody_reads(configure: Configure, pipe: Pipe) -> None:
    port = free_port()
    config = configure(
        '[[plugins]]\nuse = "failing"\n',
        listeners=f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n',
    )
    (config.parent / "local_plugins" / "failing.py").write_text(FAILING)
    command = [sys.executable, "-m", "minismtp", "serve", "--config", str(config)]
    with subprocess.Popen(command, cwd=config.parent, stderr=pipe.writing) as server:
        try:
            pipe.read(until=b" queue opened ")
            for _ in range(50):
                with Client(socket.create_connection(("127.0.0.1", port), 20)) as client:
                    client.greet()
                    client.command("MAIL FROM:<bad@client.example>")
            server.send_signal(signal.SIGUSR2)
            wait_until(lambda: pipe.counts(b" plugin failed ") == 50)
            wait_until(lambda: pipe.counts(b"\nProcess ") == 3)
            assert pipe.text.count(b" warning printed ") == 50
            assert b"UserWarning: warned" in pipe.text
        finally:
            server.kill()
