"""What waits in the spool, as values: an envelope with the targets of its copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minismtp.mail.envelope import Envelope, Local, Recipient
from minismtp.mail.message import Message
from minismtp.smtp.grammar import encode_xtext
from minismtp.values.address import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRecipient:
    """Where one copy goes, and for whom.

    `address` is the mailbox for kind "local", the address to send to for "relay"; `sender`, where
    it is not empty, takes the place of the entry's on that way. `recipient` is the address as RCPT
    named it; `notify` and `original` are its wishes (RFC 3461 section 4).
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
        """Make the target for one copy of a recipient's mail, with what it inherits of wishes.

        An alias of several targets has its success told when it is expanded, so its targets tell of
        failures and delays only (RFC 3461 section 5.2.7.2). Who forwards names the first recipient,
        so that the sender knows whose failure is told (section 4.2).
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
            notify=tuple(sorted(notify)),
            original=original,
            sender="" if sender is None else str(sender),
        )

    @classmethod
    def relays(cls, recipient: Recipient, *, rewritable: bool = True) -> list[QueuedRecipient]:
        """Return the targets at other servers; `rewritable` is False for the null reverse-path."""
        return [
            cls.of("relay", address, recipient, route.sender if rewritable else None)
            for route in recipient.relays
            for address in route.addresses
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """The envelope as it waits: see `Envelope`. `sender` is empty for the null reverse-path."""

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

    @classmethod
    def of(cls, envelope: Envelope, message: Message, targets: list[QueuedRecipient]) -> QueueEntry:
        """Take what has to be kept of a transaction."""
        return cls(
            id=envelope.id,
            sender=envelope.sender,
            listener=envelope.listener,
            peer=envelope.peer,
            helo=envelope.helo,
            login=envelope.login,
            arrived=envelope.arrived,
            targets=tuple(targets),
            body=envelope.body,
            smtputf8=envelope.smtputf8,
            require_tls=envelope.require_tls,
            submitter=envelope.submitter,
            dsn_return=envelope.dsn_return,
            dsn_id=envelope.dsn_id,
            trusted=envelope.trusted,
            quarantined=message.quarantined,
        )

    def check(self) -> None:
        """Raise ValueError when an address is none: nothing could be sent, and nobody told."""
        senders = [self.sender, *(target.sender for target in self.targets)]
        for text in filter(None, senders):
            Address.parse(text)
        for target in self.targets:
            Address.parse(target.address)
            Address.parse(target.recipient)

    def envelope(self) -> Envelope:
        """Return the envelope for the hooks; its recipients are those that wait here."""
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
            id=self.id,
            reverse_path=Address.parse(self.sender) if self.sender else None,
            listener=self.listener,
            peer=self.peer,
            helo=self.helo,
            login=self.login,
            arrived=self.arrived,
            recipients=recipients,
            body=self.body,
            smtputf8=self.smtputf8,
            require_tls=self.require_tls,
            submitter=self.submitter,
            dsn_return=self.dsn_return,
            dsn_id=self.dsn_id,
            trusted=self.trusted,
            queued=True,
        )
