"""One line for each event, as key=value or JSON.

Nobody waits for standard error, which may be a pipe that nobody reads or a journal that hangs. Once
a log is started a thread of its own writes: ordinary lines wait up to `FLUSH_INTERVAL` seconds and
leave together, as a write for every message gives up the interpreter lock and cost a third of the
throughput; with a warning or an error it writes at once, and order holds. In a process that starts
no thread an impatient log writes what is taken without waiting, and the rest later. What is more
than `_ROOM` is dropped and counted, and a line says so when it goes on. Where systemd's journal
reads standard error, every line begins with its priority, as in sd-daemon(3), and has no time: the
journal knows it.

A session is a thread, hence what is bound to the thread (`bind`) stands in every line that the
thread logs, those of third-party libraries included.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from minismtp.runtime.output import Output, Printed
from minismtp.values.printable import printable
from minismtp.values.threads import WriteBehind

FLUSH_INTERVAL: Final = 0.05
_ROOM: Final = 4 << 20  # octets of lines that may wait: a second of the busiest log, and more
_PATIENCE: Final = 2.0  # seconds that the end of a process waits for its last lines
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # as in sd-daemon(3)
_STDERR: Final = 2
_SAFE_OCTETS: Final = r"A-Za-z0-9._+/:@<>,;()\[\]{}!#$%&*?^~|-"
_SAFE: Final = re.compile(f"[{_SAFE_OCTETS}]+")
_ALL_SAFE: Final = re.compile(f"[{_SAFE_OCTETS}]+(?:\0[{_SAFE_OCTETS}]+)*")
_SAFE_EVENT: Final = re.compile(f"[ {_SAFE_OCTETS}]*")

_bound = threading.local()


def bind(**fields: object) -> None:
    """Put fields in front of every line that this thread logs, until `unbind`."""
    bound().update(fields)


def unbind(*names: str) -> None:
    """Take fields off this thread's lines; without names, all of them."""
    current = bound()
    for name in names or tuple(current):
        current.pop(name, None)


def bound() -> dict[str, object]:
    """Return what stands in front of every line of this thread."""
    try:
        fields: dict[str, object] = _bound.fields
    except AttributeError:
        fields = _bound.fields = {}
    return fields


