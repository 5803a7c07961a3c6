"""Defer mail of strangers until they try again."""

import hashlib
import math
from datetime import timedelta
from typing import Final

from minismtp import (
    Address,
    Defer,
    Envelope,
    Recipient,
    Session,
    StashKey,
    hookimpl,
    plugin,
    steady_time,
)

from ._checks import ClientCheck
from ._dns import network_of
from ._options import check_time

#: On an envelope: the triplets that were tried again, and when each was stored, 0 for never.
_AGAIN: Final[StashKey[dict[str, float]]] = StashKey()
#: When it was stored that the client's network need not wait; None if it has to.
_KNOWN: Final[StashKey[float | None]] = StashKey()
# Of `remember`: younger entries are not stored again, because writers wait for each other.
_SLACK: Final = 0.1
_AHEAD: Final = 60.0  # seconds by which clocks may differ; a later entry comes from a wrong clock
_MOST: Final = 10_000  # entries that a process keeps in memory


@plugin
class Greylist(ClientCheck):
    """Defer a recipient with 451 4.7.1 until the same client tries again after `delay`.

    A retry is the same if network (/24, or /64 of IPv6), sender and recipient are the same. The
    reply says how many seconds are left. A retry before that does no harm, and a retry later than
    `window` after the first attempt starts again. After a delivery the same triplet need not wait
    again, unless no message arrives for the time `remember` (or a tenth more).

    A network that delivered `deliveries` messages need not wait at all for the same time; with 0
    each triplet waits. A message counts after the `on_message` of earlier plugins accepts it, so
    put this plugin after the filters for content. Recipients are checked after routing, so guessed
    addresses are refused at once and not remembered.

    Sessions with a login are not checked, nor are clients in `networks`: by default loopback,
    private and link-local addresses, which your list replaces. All workers share what they
    remember, and with `[state] url` all hosts.
    """

    delay: timedelta = timedelta(minutes=5)
    window: timedelta = timedelta(days=2)
    remember: timedelta = timedelta(days=35)
    deliveries: int = 5

    def __post_init__(self) -> None:
        check_time("delay", self.delay)
        if self.window <= self.delay:
            raise ValueError("window: expected more than delay, else no client could retry in time")
        if self.remember < self.window:
            raise ValueError("remember: expected at least as long as window")
        if self.deliveries < 0:
            raise ValueError("deliveries: expected a number of messages, or 0 for never")
        self._clock = steady_time
        self._slack = self.remember * _SLACK
        self._recent: dict[str, float] = {}  # keys that were stored, and when

    @hookimpl
    def on_routed(self, session: Session, envelope: Envelope, recipient: Recipient) -> None:
        """Defer a recipient unless this is a retry after the delay."""
        network = self._network(session)
        if network is None or self._known(envelope, network) is not None:
            return
        key, now = _triplet(network, envelope, recipient), self._clock()
        if self._is_fresh(self._recent.get(key, 0)):
            return
        first, _, noted = self._state.setdefault(key, str(now), self.window).partition(" ")
        if float(first) > now + _AHEAD:
            self._state.put(key, str(now), self.window)
            first = str(now)
        left = self.delay.total_seconds() - (now - float(first))
        if left > 0:
            raise Defer(f"greylisted, try again in {math.ceil(left)} s")
        envelope.stash.setdefault(_AGAIN, {})[key] = float(noted or 0)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope) -> None:
        """Remember that the client delivered a message."""
        network = self._network(session)
        if network is None:
            return
        for key, noted in envelope.stash.get(_AGAIN, {}).items():
            self._note(key, noted, "0 ")  # as if first seen long ago
        if not self.deliveries:
            return
        known = self._known(envelope, network)
        if known is not None:
            self._note(f"known {network}", known)
        elif self._state.add(f"from {network}", 1, self.remember) >= self.deliveries:
            self._note(f"known {network}", 0)

    def _note(self, key: str, noted: float, value: str = "") -> None:
        """Store an entry for a further `remember`, unless it was stored recently."""
        if not self._is_fresh(noted):
            noted = self._clock()
            self._state.put(key, f"{value}{noted}", self.remember + self._slack)
        if len(self._recent) >= _MOST:
            self._recent.clear()
        self._recent[key] = noted

    def _is_fresh(self, noted: float) -> bool:
        return -_AHEAD <= self._clock() - noted <= self._slack.total_seconds()

    def _network(self, session: Session) -> str | None:
        address = self.address_of(session)
        return None if address is None else network_of(address)

    def _known(self, envelope: Envelope, network: str) -> float | None:
        """Return since when a network need not wait; look it up once for each message."""
        if not self.deliveries:
            return None
        if _KNOWN not in envelope.stash:
            key = f"known {network}"
            found: float | str | None = self._recent.get(key)
            if not self._is_fresh(float(found or 0)):
                found = self._state.get(key)
            envelope.stash[_KNOWN] = None if found is None else float(found)
        return envelope.stash[_KNOWN]


def _triplet(network: str, envelope: Envelope, recipient: Recipient) -> str:
    """Return a key that is short even if the addresses are long."""
    sender = _spelled(envelope.reverse_path) if envelope.reverse_path else ""
    text = f"{network} {sender} {_spelled(recipient.address)}".lower()
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()


def _spelled(address: Address) -> str:
    """Return an address with A-labels."""
    if address.domain == address.ascii_domain:
        return str(address)
    return str(Address(address.local, address.ascii_domain))
