"""The content of a mail in memory or on disk, and the message that plugins see (layer 2).

Content is immutable. What is larger than a piece is written to a file that has no name, so that
memory per session is bounded and a crash leaves nothing behind. A `Message` never changes its
content in place: fields are put above it, or the whole is replaced.
"""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
from email.errors import MessageDefect, MessageError
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import EmailPolicy
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from minismtp.headers import SIZE_LIMIT, Headers, format_field

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PIECE: Final = 256 * 1024  # octets written or copied at once
_VECTOR_LIMIT: Final = 1024  # buffers in one writev: IOV_MAX of Linux

_DEPTH_LIMIT: Final = 30  # levels of parts in one message
_FIELD_PARSED: Final = 16 * 1024  # characters
_MIME_FIELD_PARSED: Final = 1024

_EMPTY_LINE: Final = re.compile(rb"\A\r?\n|\n\r?\n")


class Content:
    """Immutable octets, in memory or on disk; made by `Content.of` or a `ContentWriter`.

    A file on disk has no name; it is gone with the last `Content` or reader that uses it.
    """

    __slots__ = ("_store", "size")

    def __init__(self, store: bytes | _Spill, size: int) -> None:
        """Wrap what `of` or `ContentWriter.finish` hands over."""
        self._store = store
        self.size = size

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Content that holds `data` in memory."""
        return cls(bytes(data), len(data))

    @classmethod
    def stored(cls, descriptor: int, size: int) -> Content:
        """Content that is the first `size` octets of an open file, which it will close."""
        return cls(_Spill(descriptor), size)

    def open(self, before: bytes = b"") -> BinaryIO:
        """Return a new reader at offset 0 over `before` and the content; each stands alone.

        Readers can be used at the same time from any threads, and outlive the content.
        """
        if isinstance(self._store, bytes):
            return io.BytesIO(before + self._store)
        return cast("BinaryIO", io.BufferedReader(_Reader(before, self._store, self.size), 65536))

    def head(self, limit: int) -> bytes:
        """Return at most the first `limit` octets."""
        if isinstance(self._store, bytes):
            return self._store[:limit]
        return self._store.read(0, min(limit, self.size))

    def write_to(self, descriptor: int, before: bytes = b"") -> int:
        """Write `before` and the content to a blocking descriptor; return the octets written."""
        if isinstance(self._store, bytes):
            return _write_all(descriptor, (before, self._store))
        if before:
            _write_all(descriptor, (before,))
        _copy(self._store.descriptor, descriptor, self.size)
        return len(before) + self.size


class ContentWriter:
    """Collects content that arrives in chunks: in memory up to `memory` octets, then on disk.

    `directory` is where the nameless file lives; None is the default of `tempfile`. A writer is
    used by one thread, and is spent after `finish` or `discard`.
    """

    __slots__ = ("_chunks", "_directory", "_memory", "_pending", "_spill", "size")

    def __init__(self, directory: Path | None = None, memory: int = _PIECE) -> None:
        """Make an empty writer; nothing is created on disk before it is needed."""
        self.size = 0
        self._directory = directory
        self._memory = memory
        self._chunks: list[bytes] = []
        self._pending = 0
        self._spill: _Spill | None = None

    def write(self, chunk: bytes) -> None:
        """Take the next octets. Raises OSError (a full disk) after letting go of the file."""
        self._chunks.append(chunk)
        length = len(chunk)
        self.size += length
        self._pending += length
        if self._pending > self._memory:
            self._flush()
        elif len(self._chunks) == _VECTOR_LIMIT:  # many tiny objects cost far more than they hold
            self._chunks = [b"".join(self._chunks)]

    def finish(self) -> Content:
        """Return the content of all that was written. Raises OSError as `write` does."""
        if self._spill is None:
            return Content.of(b"".join(self._chunks))
        self._flush()
        content = Content(self._spill, self.size)
        self.discard()
        return content

    def discard(self) -> None:
        """Let go of everything; a file that no `Content` uses is gone at once."""
        self._chunks = []
        self._pending = 0
        self._spill = None

    def _flush(self) -> None:
        try:
            if self._spill is None:
                # With O_TMPFILE where the file system has it: then no instant has a name.
                with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                    self._spill = _Spill(os.dup(file.fileno()))
            _write_all(self._spill.descriptor, self._chunks)
        except OSError:
            self.discard()
            raise
        self._chunks = []
        self._pending = 0


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

        A value that is folded already (CRLF and white space) stays as it is. Raises ValueError for
        a name or value that RFC 5322 does not allow; the value may be UTF-8 (RFC 6532).
        """
        self._change(format_field(name, value) + self._prefix, self._content)

    def replace(self, content: bytes | Content) -> None:
        """Put other content under the prefix."""
        if not isinstance(content, Content):
            content = Content.of(content)
        self._change(self._prefix, content)

    def quarantine(self, reason: str) -> None:
        """Have the message set aside instead of delivered; the client sees it accepted."""
        self.quarantined = reason

    def discard(self, reason: str) -> None:
        """Have the message dropped; the client sees it accepted."""
        self.discarded = reason

    def write_to(self, fd: int, before: bytes = b"") -> int:
        """Write `before` and the message to a blocking file descriptor; return the octets written.

        For content in memory this is one system call. Raises OSError.
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
        while limit < min(self._content.size, SIZE_LIMIT + 1) and not _EMPTY_LINE.search(block):
            limit = min(limit * 8, SIZE_LIMIT + 1)
            block = self._prefix + self._content.head(limit)
        return block


class _Spill:
    """An open file, closed when nobody refers to it any more."""

    # Not a file object: when a cycle is collected, that may be closed, and complain, before us.
    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` octets from `offset`, without moving any shared position."""
        pieces = []
        while length > 0 and (piece := os.pread(self.descriptor, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)


class _Reader(io.RawIOBase):
    """Reads `before`, then a file, at a position of its own."""

    def __init__(self, before: bytes, spill: _Spill, size: int) -> None:
        super().__init__()
        self._before = before
        self._spill = spill
        self._end = len(before) + size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the buffer protocol has no type in 3.11
        view = memoryview(buffer).cast("B")
        offset = self._position - len(self._before)
        if offset < 0:
            piece = self._before[self._position : self._position + len(view)]
            view[: len(piece)] = piece
            count = len(piece)
        else:
            view = view[: max(0, self._end - self._position)]
            count = os.preadv(self._spill.descriptor, [view], offset) if view else 0
        self._position += count
        return count


def _write_all(descriptor: int, pieces: Sequence[bytes]) -> int:
    """Write all pieces, by one system call where the system takes them whole."""
    size = sum(map(len, pieces))
    written = os.writev(descriptor, pieces)
    if written < size:
        rest = memoryview(b"".join(pieces))
        while written < size:
            written += os.write(descriptor, rest[written:])
    return size


def _copy(source: int, target: int, size: int) -> None:
    """Copy the first `size` octets of a file, inside the kernel where it can."""
    offset = 0
    for way in (_copy_range, _send_file):
        try:
            while offset < size and (count := way(source, target, offset, size - offset)):
                offset += count
        except OSError as error:
            # The target is a pipe or socket, on another file system, or opened to append.
            unsupported = (errno.EINVAL, errno.EXDEV, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP)
            if error.errno not in unsupported:
                raise
    while offset < size:
        piece = os.pread(source, min(_PIECE, size - offset), offset)
        if not piece:
            raise OSError(errno.EIO, "the file of a message is shorter than its content")
        offset += os.write(target, piece)


def _copy_range(source: int, target: int, offset: int, length: int) -> int:
    return os.copy_file_range(source, target, length, offset)


def _send_file(source: int, target: int, offset: int, length: int) -> int:
    return os.sendfile(target, source, offset, length)


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
