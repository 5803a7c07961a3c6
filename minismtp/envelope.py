"""The envelope of one transaction: who sends, who receives, and where each copy goes (layer 2).

An `Envelope` exists from MAIL on, so nothing in it is optional except what the protocol itself
makes optional: the null reverse-path is `None` (RFC 5321 section 4.5.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from minismtp.address import Address
from minismtp.stash import Stash


@dataclass(frozen=True, slots=True, init=False)
class Local:
    """A route into local storage, to these mailboxes; none = the recipient's own address."""

    mailboxes: tuple[Address, ...]

    def __init__(self, *mailboxes: Address) -> None:
        object.__setattr__(self, "mailboxes", mailboxes)


@dataclass(frozen=True, slots=True, init=False)
class Relay:
    """A route to another server: the addresses to send to; none = the recipient's own address."""

    addresses: tuple[Address, ...]

    def __init__(self, *addresses: Address) -> None:
        object.__setattr__(self, "addresses", addresses)


Route: TypeAlias = Local | Relay


@dataclass(slots=True)
class Recipient:
    """One forward-path, its route, and its wishes for DSNs (RFC 3461 section 4)."""

    address: Address
    route: Route | None = None
    notify: frozenset[str] = frozenset()
    original: str = ""


@dataclass(slots=True, kw_only=True)
class Envelope:
    """One transaction. `size` is what the client declared in octets; `arrived` wall-clock seconds.

    `recipients` are those accepted so far. `queued` says that the message comes from the queue: an
    earlier attempt may have stored what is to be stored now. `login`, `peer`, `helo` and `listener`
    are the session's, kept here because storage may run hours after the session has ended.
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
    queued: bool = False
    stash: Stash = field(default_factory=Stash)

    @property
    def sender(self) -> str:
        """The reverse-path as text, empty for the null reverse-path."""
        return str(self.reverse_path) if self.reverse_path else ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client proved or offered in AUTH; secrets are left out of the repr and of every log.

    `mechanism` is the SASL name. `username` is the authentication identity, `authorization` the
    identity to act as ("" = the same). `password` serves PLAIN and LOGIN, `token` OAUTHBEARER and
    XOAUTH2.
    """

    mechanism: str
    username: str
    password: str = field(default="", repr=False)
    authorization: str = ""
    token: str = field(default="", repr=False)
