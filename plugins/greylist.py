"""Let mail of strangers wait until they have come again."""

import hashlib
import math
from dataclasses import field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from minismtp import (
    Address,
    Defer,
    Envelope,
    Recipient,
    ServerInfo,
    Session,
    StashKey,
    State,
    hookimpl,
    plugin,
    steady_time,
)

from ._dns import IpNetwork, address_to_check, local_networks, network_of
from ._options import check_time

#: What a message has shown of its client: the triplets that have come again, and when each was
#: noted, 0 for never.
_AGAIN: Final[StashKey[dict[str, float]]] = StashKey()
#: When it was noted that the client's network need not wait, None when it has to.
_KNOWN: Final[StashKey[float | None]] = StashKey()
_SLACK: Final = 0.1  # of `remember`: what is younger is not noted again, as writing takes turns
_AHEAD: Final = 60.0  # seconds by which clocks may differ; what is later was noted by a wrong one
_MOST: Final = 10_000  # that a process knows without asking the state


@plugin
class Greylist:
    """Put off a recipient with 451 4.7.1 until the same client has come again after `delay`.

    The same is who comes from the same network (/24, or /64 of IPv6) with the same sender for the
    same recipient; the reply says how many seconds are left. Coming too early does no harm; who
    comes later than `window` after the first time starts again. Once the same delivered, it need
    not wait again, as long as no time of `remember` (or a tenth more) goes by without a message.

    A network that has delivered `deliveries` messages need not wait at all, for as long; 0 has each
    triplet wait. A message counts when the `on_message` of the plugins before lets it through: put
    this one behind the filters that judge content. Recipients are judged once they are routed, so
    guesses are refused at once, and nothing is remembered of them.

    Sessions with a login are left alone, and so are `networks`, by default loopback, private and
    link-local ones; yours take the place of the default. All workers know what has been seen,
    with `[state] url` all hosts.
    """

    delay: timedelta = timedelta(minutes=5)
    window: timedelta = timedelta(days=2)
    remember: timedelta = timedelta(days=35)
    deliveries: int = 5
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)

    def __post_init__(self) -> None:
        check_time("delay", self.delay)
        if self.window <= self.delay:
            raise ValueError("window: expected more than delay, or nobody could come again in time")
        if self.remember < self.window:
            raise ValueError("remember: expected at least as much as window")
        if self.deliveries < 0:
            raise ValueError("deliveries: expected a number of messages, or 0 for never")
        self._clock = steady_time
        self._slack = self.remember * _SLACK
        self._recent: dict[str, float] = {}  # what was noted, and when

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Know where to look who has been here."""
        self._state: State = server.state

    @hookimpl
    def on_routed(self, session: Session, envelope: Envelope, recipient: Recipient) -> None:
        """Put a recipient off, unless the client has come again."""
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
        """Remember who has delivered."""
        network = self._network(session)
        if network is None:
            return
        for key, noted in envelope.stash.get(_AGAIN, {}).items():
            self._note(key, noted, "0 ")  # first seen long ago
        if not self.deliveries:
            return
        known = self._known(envelope, network)
        if known is not None:
            self._note(f"known {network}", known)
        elif self._state.add(f"from {network}", 1, self.remember) >= self.deliveries:
            self._note(f"known {network}", 0)

    def _note(self, key: str, noted: float, value: str = "") -> None:
        """Keep what is known for another while, unless it was noted a short time ago."""
        if not self._is_fresh(noted):
            noted = self._clock()
            self._state.put(key, f"{value}{noted}", self.remember + self._slack)
        if len(self._recent) >= _MOST:
            self._recent.clear()
        self._recent[key] = noted

    def _is_fresh(self, noted: float) -> bool:
        return -_AHEAD <= self._clock() - noted <= self._slack.total_seconds()

    def _network(self, session: Session) -> IpNetwork | None:
        address = address_to_check(session, self.networks)
        return None if address is None else network_of(address)

    def _known(self, envelope: Envelope, network: IpNetwork) -> float | None:
        """Say since when a network need not wait; looked up once for each message."""
        if _KNOWN not in envelope.stash:
            key = f"known {network}"
            found: float | str | None = self._recent.get(key)
            if self.deliveries and not self._is_fresh(float(found or 0)):
                found = self._state.get(key)
            envelope.stash[_KNOWN] = None if found is None else float(found)
        return envelope.stash[_KNOWN]


def _triplet(network: IpNetwork, envelope: Envelope, recipient: Recipient) -> str:
    """Return a short key, whatever long addresses strangers think of."""
    addresses = (envelope.reverse_path, recipient.address)
    spelled = (Address(each.local, each.ascii_domain) if each else "" for each in addresses)
    text = " ".join(map(str, (network, *spelled))).lower()
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()
