"""One line for each event, as key=value or JSON (layer 2).

Lines go to standard error by one `os.write` each, so lines of several processes never mix. Ordinary
lines may wait up to `FLUSH_INTERVAL` seconds and leave together: a write for every message gives up
the interpreter lock and cost a third of the throughput. Warnings and errors leave at once, and take
all that waits with them, so order holds. Where systemd's journal reads standard error, every line
begins with its priority, as in sd-daemon(3), and has no time: the journal knows it.

A session is a thread, hence what is bound to the thread (`bind`) stands in every line that the
thread logs, those of third-party libraries included.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Final

from minismtp.printable import printable
from minismtp.threads import start_thread

FLUSH_INTERVAL: Final = 0.05
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
    """Give what stands in front of every line of this thread."""
    try:
        fields: dict[str, object] = _bound.fields
    except AttributeError:
        fields = _bound.fields = {}
    return fields


class Log:
    """Writes events to a file descriptor. Safe in several threads; make it after the fork."""

    def __init__(
        self, *, level: str = "info", style: str = "text", descriptor: int = _STDERR
    ) -> None:
        self._threshold = LEVELS[level]
        self._format = _as_json if style == "json" else _as_text
        self._descriptor = descriptor
        self._journal = _is_journal(descriptor)
        self._waiting: deque[str] = deque()
        self._wake: threading.Event | None = None
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
        """Log what somebody should look at; written at once."""
        if self._threshold <= LEVELS["warning"]:
            self._line("warning", event, fields)
            self.flush()

    def error(self, event: str, **fields: object) -> None:
        """Log a failure; written at once."""
        self._line("error", event, fields)
        self.flush()

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """Log a failure with its traceback on the same line (line feeds escaped)."""
        text = "".join(traceback.format_exception(error)).rstrip()
        self.error(event, error=describe(error), **fields, traceback=text)

    def start(self) -> None:
        """Let ordinary lines wait from now on; starts the thread that flushes them."""
        self._wake = threading.Event()
        wake = self._wake
        start_thread("log", lambda: self._run(wake))

    def flush(self) -> None:
        """Write all that waits."""
        with self._flushing:  # or two threads would change the order of the lines
            lines = []
            while self._waiting:
                lines.append(self._waiting.popleft())
            if lines:
                _write(self._descriptor, "".join(lines).encode("utf-8", "backslashreplace"))

    def _run(self, wake: threading.Event) -> None:
        while True:
            wake.wait()
            wake.clear()
            self.flush()
            time.sleep(FLUSH_INTERVAL)

    def _line(self, level: str, event: str, fields: dict[str, object]) -> None:
        bound = getattr(_bound, "fields", None)
        if bound:
            fields = {**bound, **fields}
        if self._journal:
            line = f"<{_PRIORITIES[level]}>{self._format('', level, event, fields)}"
        else:
            line = self._format(self._now(), level, event, fields)
        self._waiting.append(line)
        if self._wake is None:
            self.flush()
        elif not self._wake.is_set():
            self._wake.set()

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


def complain(message: str, level: str = "error") -> None:
    """Tell the user on standard error, by a line that is meant for people, of a mistake."""
    mark = f"<{_PRIORITIES[level]}>" if _is_journal(_STDERR) else ""
    sys.stderr.write(f"{mark}{printable(message)}\n")


def describe(error: BaseException) -> str:
    """Give the type and the text of an exception, whatever its own methods do."""
    return f"{type(error).__name__}: {traceback.TracebackException(type(error), error, None)}"


def _as_text(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    # What comes over the bridge may be anything.
    event = event if _SAFE_EVENT.fullmatch(event) else _quoted(event)
    values = [str(value) for value in fields.values()]
    if not _ALL_SAFE.fullmatch("\0".join(values)):  # one look, 3 us less than one at each
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
            data = data[os.write(descriptor, data) :]
    except OSError:
        return  # nowhere left to say it: a closed standard error must not end a session
