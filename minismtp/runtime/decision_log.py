"""The decisions on sessions and messages, kept for `minismtp explain`.

Each session, message and delivery attempt leaves a `Record` in a ring of files that all processes
share. Refusals go to a second ring, so that a flood of them removes no record of accepted mail. A
thread writes the records after a moment. A crash loses the latest ones, which no mail depends on.

All processes append to one file, under its lock. The process that fills it renames it to the next
number. Only the newest few of the numbered files are kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import Step
from minismtp.values.threads import WriteBehind, surviving

DIRECTORY: Final = "chronicle"  # in the state directory
_LATEST: Final = 253402300799  # 9999-12-31 23:59:59, the last time that datetime can show
_INTERVAL: Final = 0.5  # seconds that a record waits at most
_SEGMENTS: Final = 8
_CURRENT: Final = "current.jsonl"
_ACCEPTED: Final = ""
_REFUSED: Final = "refused-"
_SHARE: Final = 4  # refusals get a quarter of the space
_LONGEST_LINE: Final = 1 << 20  # octets of a record that are read to learn its time
_MOST: Final = 100_000  # records that may wait, so that a hanging disk does not fill the memory
_ENCODER: Final = msgspec.json.Encoder()


class Record(msgspec.Struct, gc=False):
    """An event of the log with its `fields`, and the steps that led to it.

    `time` is its end in epoch seconds. `begun` is its beginning, by the clock of the steps.
    """

    event: str
    id: str
    time: Annotated[float, msgspec.Meta(ge=0, le=_LATEST)]
    begun: float
    fields: dict[str, str | int]
    steps: list[Step]


class _Ring:
    """The files with names that begin with `prefix`, and the records that wait for them."""

    def __init__(self, prefix: str, limit: int) -> None:
        self.prefix = prefix
        self.segment = limit // _SEGMENTS
        self.waiting: deque[Callable[[], Record]] = deque(maxlen=_MOST)


class DecisionLog(WriteBehind):
    """Adds records of this process to the rings, which take about `limit` octets of disk."""

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
        """Have a record written. The caller must not change it any more.

        Refusals go to a ring of their own, so that strangers cannot push out other records.
        """
        self.later(lambda: record, accepted=accepted)

    def later(self, record: Callable[[], Record], *, accepted: bool) -> None:
        """Have a record written, which the thread that writes asks for by a call."""
        self._rings[not accepted].waiting.append(record)
        if self.idle:
            self.announce()

    def _write_all(self) -> None:
        """Write the records that wait. Drop those that cannot be written."""
        for ring in self._rings:
            records, waiting = [], ring.waiting
            while waiting:
                with surviving():  # continues behind a record that cannot be made
                    while waiting:
                        records.append(waiting.popleft()())
            if not records or not ring.segment:
                continue
            try:
                self._append(ring, _ENCODER.encode_lines(records))
                self._failed = False
            except OSError as error:
                if not self._failed:
                    self._log.warning("chronicle not written", error=str(error))
                self._failed = True

    def _append(self, ring: _Ring, data: bytes) -> None:
        path = self._directory / f"{ring.prefix}{_CURRENT}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            while data:
                data = data[os.write(descriptor, data) :]
            status = os.fstat(descriptor)
            # Another process may have renamed it since it was opened.
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
    """Return the records of a session and its messages, or of a message, the oldest first."""
    session = identifier.partition(".")[0]
    found = [
        record
        for record in mentions(state_directory, session)
        if record.id in {identifier, session} or identifier == record.id.partition(".")[0]
    ]
    return sorted(found, key=lambda record: record.time)


def mentions(state_directory: Path, *texts: str, any_case: bool = False) -> Iterator[Record]:
    """Yield the records that contain one of the texts, roughly the oldest first."""
    parts = b"|".join(re.escape(text.encode(errors="surrogateescape")) for text in texts)
    pattern = re.compile(parts, re.IGNORECASE if any_case else 0)
    for line in _lines(state_directory / DIRECTORY, pattern):
        # A crash cut the line off, or it is damaged; a ValueError means that it is not UTF-8.
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            yield msgspec.json.decode(line, type=Record)


def extent(state_directory: Path) -> tuple[int, float, Path]:
    """Return how many files of records there are, the time of the oldest record, and the directory.

    The time is in epoch seconds, 0 if it is not known.
    """
    directory, first = state_directory / DIRECTORY, 0.0
    rings = [_files(directory, prefix) for prefix in (_ACCEPTED, _REFUSED)]
    files = [path for ring in rings for path in ring if path.exists()]
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        for path in files[:1]:
            with path.open("rb") as file:
                first = msgspec.json.decode(file.readline(_LONGEST_LINE), type=Record).time
    return len(files), first, directory


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
