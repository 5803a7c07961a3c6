"""One line for each event, as key=value or JSON.

No session waits for standard error, which may be an unread pipe or a journal that hangs. Once a log
is started, a thread writes its lines. Ordinary lines wait up to `FLUSH_INTERVAL` seconds and are
written together, because a write for every message releases the interpreter lock, which cost a
third of the throughput. The fields of lines on a busy path are made then, too. Warnings and errors
are written at once, behind the lines that wait. In a process without threads, an impatient log
writes as much as is taken without waiting, and the rest later. Lines beyond `_ROOM` octets are
dropped and counted, and a later line gives their number. If systemd's journal reads standard error,
each line begins with its priority, as in sd-daemon(3), and has no time, because the journal adds
it.

A session is a thread. So each line that the thread logs contains the fields that are `bound` to it,
including the lines of libraries.
"""

from __future__ import annotations

import json
import logging
import os
import select
import stat
import string
import sys
import threading
import time
import traceback
from collections.abc import Callable
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Final, TypeAlias

from minismtp.runtime.output import Output, Printed
from minismtp.values.printable import printable
from minismtp.values.threads import WriteBehind, report

FLUSH_INTERVAL: Final = 0.05
_ROOM: Final = 4 << 20  # octets of lines that may wait, more than a second of the busiest log
_PATIENCE: Final = 2.0  # seconds that a process waits for its last lines before it ends
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # as in sd-daemon(3)
_STDERR: Final = 2
_SAFE: Final = f"{string.ascii_letters}{string.digits}._+/:@<>,;()[]{{}}!#$%&*?^~|-".encode()

#: An event at epoch seconds, the fields bound then, and what makes its other fields.
_Late: TypeAlias = tuple[float, str, dict[str, object], Callable[[], dict[str, Any]]]

_bound = threading.local()


def bound() -> dict[str, object]:
    """Return the fields of every line of this thread, which the caller may change."""
    try:
        fields: dict[str, object] = _bound.fields
    except AttributeError:
        fields = _bound.fields = {}
    return fields


