"""Refuse attachments that are programs, by their names, types and first octets."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Final, Literal

from minismtp import (
    ByteSize,
    Envelope,
    Finding,
    Message,
    Reject,
    Session,
    StashKey,
    findings_of,
    hookimpl,
    plugin,
)

from ._archives import HEAD, files_in, is_archive
from ._budget import BrokenError, Budget, Reads, TooMuchError, stream_of
from ._encodings import UUENCODED, files_in_text
from ._options import check_time
from ._parts import Part, parts_of

_log: Final = logging.getLogger(__name__)
_FIELD: Final = "X-Blocked-Attachment"
_NAMED: Final = 80  # characters of a name in a reply
_DOCUMENTS: Final = frozenset(
    {"csv", "doc", "docx", "gif", "htm", "html", "jpeg", "jpg", "mp3", "mp4", "odt", "pdf", "png"}
    | {"ppt", "pptx", "rtf", "txt", "wav", "xls", "xlsx", "zip"}
)
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
# U+202A to U+202E and U+2066 to U+2069 change the direction of the text after them.
_DIRECTION: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Files that Windows, macOS and office programs run, or open without a question about their origin.
_PROGRAMS: Final = (
    *("ade", "adp", "apk", "appx", "appxbundle", "bat", "chm", "cmd", "com", "cpl", "dll", "exe"),
    *("hta", "img", "ins", "iso", "isp", "jar", "js", "jse", "lib", "lnk", "mde", "msc", "msi"),
    *("msix", "msp", "mst", "pif", "ps1", "reg", "scf", "scr", "sct", "sys", "url", "vb", "vbe"),
    *("vbs", "vhd", "vhdx", "vxd", "wsc", "wsf", "wsh", "xll"),
)
_TYPES: Final = (
    *("application/x-msdownload", "application/x-dosexec", "application/x-msdos-program"),
    *("application/vnd.microsoft.portable-executable", "application/hta"),
    "application/x-ms-shortcut",
)
_MAGIC: Final = (
    b"\x7fELF",
    *(b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),  # macOS, Java
    b"L\0\0\0\1\x14\2\0",  # a shortcut of Windows
)


@dataclass(frozen=True, slots=True)
class BlockedAttachment:
    """A blocked attachment: the `name` as its sender wrote it, and the reason."""

    name: str
    reason: str


#: The blocked attachment of an envelope's message; empty if there is none.
ATTACHMENTS: Final[StashKey[tuple[BlockedAttachment, ...]]] = StashKey()


@plugin
class Attachments:
    """Refuse mail with attachments that are programs, also inside archives.

    An attachment is blocked by the extension of any of its names (`extensions`), by its declared
    type (`types`), or by the first octets of a program (`programs`). `disguises` blocks names that
    hide the type: invoice.pdf.exe, or a name with reversed text. Files in uuencode or yEnc within a
    text count too. zip, 7z, rar, tar, gzip, bzip2, xz, zstd and winmail.dat are opened, `depth`
    archives deep, to check the names of their files, and the first octets if Python can unpack them
    (not in rar, nor in zstd before Python 3.14). `encrypted` blocks archives with encrypted files.
    `unreadable` blocks malformed archives, and messages beyond the limits: 1000 parts, 30 nested
    parts, `files` in archives, `unpacked` octets of them, `budget` of CPU time for all archives of
    a message, and 5 fields of one name, fields of 4,096 characters or a boundary of 250 in a part,
    which no mail program writes.

    `action` rejects the message with 550 5.7.1, quarantines it, tags it with a field
    X-Blocked-Attachment, or makes a finding with `points`. Mail of users after a login is not
    checked. Memory is bounded for messages of any size.
    """

    action: Literal["reject", "quarantine", "tag", "finding"] = "reject"
    extensions: list[str] = field(default_factory=lambda: list(_PROGRAMS))
    types: list[str] = field(default_factory=lambda: list(_TYPES))
    programs: bool = True
    disguises: bool = True
    encrypted: bool = False
    unreadable: bool = True
    depth: int = 3
    files: int = 5000
    unpacked: ByteSize = ByteSize(64 * 1024 * 1024)
    budget: timedelta = timedelta(seconds=2)
    points: float = 10.0

    def __post_init__(self) -> None:
        self._extensions = {each.lower().removeprefix(".") for each in self.extensions}
        for each in self._extensions:
            if not each or not each.isprintable() or set(each) & set("./\\: "):
                raise ValueError(f"extensions: expected such as exe, not {each!r}")
        self._types = {each.lower() for each in self.types}
        for each in self._types:
            if not re.fullmatch(r"[^\s/;]+/[^\s/;]+", each):
                raise ValueError(f"types: expected such as application/hta, not {each!r}")
        if self.depth < 0 or self.files < 1:
            raise ValueError("depth: expected 0 or more, and files 1 or more")
        check_time("budget", self.budget)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Check all parts, and take the action for the first one that is blocked."""
        if session.login is not None:
            return
        message.remove(_FIELD)
        found = next(self._blocked(message), None)
        envelope.stash[ATTACHMENTS] = () if found is None else (found,)
        if found is not None:
            self._act(envelope, message, found)

    def _act(self, envelope: Envelope, message: Message, found: BlockedAttachment) -> None:
        name = _CONTROLS.sub("?", _DIRECTION.sub("?", found.name))[:_NAMED]
        text = f"{found.reason}: {name}" if name else found.reason
        _log.info("attachment blocked (%s): %s", self.action, text)
        match self.action:
            case "reject":
                raise Reject(f"message refused for its attachment, {text}")
            case "quarantine":
                message.quarantine(f"attachment, {text}")
            case "tag":
                message.prepend(_FIELD, text)
            case "finding":
                findings_of(envelope).append(Finding("attachments", "blocked", self.points, text))

    def _blocked(self, message: Message) -> Iterator[BlockedAttachment]:
        budget = Budget(self.unpacked, self.files, self.depth, self.budget.total_seconds())
        try:
            for part in parts_of(message.open):
                budget.take()
                yield from self._in_part(part, budget)
        except TooMuchError as error:
            if self.unreadable:
                yield BlockedAttachment("", f"too much to be checked, {error}")

    def _in_part(self, part: Part, budget: Budget) -> Iterator[BlockedAttachment]:
        names = part.names
        for name in names:
            yield from self._by_name(name)
        name = names[0] if names else ""
        for kind in self._types.intersection(part.kinds):
            yield BlockedAttachment(name, f"of type {kind}")
        yield from self._in_file(name, part.decoded(), budget, is_text=_is_text(part))

    def _in_file(
        self, name: str, pieces: Iterator[bytes], budget: Budget, *, is_text: bool
    ) -> Iterator[BlockedAttachment]:
        head = b""
        for piece in pieces:
            head += piece
            if len(head) >= HEAD:
                break
        yield from self._by_content(name, head)
        whole = chain([head], pieces)
        if is_archive(head):
            if self.depth:
                yield from self._in_archive(stream_of(whole), name, budget)
        elif is_text:
            for inside, data in files_in_text(whole):
                budget.take(names=1)
                yield from self._by_name(inside)
                yield from self._in_file(inside, data, budget, is_text=False)

    def _in_archive(self, file: Reads, name: str, budget: Budget) -> Iterator[BlockedAttachment]:
        try:
            for inside, head in files_in(file, name, budget):
                yield from self._by_name(inside.name, f" in {name}")
                yield from self._by_content(inside.name, head)
                if inside.encrypted and self.encrypted:
                    yield BlockedAttachment(name, "an encrypted archive")
        except BrokenError as error:
            if self.unreadable:
                yield BlockedAttachment(name, str(error))

    def _by_name(self, name: str, place: str = "") -> Iterator[BlockedAttachment]:
        # Windows ignores dots and blanks at the end, and the name of a file's stream.
        base = name[max(name.rfind("/"), name.rfind("\\")) + 1 :]
        base = _CONTROLS.sub("", base).partition(":")[0]
        before, dot, extension = base.rstrip(". ").lower().rpartition(".")
        if dot and extension.strip() in self._extensions:
            yield BlockedAttachment(name + place, f"a file of type .{extension.strip()}")
        hidden = before.rstrip(". ").rpartition(".")[2] in _DOCUMENTS and extension in _PROGRAMS
        if self.disguises and (hidden or _DIRECTION.search(name)):
            yield BlockedAttachment(name + place, "a name that hides what the file is")

    def _by_content(self, name: str, head: bytes) -> Iterator[BlockedAttachment]:
        dos = head.startswith(b"MZ") and b"\0" in head[:64]  # a text may begin with MZ too
        if self.programs and (dos or head.startswith(_MAGIC)):
            yield BlockedAttachment(name, "a program")


def _is_text(part: Part) -> bool:
    """Return whether mail programs look for files in the text of a part."""
    text = part.kind.startswith(("text/", "multipart/")) or not part.kind
    return text or part.encoding in UUENCODED
