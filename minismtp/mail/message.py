"""The message that plugins see: its content under the fields that we put above it.

A `Message` never changes its content in place: fields are put above it, or the whole is replaced.
"""

from __future__ import annotations

import re
from email.errors import MessageDefect, MessageError
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import EmailPolicy
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from minismtp.mail.content import Content
from minismtp.mail.headers import READ_LIMIT, Headers, format_field

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DEPTH_LIMIT: Final = 30  # levels of parts in one message
_FIELD_PARSED: Final = 16 * 1024  # characters
_MIME_FIELD_PARSED: Final = 1024

# One field, folded or not, with its line end; see `headers` for the name.
_FIELD: Final = re.compile(rb"[!-9;-~]+[ \t]*:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n")
_EMPTY_LINE: Final = re.compile(rb"\A\r?\n|\n\r?\n")


class Message:
    """A received message: content under the fields that this server and its plugins put above it.

    `trace` is the Received field (RFC 5321 section 4.4) with its line end. A message belongs to
    one session's thread. `quarantined` and `discarded` are None, or the reason that was given.
    """

    __slots__ = ("_content", "_email", "_headers", "_prefix", "discarded", "id", "quarantined")

    def __init__(self, id: str, content: Content, trace: bytes = b"") -> None:  # noqa: A002 - its name in logs
        """Take the content; nothing is parsed before it is asked for."""
        self.id = id
        self.quarantined: str | None = None
        self.discarded: str | None = None
        self._content = content
        self._prefix = trace
        self._headers: Headers | None = None
        self._email: EmailMessage | None = None

    @property
    def content(self) -> Content:
        """What the client sent, or what a plugin replaced it with, without the prefix."""
        return self._content

    @property
    def prefix(self) -> bytes:
        """The fields that stand above the content: prepended ones, then the trace fields."""
        return self._prefix

    @property
    def size(self) -> int:
        """The octets that `open` yields and `write_to` writes."""
        return len(self._prefix) + self._content.size

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
        """Return the whole message parsed by the standard library; it never raises.

        A field that is too long or too broken to parse reads as plain text. A message whose parts
        cannot be parsed, or are nested too deeply, has its body as one text and an entry in
        `defects`. Changing the result does not change the message. It costs far more than
        `headers`: for 25 MiB, seconds or more, and several times the size in memory.
        """
        if self._email is None:
            parser = BytesParser(policy=_POLICY)
            try:
                parsed = parser.parse(self.open())
            except _PARSER_FAULTS as fault:
                parsed = parser.parse(self.open(), headersonly=True)
                parsed.defects.append(MessageDefect(f"body not parsed: {fault}"))
            self._email = cast("EmailMessage", parsed)  # made by the policy's message_factory
        return self._email

    def prepend(self, name: str, value: str) -> None:
        """Put a field on top of the message, folded at white space where it is long.

        A value that is folded already (CRLF and white space) stays as it is. Raise ValueError for
        a name or value that RFC 5322 does not allow; the value may be UTF-8 (RFC 6532).
        """
        self._change(format_field(name, value) + self._prefix, self._content)

    def replace(self, content: bytes | Content) -> None:
        """Put other content under the prefix."""
        if not isinstance(content, Content):
            content = Content.of(content)
        self._change(self._prefix, content)

    def remove(self, name: str, when: Callable[[str], bool] = lambda _: True) -> int:
        """Take away the fields of this name whose unfolded value `when` is true of; count them."""
        fields = self.headers.raw_all()
        removed = set()
        for number, raw in enumerate(fields):
            one = Headers([raw])
            if name in one and when(one.get(name)):
                removed.add(number)
        if removed:
            self.edit([raw for number, raw in enumerate(fields) if number not in removed])
        return len(removed)

    def edit(self, fields: Sequence[bytes]) -> None:
        """Put these fields, exact octets with their line ends, in the place of `headers`.

        The body stays as it is, and is not copied. Fields that stand on top of the prefix and of
        `fields` alike stay in the prefix. Raise ValueError for what is no field.
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
        rest = self._prefix[header:]  # what follows the header, where it ends in the prefix
        skipped = max(0, header - len(self._prefix))
        self._change(self._prefix[:size], self._content.behind(changed + rest, skipped))

    def quarantine(self, reason: str) -> None:
        """Have the message set aside instead of delivered; the client sees it accepted."""
        self.quarantined = reason

    def discard(self, reason: str) -> None:
        """Have the message dropped; the client sees it accepted."""
        self.discarded = reason

    def write_to(self, fd: int, before: bytes = b"") -> int:
        """Write `before` and the message to a blocking file descriptor; return the octets written.

        For content in memory this is one system call. Raise OSError.
        """
        return self._content.write_to(fd, before + self._prefix)

    def copy(self) -> Message:
        """Return a message of the same content, whose changes do not touch this one."""
        twin = Message(self.id, self._content, self._prefix)
        twin.quarantined = self.quarantined
        twin.discarded = self.discarded
        return twin

    def __repr__(self) -> str:
        """Show the id and the size."""
        return f"<Message {self.id}: {self.size} octets>"

    def _change(self, prefix: bytes, content: Content) -> None:
        self._prefix = prefix
        self._content = content
        self._headers = None
        self._email = None

    def _header_block(self) -> bytes:
        limit = 16 * 1024
        block = self._prefix + self._content.head(limit)
        while limit < min(self._content.size, READ_LIMIT + 1) and not _EMPTY_LINE.search(block):
            limit = min(limit * 8, READ_LIMIT + 1)
            block = self._prefix + self._content.head(limit)
        return block


# What `email` has been seen to raise on hostile input, beside its own errors.
_PARSER_FAULTS: Final = (
    *(MessageError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, NameError, RecursionError),
)


class _Part(EmailMessage):
    """A message or part of one, which refuses to be nested beyond all use.

    The parser of the standard library tests each line against every level above it: 300 levels
    make it 100 times slower.
    """

    depth = 0

    def attach(self, payload: Any) -> None:  # noqa: ANN401 - as in the standard library
        payload.depth = self.depth + 1
        if payload.depth > _DEPTH_LIMIT:
            raise ValueError("parts nested too deeply")
        super().attach(payload)


class _TolerantPolicy(EmailPolicy):
    """`email.policy.SMTP`, which reads a field as plain text where it cannot parse it.

    Its parsers need quadratic time: seconds for a Content-Type of 16 KiB, and each part has one.
    """

    def header_fetch_parse(self, name: str, value: str) -> Any:  # noqa: ANN401 - as in the standard library
        mime = name.lower().startswith("content-")
        if len(value) <= (_MIME_FIELD_PARSED if mime else _FIELD_PARSED):
            try:
                return super().header_fetch_parse(name, value)
            except _PARSER_FAULTS:
                pass
        octets = "".join(value.splitlines()).encode("utf-8", "surrogateescape")
        return octets.decode("utf-8", "replace")


_POLICY: Final = _TolerantPolicy(linesep="\r\n", message_factory=_Part)
