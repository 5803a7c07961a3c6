"""Envelopes as plugins see them: of a transaction, and of an attempt to send the message.

An `Envelope` exists from MAIL on, so nothing in it is optional except what the protocol itself
makes optional. The null reverse-path is `None` (RFC 5321 section 4.5.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from minismtp.mail.recipient_verdict import IfForged, RecipientVerdict
from minismtp.values.address import Address
from minismtp.values.ciphers import TlsLevel
from minismtp.values.reply import Defer, Reject
from minismtp.values.stash import Stash


@dataclass(frozen=True, slots=True, init=False)
class Local:
    """A route into local storage: `Local(mailbox, ...)`."""

    mailboxes: tuple[Address, ...]
    """The mailboxes that get a copy; empty means the recipient's own address."""

    def __init__(self, *mailboxes: Address) -> None:
        object.__setattr__(self, "mailboxes", mailboxes)


@dataclass(frozen=True, slots=True, init=False)
class Relay:
    """A route to other servers: `Relay(address, ..., sender=...)`.

    A forwarder may have to replace the sender because of SPF. A null reverse-path is never
    replaced.
    """

    addresses: tuple[Address, ...]
    """The addresses to send to; empty means the recipient's own address."""
    sender: Address | None
    """The reverse-path on this route, None for the one of the envelope."""

    def __init__(self, *addresses: Address, sender: Address | None = None) -> None:
        object.__setattr__(self, "addresses", addresses)
        object.__setattr__(self, "sender", sender)


@dataclass(frozen=True, slots=True, init=False)
class Several:
    """Several routes at once: an alias may lead to mailboxes here and to addresses elsewhere."""

    routes: tuple[Local | Relay, ...]
    """The routes, at least one."""

    def __init__(self, *routes: Local | Relay) -> None:
        if not routes:
            raise ValueError("expected at least one route, because no mailbox would get the mail")
        object.__setattr__(self, "routes", routes)


Route: TypeAlias = Local | Relay | Several


@dataclass(slots=True)
class Recipient:
    """One forward-path, its route, and its parameters for DSNs (RFC 3461 section 4)."""

    address: Address
    """The address in RCPT, or the one that a plugin added."""
    route: Route | None = None
    """Where the copy goes; None in `on_rcpt` and `route`, set from `on_routed` on."""
    notify: frozenset[str] = frozenset()
    """The words of NOTIFY in upper case (RFC 3461 section 4.1); empty without the parameter."""
    original: str = ""
    """The value of ORCPT, "" without the parameter."""

    @property
    def mailboxes(self) -> tuple[Address, ...]:
        """The mailboxes here that get a copy."""
        route = self.route
        if type(route) is Local:  # nearly always, and a pattern takes five times as long
            return route.mailboxes or (self.address,)
        match route:
            case Local(mailboxes):  # a plugin's own kind
                return mailboxes or (self.address,)
            case Several(routes):
                each = [Recipient(self.address, route) for route in routes]
                return tuple(mailbox for one in each for mailbox in one.mailboxes)
            case _:
                return ()

    @property
    def relays(self) -> tuple[Relay, ...]:
        """The routes to other servers, each with its addresses."""
        match self.route:
            case Relay(addresses, sender):
                return (Relay(*(addresses or (self.address,)), sender=sender),)
            case Several(routes):
                each = [Recipient(self.address, route) for route in routes]
                return tuple(relay for one in each for relay in one.relays)
            case _:
                return ()

    @property
    def expands(self) -> bool:
        """Whether it is an alias of several targets, which get a copy each (RFC 3461 5.2.7.2)."""
        route = self.route
        if type(route) is Local:
            return len(route.mailboxes) > 1
        match route:
            case None:
                return False
            case Local(mailboxes):
                return len(mailboxes) > 1
            case Relay(addresses):
                return len(addresses) > 1
            case Several():
                return True


