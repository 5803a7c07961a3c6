"""The message that plugins see: the client's content below the fields that the server adds.

A `Message` never changes its content in place. Fields are put above it, or all of it is replaced.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO, Final

from minismtp.mail.content import Content
from minismtp.mail.headers import READ_LIMIT, Headers, format_field, header_end
from minismtp.mail.transfer_encoding import is_7bit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import EmailMessage

# One field, folded or not, with its line end; see `headers` for the name.
_FIELD: Final = re.compile(rb"[!-9;-~]+[ \t]*:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n")


class Message:
    """A received message: content below the fields that this server and its plugins add.

    It exists from the end of the content on, and belongs to one session's thread.
    """

    __slots__ = ("_content", "_email", "_headers", "_prefix", "discarded", "id", "quarantined")

    id: str
    """The identifier, which is that of the envelope."""
    quarantined: str | None
    """Why a plugin put the message into quarantine, None if none did."""
    discarded: str | None
    """Why a plugin dropped the message, None if none did."""

    def __init__(self, id: str, content: Content, trace: bytes = b"") -> None:  # noqa: A002 - its name in logs
        """Take the content, and the Received field with its line end (RFC 5321 section 4.4)."""
        self.id = id
        self.quarantined = None
        self.discarded = None
        self._content = content
        self._prefix = trace
        self._headers: Headers | None = None
        self._email: EmailMessage | None = None

    @property
    def content(self) -> Content:
        """The content from the client or from a plugin that replaced it, without the prefix."""
        return self._content

    @property
    def prefix(self) -> bytes:
        """The fields above the content: first the prepended ones, then the trace fields."""
        return self._prefix

    @property
    def size(self) -> int:
        """The octets that `open` yields and `write_to` writes."""
        return len(self._prefix) + self._content.size

    @property
    def is_7bit(self) -> bool:
        """Whether this is known to be 7bit data (RFC 2045 section 2.7); no file is read for it."""
        return self._content.is_7bit and (not self._prefix or is_7bit(self._prefix))

    @property
    def headers(self) -> Headers:
        """The header as it will be stored, the fields of the prefix first."""
        if self._headers is None:
            self._headers = Headers.parse(self._header_block())
        return self._headers

    def open(self) -> BinaryIO:
        """Return a new reader at offset 0 over the message as it will be stored."""
        return self._content.open(self._prefix)

    def email(self) -> EmailMessage:
        """Return the whole message, parsed by the standard library; this never raises.

        A field that is too long or malformed is read as plain text. If the parts cannot be parsed,
        or are nested too deeply, the body is one text and `defects` has an entry. Changes of the
        result do not change the message. This takes far more than `headers`: for 25 MiB, seconds
        and several times the size in memory.
        """
        if self._email is None:
            # The parser takes 0.6 MB of memory, and few plugins need it.
            from minismtp.mail.email_parser import parse  # noqa: PLC0415

            self._email = parse(self.open)
        return self._email

    def prepend(self, name: str, value: str) -> None:
        """Put a field on top of the message, folded at white space if it is long.

        A value that is already folded (CRLF and white space) is not changed. Raise ValueError for
        a name or value that RFC 5322 forbids; the value may be UTF-8 (RFC 6532).
        """
        field, headers = format_field(name, value), self._headers
        self._change(field + self._prefix, self._content)
        # Without trace fields the content may begin with a line that continues the new field.
        if headers is not None and len(self._prefix) > len(field):
            self._headers = headers.below(field)

    def replace(self, content: bytes | Content) -> None:
        """Replace the content below the prefix."""
        if not isinstance(content, Content):
            content = Content.of(content)
        self._change(self._prefix, content)

    def remove(self, name: str, when: Callable[[str], bool] = lambda _: True) -> int:
        """Remove fields of this name for whose unfolded value `when` is true; return how many."""
        named = zip(self.headers.raw_all(name), self.headers.get_all(name), strict=True)
        removed = {raw for raw, value in named if when(value)}
        if not removed:
            return 0
        fields = self.headers.raw_all()
        kept = [raw for raw in fields if raw not in removed]
        self.edit(kept)
        return len(fields) - len(kept)

    def edit(self, fields: Sequence[bytes]) -> None:
        """Replace `headers` by these fields, given as exact octets with their line ends.

        The body is neither changed nor copied. Fields on top that do not change stay in the prefix.
        Raise ValueError if one is not a field.
        """
        old = self.headers.raw_all()
        for raw in set(fields).difference(old):
            if not _FIELD.fullmatch(raw):
                raise ValueError(f"{raw[:80]!r} is not a header field")
        kept = size = 0
        for before, after in zip(old, fields, strict=False):
            if before != after or size + len(after) > len(self._prefix):
                break
            kept, size = kept + 1, size + len(after)
        changed = b"".join(fields[kept:])
        header = sum(map(len, old))
        rest = self._prefix[header:]  # the octets after the header, if it ends in the prefix
        skipped = max(0, header - len(self._prefix))
        self._change(self._prefix[:size], self._content.behind(changed + rest, skipped))

    def quarantine(self, reason: str) -> None:
        """Store the message in the quarantine instead of delivering it; the client gets 250."""
        self.quarantined = reason

    def discard(self, reason: str) -> None:
        """Drop the message; the client gets 250."""
        self.discarded = reason

    def write_to(self, fd: int, before: bytes = b"", after: bytes = b"") -> int:
        """Write the message between two texts to a blocking file descriptor.

        Return the octets written. For content in memory this is one system call. Raise OSError.
        """
        return self._content.write_to(fd, before + self._prefix, after)

    def copy(self) -> Message:
        """Return a message with the same content, whose changes do not affect this one."""
        twin = Message(self.id, self._content, self._prefix)
        twin.quarantined = self.quarantined
        twin.discarded = self.discarded
        return twin

    def __repr__(self) -> str:
        """Return the id and the size."""
        return f"<Message {self.id}: {self.size} octets>"

    def _change(self, prefix: bytes, content: Content) -> None:
        self._prefix = prefix
        self._content = content
        self._headers = None
        self._email = None

    def _header_block(self) -> bytes:
        limit, most = 16 * 1024, min(self._content.size, READ_LIMIT + 1)
        while True:
            block = self._prefix + self._content.head(limit)
            if limit >= most or header_end(block) >= 0:
                return block
            limit = min(limit * 8, most)
