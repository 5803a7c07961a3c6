"""The messages that workers are handling, and those during which workers died.

Before the first plugin sees a message, its worker notes it in shared memory, without a system call.
When the worker dies or hangs, the supervisor reads the notes of its slot, logs the messages, and
counts the death for each of them. A message that succeeds later did not cause the death and is
forgotten. After two deaths a message is no longer passed to plugins.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from minismtp.runtime.session_limits import SLOTS

if TYPE_CHECKING:
    from minismtp.mail.content import Content
    from minismtp.mail.envelope import Envelope

FATAL: Final = 2  # deaths after which a message is set aside
_PLACES: Final = 64  # simultaneous messages of a worker; further ones are not noted
_TEXT: Final = 180
_NOTE: Final = struct.Struct(f"=qI{_TEXT}s")  # fingerprint, thread, id and sender
_WORKER: Final = _PLACES * _NOTE.size
_ROW: Final = struct.Struct("=qI4x")  # fingerprint, deaths
_ROWS: Final = 64  # a new one replaces the oldest
_TABLE: Final = 8  # where the rows begin; the octet at 0 tells whether there are any
_MARK: Final = struct.Struct("=q")
_HEAD: Final = 2048  # octets of the content that distinguish messages, besides the size


class Suspects:
    """The notes of all workers. Make it before the fork, so that they agree on fingerprints."""

    def __init__(self) -> None:
        self._notes = mmap.mmap(-1, SLOTS * _WORKER)
        self._rows = mmap.mmap(-1, _TABLE + _ROWS * _ROW.size)
        self._next_row = 0

    def of_worker(self, slot: int) -> Notes:
        """Return the notes of the worker of a slot."""
        return Notes(self, self._notes, slot * _WORKER)

    def deaths(self, fingerprint: int) -> int:
        """Return how many workers died during a message since it last succeeded."""
        row = self._find(fingerprint)
        deaths: int = 0 if row < 0 else _ROW.unpack_from(self._rows, row)[1]
        return deaths

    def clear(self, fingerprint: int) -> None:
        """Forget the deaths of a message that succeeded."""
        row = self._find(fingerprint)
        if row >= 0:
            _ROW.pack_into(self._rows, row, 0, 0)

    def blame(
        self, slot: int, threads: Collection[int] | None = None
    ) -> list[tuple[dict[str, str], int]]:
        """Count the death of a worker for the messages that it was handling.

        Return id, peer and sender of each message, with the number of such deaths. If the worker
        hung, only messages of `threads` count, which ran when it was killed.
        """
        found = []
        for place in range(slot * _WORKER, (slot + 1) * _WORKER, _NOTE.size):
            fingerprint, thread, text = _NOTE.unpack_from(self._notes, place)
            if fingerprint and (threads is None or thread in threads):
                facts = text.rstrip(b"\0").decode("utf-8", "replace").split("\n")
                message = dict(zip(("id", "peer", "sender"), facts, strict=False))
                found.append((message, self._count(fingerprint)))
        return found

    def clear_notes(self, slot: int) -> None:
        """Clear the notes of a worker that ended, for the next worker in its slot."""
        for place in range(slot * _WORKER, (slot + 1) * _WORKER, _NOTE.size):
            _MARK.pack_into(self._notes, place, 0)

    def clear_all(self) -> None:
        """Forget all deaths, because the plugins changed."""
        self._rows[:] = bytes(len(self._rows))

    def _count(self, fingerprint: int) -> int:
        deaths, row = self.deaths(fingerprint) + 1, self._find(fingerprint)
        if row < 0:
            row = _TABLE + self._next_row * _ROW.size
            self._next_row = (self._next_row + 1) % _ROWS
        _ROW.pack_into(self._rows, row, fingerprint, deaths)
        self._rows[0] = 1
        return deaths

    def _find(self, fingerprint: int) -> int:
        """Return the place of the row of a message, -1 if it has none."""
        if not self._rows[0]:  # almost always
            return -1
        mark = _MARK.pack(fingerprint)
        row = self._rows.find(mark, _TABLE)
        while (
            row >= 0 and (row - _TABLE) % _ROW.size
        ):  # the octets of two adjacent fields matched by chance
            row = self._rows.find(mark, row + 1)
        return row


class Notes:
    """The notes of one worker, in which each of its threads has a place of its own."""

    def __init__(self, suspects: Suspects, memory: mmap.mmap, begin: int) -> None:
        self._suspects = suspects
        self._memory = memory
        self._free = [begin + number * _NOTE.size for number in range(_PLACES)]

    def is_fatal(self, fingerprint: int) -> bool:
        """Return whether too many workers died during a message for another to try it."""
        return self._suspects.deaths(fingerprint) >= FATAL

    def begin(self, fingerprint: int, envelope: Envelope) -> int:
        """Note a message and return the place of the note, which stays if the worker dies."""
        try:
            place = self._free.pop()
        except IndexError:
            return -1
        text = f"{envelope.id}\n{envelope.peer}\n<{envelope.sender}>"
        thread = threading.current_thread().native_id or 0
        _NOTE.pack_into(self._memory, place, fingerprint, thread, text.encode("utf-8", "replace"))
        return place

    def end(self, place: int, fingerprint: int) -> None:
        """Remove a note, because the worker survived the message."""
        if place >= 0:
            _MARK.pack_into(self._memory, place, 0)
            self._free.append(place)
        self._suspects.clear(fingerprint)


def fingerprint(envelope: Envelope, content: Content) -> int:
    """Return a number that identifies a message when its client sends it again.

    It depends on a secret that all workers share (PYTHONHASHSEED), so a client cannot make a
    message with the number of another.
    """
    recipient = envelope.recipients[0].address if envelope.recipients else None
    mark = hash((content.size, content.head(_HEAD), envelope.reverse_path, recipient))
    return mark or 1
