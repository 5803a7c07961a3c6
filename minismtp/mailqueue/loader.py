"""How messages come from the spool into the runner: at its start, and when they arrive.

Only the runner's main thread is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from minismtp.delivery.attempt import LOCAL
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.database import OPEN, Arrival, Outcome, Row, State
from minismtp.mailqueue.index import QueuedMessage
from minismtp.mailqueue.manager import QueueManager, work
from minismtp.storage.spool import DamagedError
from minismtp.values.clock import steady_time

FATAL: Final = "451 4.3.0 held: the process that delivers died twice at this message"
_READING: Final = "? "  # before the name of a message that is read, in `InProgress`
_DOMAINS: Final = 10_000  # whose destinations are remembered


class Intake:
    """Takes messages on. `key` gives the destination of a domain."""

    def __init__(self, manager: QueueManager, key: Callable[[str], str]) -> None:
        self._manager = manager
        self._log = manager.log
        self._key = lru_cache(_DOMAINS)(key)
        self._unread: set[str] = set()
        self._reported: set[str] = set()  # those of `_unread` that the log has named

    def recover(self) -> int:
        """Bring spool and schedule together after whatever has happened; return the messages."""
        manager = self._manager
        for name, whole in manager.spool.recover():
            if whole:
                self._log.info("found after a crash", id=name)
        for name in manager.spool.set_aside_misnamed():
            self._log.error("set aside in spool/damaged, no message has such a name", name=name)
        manager.handover.expect(manager.schedule.changed())
        manager.schedule.reopen()
        present = set(manager.spool.names())
        for name in present & self._fatal_to_read():
            manager.set_aside(name, DamagedError("two runners died while they read it"))
            present.remove(name)
        messages = len(present)
        for arrived, rows in manager.schedule.everything():
            name = rows[0].message
            if name in present:
                present.remove(name)
                self._load(name, arrived, rows)
            else:
                manager.writer.forget(name)
        self.take_in(present)
        if manager.in_progress.poison:
            manager.writer.flush()
            manager.in_progress.forget_poison()
        return messages

    def take_in(self, names: Iterable[str]) -> None:
        """Take on messages that have come into the spool; those that we have are left alone."""
        for name in names:
            if name in self._manager.index:
                continue
            key = f"{_READING}{name}"
            place = self._manager.in_progress.begin(key)
            if place is None:
                self._unread.add(name)
                continue
            try:
                self._take_in(name)
            finally:
                self._manager.in_progress.end(place, key)

    def _take_in(self, name: str) -> None:
        try:
            entry, message = self._manager.spool.open(name)
        except FileNotFoundError:
            pass  # done already
        except DamagedError as error:
            self._manager.set_aside(name, error)
        except OSError as error:
            if name not in self._reported:
                self._log.error("message not read, tried again", id=name, error=str(error))
            self._reported.add(name)
            self._unread.add(name)
        else:
            self._reported.discard(name)
            self._arrive(entry, message)

    def take_in_rest(self) -> None:
        """Take on what was missed: because the FIFO was full, or a file could not be read."""
        unread, self._unread = self._unread, set()
        self.take_in(unread)
        if self._manager.spool.trigger.overflowed():
            self.take_in(self._manager.spool.names())

    def _load(self, name: str, arrived: float, rows: list[Row]) -> None:
        """Take on a message that the schedule knows; the way to its recipients may be new."""
        manager = self._manager
        if not any(row.state in OPEN for row in rows):
            manager.remove(name)
            return
        recipients = []
        for row in rows:
            destination = row.destination if row.destination == LOCAL else self._place(row.address)
            if destination != row.destination:
                manager.writer.move(destination, name, row.number)
            state = row.state
            if state in OPEN and self._is_fatal(name, destination):
                state = self._hold(name, row.number, destination)
            recipients.append(QueuedMessage(destination, state, row.attempts))
        manager.index.add(name, arrived, recipients, manager.waits(rows, recipients))
        if any(each.state == "returning" for each in recipients):
            manager.decided.put(name)

    def _arrive(self, entry: QueueEntry, message: Message) -> None:
        targets = tuple(
            (target.address, LOCAL if target.kind == "local" else self._place(target.address))
            for target in entry.targets
        )
        held = entry.quarantined is not None and any(t.kind == "relay" for t in entry.targets)
        self._manager.writer.arrive(
            Arrival(entry.id, entry.sender, entry.arrived, message.size, targets, held)
        )
        if not held:
            self._manager.hold_open(entry, message)
        recipients = [QueuedMessage(place, "held" if held else "queued") for _, place in targets]
        for number, each in enumerate(recipients):
            if self._is_fatal(entry.id, each.destination):
                each.state = self._hold(entry.id, number, each.destination)
        self._manager.index.add(entry.id, entry.arrived, recipients, {})

    def _fatal_to_read(self) -> set[str]:
        keys = self._manager.in_progress.poison
        return {key.removeprefix(_READING) for key in keys if key.startswith(_READING)}

    def _is_fatal(self, name: str, destination: str) -> bool:
        poison = self._manager.in_progress.poison
        return bool(poison) and not poison.isdisjoint((work(name), work(name, destination)))

    def _hold(self, name: str, number: int, destination: str) -> State:
        """Have a recipient wait for the operator, because two runners died on it."""
        self._log.error("message held, two runners died on it", id=name, destination=destination)
        self._manager.count_aside("fatal")
        self._manager.writer.record(name, [Outcome(number, "held", FATAL)], steady_time())
        return "held"

    def _place(self, address: str) -> str:
        return self._key(address.rpartition("@")[2])
