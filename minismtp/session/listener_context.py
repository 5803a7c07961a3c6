"""The configuration and the collaborators that all sessions of one listener share."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from math import inf
from pathlib import Path
from typing import Final

from minismtp.config import Config, Limits, Listener
from minismtp.config.listener_table import DROP_HEADERS
from minismtp.config.tables import LogConfig
from minismtp.hooks.facade import Hooks
from minismtp.hooks.loader import PluginSet
from minismtp.mail.cleanup import RETURN_PATH
from minismtp.runtime.decision_log import DecisionLog, Record
from minismtp.runtime.dialogue_trace import Tracing
from minismtp.runtime.log import Log, bound
from minismtp.runtime.login_backoff import Backoff
from minismtp.runtime.metrics import ListenerMetrics, Metrics
from minismtp.runtime.suspects import Notes
from minismtp.session.error_count import PeerErrors
from minismtp.smtp.sasl import MadeUpKeys
from minismtp.storage.spool import Spool
from minismtp.values.peer import in_networks, peer_key
from minismtp.values.threads import Flag

_LINE: Final = 400  # octets that a line of the log takes roughly
_WINDOW: Final = 60.0  # seconds
_MOST: Final = 10_000  # peers that are remembered


@dataclass(slots=True)
class _Share:
    """The lines of one peer in one minute."""

    peer: str
    end: float
    lines: int = 0
    surplus: int = 0


class RefusalLog:
    """How many log lines the refusals of one peer may have: `most` a minute. Thread-safe.

    Any client can provoke any number of refusals. The first refusals of a peer in each minute have
    a line each, with the true reason. The rest is counted, and one line after the minute tells how
    many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._shares: dict[bytes | str, _Share] = {}  # in the order in which they end
        self._first_end = inf  # when the first share ends, or earlier
        self._lock = threading.Lock()

    def admits(self, log: Log, peer: str, now: float) -> bool:
        """Count a refusal, and return whether it may have a line."""
        self.settle(log, now)
        key = peer_key(peer) or peer
        with self._lock:
            share = self._shares.get(key)
            if share is None:
                share = self._shares[key] = _Share(peer, now + _WINDOW)
                self._first_end = min(self._first_end, share.end)
            admitted = share.lines < self._most
            if admitted:
                share.lines += 1
            else:
                share.surplus += 1
            forgotten = len(self._shares) > _MOST
        if forgotten:
            self._tell(log, self._take(inf))
        return admitted

    def settle(self, log: Log, now: float) -> None:
        """Log how many refusals had no line in the minutes that are over by now."""
        while self._first_end <= now and (share := self._take(now)):
            self._tell(log, share)

    def _take(self, now: float) -> _Share | None:
        """Remove the share that ends first, if it ends by now."""
        with self._lock:
            for key, share in self._shares.items():
                if share.end > now:
                    self._first_end = share.end
                    return None
                del self._shares[key]
                return share
            self._first_end = inf
        return None

    def _tell(self, log: Log, share: _Share | None) -> None:
        if share is not None and share.surplus:
            fields, own = bound(), {**bound()}
            fields.clear()  # this line is not about the session of this thread
            log.info("more refusals", peer=share.peer, count=share.surplus)
            fields.update(own)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerContext:
    """The rules and collaborators of one listener.

    `starttls` says that a handshake can follow STARTTLS. `clear_auth` says that AUTH is safe
    without TLS (loopback or a unix socket), and `proxy_auth` that it is also safe for clients of a
    balancer that does not say whether they use TLS. `dropped` are the fields, in lower case, that
    are removed from messages of trusted clients. `greet_delay` is in seconds. `quiet` keeps
    sessions out of the log and the metrics.

    Large contents are written to `spool`. Messages for other hosts wait in `queue`; without it
    nothing is relayed. Notifications about refused recipients go to `notices`, or else to `queue`.
    `decision_log` feeds `minismtp explain`, and `tracing` feeds `minismtp
    trace`. `suspects` notes which messages this worker has in hand; a message that workers died on
    is quarantined if the listener `quarantines`, and else deferred. `made_up_keys` are for users
    that do not exist. `draining` is set when the process is about to end. `clock` returns monotonic
    seconds, `wall` seconds since the epoch.
    """

    listener: str
    kind: str
    hostname: str
    limits: Limits
    hooks: Hooks
    metrics: ListenerMetrics
    log: Log
    starttls: bool = False
    clear_auth: bool = False
    proxy_auth: bool = False
    xclient: tuple[IPv4Network | IPv6Network, ...] = ()
    greet_delay: float = 0.0
    strict_pipelining: bool = False
    match_sender: bool = False
    match_from: bool = False
    dropped: frozenset[str] = RETURN_PATH.union(map(str.lower, DROP_HEADERS))
    add_sender: bool = False
    backoff: Backoff | None = None
    quiet: bool = False
    fix_newlines: bool = False
    spool: Path | None = None
    queue: Spool | None = None
    notices: Spool | None = None
    decision_log: DecisionLog | None = None
    made_up_keys: MadeUpKeys = field(default_factory=MadeUpKeys)
    suspects: Notes | None = None
    quarantines: bool = False
    tracing: Tracing = field(default_factory=Tracing)
    peer_errors: PeerErrors = field(default_factory=PeerErrors)
    refusal_log: RefusalLog = field(default_factory=lambda: RefusalLog(LogConfig().refusals))
    draining: Flag = field(default_factory=Flag)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    lmtp: bool = field(init=False)  # whether the listener speaks LMTP

    def __post_init__(self) -> None:
        object.__setattr__(self, "lmtp", self.kind == "lmtp")

    @classmethod
    def of(
        cls, config: Config, listener: Listener, plugins: PluginSet, metrics: Metrics, log: Log
    ) -> ListenerContext:
        """Return the context that the configuration describes, without what processes share."""
        return cls(
            listener=listener.name,
            kind=listener.kind,
            hostname=config.hostname,
            limits=config.limits,
            hooks=plugins.hooks(listener.name),
            metrics=metrics.listener(listener.name),
            log=log,
            starttls=listener.tls == "starttls",
            clear_auth=listener.tls == "none" and listener.address.is_local,
            proxy_auth=listener.proxy_auth,
            xclient=tuple(listener.xclient),
            greet_delay=listener.greet_delay.total_seconds(),
            strict_pipelining=listener.strict_pipelining,
            match_sender=listener.match_sender,
            match_from=listener.match_from,
            dropped=RETURN_PATH.union(map(str.lower, listener.drop_headers)),
            add_sender=listener.add_sender,
            fix_newlines=config.bare_newline == "fix",
            spool=config.state_directory / "spool",
            refusal_log=RefusalLog(config.log.refusals),
            quarantines=any(
                each.use == "quarantine"
                and each.mode == "enforce"
                and (not each.listeners or listener.name in each.listeners)
                for each in config.plugins
            ),
        )

    def silent(self) -> ListenerContext:
        """Return the same context for health checks, which are neither logged nor counted."""
        return replace(self, quiet=True, metrics=self.metrics.silent())

    def record(self, record: Record, *, accepted: bool = False) -> None:
        """Log an event of a session, and keep it for `minismtp explain`."""
        if self.quiet:
            self.log.debug(record.event, **record.fields)
            return
        self.log.later(record.event, lambda: record.fields, _LINE)
        if self.decision_log is not None:
            self.decision_log.keep(record, accepted=accepted)

    def may_log_refusal(self, peer: str) -> bool:
        """Count a refusal of this peer, and return whether it may have a line of its own."""
        return self.refusal_log.admits(self.log, peer, self.clock())

    def log_refusal(self, event: str, *, peer: str, **fields: str | int) -> None:
        """Log a refusal, unless its peer had enough lines in this minute."""
        if self.may_log_refusal(peer):
            self.log.info(event, peer=peer, **fields)

    def log_surplus_refusals(self) -> None:
        """Log for each peer how many refusals of past minutes had no line."""
        self.refusal_log.settle(self.log, self.clock())

    def trusts_xclient(self, peer: str) -> bool:
        """Return whether this peer may use XCLIENT."""
        return in_networks(peer, self.xclient)


def new_id() -> str:
    """Return an identifier for a session: 12 hexadecimal digits nobody can guess."""
    return os.urandom(6).hex()
