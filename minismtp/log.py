"""One line for each event, as key=value or JSON (layer 2).

Lines go to standard error by one `os.write` each, so lines of several processes never mix. Ordinary
lines may wait up to `FLUSH_INTERVAL` seconds and leave together: a write for every message gives up
the interpreter lock and cost a third of the throughput. Warnings and errors leave at once, and take
all that waits with them, so order holds.

A session is a thread, hence what is bound to the thread (`bind`) stands in every line that the
thread logs, those of third-party libraries included.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections import deque
from typing import Final

FLUSH_INTERVAL: Final = 0.05
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SAFE = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+/:@<>,;()[]{}!#$%&*?^~|"
)

_bound = threading.local()


def bind(**fields: object) -> None:
    """Put fields in front of every line that this thread logs, until `unbind`."""
    current: dict[str, object] = getattr(_bound, "fields", {})
    _bound.fields = {**current, **fields}


def unbind(*names: str) -> None:
    """Take fields off this thread's lines; without names, all of them."""
    current: dict[str, object] = getattr(_bound, "fields", {})
    _bound.fields = {k: v for k, v in current.items() if k not in names} if names else {}


class Log:
    """Writes events to a file descriptor. Safe in several threads; make it after the fork."""

    def __init__(self, *, level: str = "info", style: str = "text", descriptor: int = 2) -> None:
        self._threshold = LEVELS[level]
        self._format = _as_json if style == "json" else _as_text
        self._descriptor = descriptor
        self._waiting: deque[str] = deque()
        self._wake: threading.Event | None = None
        self._second = 0
        self._date = ""

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
        self.error(event, error=repr(error), **fields, traceback=text)

    def start(self) -> None:
        """Let ordinary lines wait from now on; starts the thread that flushes them."""
        self._wake = threading.Event()
        threading.Thread(target=self._run, args=(self._wake,), name="log", daemon=True).start()

    def flush(self) -> None:
        """Write all that waits."""
        lines = []
        try:
            while True:
                lines.append(self._waiting.popleft())
        except IndexError:
            pass
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
        self._waiting.append(self._format(self._now(), level, event, fields))
        if self._wake is None:
            self.flush()
        elif not self._wake.is_set():
            self._wake.set()

    def _now(self) -> str:
        # The date text is made once a second: strftime costs 2 us, this 0.3 us.
        now = time.time()
        second = int(now)
        if second != self._second:
            self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._date}.{int(now * 1000) % 1000:03d}Z"


class Bridge(logging.Handler):
    """Brings the lines of the standard `logging` module, so of all libraries, into a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record under its logger's name, with its traceback if it has one."""
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        write = getattr(self._log, level, self._log.info)
        trace = (
            {"traceback": logging.Formatter().formatException(record.exc_info)}
            if (record.exc_info and record.exc_info[0])
            else {}
        )
        write(record.getMessage(), logger=record.name, **trace)


def bridge(log: Log, level: str) -> None:
    """Send everything that is logged through the standard `logging` module to `log`."""
    root = logging.getLogger()
    root.handlers[:] = [Bridge(log)]
    root.setLevel(LEVELS[level])


def _as_text(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    pairs = "".join([f" {k}={_quoted(str(v))}" for k, v in fields.items()])
    return f"{now} {level} {event}{pairs}\n"


def _as_json(now: str, level: str, event: str, fields: dict[str, object]) -> str:
    return json.dumps({"time": now, "level": level, "event": event, **fields}, default=str) + "\n"


def _quoted(text: str) -> str:
    if text and _SAFE.issuperset(text):
        return text
    return json.dumps(text, ensure_ascii=False)


def _write(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return  # nowhere left to say it: a closed standard error must not end a session
