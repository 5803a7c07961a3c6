"""The content of a mail, immutable, in memory or on disk.

Larger content is written to a file without a name, so memory per session is bounded and a crash
leaves nothing behind.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from minismtp.mail.transfer_encoding import is_7bit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PIECE: Final = 256 * 1024  # octets written or copied at once
_VECTOR_LIMIT: Final = 1024  # buffers in one writev: IOV_MAX of Linux


class Content:
    """Immutable octets, in memory or on disk; made by `Content.of` or a `ContentWriter`.

    A file on disk has no name and disappears with the last `Content` or reader that uses it.
    """

    __slots__ = ("_before", "_is_7bit", "_skipped", "_store", "size")

    def __init__(
        self,
        store: bytes | _Spill,
        size: int,
        before: bytes = b"",
        skipped: int = 0,
        *,
        known_7bit: bool = False,
    ) -> None:
        """Take the octets or the file of `of` or `ContentWriter.finish`.

        A file may have octets in memory `before` it, and may begin with octets to be `skipped`.
        """
        self._is_7bit: bool | None = known_7bit or None  # None = not known
        self._store = store
        self._before = before
        self._skipped = skipped
        self.size = size

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Return content that holds `data` in memory."""
        return cls(bytes(data), len(data))

    @classmethod
    def stored(cls, descriptor: int, size: int, *, known_7bit: bool = False) -> Content:
        """Return the first `size` octets of an open file as content, which closes the file."""
        return cls(_Spill(descriptor), size, known_7bit=known_7bit)

    @property
    def is_7bit(self) -> bool:
        """Whether this is known to be 7bit data (RFC 2045 section 2.7); no file is read for it."""
        if self._is_7bit is None:
            self._is_7bit = isinstance(self._store, bytes) and is_7bit(self._store)
        return self._is_7bit

    def open(self, before: bytes = b"") -> BinaryIO:
        """Return a new reader at offset 0 over `before` and the content.

        Readers are independent, can be used in several threads, and may outlive the content.
        """
        if isinstance(self._store, bytes):
            return io.BytesIO(before + self._store)
        before += self._before
        size = self.size - len(self._before)
        reader = _Reader(before, self._store, self._skipped, size)
        return cast("BinaryIO", io.BufferedReader(reader, 65536))

    def head(self, limit: int) -> bytes:
        """Return at most the first `limit` octets."""
        if isinstance(self._store, bytes):
            return self._store[:limit]
        limit = min(limit, self.size)
        before = self._before[:limit]
        return before + self._store.read(self._skipped, limit - len(before))

    def behind(self, before: bytes, skipped: int) -> Content:
        """Return `before` and the content after `skipped` octets; a file is not copied."""
        if isinstance(self._store, bytes):
            return Content.of(before + self._store[skipped:])
        before += self._before[skipped:]
        skipped = max(0, skipped - len(self._before))
        size = self.size - len(self._before) - skipped
        return Content(
            self._store,
            len(before) + size,
            before,
            self._skipped + skipped,
            known_7bit=self.is_7bit and before[-1:] in {b"", b"\n"} and is_7bit(before),
        )

    def write_to(self, descriptor: int, before: bytes = b"", after: bytes = b"") -> int:
        """Write two texts with the content between them; return the number of octets written."""
        if isinstance(self._store, bytes):
            return _write_all(descriptor, (before, self._store, after))
        if before or self._before:
            _write_all(descriptor, (before, self._before))
        size = self.size - len(self._before)
        _copy(self._store.descriptor, descriptor, self._skipped, size)
        if after:
            _write_all(descriptor, (after,))
        return len(before) + self.size + len(after)


