"""The errors and useless commands of a client, and their price.

As with Postfix's limits for errors and junk commands, a session with too many is answered 421. From
half of that limit on, the reply to each error is delayed longer than the one before. Delays count
the errors of all sessions of the peer, so a new session does not help it. An accepted message
clears both counts, so an honest client with a bad address now and then is never delayed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from minismtp.config import Limits
from minismtp.smtp.commands import Auth, Command, Data, Mail, Quit, Rcpt
from minismtp.smtp.protocol import Event, Refused, SaslResponse
from minismtp.values.peer import peer_key
from minismtp.values.reply import Reply

_BAD_COMMANDS: Final = frozenset({500, 501, 502, 503, 504, 555})
# Costs in hundredths of an error. A refused recipient is cheap, because senders cannot know before.
_BAD: Final = 100
_REFUSED: Final = 20
_DEFERRED: Final = 1
USEFUL: Final = frozenset({Rcpt, Data, Auth, SaslResponse, Quit})
_DECAY: Final = 3.0  # hundredths that a peer is forgiven each second
_STEEPEST: Final = 10  # times `error_delay`: the longest delay
_MOST: Final = 10_000  # peers that are remembered


class PeerErrors:
    """The errors of peers in all sessions of one listener in this process. Thread-safe.

    `scores` has each peer's count and the time of its last error.
    """

    def __init__(self) -> None:
        self.scores: dict[bytes, tuple[float, float]] = {}  # in the order of their last errors
        self._lock = threading.Lock()

    def add(self, key: bytes, cost: int, now: float) -> float:
        """Count an error, and return the sum of the peer's errors."""
        with self._lock:
            score, last = self.scores.pop(key, (0.0, now))
            score = max(0.0, score - (now - last) * _DECAY) + cost
            self.scores[key] = (score, now)
            if len(self.scores) > _MOST:
                del self.scores[next(iter(self.scores))]
            return score

    def forgive(self, peer: str) -> None:
        """Clear the count of a peer."""
        with self._lock:
            self.scores.pop(peer_key(peer), None)


class ErrorCount:
    """The errors of one session since its last message.

    `delay` is the seconds to hold back the reply to what was noted last.
    With `trusted`, any number of recipients may be refused, because a mail server hands over all
    its mail.
    """

    def __init__(
        self, limits: Limits, peers: PeerErrors, clock: Callable[[], float], *, trusted: bool
    ) -> None:
        self._limits = limits
        self._trusted = trusted
        self._peers = peers
        self._clock = clock
        self._score = 0
        self._junk = 0
        self.delay = 0.0

    def note(self, event: Command | Event, reply: Reply, peer: str) -> bool:
        """Count a command by its reply, and return whether it was one too many."""
        self.delay = 0.0
        useless = event.__class__ not in USEFUL
        self._junk += useless
        wasted = useless and self._junk > self._limits.junk_commands
        if reply.code < 400 and not wasted:  # noqa: PLR2004
            return False
        return self._add(self._cost(event, reply) + _BAD * wasted, peer)

    def forgive(self, peer: str) -> None:
        """Clear the counts of the session and of its peer, because a message was accepted."""
        self._score = self._junk = 0
        if self._peers.scores:
            self._peers.forgive(peer)

    def restart(self) -> None:
        """Clear the count of the session, because another client uses it from now on."""
        self._score = self._junk = 0

    def _add(self, cost: int, peer: str) -> bool:
        if not cost:
            return False
        self._score += cost
        limit, key = self._limits.errors * _BAD, peer_key(peer)
        score = self._peers.add(key, cost, self._clock()) if key else self._score
        steps = min((score - limit / 2) / _BAD, _STEEPEST)
        self.delay = max(0.0, steps * self._limits.error_delay.total_seconds())
        return self._score > limit

    def _cost(self, event: Command | Event, reply: Reply) -> int:
        if reply.code < 400:  # noqa: PLR2004
            return 0
        is_recipient = isinstance(event, Rcpt | Mail) or (
            isinstance(event, Refused) and event.verb == "RCPT"
        )
        if reply.code in _BAD_COMMANDS and not is_recipient:
            return _BAD
        if self._trusted:
            return 0
        return _REFUSED if reply.category == 5 else _DEFERRED  # noqa: PLR2004
