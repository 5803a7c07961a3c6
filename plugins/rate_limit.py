"""Limit how much mail a client, a user or a domain may send."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, NamedTuple

from minismtp import (
    Claim,
    Defer,
    Envelope,
    Message,
    Rate,
    Reject,
    ServerInfo,
    Session,
    State,
    hookimpl,
    plugin,
)

from ._dns import address_to_check, local_networks, network_of
from ._user_names import folded

Kind = Literal["messages", "recipients", "bytes"]


@dataclass
class Limit:
    """What each peer, network, login or sender's domain may send: rates such as "100/1h"."""

    by: Literal["peer", "network", "login", "sender_domain"]
    messages: Rate | None = None
    recipients: Rate | None = None
    bytes: Rate | None = None

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError("by: expected some of messages, recipients and bytes beside it")

    @property
    def rates(self) -> dict[Kind, Rate]:
        """What is limited, and how."""
        found: dict[Kind, Rate | None] = {
            "messages": self.messages,
            "recipients": self.recipients,
            "bytes": self.bytes,
        }
        return {kind: rate for kind, rate in found.items() if rate is not None}


class _Charge(NamedTuple):
    """What a message takes from one limit, and whose that is."""

    kind: Kind
    subject: str
    rate: Rate
    claim: Claim


@plugin
class RateLimit:
    """Put off with 451 4.7.1 what is more than `limits` allow; the reply says for how many seconds.

    Each has the key `by`, and one or more of `messages`, `recipients` and `bytes`, as a rate such
    as "100/1h" or "2GiB/1d": no span of that time, wherever it begins, has more, in all workers
    together, with `[state] url` on all hosts. `login` is who has logged in, however spelled; `peer`
    (an address) and `network` (/24, or /64 of IPv6) are those who have not; `sender_domain` is that
    of the reverse-path, whoever sends, and bounces have none. Strangers from `networks`, by default
    loopback, private and link-local ones, are not counted; yours take the place of the default.

    A message is charged at DATA, before its content comes: 1, its accepted recipients, and the size
    that the client has declared; behind the content, what is more than declared. All limits are
    charged at once, or none. So refused recipients and transactions that end before DATA cost
    nothing, nor does a message that a limit refuses there; one that is refused later does.
    Recipients that no message could have together get 452 4.5.3, and clients send them another
    copy; a message that is larger than a limit ever allows is refused with 552 5.3.4.
    """

    limits: list[Limit]
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)

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
    def on_start(self, server: ServerInfo) -> None:
        """Know where to count."""
        self._state: State = server.state

    @hookimpl
    def on_routed(self, session: Session, envelope: Envelope) -> None:
        """Have clients send another copy where recipients are more than fit at all."""
        for limit, _ in self._applying(session, envelope):
            if limit.recipients and len(envelope.recipients) >= limit.recipients.amount:
                raise Defer("too many recipients for one message", code=452, enhanced="4.5.3")

    @hookimpl
    def on_data(self, session: Session, envelope: Envelope) -> None:
        """Charge a message as far as it is known."""
        self._take(
            session,
            envelope,
            {
                "messages": 1,
                "recipients": len(envelope.recipients),
                "bytes": envelope.size or 0,
            },
        )

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Charge what is more than the client had declared."""
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
        """Yield the limits that are for this message, each with whom it counts."""
        address = address_to_check(session, self.networks)
        stranger = address is not None
        sender = envelope.reverse_path
        subjects = {
            "peer": str(address) if stranger else None,
            "network": str(network_of(address)) if address is not None else None,
            "login": folded(session.login) if session.login else None,
            "sender_domain": sender.ascii_domain
            if sender and (stranger or session.login is not None)
            else None,
        }
        for limit in self.limits:
            if subject := subjects[limit.by]:
                yield limit, subject


def _refuse(waits: Iterable[tuple[float, _Charge]]) -> None:
    """Say which limit a message has to wait for longest, if for any."""
    wait, charge = max(waits, key=lambda each: each[0])
    if wait == math.inf:
        raise Reject(f"{charge.kind} are more than {charge.rate}", code=552, enhanced="5.3.4")
    if wait:
        raise Defer(
            f"too many {charge.kind} from {charge.subject}, try again in {math.ceil(wait)} s"
        )
