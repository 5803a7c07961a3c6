r"""Messages that filters set aside, in a Maildir, with their envelopes.

Every mail program can read the files. Each begins with the field X-Quarantine, which holds its own
length and the envelope (JSON in base64). The message follows as it would have been stored. So one
file holds all that its release needs.

| state | where | what a crash leaves |
| --- | --- | --- |
| S1 writing | tmp/NAME | a part, not acknowledged; `expire` removes it |
| S2 kept | new/NAME, or cur/NAME:2,FLAGS after a mail program read it | the same |
| S3 being released | cur/NAME:2,P, with the time of the release | the same; `release` goes on |
| S4 gone | the spool, or nowhere | S3 with the message in the spool too |

A release may be repeated. The entry in the spool is made of the envelope, and the name and the time
of S3, so a second release puts the same file into the spool, and mailboxes recognize a copy that
they have.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from minismtp.mail.content import Content
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.storage.spool import DamagedError, Spool
from minismtp.storage.spool_file import open_message
from minismtp.values.address import Address
from minismtp.values.clock import steady_time
from minismtp.values.durable_files import DurableFile, make_directory, sync_directory

_NAME: Final = re.compile(r"([0-9]+)\.M([0-9]{6})I(.+)\.([0-9a-f]{8}),S=([0-9]+)(:2,\w*)?")
_START: Final = b"X-Quarantine: minismtp-1 %010d"
_HEAD: Final = re.compile(rb"X-Quarantine: minismtp-1 ([0-9]{10})\r\n")
_HEAD_SIZE: Final = len(_START % 0) + 2
_LINE: Final = 76
_STALE: Final = 36 * 3600.0  # seconds after which tmp/ may be cleared, by the Maildir specification


@dataclass(frozen=True, slots=True)
class Kept:
    """A message in the quarantine: `id` is the one from its reception, `arrived` wall time."""

    path: Path
    id: str
    digest: str
    arrived: float
    size: int

    @property
    def is_being_released(self) -> bool:
        """Whether a release began."""
        return "P" in self.path.name.rpartition(":2,")[2] and self.path.parent.name == "cur"


class QuarantineStore:
    """The Maildir `directory`. Any number of processes may use it; all methods raise OSError.

    It is made when it is needed. If it is `within` another directory, that must exist.
    """

    def __init__(self, directory: Path, *, within: Path | None = None) -> None:
        self._directory = directory
        self._within = within

    def keep(self, envelope: Envelope, message: Message, mailbox: Address) -> frozenset[Address]:
        """Set a message aside, and return the mailboxes it is kept for; it is on disk then.

        It is kept once for all mailboxes of the envelope, or for `mailbox` alone if the envelope
        does not have it. A copy from an earlier attempt is not written again.
        """
        targets = _targets(envelope, mailbox)
        boxes = frozenset(targets)
        entry = QueueEntry.of(envelope, message, list(targets.values()))
        prefix = _prefix(entry)
        seconds, microseconds = divmod(round(envelope.arrived * 1_000_000), 1_000_000)
        identifier = re.sub(r"[^\w.-]", "_", envelope.id, flags=re.ASCII)
        digest = sha256("\n".join(sorted(map(str, boxes))).encode()).hexdigest()[:8]
        size = len(prefix) + message.size
        name = f"{seconds}.M{microseconds:06}I{identifier}.{digest},S={size}"
        if envelope.queued and any(each.path.name.startswith(name) for each in self.find()):
            return boxes
        try:
            self._write(name, prefix, message)
        except FileNotFoundError:
            for part in ("new", "cur", "tmp"):
                make_directory(self._directory / part, within=self._within)
            self._write(name, prefix, message)
        return boxes

    def _write(self, name: str, prefix: bytes, message: Message) -> None:
        with DurableFile(self._directory / "tmp" / name, self._directory / "new" / name) as file:
            file.size = message.write_to(file.descriptor, before=prefix)
        sync_directory(self._directory / "new")

    def find(self) -> Iterator[Kept]:
        """Yield the messages, in no order, without opening a file."""
        for part in ("new", "cur"):
            with contextlib.suppress(FileNotFoundError):
                for item in list(os.scandir(self._directory / part)):
                    match = _NAME.fullmatch(item.name)
                    if match is not None:
                        arrived = int(match[1]) + int(match[2]) / 1_000_000
                        yield Kept(Path(item.path), match[3], match[4], arrived, int(match[5]))

    def open(self, kept: Kept) -> tuple[QueueEntry, Message]:
        """Read a message. Raise DamagedError, or FileNotFoundError if it is gone."""
        descriptor = open_message(str(kept.path))
        try:
            entry, prefix = _read(descriptor, kept.size)
        except BaseException:
            os.close(descriptor)
            raise
        whole = Content.stored(descriptor, kept.size)
        message = Message(entry.id, whole.behind(b"", prefix))
        message.quarantined = entry.quarantined
        return entry, message

    def release(self, kept: Kept, spool: Spool) -> str:
        """Move a message into the spool, which delivers it, and return its name there.

        Raise DamagedError, or FileNotFoundError if it is gone.
        """
        entry, message = self.open(kept)
        path = kept.path
        if not kept.is_being_released:
            os.utime(path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path = path.rename(
                self._directory / "cur" / f"{kept.path.name.partition(':2,')[0]}:2,P"
            )
            sync_directory(self._directory / "cur")
        name = f"{entry.id}.q{kept.digest}"
        # Its time in the queue begins with the release, and so does its age for a mailbox.
        arrived = path.stat().st_mtime
        spool.add(replace(entry, id=name, arrived=arrived, quarantined=None), message)
        path.unlink(missing_ok=True)
        return name

    def remove(self, kept: Kept) -> None:
        """Drop a message. Raise FileNotFoundError if it is gone."""
        kept.path.unlink()

    def expire(self, age: float) -> int:
        """Drop messages older than `age` seconds and parts left by a crash; return their number.

        A message that is being released stays, and the next release goes on with it.
        """
        now, count = steady_time(), 0
        with contextlib.suppress(FileNotFoundError):
            for item in list(os.scandir(self._directory / "tmp")):
                mtime = item.stat(follow_symlinks=False).st_mtime
                if _NAME.fullmatch(item.name) and mtime < now - _STALE:
                    with contextlib.suppress(IsADirectoryError, PermissionError):
                        Path(item.path).unlink(missing_ok=True)
        for kept in self.find():
            if kept.arrived < now - age and not kept.is_being_released:
                with contextlib.suppress(IsADirectoryError, PermissionError):
                    kept.path.unlink(missing_ok=True)
                    count += 1
        return count


def _targets(envelope: Envelope, mailbox: Address) -> dict[Address, QueuedRecipient]:
    """Return a target for each mailbox. Success is not reported, because it was already."""
    found = {
        box: QueuedRecipient.of("local", box, recipient)
        for recipient in reversed(envelope.recipients)
        for box in recipient.mailboxes
    }
    if mailbox not in found:
        found = {mailbox: QueuedRecipient.of("local", mailbox, Recipient(mailbox))}
    for box, target in found.items():
        if "SUCCESS" in target.notify:
            rest = tuple(wish for wish in target.notify if wish != "SUCCESS")
            found[box] = replace(target, notify=rest or ("NEVER",))
    return found


def _prefix(entry: QueueEntry) -> bytes:
    text = base64.b64encode(msgspec.json.encode(entry))
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    folded = b"".join(b"\t%b\r\n" % line for line in lines)
    return _START % (_HEAD_SIZE + len(folded)) + b"\r\n" + folded


def _read(descriptor: int, size: int) -> tuple[QueueEntry, int]:
    """Return the envelope and the octets in front of the message. Raise DamagedError."""
    if os.fstat(descriptor).st_size != size:
        raise DamagedError("the size does not fit")
    head = _HEAD.fullmatch(os.pread(descriptor, _HEAD_SIZE, 0))
    length = int(head[1]) if head else 0
    if not _HEAD_SIZE < length <= size:
        raise DamagedError("the envelope is missing")
    try:
        text = base64.b64decode(os.pread(descriptor, length - _HEAD_SIZE, _HEAD_SIZE))
        entry = msgspec.json.decode(text, type=QueueEntry)
        entry.envelope()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedError(f"the envelope cannot be read: {error}") from None
    return entry, length
