"""What a submission server may mend in a user's message (layer 4; RFC 6409 section 8).

Fields that are missing are added on top; nothing that the user wrote is ever changed.
"""

from __future__ import annotations

import re
from typing import Final

from minismtp.address import Address
from minismtp.envelope import Envelope, Recipient
from minismtp.hooks import Hooks
from minismtp.message import Message
from minismtp.received import date
from minismtp.reply import Reject
from minismtp.session import Session

_BETWEEN_ADDRESSES: Final = re.compile(r"[\s<>(),:;]+")


def complete(envelope: Envelope, message: Message, hostname: str) -> None:
    """Add Date, Message-ID and, where From names somebody else than the login, Sender."""
    headers = message.headers
    if "Message-ID" not in headers:
        message.prepend("Message-ID", f"<{envelope.id}@{hostname}>")
    if "Date" not in headers:
        message.prepend("Date", date(envelope.arrived))
    login = envelope.login or ""
    if "@" in login and "Sender" not in headers and not _names(headers.get("From"), login):
        message.prepend("Sender", login)


def owns_sender(hooks: Hooks, session: Session, envelope: Envelope) -> bool:
    """Say whether the reverse-path belongs to the login.

    It does when it is the login, or when mail to it comes to the login's own mailbox: so a user may
    send as each of his aliases. The null reverse-path is anybody's (RFC 6409 section 6.1).
    """
    sender, login = envelope.reverse_path, session.login
    if sender is None or login is None:
        return True
    if str(sender).lower() == login.lower():
        return True
    recipient = Recipient(sender)
    try:
        recipient.route = hooks.route(session, envelope, recipient)
    except Reject:
        return False  # nobody's address
    return any(_is(mailbox, login) for mailbox in recipient.mailboxes)


def _names(addresses: str, login: str) -> bool:
    """Look for one address among others, by words: Python's own parser recurses without bound."""
    return login.lower() in _BETWEEN_ADDRESSES.split(addresses.lower())


def _is(mailbox: Address, login: str) -> bool:
    name = str(mailbox) if "@" in login else mailbox.local
    return name.lower() == login.lower()