class Log:
    """Writes events to a file descriptor. Threads may share it. Make it after the fork.

    Before it is started, a `patient` log waits for its reader, which suits a command. `unfolded`
    writes tracebacks as lines of their own for people, as is done on a terminal.
    """

    def __init__(
        self,
        *,
        level: str = "info",
        style: str = "text",
        descriptor: int = _STDERR,
        patient: bool = True,
        unfolded: bool = False,
    ) -> None:
        self._threshold = LEVELS[level]
        self._format = _as_json if style == "json" else _as_text
        self._descriptor = descriptor
        self._journal = _is_journal(descriptor)
        self._unfolded = style == "text" and (unfolded or os.isatty(descriptor))
        self._output = None if patient else Output(descriptor)
        self._waiting: list[str | _Late] = []
        self._size = 0  # of the waiting lines, roughly in octets
        self._lost = 0  # lines dropped since the last one that was kept
        self._noting = threading.Lock()  # guards these three
        self.count_dropped: Callable[[int], object] = int  #: is called with 1 for each dropped line
        self._rest = b""  # the unwritten part of what an impatient log began to write
        self._thread: WriteBehind | None = None
        self._flushing = threading.RLock()
        self._date = (0, "")

    def debug(self, event: str, **fields: object) -> None:
        """Log an event that only developers need."""
        self.log("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log an ordinary event, which may wait for the next flush."""
        self.log("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event that an operator should look at. It is written at once."""
        self.log("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log a failure. It is written at once."""
        self.log("error", event, fields)

    def log(self, level: str, event: str, fields: dict[str, object]) -> None:
        """Log an event of one of the `LEVELS`."""
        if self._threshold <= LEVELS[level]:
            text = self._composed(level, event, getattr(_bound, "fields", {}) | fields)
            self._note(text, len(text), urgent=LEVELS[level] >= LEVELS["warning"])

    def later(self, event: str, fields: Callable[[], dict[str, Any]], size: int) -> None:
        """Log an ordinary event whose fields the thread that writes asks for by a call.

        `size` is how many octets the line takes roughly.
        """
        if self._threshold <= LEVELS["info"]:
            bound = {**getattr(_bound, "fields", {})}
            self._note((time.time(), event, bound, fields), size)

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """Log a failure with its traceback, in the same line unless the log is `unfolded`."""
        text = "".join(traceback.format_exception(error)).rstrip()
        self.error(event, error=describe(error), **fields, traceback=text)

    def complain(self, message: str) -> None:
        """Write a message about a mistake, as a line for people."""
        self.dump(f"{_mark('error') if self._journal else ''}{message}\n")

    def dump(self, text: str) -> None:
        """Write lines unchanged and together."""
        self._note(text, len(text), urgent=True)

    def forget(self) -> None:
        """Drop the waiting lines. After a fork the parent writes them."""
        self._take()
        self._rest = b""

    def start(self) -> None:
        """Start the thread that writes from now on."""
        self._thread = WriteBehind("log", self._write_at_once, FLUSH_INTERVAL)
        if self._waiting or self._rest:
            self._thread.hurry()
        self._thread.start()

    def flush(self, patience: float = _PATIENCE) -> None:
        """Write the waiting lines. Give up after `patience` seconds."""
        if self._thread is None:
            self._write_at_once()
        else:
            self._thread.hurry()
            self._thread.wait(patience)

    def _write_at_once(self) -> None:
        with self._flushing:  # so that two threads keep the order of the lines
            if self._output is None or self._thread is not None:
                rest, self._rest = self._rest, b""
                _write(self._descriptor, rest + self._take())
                return
            while self._rest or self._waiting:
                data = self._rest or self._take()
                try:
                    self._rest = data[self._output.write(data) :]
                except OSError:
                    self._rest = b""  # there is nowhere to report it
                if self._rest:
                    return

    def _take(self) -> bytes:
        with self._noting:
            lines, self._waiting = self._waiting, []
            lost, self._lost = self._lost, 0
            self._size = 0
        texts = [line if isinstance(line, str) else self._made(*line) for line in lines]
        if lost:
            texts.append(self._composed("warning", "log lines dropped", {"lines": lost}))
        return "".join(texts).encode("utf-8", "backslashreplace")

    def _made(
        self, at: float, event: str, bound: dict[str, object], fields: Callable[[], dict[str, Any]]
    ) -> str:
        try:
            return self._composed("info", event, bound | fields(), at)
        except Exception as error:  # noqa: BLE001 - the other lines are written all the same
            report(error)
            return ""

    def _note(self, line: str | _Late, size: int, *, urgent: bool = False) -> None:
        with self._noting:
            fits = self._size < _ROOM
            if fits:
                self._waiting.append(line)
                self._size += size
            else:
                self._lost += 1
        if not fits:
            self.count_dropped(1)
        if self._thread is None:
            self._write_at_once()
        elif urgent:
            self._thread.hurry()
        elif self._thread.idle:
            self._thread.announce()

    def _composed(self, level: str, event: str, fields: dict[str, object], at: float = 0.0) -> str:
        trace = ""
        if self._unfolded and "traceback" in fields:
            trace = f"{printable(str(fields.pop('traceback')))}\n"
        if self._journal:
            return _mark(level) + self._format("", level, event, fields) + trace
        return self._format(self._stamp(at or time.time()), level, event, fields) + trace

    def _stamp(self, now: float) -> str:
        # The date is formatted once a second, because strftime takes 2 us and this 0.3 us.
        second, date = self._date
        if second != int(now):
            second = int(now)
            date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._date = (second, date)
        return f"{date}.{int(now * 1000) % 1000:03d}Z"


class Bridge(logging.Handler):
    """Passes the records of the standard `logging` module, which libraries use, to a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record with the name of its logger and its traceback."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - as every handler does: a bad format string is no failure
            self.handleError(record)
            return
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[0]:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        levels = [name for name, least in LEVELS.items() if record.levelno >= least]
        self._log.log((levels or ["debug"])[-1], text, fields)


def bridge(log: Log, level: str) -> None:
    """Pass all records of the standard `logging` module to `log`."""
    root = logging.getLogger()
    root.handlers[:] = [Bridge(log)]
    root.setLevel(LEVELS[level])


def capture(log: Log) -> None:
    """Log the output of plugins and libraries on standard error, and their warnings.

    So no session waits for the reader, and other processes do not split the lines.
    """
    sys.stderr = Printed(lambda line: log.warning(line, logger="stderr"), _STDERR)
    logging.captureWarnings(True)


def complain(message: str, level: str = "error") -> None:
    """Write a message about a mistake to standard error, as a line for people."""
    mark = _mark(level) if _is_journal(_STDERR) else ""
    sys.stderr.write(f"{mark}{printable(message)}\n")


def describe(error: BaseException) -> str:
    """Return the type and the text of an exception, even if its own methods fail."""
    return f"{type(error).__name__}: {traceback.TracebackException(type(error), error, None)}"


def _as_text(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    # A record of another library may contain any text.
    event = _quoted(event) if _unsafe(event).strip(b" ") else event
    values = [str(value) for value in fields.values()]
    # One search for all, 7 us faster than one for each value.
    found = _unsafe("\0".join(values)).split(b"\0")
    if len(found) != len(values):  # a value has a NUL
        found = [_unsafe(value) for value in values]
    words = zip(fields, values, found, strict=True)
    pairs = "".join(
        [
            f" {name}={_quoted(value) if unsafe or not value else value}"
            for name, value, unsafe in words
        ]
    )
    return f"{now} {level} {event}{pairs}\n" if now else f"{level} {event}{pairs}\n"


def _as_json(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    time_field = {"time": now} if now else {}
    return json.dumps({**time_field, "level": level, "event": event, **fields}, default=str) + "\n"


def _unsafe(text: str) -> bytes:
    """Return the octets of a text that only a quoted value may have."""
    return text.encode("utf-8", "surrogatepass").translate(None, _SAFE)


def _quoted(text: str) -> str:
    # Letters stay readable. Controls, line separators and the like are escaped.
    return encode_basestring(text) if text.isprintable() else encode_basestring_ascii(text)


def _mark(level: str) -> str:
    return f"<{_PRIORITIES[level]}>"


def _is_journal(descriptor: int) -> bool:
    """Return whether systemd connected a descriptor to its journal."""
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
            except BlockingIOError:  # a process that shares it made it non-blocking
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
    except OSError:
        return  # there is nowhere to report it, and a closed standard error must not end a session


def _whole(descriptor: int, data: bytes) -> int:
    """Return how many octets to write at once, so that processes do not mix lines in a pipe."""
    if len(data) <= select.PIPE_BUF or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return len(data)
    return (data.rfind(b"\n", 0, select.PIPE_BUF) + 1) or (data.find(b"\n") + 1) or len(data)
