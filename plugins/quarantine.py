"""Keep quarantined messages in a separate place, from which they can be released."""

import logging
import threading
from datetime import timedelta
from pathlib import Path

from minismtp import (
    Address,
    Defer,
    Envelope,
    Message,
    PluginCheck,
    QuarantineStore,
    ServerInfo,
    StashKey,
    hookimpl,
    plugin,
    start_thread,
)

_log = logging.getLogger(__name__)
_INTERVAL = 3600.0  # seconds between two searches for expired messages


@plugin
class Quarantine:
    """Keep messages that a filter quarantined, with their envelopes, out of all mailboxes.

    `path` is a Maildir, by default the directory quarantine in the state directory. A message is
    there once for all its mailboxes. `minismtp quarantine` lists, shows, releases and deletes
    messages; a released message is delivered as if no filter had quarantined it. Messages older
    than `expire` are deleted; "0s" keeps them forever. Put it before the plugin that stores mail.
    """

    path: Path | None = None
    expire: timedelta = timedelta(days=30)

    def __post_init__(self) -> None:
        self._store = QuarantineStore(self.path or Path("quarantine"))
        self._kept: StashKey[frozenset[Address]] = StashKey()
        self._ended = threading.Event()

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Open the directory, and start to expire old messages."""
        state = server.state_directory
        self._store = QuarantineStore(self.path or state / "quarantine", within=state)
        if self.expire and server.role == "worker" and server.slot == 0:
            start_thread("quarantine", self._sweep)

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Report a place that cannot be written, and plugins that store the mail before."""
        if self.path is not None and (problem := check.cannot_write(self.path)):
            check.error(f"path: {problem}")
        if early := check.above_with("deliver"):
            names = ", ".join(early)
            check.warn(f"{names} stores quarantined mail first: put this table above {early[0]}")

    @hookimpl
    def on_stop(self) -> None:
        """Stop to expire messages."""
        self._ended.set()

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool | None:
        """Store a quarantined message; others are left to the next plugin."""
        if message.quarantined is None:
            return None
        before = envelope.stash.setdefault(self._kept, frozenset())
        if mailbox in before:
            return True
        try:
            kept = self._store.keep(envelope, message, mailbox)
        except OSError as error:
            _log.warning("id=%s not quarantined: %s", envelope.id, error)
            raise Defer("storage failed, try again later", enhanced="4.3.0") from error
        envelope.stash[self._kept] = before | kept
        return True

    def _sweep(self) -> None:
        while True:
            try:
                if count := self._store.expire(self.expire.total_seconds()):
                    _log.info("%d messages in quarantine expired", count)
            except OSError as error:
                _log.warning("quarantine not searched for expired messages: %s", error)
            if self._ended.wait(_INTERVAL):
                return
