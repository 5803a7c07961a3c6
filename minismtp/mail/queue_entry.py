"""The envelope of a message in the spool, with the targets of its copies."""

from __future__ import annotations

from operator import attrgetter
from typing import Final, Literal

import msgspec

from minismtp.mail.envelope import Envelope, Local, Recipient
from minismtp.mail.message import Message
from minismtp.smtp.grammar import encode_xtext
from minismtp.values.address import Address

# What an entry and an `Envelope` both have.
_SHARED: Final = (
    *("id", "listener", "peer", "helo", "login", "arrived", "body", "smtputf8", "require_tls"),
    *("submitter", "dsn_return", "dsn_id", "trusted"),
)
_shared: Final = attrgetter(*_SHARED)


class QueuedRecipient(msgspec.Struct, frozen=True, kw_only=True):
    """Where one copy goes, and for which recipient.

    `address` is a mailbox here for the kind "local", or the address to send to for "relay". If
    `sender` is not empty, this copy has it as its reverse-path. `recipient` is the address as RCPT
    named it; `notify` and `original` are its parameters NOTIFY and ORCPT (RFC 3461 section 4).
    """

    kind: Literal["local", "relay"]
    address: str
    recipient: str
    notify: tuple[str, ...] = ()
    original: str = ""
    sender: str = ""

    @classmethod
    def of(
        cls,
        kind: Literal["local", "relay"],
        address: Address,
        recipient: Recipient,
        sender: Address | None = None,
    ) -> QueuedRecipient:
        """Return the target for one copy of a recipient's mail, with the parameters it inherits.

        The success of an alias of several targets is reported when it is expanded, so its targets
        report failures and delays only (RFC 3461 section 5.2.7.2). A target of another address
        names the recipient in ORCPT, so that the sender recognizes it in a report (section 4.2).
        """
        notify, original = recipient.notify, recipient.original
        if recipient.expands and "SUCCESS" in notify:
            notify = notify - {"SUCCESS"} or frozenset({"NEVER"})
        if address != recipient.address and not original and recipient.address.is_ascii:
            original = f"rfc822;{encode_xtext(str(recipient.address))}"
        return cls(
            kind=kind,
            address=str(address),
            recipient=str(recipient.address),
            notify=tuple(sorted(notify)) if notify else (),
            original=original,
            sender="" if sender is None else str(sender),
        )

    @classmethod
    def relays(cls, recipient: Recipient, *, rewritable: bool = True) -> list[QueuedRecipient]:
        """Return the targets at other hosts; `rewritable` is False for the null reverse-path."""
        return [
            cls.of("relay", address, recipient, route.sender if rewritable else None)
            for route in recipient.relays
            for address in route.addresses
        ]


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope as it waits, see `Envelope`. `sender` is empty for the null reverse-path.

    `is_7bit` says that the message is known to be 7bit data, whatever its client declared.
    The names of the fields are the keys in the files of the spool.
    """

    id: str
    sender: str
    listener: str
    peer: str
    helo: str
    login: str | None
    arrived: float
    targets: tuple[QueuedRecipient, ...]
    body: str = "7BIT"
    smtputf8: bool = False
    require_tls: bool = False
    submitter: str = ""
    dsn_return: str = ""
    dsn_id: str = ""
    trusted: bool = False
    quarantined: str | None = None
    is_7bit: bool = False

    @classmethod
    def of(cls, envelope: Envelope, message: Message, targets: list[QueuedRecipient]) -> QueueEntry:
        """Return the entry for a message and the targets of its copies."""
        return cls(
            sender=envelope.sender,
            targets=tuple(targets),
            quarantined=message.quarantined,
            is_7bit=message.is_7bit,
            **dict(zip(_SHARED, _shared(envelope), strict=True)),
        )

    def check(self) -> None:
        """Raise ValueError for an invalid address, which can be neither sent to nor notified."""
        if self.sender:
            Address.parse(self.sender)
        for target in self.targets:
            if target.sender:
                Address.parse(target.sender)
            Address.parse(target.address)
            if target.recipient != target.address:
                Address.parse(target.recipient)

    def envelope(self) -> Envelope:
        """Return the envelope for the hooks, with the recipients that wait here."""
        recipients = [
            Recipient(
                Address.parse(target.recipient),
                Local(Address.parse(target.address)) if target.kind == "local" else None,
                frozenset(target.notify),
                target.original,
            )
            for target in self.targets
        ]
        return Envelope(
            reverse_path=Address.parse(self.sender) if self.sender else None,
            recipients=recipients,
            queued=True,
            **dict(zip(_SHARED, _shared(self), strict=True)),
        )
