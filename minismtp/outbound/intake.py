"""How messages come from the spool into the runner: at its start, and when they arrive (layer 6).

Only the runner's main thread is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from minismtp.entry import Entry
from minismtp.message import Message
from minismtp.outbound.attempt import LOCAL
from minismtp.outbound.backlog import Standing
from minismtp.outbound.custody import Custody
from minismtp.outbound.schedule import OPEN, Arrival, Row
from minismtp.spool import DamagedError

_DOMAINS: Final = 10_000  # whose destinations are remembered


class Intake:
    """Takes messages on. `key` gives the destination of a domain."""

    def __init__(self, custody: Custody, key: Callable[[str], str]) -> None:
        self._custody = custody
        self._log = custody.log
        self._key = lru_cache(_DOMAINS)(key)
        self._unread: set[str] = set()

    def recover(self) -> None:
        """Bring spool and schedule together after whatever has happened."""
        custody = self._custody
        for name, whole in custody.spool.recover():
            if whole:
                self._log.info("found after a crash", id=name)
        custody.handover.expect(custody.schedule.changed())
        custody.schedule.reopen()
        present = set(custody.spool.names())
        messages = len(present)
        for arrived, rows in custody.schedule.everything():
            name = rows[0].message
            if name in present:
                present.remove(name)
                self._load(name, arrived, rows)
            else:
                custody.ledger.forget(name)
        self.take_in(present)
        self._log.info("queue opened", messages=messages)

    def take_in(self, names: Iterable[str]) -> None:
        """Take on messages that have come into the spool; those that we have are left alone."""
        for name in names:
            if name in self._custody.backlog:
                continue
            try:
                entry, message = self._custody.spool.open(name)
            except FileNotFoundError:
                continue  # done already
            except DamagedError as error:
                self._custody.set_aside(name, error)
            except OSError as error:
                self._log.error("message not read, tried again", id=name, error=str(error))
                self._unread.add(name)
            else:
                self._arrive(entry, message)

    def take_in_rest(self) -> None:
        """Take on what was missed: because the FIFO was full, or a file could not be read."""
        unread, self._unread = self._unread, set()
        self.take_in(unread)
        if self._custody.spool.missed():
            self.take_in(self._custody.spool.names())

    def _load(self, name: str, arrived: float, rows: list[Row]) -> None:
        """Take on a message that the schedule knows; the way to its recipients may be new."""
        custody = self._custody
        if not any(row.state in OPEN for row in rows):
            custody.remove(name)
            return
        recipients = []
        for row in rows:
            destination = row.destination if row.destination == LOCAL else self._place(row.address)
            if destination != row.destination:
                custody.ledger.move(destination, name, row.number)
            recipients.append(Standing(destination, row.state, row.attempts))
        custody.backlog.add(name, arrived, recipients, custody.waits(rows, recipients))
        if any(row.state == "returning" for row in rows):
            custody.decided.put(name)

    def _arrive(self, entry: Entry, message: Message) -> None:
        targets = tuple(
            (target.address, LOCAL if target.kind == "local" else self._place(target.address))
            for target in entry.targets
        )
        held = entry.quarantined is not None and any(t.kind == "relay" for t in entry.targets)
        self._custody.ledger.arrive(
            Arrival(entry.id, entry.sender, entry.arrived, message.size, targets, held)
        )
        if not held:
            self._custody.hold_open(entry, message)
        recipients = [Standing(place, "held" if held else "queued") for _, place in targets]
        self._custody.backlog.add(entry.id, entry.arrived, recipients, {})

    def _place(self, address: str) -> str:
        return self._key(address.rpartition("@")[2])
