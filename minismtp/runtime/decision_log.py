"""What was decided, kept for `minismtp explain`.

A `Record` for each session, each message and each attempt to deliver goes into a ring of files that
all processes share; what was refused goes into a second one, so that a flood pushes out nothing
that was accepted. They are handed over to a queue and written by a thread of its own, so a crash
loses those of the last moment; no mail depends on them.

All processes append to one file, under its lock. Who finds it full gives it a number; of the
numbered ones only the newest few stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import Step
from minismtp.values.threads import WriteBehind

DIRECTORY: Final = "chronicle"  # in the state directory
_LATEST: Final = 253402300799  # 9999-12-31 23:59:59, what the calendar can show
_INTERVAL: Final = 0.5  # seconds that a record may wait
_SEGMENTS: Final = 8
_CURRENT: Final = "current.jsonl"
_ACCEPTED: Final = ""
_REFUSED: Final = "refused-"
_SHARE: Final = 4  # what was refused has a quarter of the room
_MOST: Final = 100_000  # records that may wait: a disk that hangs must not fill the memory
_ENCODER: Final = msgspec.json.Encoder()


class Record(msgspec.Struct, gc=False):
    """One event as in the log, with its `fields` and the steps that led there.

    `time` is the end in epoch seconds, `begun` when it began in seconds of the clock of the steps.
    """

    event: str
    id: str
    time: Annotated[float, msgspec.Meta(ge=0, le=_LATEST)]
    begun: float
    fields: dict[str, str | int]
    steps: list[Step]


class _Ring:
    """Files whose names begin with `prefix`, and the records that wait to be written there."""

    def __init__(self, prefix: str, limit: int) -> None:
        self.prefix = prefix
        self.segment = limit // _SEGMENTS
        self.waiting: deque[Record] = deque(maxlen=_MOST)


class DecisionLog(WriteBehind):
    """One process's way into the rings, which take about `limit` octets of disk in all."""

    def __init__(self, state_directory: Path, limit: int, log: Log) -> None:
        super().__init__("chronicle", self._write_all, _INTERVAL)
        self._directory = state_directory / DIRECTORY
        self._rings = (
            _Ring(_ACCEPTED, limit - limit // _SHARE),
            _Ring(_REFUSED, limit // _SHARE),
        )
        self._log = log
        self._failed = False

    def keep(self, record: Record, *, accepted: bool = True) -> None:
        """Take a record, which nobody changes any more; it is on its way to the disk.

        What was not `accepted` has a ring of its own, so that strangers push out nothing else.
        """
        self._rings[not accepted].waiting.append(record)
        if not self.pending.is_set():
            self.pending.set()

    def _write_all(self) -> None:
        """Write the records that wait; those that cannot be written are dropped."""
        for ring in self._rings:
            self._write_ring(ring)

    def _write_ring(self, ring: _Ring) -> None:
        records = []
        while ring.waiting:
            records.append(ring.waiting.popleft())
        if not records or not ring.segment:
            return
        try:
            self._append(ring, _ENCODER.encode_lines(records))
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._log.warning("chronicle not written", error=str(error))
            self._failed = True

    def _append(self, ring: _Ring, data: bytes) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / f"{ring.prefix}{_CURRENT}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            while data:
                data = data[os.write(descriptor, data) :]
            status = os.fstat(descriptor)
            # Another process may have put it away since it was opened.
            if status.st_size >= ring.segment and path.stat().st_ino == status.st_ino:
                self._put_away(ring.prefix, path)
        finally:
            os.close(descriptor)

    def _put_away(self, prefix: str, path: Path) -> None:
        old = _numbered(self._directory, prefix)
        number = int(old[-1].stem.removeprefix(prefix)) + 1 if old else 0
        path.rename(self._directory / f"{prefix}{number:08}.jsonl")
        for surplus in old[: -(_SEGMENTS - 2)]:
            surplus.unlink(missing_ok=True)


def recall(state_directory: Path, identifier: str) -> list[Record]:
    """Return what is known of a session with its messages, or of one message, the oldest first."""
    session = identifier.partition(".")[0]
    found = [
        record
        for record in mentions(state_directory, session)
        if record.id in {identifier, session} or identifier == record.id.partition(".")[0]
    ]
    return sorted(found, key=lambda record: record.time)


def mentions(state_directory: Path, *texts: str, any_case: bool = False) -> Iterator[Record]:
    """Yield the records in which one of the texts stands, about as they came."""
    parts = b"|".join(re.escape(text.encode(errors="surrogateescape")) for text in texts)
    pattern = re.compile(parts, re.IGNORECASE if any_case else 0)
    for line in _lines(state_directory / DIRECTORY, pattern):
        # Cut off by a crash, or damaged: what is no UTF-8 is a ValueError.
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            yield msgspec.json.decode(line, type=Record)


def _lines(directory: Path, pattern: re.Pattern[bytes]) -> Iterator[bytes]:
    for path in [path for prefix in (_ACCEPTED, _REFUSED) for path in _files(directory, prefix)]:
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            end = 0
            while end >= 0 and (found := pattern.search(data, end)):
                end = data.find(b"\n", found.start())
                begin = data.rfind(b"\n", 0, found.start()) + 1
                yield data[begin : end if end >= 0 else len(data)]


def _files(directory: Path, prefix: str) -> list[Path]:
    return [*_numbered(directory, prefix), directory / f"{prefix}{_CURRENT}"]


def _numbered(directory: Path, prefix: str) -> list[Path]:
    return sorted(directory.glob(f"{prefix}[0-9]*.jsonl"))
