"""Let mail of strangers wait until they have come again."""

import hashlib
import math
import time
from dataclasses import field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from minismtp import (
    Defer,
    Envelope,
    Recipient,
    ServerInfo,
    Session,
    StashKey,
    State,
    hookimpl,
    plugin,
)

from ._dns import IpNetwork, address_to_check, local_networks
from ._network import network_of

#: What a message has shown of its client: the triplets that have come again.
_AGAIN: Final[StashKey[list[str]]] = StashKey()
#: Whether the client's network need not wait.
_KNOWN: Final[StashKey[bool]] = StashKey()


@plugin
class Greylist:
    """Put off a recipient with 451 4.7.1 until the same client has come again after `delay`.

    The same is who comes from the same network (/24, or /64 of IPv6) with the same sender for the
    same recipient; the reply says how many seconds are left. Coming too early does no harm; who
    comes later than `window` after the first time begins anew. Once the same has delivered, it need
    not wait again, as long as no time of `remember` goes by without a message.

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
        if not self.delay:
            raise ValueError("delay: expected more than no time at all")
        if self.window <= self.delay:
            raise ValueError("window: expected more than delay, or nobody could come again in time")
        if self.remember < self.window:
            raise ValueError("remember: expected at least as much as window")
        if self.deliveries < 0:
            raise ValueError("deliveries: expected a number of messages, or 0 for never")
        self._clock = time.time

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Know where to look who has been here."""
        self._state: State = server.state

    @hookimpl
    def on_routed(self, session: Session, envelope: Envelope, recipient: Recipient) -> None:
        """Put a recipient off, unless the client has come again."""
        network = self._network(session)
        if network is None or self._knows(envelope, network):
            return
        key, now = _triplet(network, envelope, recipient), self._clock()
        first = float(self._state.setdefault(key, str(now), self.window))
        left = self.delay.total_seconds() - (now - first)
        if left > 0:
            raise Defer(f"greylisted, try again in {math.ceil(left)} s")
        envelope.stash.setdefault(_AGAIN, []).append(key)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope) -> None:
        """Remember who has delivered."""
        network = self._network(session)
        if network is None:
            return
        for key in envelope.stash.get(_AGAIN, []):
            self._state.put(key, "0", self.remember)  # first seen long ago
        if not self.deliveries:
            return
        known = self._knows(envelope, network)
        if known or self._state.add(f"from {network}", 1, self.remember) >= self.deliveries:
            self._state.put(f"known {network}", "", self.remember)

    def _network(self, session: Session) -> IpNetwork | None:
        address = address_to_check(session, self.networks)
        return None if address is None else network_of(address)

    def _knows(self, envelope: Envelope, network: IpNetwork) -> bool:
        """Say whether a network need not wait; looked up once for each message."""
        if _KNOWN not in envelope.stash:
            found = self.deliveries and self._state.get(f"known {network}") is not None
            envelope.stash[_KNOWN] = bool(found)
        return envelope.stash[_KNOWN]


def _triplet(network: IpNetwork, envelope: Envelope, recipient: Recipient) -> str:
    """Give a short key, whatever long addresses strangers think of."""
    text = f"{network} {envelope.sender} {recipient.address}".lower()
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()
