"""How messages get from the spool into the runner: when it starts, and when they arrive.

Only the runner's main thread calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from minismtp.delivery.attempt import LOCAL
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue.database import Arrival, DatabaseWriter, QueueDatabase
from minismtp.mailqueue.handover import Handover
from minismtp.mailqueue.in_progress import InProgress
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.manager import QueueManager
from minismtp.mailqueue.recipient import OPEN, TRIED, RecipientStatus
from minismtp.runtime.log import Log
from minismtp.storage.spool import DamagedError, Spool
from minismtp.values.clock import steady_time

FATAL: Final = "451 4.3.0 held: the process that delivers died twice at this message"
_PORTION: Final = 100  # messages that are loaded before jobs are started
_READING: Final = "? "  # before the name of a message that is read, in `InProgress`


@dataclass(slots=True)
class Loader:
    """Loads messages; `destination` returns the destination of a domain."""

    _manager: QueueManager
    _spool: Spool
    _database: QueueDatabase
    _writer: DatabaseWriter
    _index: QueueIndex
    _handover: Handover
    _in_progress: InProgress
    _destination: Callable[[str], str]
    _log: Log
    _unread: set[str] = field(default_factory=set)
    _reported: set[str] = field(default_factory=set)  # those of `_unread` that the log has named
    _held: list[str] = field(default_factory=list)  # keys of poison whose recipients are held

    def load_all(self, meanwhile: Callable[[], object]) -> int:
        """Bring spool, database and index together after a start; return the number of messages.

        Of messages that the database does not know, all files are read. `meanwhile` is called after
        each hundred, so that the delivery of the first ones does not wait for the last one.
        """
        for name, whole in self._spool.recover():
            if whole:
                self._log.info("found after a crash", id=name)
            else:
                self._log.info("removed after a crash, incomplete and not acknowledged", id=name)
        for name in self._spool.set_aside_misnamed():
            self._log.error("set aside in spool/damaged, no message has such a name", name=name)
        self._handover.expect(self._database.changed())
        self._database.open_destinations()
        present = set(self._spool.names())
        messages = len(present)
        for arrived, warned, statuses in self._database.messages():
            name = statuses[0].message
            if name in present:
                present.remove(name)
                self._load(name, arrived, statuses, warned=warned)
            else:
                with self._writer as batch:
                    batch.forget(name)
        self.load(sorted(present), meanwhile)
        if self._held:
            self._writer.flush()
        while self._held:
            self._in_progress.forget(self._held.pop())
        return messages

    def load(self, names: Iterable[str], meanwhile: Callable[[], object] = bool) -> None:
        """Load messages that came into the spool; leave alone those that are loaded already."""
        for number, name in enumerate(names, 1):
            if number % _PORTION == 0:
                meanwhile()
            if name in self._index:
                continue
            key = f"{_READING}{name}"
            if self._in_progress.poison(key):
                self._manager.set_aside(name, DamagedError("two runners died while they read it"))
                self._in_progress.forget(key)
                continue
            place = self._in_progress.begin(key)
            if place is None:
                self._unread.add(name)
                continue
            try:
                self._read(name)
            finally:
                self._in_progress.end(place, key)

    def load_missed(self) -> None:
        """Load messages whose file could not be read, or whose name was not in the FIFO."""
        unread, self._unread = self._unread, set()
        self.load(unread)
        if self._spool.trigger.overflowed():
            self.load(self._spool.names())

    def _read(self, name: str) -> None:
        try:
            entry, message = self._spool.open(name)
        except FileNotFoundError:
            pass  # settled already
        except DamagedError as error:
            self._manager.set_aside(name, error)
        except OSError as error:
            if name not in self._reported:
                self._log.error("message not read, tried again", id=name, error=str(error))
            self._reported.add(name)
            self._unread.add(name)
        else:
            self._reported.discard(name)
            self._add(entry, message)

    def _load(
        self, name: str, arrived: float, statuses: list[RecipientStatus], *, warned: bool
    ) -> None:
        """Load a message that the database knows; the configuration may have changed since."""
        states = {each.state for each in statuses}
        if not states & OPEN:
            self._manager.remove(name)
            return
        current = [self._current(each) for each in statuses]
        # Else the database is left alone, because an operator may change it now.
        with self._writer as batch:
            batch.record(
                new
                for new, old in zip(current, statuses, strict=True)
                if new is not old and (old.state in TRIED or new.state != old.state)
            )
        self._index.add(name, arrived, current, warned=warned)
        if "bounced" in states:
            self._manager.decided.put(name)

    def _current(self, status: RecipientStatus) -> RecipientStatus:
        if status.destination != LOCAL:
            destination = self._key(status.address)
            if destination != status.destination:
                status = status._replace(destination=destination)
        return self._unless_fatal(status) if status.state in OPEN else status

    def _add(self, entry: QueueEntry, message: Message) -> None:
        """Add a message that the database does not know."""
        held = entry.quarantined is not None and any(t.kind == "relay" for t in entry.targets)
        recipients = [
            self._unless_fatal(
                RecipientStatus(
                    entry.id,
                    number,
                    target.address,
                    LOCAL if target.kind == "local" else self._key(target.address),
                    "held" if held else "queued",
                    next=entry.arrived,
                )
            )
            for number, target in enumerate(entry.targets)
        ]
        with self._writer as batch:
            arrival = Arrival(entry.id, entry.sender, entry.arrived, message.size)
            batch.arrivals[entry.id] = arrival
            batch.record(recipients)
        if not held:
            self._manager.keep_open(entry, message)
        self._index.add(entry.id, entry.arrived, recipients)

    def _unless_fatal(self, status: RecipientStatus) -> RecipientStatus:
        """Return a status; if two runners died on its job, one that waits for the operator."""
        message, destination = status.message, status.destination
        poison = self._in_progress.poison(f"{message} ", f"{message} {destination}")
        if not poison:
            return status
        self._held += poison
        self._log.error("message held, two runners died on it", id=message, destination=destination)
        self._manager.count_set_aside("fatal")
        return status.attempted("held", FATAL, at=steady_time())

    def _key(self, address: str) -> str:
        return self._destination(address.rpartition("@")[2])
