r"""Store mail in Maildirs. A crash neither loses an acknowledged message nor shows half of one.

A delivery creates NAME in tmp/ exclusively, locks it, writes and syncs it, and renames it into
new/. Only then is the message acknowledged. NAME ends with `,S=` and the size, so a complete file
can be recognized by that size and by having no hole. (The size may reach the disk before the
content, which then reads as zeros; file systems report such parts as holes.) A crash - before the
sync leaves at most a file in tmp/, which readers ignore and the next attempt with the
  same name replaces. new/ shows no message, and no message was acknowledged.
- after the rename leaves the message in new/. If the power fails before the file system writes the
  rename (ext4 does so within five seconds), the complete message is in tmp/ again, because it was
  synced there together with its entry, which the journals of ext4 and XFS write with a new file.
So a complete file in tmp/ that is not locked was left by a crash. When the server starts, such
files are moved into new/ (`rescue`). These may include messages that were not acknowledged and that
the sender sends again. So a message is stored at least once and never lost.

Directories are not synced for a message, because that takes a second commit of the journal: a lone
client's message then took 2.6 ms instead of 1.5, and 20 clients lost a fifth of their rate.

`sync = "file"` syncs the file. `sync = "group"` syncs the file system, once for all messages that
any worker is delivering (`GroupSync`), which includes the file and its entry in tmp/.

NAME is made from the envelope alone. So if a crash interrupted a delivery after the rename, its
repetition from the queue finds the message, in new/ or moved to cur/ by a reader, and is done.

Missing directories are created and synced into their parents, tmp/ last. So if tmp/ exists, all
directories above and beside it are on disk, and an ordinary delivery need not check them.
"""

# ruff: noqa: PTH108, PTH116, PTH208, S108 - system calls on plain strings: a Path costs more than they
import contextlib
import errno
import logging
import os
import socket
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Literal

from minismtp import (
    Address,
    ByteSize,
    Defer,
    DurableFile,
    Envelope,
    GroupSync,
    Message,
    PluginCheck,
    ServerInfo,
    hookimpl,
    make_directory,
    plugin,
    start_thread,
)

from ._maildir_paths import Folder, Template, name_part, rescue
from ._quota import Quota

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_HOST = 100
_MOST_TRIED = 100  # users whose Maildirs are looked at when the server starts
_QUARANTINE = "Quarantine"
_BLANKS = dict.fromkeys([*range(32), 127], " ")  # in the place of control characters
# A reader's change may get a time slightly before now, because the kernel stamps by clock ticks.
_CLOCK_SLACK = 2.0


