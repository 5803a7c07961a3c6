"""How many log lines the refusals of one peer may have.

Any client can provoke any number of refusals. The first refusals of a peer in each minute have a
line each, with the true reason. The rest is counted, and one line after the minute tells how many.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from math import inf
from typing import Final

from minismtp.runtime.log import Log, bound
from minismtp.values.peer import peer_key

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
    """The shares of all peers in one process, each of `most` lines a minute. Thread-safe."""

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
