"""Envelopes as plugins see them: of a transaction, and of an attempt to send the message.

An `Envelope` exists from MAIL on, so nothing in it is optional except what the protocol itself
makes optional. The null reverse-path is `None` (RFC 5321 section 4.5.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from minismtp.values.address import Address
from minismtp.values.ciphers import TlsLevel
from minismtp.values.stash import Stash


@dataclass(frozen=True, slots=True, init=False)
class Local:
    """A route into local storage, to these mailboxes; the default is the recipient's address."""

    mailboxes: tuple[Address, ...]

    def __init__(self, *mailboxes: Address) -> None:
        object.__setattr__(self, "mailboxes", mailboxes)


@dataclass(frozen=True, slots=True, init=False)
class Relay:
    """A route to other servers, to these addresses; the default is the recipient's address.

    `sender` replaces the reverse-path on this route, which a forwarder may have to do because of
    SPF. None leaves it, and a null reverse-path is never replaced.
    """

    addresses: tuple[Address, ...]
    sender: Address | None

    def __init__(self, *addresses: Address, sender: Address | None = None) -> None:
        object.__setattr__(self, "addresses", addresses)
        object.__setattr__(self, "sender", sender)


@dataclass(frozen=True, slots=True, init=False)
class Several:
    """Several routes at once: an alias may lead to mailboxes here and to addresses elsewhere."""

    routes: tuple[Local | Relay, ...]

    def __init__(self, *routes: Local | Relay) -> None:
        if not routes:
            raise ValueError("expected at least one route, because no mailbox would get the mail")
        object.__setattr__(self, "routes", routes)


Route: TypeAlias = Local | Relay | Several


@dataclass(slots=True)
class Recipient:
    """One forward-path, its route, and its parameters for DSNs (RFC 3461 section 4)."""

    address: Address
    route: Route | None = None
    notify: frozenset[str] = frozenset()
    original: str = ""

    @property
    def mailboxes(self) -> tuple[Address, ...]:
        """The mailboxes here that get a copy."""
        match self.route:
            case Local(mailboxes):
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
        match self.route:
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
    """One transaction. `size` is what the client declared in octets; `arrived` wall-clock seconds.

    `recipients` are those accepted so far; `add` and `remove` change in `on_message` who gets the
    message. `queued` says that the message comes from the queue, so an earlier attempt may already
    have stored it. `trusted` says that the client logged in or belongs to a trusted network. All
    other clients are strangers, whatever sender they name. `login`, `peer`, `helo` and `listener`
    are the session's, kept here because storage may run hours after the end of the session.
    """

    id: str
    reverse_path: Address | None
    listener: str
    peer: str
    helo: str
    login: str | None
    arrived: float
    recipients: list[Recipient] = field(default_factory=list)
    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    require_tls: bool = False
    submitter: str = ""
    dsn_return: str = ""
    dsn_id: str = ""
    trusted: bool = False
    queued: bool = False
    stash: Stash = field(default_factory=Stash)
    added: tuple[Recipient, ...] = field(default=(), init=False)
    removed: frozenset[Address] = field(default=frozenset(), init=False)

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

    @property
    def sender(self) -> str:
        """The reverse-path as text, empty for the null reverse-path."""
        return str(self.reverse_path) if self.reverse_path else ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt to send a message to all its recipients in one domain.

    `attempts` is the number of earlier attempts. `original_sender` is the reverse-path that
    `Relay.sender` replaced, None if it did not.
    """

    envelope: Envelope
    recipients: tuple[Address, ...]
    domain: str
    attempts: int = 0
    original_sender: Address | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """A next hop: `host` is a domain name, all of whose addresses are tried, or an IP address.

    `implicit` means TLS from the first octet (RFC 8314). `username` and `password` are for AUTH.
    """

    host: str
    port: int = 25
    tls: TlsLevel = "opportunistic"
    implicit: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