@plugin
class Maildir:
    """Store each copy in the Maildir of its mailbox, on disk before the client gets 250.

    `path` is a template with the placeholders {domain} and {local}. Unsafe characters in their
    values (a slash, a leading dot and others) are percent-encoded, and very long values end in a
    digest, so each mailbox has its own directory below the fixed part. Directories are created as
    needed, for the server's user alone. The files begin with Return-Path and Delivered-To, and keep
    CRLF line ends. `sync = "file"` syncs each message by itself, `sync = "group"` all messages of
    the same moment together.

    Quarantined messages go to the Maildir++ folder .Quarantine. Each table of `folders` has a
    further `folder` and the field, `header`, that selects it: by a `value`, compared without case,
    with * and ? as wildcards, or by a number of at least `least` at its beginning. Of several
    fields of the name the topmost counts, and of several folders the first that matches.
    Subscriptions are up to the IMAP server and its users.

    `quota` is the size of a mailbox with its folders; 0 is no limit. A message that does not fit is
    deferred with 452 4.2.2; one larger than the quota is refused with 552 5.2.3. The size is kept
    in the file maildirsize, which Dovecot and Courier use too.
    """

    path: Path
    sync: Literal["file", "group"] = "file"
    quota: ByteSize = ByteSize(0)
    folders: list[Folder] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._template = Template(self.path)
        self._host = name_part(socket.gethostname())[:_LONGEST_HOST]
        self._room = Quota(self.quota) if self.quota else None
        self._state = Path()  # where the workers find each other, and not made if it is missing
        self._groups: dict[int, GroupSync] = {}  # by device, because Maildirs may be on several

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the host name, and restore messages that a crash left in tmp/."""
        self._host = name_part(server.hostname)[:_LONGEST_HOST]
        self._state = server.state_directory
        if server.slot == 0 and server.role == "worker":
            folders = dict.fromkeys([_QUARANTINE, *(each.folder for each in self.folders)])
            start_thread("maildir", lambda: rescue(self._template.temporaries(folders)))

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Report a place that cannot be written, or that all users share."""
        if "{local}" not in str(self.path) and len(check.facts.users) != 1:
            check.warn(
                f"path: {self.path} has no {{local}}, so all users share one Maildir; expected"
                f' such as "{self._template.fixed}/{{domain}}/{{local}}"'
            )
        problem = check.cannot_write(self._template.fixed)
        if not problem:
            return
        # Somebody else may have made the Maildirs, as in /home.
        domains = list(check.facts.domains)[:1] or [""]
        users = [
            Address.parse(user) if "@" in user.strip('"') else Address(user, domains[0])
            for user in list(check.facts.users)[:_MOST_TRIED]
        ]
        problems = [check.cannot_write(Path(self._template.fill(user))) for user in users]
        if all(problems):
            check.error(f"path: {problem}")
        for found in [each for each in problems if each][:3] if not all(problems) else []:
            check.warn(f"path: {found}")

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Store and sync one copy, unless an earlier attempt stored it."""
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
        # `time.unique part.host` of the Maildir specification, the same for each attempt.
        seconds, microseconds = divmod(round(envelope.arrived * 1_000_000), 1_000_000)
        trace = _trace(envelope, mailbox)
        size = len(trace) + message.size
        name = f"{seconds}.M{microseconds:06}I{name_part(envelope.id)}.{self._host},S={size}"
        if envelope.queued and _stored(folder, name, envelope.arrived):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/tmp/{name}")
        elif self._room is None:
            self._write(folder, name, trace, message)
        else:
            with self._room.room(box, size):
                self._write(folder, name, trace, message)

    def _write(self, folder: str, name: str, trace: bytes, message: Message) -> None:
        with DurableFile(f"{folder}/tmp/{name}", f"{folder}/new/{name}") as file:
            if self.sync == "group":
                group = self._group(file.status.st_dev, folder)
                file.sync = partial(group.commit, group.ticket())
            file.size = message.write_to(file.descriptor, before=trace)

    def _group(self, device: int, folder: str) -> GroupSync:
        group = self._groups.get(device)
        if group is None:
            group = self._groups[device] = GroupSync(folder, self._state / f"sync-{device}")
        return group

    def _make_directories(self, box: Path, folder: Path) -> None:
        # Also the existing levels, because one may have been created just before a crash.
        for directory in reversed([box, *box.parents][: self._template.own_levels]):
            make_directory(directory, within=self._state)
        for maildir in {box: None, folder: None}:
            make_directory(maildir, within=self._state)
            if maildir != box:  # Maildir++ tells a folder from a Maildir by this file
                (maildir / "maildirfolder").touch(mode=0o600)
            for name in ("new", "cur", "tmp"):
                make_directory(maildir / name, within=self._state)


def _stored(box: str, name: str, arrived: float) -> bool:
    """Return whether an earlier attempt stored the message.

    Readers move files from new/ to cur/ and append flags. cur/ is listed only if it changed after
    the message arrived, because the message cannot be older.
    """
    if os.access(f"{box}/new/{name}", os.F_OK):
        return True
    current = f"{box}/cur"
    if os.stat(current).st_mtime < arrived - _CLOCK_SLACK:
        return False
    return any(entry.startswith(name) for entry in os.listdir(current))


def _trace(envelope: Envelope, mailbox: Address) -> bytes:
    """Return the fields of final delivery (RFC 5321 section 4.4), one line each."""
    sender, recipient = envelope.sender.translate(_BLANKS), str(mailbox).translate(_BLANKS)
    return f"Return-Path: <{sender}>\r\nDelivered-To: {recipient}\r\n".encode("utf-8", "replace")