class ContentWriter:
    """Collects content that arrives in chunks: in memory up to `memory` octets, then on disk.

    `directory` is for the file, None for the default of `tempfile`. A writer is for one thread, and
    cannot be used after `finish` or `discard`.
    """

    __slots__ = (
        *("_chunks", "_directory", "_is_7bit", "_last_line", "_memory", "_pending", "_spill"),
        "size",
    )

    def __init__(self, directory: Path | None = None, memory: int = _PIECE) -> None:
        """Make an empty writer. A file is created once it is needed."""
        self.size = 0
        self._directory = directory
        self._memory = memory
        self._chunks: list[bytes] = []
        self._pending = 0
        self._spill: _Spill | None = None
        self._is_7bit = True  # of the file, without a part of the last line
        self._last_line = b""

    def write(self, chunk: bytes) -> None:
        """Take the next octets. Raise OSError, as for a full disk, after releasing the file."""
        self._chunks.append(chunk)
        length = len(chunk)
        self.size += length
        self._pending += length
        if self._pending > self._memory:
            self._flush()
        elif len(self._chunks) == _VECTOR_LIMIT:  # tiny objects take far more memory
            self._chunks = [b"".join(self._chunks)]

    def finish(self) -> Content:
        """Return all octets that were written as content. Raise OSError as `write` does."""
        if self._spill is None:
            return Content(b"".join(self._chunks), self.size)
        self._flush()
        content = Content(self._spill, self.size, known_7bit=self._is_7bit)
        self.discard()
        return content

    def discard(self) -> None:
        """Release the octets; a file that no `Content` uses disappears at once."""
        self._chunks = []
        self._pending = 0
        self._spill = None

    def _flush(self) -> None:
        try:
            if self._spill is None:
                # This uses O_TMPFILE where the file system has it, so the file never has a name.
                with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                    self._spill = _Spill(os.dup(file.fileno()))
            _write_all(self._spill.descriptor, self._chunks)
            for chunk in self._chunks:
                self._look_for_7bit(chunk)
        except OSError:
            self.discard()
            raise
        self._chunks = []
        self._pending = 0

    def _look_for_7bit(self, chunk: bytes) -> None:
        """Note whether a chunk is 7bit data, while it is in memory, because a sender asks.

        It is not copied: large pieces of memory, taken and given back, take longer than the look.
        """
        if self._is_7bit:
            end = chunk.find(b"\n") + 1 or len(chunk)
            line = self._last_line + chunk[:end]
            self._is_7bit = is_7bit(line) and is_7bit(chunk)
            self._last_line = chunk[chunk.rfind(b"\n") + 1 :] if line.endswith(b"\n") else line


class _Spill:
    """An open file that is closed with its last reference."""

    # Not a file object, because the collection of a cycle may close that first, with a warning.
    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` octets from `offset`, without a shared position."""
        pieces = []
        while length > 0 and (piece := os.pread(self.descriptor, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)


class _Reader(io.RawIOBase):
    """Reads `before` and then a file, with a position of its own."""

    def __init__(self, before: bytes, spill: _Spill, skipped: int, size: int) -> None:
        super().__init__()
        self._before = before
        self._spill = spill
        self._skipped = skipped
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
            begin = self._skipped + offset
            count = os.preadv(self._spill.descriptor, [view], begin) if view else 0
        self._position += count
        return count


def _write_all(descriptor: int, pieces: Sequence[bytes]) -> int:
    """Write all pieces, in one system call if the system takes them at once."""
    size = sum(map(len, pieces))
    written = os.writev(descriptor, pieces)
    if written < size:
        rest = memoryview(b"".join(pieces))
        while written < size:
            written += os.write(descriptor, rest[written:])
    return size


def _copy(source: int, target: int, offset: int, size: int) -> None:
    """Copy `size` octets of a file from `offset` on, inside the kernel if it can."""
    end = offset + size
    for way in (_copy_range, _send_file):
        try:
            while offset < end and (count := way(source, target, offset, end - offset)):
                offset += count
        except OSError as error:
            # The target is a pipe or socket, on another file system, or opened for appending.
            unsupported = (errno.EINVAL, errno.EXDEV, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP)
            if error.errno not in unsupported:
                raise
    while offset < end:
        piece = os.pread(source, min(_PIECE, end - offset), offset)
        if not piece:
            raise OSError(errno.EIO, "the file of a message is shorter than its content")
        offset += os.write(target, piece)


def _copy_range(source: int, target: int, offset: int, length: int) -> int:
    return os.copy_file_range(source, target, length, offset)


def _send_file(source: int, target: int, offset: int, length: int) -> int:
    return os.sendfile(target, source, offset, length)