@dataclass(slots=True, kw_only=True)
class Envelope:
    """One transaction, from MAIL on. `add` and `remove` change who gets the message.

    `refuse` and `quarantine` judge its content for one recipient alone.

    `login`, `peer`, `helo` and `listener` are the session's, kept here because storage may run
    hours after the end of the session.
    """

    id: str
    """The identifier of the transaction: that of the session, a dot and a number."""
    reverse_path: Address | None
    """The sender in MAIL; None for the null reverse-path of notifications."""
    listener: str
    """The `name` of the listener, also when the message comes from the queue."""
    peer: str
    """The client's address, as in the session."""
    helo: str
    """The client's name, as in the session."""
    login: str | None
    """The authorization identity, None without a login."""
    arrived: float
    """When MAIL came, in epoch seconds."""
    recipients: list[Recipient] = field(default_factory=list)
    """The recipients that were accepted so far. In `on_rcpt` the one in question is not in it."""
    size: int | None = None
    """The octets that the client declared with SIZE, None without the parameter."""
    body: str = "7BIT"
    """`7BIT`, `8BITMIME` or `BINARYMIME`."""
    smtputf8: bool = False
    """Whether the client asked for SMTPUTF8 (RFC 6531)."""
    require_tls: bool = False
    """Whether the message may only travel over verified TLS (RFC 8689)."""
    submitter: str = ""
    """The value of AUTH in MAIL, "" without the parameter."""
    dsn_return: str = ""
    """`FULL` or `HDRS` of the parameter RET, "" without it."""
    dsn_id: str = ""
    """The value of ENVID, "" without the parameter."""
    trusted: bool = False
    """Whether the client logged in or belongs to a trusted network. All other clients are
    strangers, whatever sender they name.
    """
    queued: bool = False
    """Whether the message comes from the queue, so an earlier attempt may have stored it."""
    stash: Stash = field(default_factory=Stash)
    """A place for data of plugins about this message, by `StashKey`. It is empty when the message
    comes from the queue.
    """
    added: tuple[Recipient, ...] = field(default=(), init=False)
    """The recipients that `add` added in `on_message`."""
    removed: frozenset[Address] = field(default=frozenset(), init=False)
    """The addresses that `remove` removed in `on_message`."""
    verdicts: Mapping[Address, RecipientVerdict] = field(default_factory=dict, init=False)
    """What `refuse` and `quarantine` decided in `on_message` for recipients alone."""

    def add(self, address: Address, notify: frozenset[str] = frozenset()) -> None:
        """Add a recipient of the message, which counts after all plugins accepted the message.

        It is then routed like those of RCPT. If no plugin routes it, the message is deferred.
        """
        present = {each.address for each in self.recipients} - self.removed
        if address not in present.union(each.address for each in self.added):
            self.added += (Recipient(address, notify=notify),)

    def remove(self, address: Address) -> None:
        """Remove a recipient of the message, while the client sees it accepted.

        An address that is not a recipient is ignored. Without any recipient the message is
        discarded.
        """
        self.added = tuple(each for each in self.added if each.address != address)
        self.removed |= {address}

    def refuse(
        self, address: Address, verdict: Reject | Defer, *, if_forged: IfForged = "quarantine"
    ) -> None:
        """Refuse the message for this recipient alone, while the others get it.

        Over LMTP the verdict is the reply for this recipient. SMTP has one reply for all
        recipients: the first `Defer`, if there is one; or the first `Reject`, if nobody else gets
        the message. Otherwise the message is accepted, and its sender is notified about this
        recipient. A sender who may be forged, and the null reverse-path, get no notification.
        Instead this copy is quarantined, or dropped with `if_forged="discard"`. The first refusal
        of a recipient stands. An address that the client did not name is ignored.
        """
        if not isinstance(verdict, Reject | Defer):
            raise TypeError(f"expected Reject(...) or Defer(...), not {verdict!r}")
        self._judge(address, RecipientVerdict(verdict.reply, verdict.reply.text, if_forged))

    def quarantine(self, address: Address, reason: str) -> None:
        """Put the message into quarantine for this recipient alone; the client gets 250.

        A refusal of the recipient stands, whatever comes first. An address that the client did not
        name is ignored.
        """
        self._judge(address, RecipientVerdict(None, reason))

    def _judge(self, address: Address, verdict: RecipientVerdict) -> None:
        if not isinstance(address, Address):
            raise TypeError(f"expected the address of a recipient, not {address!r}")
        before = self.verdicts.get(address)
        if before is None or (before.reply is None and verdict.reply is not None):
            # A new mapping, because the copy of a plugin in shadow mode has the old one too.
            self.verdicts = {**self.verdicts, address: verdict}

    @property
    def sender(self) -> str:
        """The reverse-path as text, empty for the null reverse-path."""
        return str(self.reverse_path) if self.reverse_path else ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt to send a message to all its recipients in one domain."""

    envelope: Envelope
    """The envelope, as it was when the message was accepted."""
    recipients: tuple[Address, ...]
    """The recipients of this attempt, all in one domain."""
    domain: str
    """Their domain, in lower case with A-labels."""
    attempts: int = 0
    """The number of earlier attempts."""
    original_sender: Address | None = None
    """The reverse-path that `Relay.sender` replaced, None if it did not."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A next hop."""

    host: str
    """A domain name, all of whose addresses are tried, or an IP address."""
    port: int = 25
    """The TCP port."""
    tls: TlsLevel = "opportunistic"
    """`none`, `opportunistic`, `required` or `verified`."""
    implicit: bool = False
    """Whether TLS begins with the first octet (RFC 8314)."""
    username: str = ""
    """The name for AUTH, "" for none."""
    password: str = field(default="", repr=False)
    """The password for AUTH, which no repr shows."""
