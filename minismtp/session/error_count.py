"""What a client has done wrong or in vain, and the price of it.

As with Postfix's error and junk command limits: a session that goes on so hears 421, and from half
of that limit on each further error is answered later than the one before. Delays count the errors
of all sessions of the peer, so it gains nothing by beginning a new one. A message that is accepted
clears both accounts: an honest client with a bad address now and then never notices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from minismtp.config.tables import Limits
from minismtp.smtp.commands import Auth, Command, Data, Mail, Quit, Rcpt
from minismtp.smtp.protocol import Event, Refused, SaslResponse
from minismtp.values.peer import peer_key
from minismtp.values.reply import Reply

_BAD_COMMANDS: Final = frozenset({500, 501, 502, 503, 504, 555})
# Of an error, in hundredths. Senders know of a bad recipient only when they try.
_BAD: Final = 100
_REFUSED: Final = 20
_DEFERRED: Final = 1
_USEFUL: Final = frozenset({Rcpt, Data, Auth, SaslResponse, Quit})
_DECAY: Final = 3.0  # hundredths that a peer is forgiven in a second
_STEEPEST: Final = 10  # times `error_delay`: the longest delay
_MOST: Final = 10_000  # peers that are remembered


class PeerErrors:
    """The errors of peers in all sessions of a listener of this process; safe in threads."""

    def __init__(self) -> None:
        self._scores: dict[bytes, tuple[float, float]] = {}  # the one that did something last, last
        self._lock = threading.Lock()

    def add(self, key: bytes, cost: int, now: float) -> float:
        """Count an error, and return what there is against the peer in all."""
        with self._lock:
            score, last = self._scores.pop(key, (0.0, now))
            score = max(0.0, score - (now - last) * _DECAY) + cost
            self._scores[key] = (score, now)
            if len(self._scores) > _MOST:
                del self._scores[next(iter(self._scores))]
            return score

    def forgive(self, peer: str) -> None:
        """Clear the account of a peer."""
        if self._scores:
            with self._lock:
                self._scores.pop(peer_key(peer), None)


class ErrorCount:
    """The errors of one session since its last message.

    With `trusted`, recipients may be refused without end: a mail server hands over what it has.
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
        self._delay = 0.0

    def take_delay(self) -> float:
        """Return the seconds to hold back the reply to what was counted last; once."""
        delay, self._delay = self._delay, 0.0
        return delay

    @property
    def delays(self) -> bool:
        """Whether there is a reply to hold back."""
        return self._delay > 0

    def note(self, event: Command | Event, reply: Reply, peer: str) -> bool:
        """Count a command by its reply, and return whether it was one too many."""
        wasted = event.__class__ not in _USEFUL and self._is_junk()
        if reply.code < 400 and not wasted:  # noqa: PLR2004
            return False
        return self._add(self._cost(event, reply) + _BAD * wasted, peer)

    def note_junk(self, peer: str) -> bool:
        """Count what is no error and yet brings no message nearer; return as `note` does."""
        return self._add(_BAD * self._is_junk(), peer)

    def forgive(self, peer: str) -> None:
        """Clear the accounts of the session and of its peer, because a message was accepted."""
        self.restart()
        self._peers.forgive(peer)

    def restart(self) -> None:
        """Clear the account of the session: another client speaks from now on."""
        self._score = self._junk = 0

    def _is_junk(self) -> bool:
        self._junk += 1
        return self._junk > self._limits.junk_commands

    def _add(self, cost: int, peer: str) -> bool:
        if not cost:
            return False
        self._score += cost
        limit, key = self._limits.errors * _BAD, peer_key(peer)
        score = self._peers.add(key, cost, self._clock()) if key else self._score
        steps = min((score - limit / 2) / _BAD, _STEEPEST)
        self._delay = max(0.0, steps * self._limits.error_delay.total_seconds())
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
