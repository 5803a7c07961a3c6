"""The messages that processes are handling, and those during which processes died.

Before the first plugin sees a message, its worker notes it in shared memory, without a system call.
So does the process that delivers, before it reads or sends one. When a process dies or hangs, the
supervisor reads the notes of its slot, logs the messages, and counts the death for each of them. A
message that succeeds later did not cause the death and is forgotten. After two deaths a message is
no longer passed to plugins.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from minismtp.runtime.session_limits import SLOTS

if TYPE_CHECKING:
    from minismtp.mail.content import Content
    from minismtp.mail.envelope import Envelope

FATAL: Final = 2  # deaths after which a message is set aside
PLACES: Final = 1024  # simultaneous messages of a process; further ones are not noted
_NOTE: Final = struct.Struct("=qI308s")  # fingerprint, thread, text
_SLOT: Final = PLACES * _NOTE.size
_ROW: Final = struct.Struct("=qI4x")  # fingerprint, deaths
_ROWS: Final = 2048  # a new one replaces the oldest
_TABLE: Final = 8  # where the rows begin; the octet at 0 tells whether there are any
_MARK: Final = struct.Struct("=q")
_HEAD: Final = 2048  # octets of the content that distinguish messages, besides the size


class Suspects:
    """The notes of all processes. Make it before the fork, so that they agree on fingerprints."""

    def __init__(self) -> None:
        self._notes = mmap.mmap(-1, SLOTS * _SLOT)  # unused pages take no memory
        self.rows = mmap.mmap(-1, _TABLE + _ROWS * _ROW.size)
        self._next_row = 0

    def of(self, slot: int) -> Notes:
        """Return the notes of the process of a slot."""
        return Notes(self, self._notes, slot * _SLOT)

    def deaths(self, fingerprint: int) -> int:
        """Return how many processes died during a message since it last succeeded."""
        row = self._find(fingerprint)
        deaths: int = 0 if row < 0 else _ROW.unpack_from(self.rows, row)[1]
        return deaths

    def clear(self, fingerprint: int) -> None:
        """Forget the deaths of a message that succeeded."""
        row = self._find(fingerprint)
        if row >= 0:
            _ROW.pack_into(self.rows, row, 0, 0)

    def blame(self, slot: int, threads: Collection[int] | None = None) -> list[tuple[str, int]]:
        """Count the death of a process for the messages that it was handling.

        Return the text of each note, with the number of such deaths. If the process hung, only
        messages of `threads` count, which ran when it was killed.
        """
        return [
            (text.rstrip(b"\0").decode("utf-8", "replace"), self._count(fingerprint))
            for _, fingerprint, thread, text in self._noted(slot)
            if fingerprint and (threads is None or thread in threads)
        ]

    def clear_notes(self, slot: int) -> None:
        """Clear the notes of a process that ended, for the next process in its slot."""
        for place, *_ in self._noted(slot):
            _NOTE.pack_into(self._notes, place, 0, 0, b"")

    def _noted(self, slot: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the places that were used, and what each has: fingerprint, thread and text."""
        for place in range(slot * _SLOT, (slot + 1) * _SLOT, _NOTE.size):
            fingerprint, thread, text = _NOTE.unpack_from(self._notes, place)
            if not thread:
                return  # the lowest are used first
            yield place, fingerprint, thread, text

    def clear_all(self) -> None:
        """Forget all deaths, because the plugins changed."""
        self.rows[:] = bytes(len(self.rows))

    def _count(self, fingerprint: int) -> int:
        deaths, row = self.deaths(fingerprint) + 1, self._find(fingerprint)
        if row < 0:
            row = _TABLE + self._next_row * _ROW.size
            self._next_row = (self._next_row + 1) % _ROWS
        _ROW.pack_into(self.rows, row, fingerprint, deaths)
        self.rows[0] = 1
        return deaths

    def _find(self, fingerprint: int) -> int:
        """Return the place of the row of a message, -1 if it has none."""
        mark = _MARK.pack(fingerprint)
        row = self.rows.find(mark, _TABLE)
        while (
            row >= 0 and (row - _TABLE) % _ROW.size
        ):  # the octets of two adjacent fields matched by chance
            row = self.rows.find(mark, row + 1)
        return row


class Notes:
    """The notes of one process, in which each of its threads has a place of its own.

    The first octet of `any` is 1 if a process died during any message. A busy path reads it before
    it asks about a message.
    """

    def __init__(self, suspects: Suspects, memory: mmap.mmap, begin: int) -> None:
        self.any: Final = suspects.rows
        self._suspects = suspects
        self._memory = memory
        self._free: list[int] = [*range(begin + _SLOT - _NOTE.size, begin - 1, -_NOTE.size)]

    def is_suspect(self, fingerprint: int) -> bool:
        """Return whether a process died during a message."""
        return bool(self.any[0]) and self._suspects.deaths(fingerprint) > 0

    def is_fatal(self, fingerprint: int) -> bool:
        """Return whether too many processes died during a message for another to try it."""
        return bool(self.any[0]) and self._suspects.deaths(fingerprint) >= FATAL

    def begin(self, fingerprint: int, text: str) -> int:
        """Note a message and return the place of the note, which stays if the process dies."""
        try:
            place = self._free.pop()
        except IndexError:
            return -1
        octets = text.encode("utf-8", "replace")
        _NOTE.pack_into(self._memory, place, fingerprint, threading.get_native_id(), octets)
        return place

    def end(self, place: int, fingerprint: int) -> None:
        """Remove a note, because the process survived the message."""
        if place >= 0:
            _MARK.pack_into(self._memory, place, 0)
            self._free.append(place)
        if self.any[0]:  # almost never
            self._suspects.clear(fingerprint)


def fingerprint(envelope: Envelope, content: Content) -> int:
    """Return a number that identifies a message when its client sends it again.

    It depends on a secret that all workers share (PYTHONHASHSEED), so a client cannot make a
    message with the number of another.
    """
    recipient = envelope.recipients[0].address if envelope.recipients else None
    mark = hash((content.size, content.head(_HEAD), envelope.reverse_path, recipient))
    return mark or 1