class Log:
    """Writes events to a file descriptor. Safe in several threads; make it after the fork.

    A `patient` one waits for its reader until it is started, as a command may.
    """

    def __init__(
        self,
        *,
        level: str = "info",
        style: str = "text",
        descriptor: int = _STDERR,
        patient: bool = True,
    ) -> None:
        self._threshold = LEVELS[level]
        self._format = _as_json if style == "json" else _as_text
        self._descriptor = descriptor
        self._journal = _is_journal(descriptor)
        self._output = None if patient else Output(descriptor)
        self._waiting: list[str] = []
        self._size = 0  # of what waits, about in octets
        self._lost = 0  # lines since the last that was taken
        self._count_lost: Callable[[int], object] = int
        self._noting = threading.Lock()  # guards those four
        self._rest = b""  # of what an impatient log has begun to write
        self._thread: WriteBehind | None = None
        self._flushing = threading.RLock()
        self._date = (0, "")

    def debug(self, event: str, **fields: object) -> None:
        """Log what only a developer wants to see."""
        if self._threshold <= LEVELS["debug"]:
            self._line("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log an ordinary event; it may wait for the next flush."""
        if self._threshold <= LEVELS["info"]:
            self._line("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what somebody should look at; on its way at once."""
        if self._threshold <= LEVELS["warning"]:
            self._line("warning", event, fields, urgent=True)

    def error(self, event: str, **fields: object) -> None:
        """Log a failure; on its way at once."""
        self._line("error", event, fields, urgent=True)

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """Log a failure with its traceback on the same line (line feeds escaped)."""
        text = "".join(traceback.format_exception(error)).rstrip()
        self.error(event, error=describe(error), **fields, traceback=text)

    def complain(self, message: str) -> None:
        """Tell the user of a mistake, by a line that is meant for people."""
        self._note(f"{_mark('error') if self._journal else ''}{message}\n", urgent=True)

    def dump(self, text: str) -> None:
        """Write lines that belong together, as they are."""
        self._note(text, urgent=True)

    def count_dropped(self, count: Callable[[int], object]) -> None:
        """Call `count` with 1 for each line that is dropped from now on."""
        self._count_lost = count

    def forget(self) -> None:
        """Drop what waits: after a fork it is the parent's."""
        self._take()
        self._rest = b""

    def start(self) -> None:
        """Leave the writing to a thread from now on."""
        self._thread = WriteBehind("log", self._write_at_once, FLUSH_INTERVAL)
        if self._waiting or self._rest:
            self._thread.hurry()
        self._thread.start()

    def flush(self, patience: float = _PATIENCE) -> None:
        """Have written all that waits, in `patience` seconds or not at all."""
        if self._thread is None:
            self._write_at_once()
        else:
            self._thread.hurry()
            self._thread.wait(patience)

    def _write_at_once(self) -> None:
        with self._flushing:  # or two threads would change the order of the lines
            if self._output is None or self._thread is not None:
                rest, self._rest = self._rest, b""
                _write(self._descriptor, rest + self._take())
                return
            while self._rest or self._waiting:
                data = self._rest or self._take()
                try:
                    self._rest = data[self._output.write(data) :]
                except OSError:
                    self._rest = b""  # nowhere left to say it
                if self._rest:
                    return

    def _take(self) -> bytes:
        with self._noting:
            lines, self._waiting = self._waiting, []
            lost, self._lost = self._lost, 0
            self._size = 0
        if lost:
            lines.append(self._composed("warning", "log lines dropped", {"lines": lost}))
        return "".join(lines).encode("utf-8", "backslashreplace")

    def _note(self, text: str, *, urgent: bool) -> None:
        with self._noting:
            fits = self._size < _ROOM
            if fits:
                self._waiting.append(text)
                self._size += len(text)
            else:
                self._lost += 1
        if not fits:
            self._count_lost(1)
        if self._thread is None:
            self._write_at_once()
        elif urgent:
            self._thread.hurry()
        elif not self._thread.pending.is_set():
            self._thread.pending.set()

    def _line(
        self, level: str, event: str, fields: dict[str, object], *, urgent: bool = False
    ) -> None:
        bound = getattr(_bound, "fields", None)
        if bound:
            fields = {**bound, **fields}
        self._note(self._composed(level, event, fields), urgent=urgent)

    def _composed(self, level: str, event: str, fields: dict[str, object]) -> str:
        if self._journal:
            return _mark(level) + self._format("", level, event, fields)
        return self._format(self._now(), level, event, fields)

    def _now(self) -> str:
        # The date text is made once a second: strftime costs 2 us, this 0.3 us.
        now = time.time()
        second, date = self._date
        if second != int(now):
            second = int(now)
            date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._date = (second, date)
        return f"{date}.{int(now * 1000) % 1000:03d}Z"


class Bridge(logging.Handler):
    """Brings the lines of the standard `logging` module, so of all libraries, into a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record under its logger's name, with its traceback if it has one."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - as every handler does: a bad format string is no failure
            self.handleError(record)
            return
        trace = {}
        if record.exc_info and record.exc_info[0]:
            trace["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._writer(record.levelno)(text, logger=record.name, **trace)

    def _writer(self, level: int) -> Callable[..., None]:
        if level >= LEVELS["error"]:
            return self._log.error
        if level >= LEVELS["warning"]:
            return self._log.warning
        return self._log.info if level >= LEVELS["info"] else self._log.debug


def bridge(log: Log, level: str) -> None:
    """Send everything that is logged through the standard `logging` module to `log`."""
    root = logging.getLogger()
    root.handlers[:] = [Bridge(log)]
    root.setLevel(LEVELS[level])


def capture(log: Log) -> None:
    """Have what plugins and libraries print on standard error, and warn of, become lines of `log`.

    So no session waits for its reader, and no line is cut in two by another process.
    """
    sys.stderr = Printed(lambda line: log.warning(line, logger="stderr"), _STDERR)
    logging.captureWarnings(True)


def complain(message: str, level: str = "error") -> None:
    """Tell the user on standard error, by a line that is meant for people, of a mistake."""
    mark = _mark(level) if _is_journal(_STDERR) else ""
    sys.stderr.write(f"{mark}{printable(message)}\n")


def describe(error: BaseException) -> str:
    """Return the type and the text of an exception, whatever its own methods do."""
    return f"{type(error).__name__}: {traceback.TracebackException(type(error), error, None)}"


def _as_text(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    # What comes over the bridge may be anything.
    event = event if _SAFE_EVENT.fullmatch(event) else _quoted(event)
    values = [str(value) for value in fields.values()]
    joined = "\0".join(values)  # one look, 3 us less than one at each
    if joined.count("\0") >= len(values) or not _ALL_SAFE.fullmatch(joined):
        values = [_quoted(value) for value in values]
    pairs = "".join([f" {name}={value}" for name, value in zip(fields, values, strict=True)])
    return f"{now} {level} {event}{pairs}\n" if now else f"{level} {event}{pairs}\n"


def _as_json(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    time_field = {"time": now} if now else {}
    return json.dumps({**time_field, "level": level, "event": event, **fields}, default=str) + "\n"


def _quoted(text: str) -> str:
    if _SAFE.fullmatch(text):
        return text
    # Letters stay readable; controls, line separators and the like become escapes.
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _mark(level: str) -> str:
    return f"<{_PRIORITIES[level]}>"


def _is_journal(descriptor: int) -> bool:
    """Whether a descriptor is the one that systemd has connected to its journal."""
    journal = os.environ.get("JOURNAL_STREAM", "")
    if not journal:
        return False
    status = os.fstat(descriptor)
    return journal == f"{status.st_dev}:{status.st_ino}"


def _write(descriptor: int, data: bytes) -> None:
    try:
        while data:
            try:
                data = data[os.write(descriptor, data[: _whole(descriptor, data)]) :]
            except BlockingIOError:  # somebody who shares it has made it so
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
    except OSError:
        return  # nowhere left to say it: a closed standard error must not end a session


def _whole(descriptor: int, data: bytes) -> int:
    """Return how much to write at once, so that lines of several processes do not mix in a pipe."""
    if len(data) <= select.PIPE_BUF or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return len(data)
    return (data.rfind(b"\n", 0, select.PIPE_BUF) + 1) or (data.find(b"\n") + 1) or len(data)
