r"""Store mail in Maildirs, so that no crash loses what was acknowledged or shows half a message.

One delivery is: create NAME in tmp/ exclusively, lock it, write, sync, rename it into new/. Only
then is the message acknowledged. NAME ends with `,S=` and the size, so a file tells whether it is
whole: it has that size and no hole. (The size alone may reach the disk before the content, which
then reads as zeros; file systems report such parts as holes.) A crash
- before the sync leaves at most a file in tmp/, which no reader looks at and the next attempt with
  the same name replaces. new/ shows nothing, and nothing was acknowledged.
- after the rename leaves the message in new/, or, when the power fails before the file system has
  written the rename (ext4 does so within five seconds), in tmp/ again: whole, as it was synced
  there together with its entry, which the journals of ext4 and XFS write with a new file.
So what is whole in tmp/ and locked by nobody was left by a crash. When the server starts, such
files are moved into new/ (`rescue`). What was not acknowledged may come with them, and again from
the sender: at least once, never lost.

No directory is synced for a message. That would be a second commit of the journal for each: it made
a lone client's message take 2.6 ms instead of 1.5, and cost 20 clients a fifth of their rate.

`sync = "file"` syncs the file. `sync = "group"` syncs the file system, once for all that are being
delivered, by all workers (`GroupSync`): that covers the file and its entry in tmp/.

NAME is made from the envelope alone, so a delivery from the queue, which a crash may have cut off
after the rename, finds what it has left, in new/ or moved to cur/ by a reader, and is done.

Directories are made when they are missing, each synced into its parent, tmp/ last. So where tmp/
exists, everything above it and beside it is on disk, whoever made it and however that one ended,
and the ordinary delivery has nothing to look up.
"""

# ruff: noqa: PTH108, PTH116, PTH208, S108 - system calls on plain strings: a Path costs more than they
import contextlib
import errno
import logging
import os
import re
import socket
from dataclasses import field
from pathlib import Path
from typing import Literal

from minismtp import (
    Address,
    ByteSize,
    Defer,
    Envelope,
    Message,
    ServerInfo,
    hookimpl,
    make_directory,
    plugin,
    start_thread,
)

from ._folders import Folder
from ._paths import Template, name_part
from ._quota import Quota
from ._rescue import rescue
from ._writer import Writer

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_HOST = 100
_QUARANTINE = "Quarantine"
# What a reader does now can bear a time a little before now: the kernel stamps by clock ticks.
_CLOCK_SLACK = 2.0


@plugin
class Maildir:
    """Store each copy in the Maildir of its mailbox, on disk before the client hears 250.

    `path` is a template with the placeholders {domain} and {local}. What could lead elsewhere in
    their values (a slash, a leading dot and so on) is percent-encoded, and very long values end in
    a digest, so that each mailbox has a directory of its own below the fixed part. Directories are
    made as needed, for the server's user alone. The files begin with Return-Path and Delivered-To;
    CRLF line ends are kept. `sync = "file"` syncs each message by itself, `sync = "group"` all that
    are being delivered at once.

    What a filter has quarantined goes to the Maildir++ folder .Quarantine. Each table of `folders`
    names a further `folder` and the field, `header`, that leads there: its `value` is compared in
    any case, with * and ? as wildcards; with `least` it has to begin with a number of at least that
    size. Of several fields of the name the topmost counts, of several folders the first that fits.
    Nobody is subscribed to them: that is for the IMAP server and its users.

    `quota` is what a mailbox may hold, folders included; 0 is no limit. What does not fit is put
    off with 452 4.2.2, what is larger than the whole is refused with 552 5.2.3. The count is kept
    in the file maildirsize, which Dovecot and Courier know.
    """

    path: Path
    sync: Literal["file", "group"] = "file"
    quota: ByteSize = ByteSize(0)
    folders: list[Folder] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._template = Template(self.path)
        self._host = name_part(socket.gethostname())[:_LONGEST_HOST]
        self._room = Quota(self.quota) if self.quota else None
        self._writer = Writer(self.sync, Path())

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the configured host name, and bring back what a crash has left in tmp/."""
        self._host = name_part(server.hostname)[:_LONGEST_HOST]
        self._writer = Writer(self.sync, server.state_directory)
        if server.slot == 0 and server.role == "worker":
            folders = dict.fromkeys([_QUARANTINE, *(each.folder for each in self.folders)])
            start_thread("maildir", lambda: rescue(self._template.temporaries(folders)))

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Store one copy, synced; a copy that an earlier attempt has stored counts."""
        box = self._template.fill(mailbox)
        folder = self._folder(box, message)
        try:
            try:
                self._store(box, folder, envelope, message, mailbox)
            except FileNotFoundError:
                self._make_directories(Path(box), Path(folder))
                self._store(box, folder, envelope, message, mailbox)
        except OSError as error:
            _log.warning("id=%s mailbox=%s not stored: %s", envelope.id, mailbox, error)
            if error.errno in _FULL:
                raise Defer("mailbox storage is full", code=452, enhanced="4.3.1") from error
            raise Defer("mailbox cannot be written", code=451, enhanced="4.3.0") from error
        return True

    def _folder(self, box: str, message: Message) -> str:
        if message.quarantined is not None:
            return f"{box}/.{_QUARANTINE}"
        for each in self.folders:
            if each.takes(message):
                return f"{box}/.{each.folder}"
        return box

    def _store(
        self, box: str, folder: str, envelope: Envelope, message: Message, mailbox: Address
    ) -> None:
        # `time.unique part.host` of the Maildir specification, from what a repetition has too.
        seconds, microseconds = divmod(round(envelope.arrived * 1_000_000), 1_000_000)
        trace = _trace(envelope, mailbox)
        size = len(trace) + message.size
        name = f"{seconds}.M{microseconds:06}I{name_part(envelope.id)}.{self._host},S={size}"
        if envelope.queued and _stored(folder, name, envelope.arrived):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/tmp/{name}")
        elif self._room is None:
            self._writer.write(folder, name, trace, message)
        else:
            with self._room.room(box, size):
                self._writer.write(folder, name, trace, message)

    def _make_directories(self, box: Path, folder: Path) -> None:
        # Also the levels that exist already: one may have been made just before a crash.
        for directory in reversed([box, *box.parents][: self._template.own_levels]):
            make_directory(directory)
        for maildir in {box: None, folder: None}:
            make_directory(maildir)
            if maildir != box:  # Maildir++ tells a folder from a Maildir by this file
                (maildir / "maildirfolder").touch(mode=0o600)
            for name in ("new", "cur", "tmp"):
                make_directory(maildir / name)


def _stored(box: str, name: str, arrived: float) -> bool:
    """Whether an earlier attempt has stored the message.

    Readers move files from new/ to cur/ and append flags. cur/ is listed only if it changed after
    the message arrived: nothing came in before.
    """
    if os.access(f"{box}/new/{name}", os.F_OK):
        return True
    current = f"{box}/cur"
    if os.stat(current).st_mtime < arrived - _CLOCK_SLACK:
        return False
    return any(entry.startswith(name) for entry in os.listdir(current))


def _trace(envelope: Envelope, mailbox: Address) -> bytes:
    """Return the fields of final delivery (RFC 5321 section 4.4), one line each."""
    values = (f"Return-Path: <{envelope.sender}>", f"Delivered-To: {mailbox}")
    lines = (re.sub(r"[\x00-\x1f\x7f]", " ", value) + "\r\n" for value in values)
    return "".join(lines).encode("utf-8", "replace")
