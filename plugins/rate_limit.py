"""Limit how much mail a client, a user or a domain may send."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from minismtp import (
    Claim,
    Defer,
    Envelope,
    Message,
    Rate,
    Reject,
    Session,
    hookimpl,
    plugin,
)

from ._checks import ClientCheck
from ._dns import network_of
from ._user_names import folded

Kind = Literal["messages", "recipients", "bytes"]


@dataclass
class Limit:
    """A limit for each peer, network, login or sender's domain, with rates such as "100/1h"."""

    by: Literal["peer", "network", "login", "sender_domain"]
    messages: Rate | None = None
    recipients: Rate | None = None
    bytes: Rate | None = None

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError("by: expected some of messages, recipients and bytes too")

    @property
    def rates(self) -> dict[Kind, Rate]:
        """A limited quantity, and its rate."""
        return {kind: rate for kind in get_args(Kind) if (rate := getattr(self, kind)) is not None}


class _Charge(NamedTuple):
    """The amount that a message takes from one limit, and the key that it counts for."""

    kind: Kind
    subject: str
    rate: Rate
    claim: Claim


@plugin
class RateLimit(ClientCheck):
    """Defer mail above the `limits` with 451 4.7.1; the reply says for how many seconds.

    Each limit has a key `by`, and one or more of `messages`, `recipients` and `bytes`, as a rate
    such as "100/1h" or "2GiB/1d". No span of that time, wherever it begins, has more, in all
    workers together, and with `[state] url` on all hosts. `login` is for users after a login, in
    any spelling of the name; `peer` (an address) and `network` (/24, or /64 of IPv6) are for other
    clients. `sender_domain` is that of the reverse-path, for all clients, except bounces. Strangers
    in `networks`, by default loopback, private and link-local addresses, which your list replaces,
    are not counted.

    A message is charged at DATA, before its content: 1, the number of accepted recipients, and the
    declared size. After the content any excess over the declared size is charged. All limits are
    charged, or no limit. So refused recipients, transactions that end before DATA, and messages
    that a limit refuses there cost nothing; a message that is refused later does. Recipients beyond
    the limit for one message get 452 4.5.3, so clients send them another copy. A message that is
    larger than a limit ever allows is refused with 552 5.3.4.
    """

    limits: list[Limit]

    def __post_init__(self) -> None:
        if not self.limits:
            raise ValueError("limits: expected at least one")
        seen = set()
        for limit in self.limits:
            for kind, rate in limit.rates.items():
                if (limit.by, kind, rate.per) in seen:
                    raise ValueError(f"limits: {kind} by {limit.by} has two limits for one span")
                seen.add((limit.by, kind, rate.per))

    @hookimpl
    def on_routed(self, session: Session, envelope: Envelope) -> None:
        """Refuse recipients beyond the limit, so the client sends them another copy."""
        for limit, _ in self._applying(session, envelope):
            if limit.recipients and len(envelope.recipients) >= limit.recipients.amount:
                raise Defer("too many recipients for one message", code=452, enhanced="4.5.3")

    @hookimpl
    def on_data(self, session: Session, envelope: Envelope) -> None:
        """Charge a message by its recipients and declared size."""
        amounts: dict[Kind, int] = {"messages": 1, "bytes": envelope.size or 0}
        self._take(session, envelope, amounts | {"recipients": len(envelope.recipients)})

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Charge the excess over the declared size."""
        self._take(session, envelope, {"bytes": message.content.size - (envelope.size or 0)})

    def _take(self, session: Session, envelope: Envelope, amounts: dict[Kind, int]) -> None:
        charges = [
            _Charge(kind, subject, rate, Claim(key, rate.amount, rate.per, amounts[kind]))
            for limit, subject in self._applying(session, envelope)
            for kind, rate in limit.rates.items()
            if amounts.get(kind, 0) > 0
            for key in [f"{limit.by} {kind} {rate.per.total_seconds():.3f} {subject}"]
        ]
        if charges:
            waits = self._state.take_all([charge.claim for charge in charges])
            _refuse(zip(waits, charges, strict=True))

    def _applying(self, session: Session, envelope: Envelope) -> Iterator[tuple[Limit, str]]:
        """Yield the limits for this message, each with the key that it counts for."""
        address = self.address_of(session)
        subjects = {}
        if address is not None:
            subjects = {"peer": str(address), "network": network_of(address)}
        elif session.login:
            subjects = {"login": folded(session.login)}
        if envelope.reverse_path and (address is not None or session.login is not None):
            subjects["sender_domain"] = envelope.reverse_path.ascii_domain
        for limit in self.limits:
            if subject := subjects.get(limit.by):
                yield limit, subject


def _refuse(waits: Iterable[tuple[float, _Charge]]) -> None:
    """Raise the verdict of the limit with the longest wait, if there is a wait."""
    wait, charge = max(waits, key=lambda each: each[0])
    if wait == math.inf:
        raise Reject(f"{charge.kind} are more than {charge.rate}", code=552, enhanced="5.3.4")
    if wait:
        raise Defer(
            f"too many {charge.kind} from {charge.subject}, try again in {math.ceil(wait)} s"
        )
