"""What a submission server adds to a message (RFC 6409 section 8).

Missing fields are added on top, and the fields that the user wrote stay as they are. Here is also
which sender addresses a user may use (section 6.1).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from minismtp.hooks.facade import Hooks
from minismtp.mail.address_list import completed, mailboxes_of
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.message import Message
from minismtp.mail.session import Session
from minismtp.mail.trace_fields import date
from minismtp.values.address import Address, to_ascii
from minismtp.values.reply import Reject
from minismtp.values.user_names import folded_local

# With any of these fields the message is sent again (RFC 5322 section 3.6.6).
_RESENT: Final = {
    *(b"resent-date", b"resent-from", b"resent-sender", b"resent-to", b"resent-cc"),
    *(b"resent-message-id", b"resent-reply-to"),
}
_ADDRESSES: Final = {
    *(b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc", b"resent-from", b"resent-sender"),
    *(b"resent-to", b"resent-cc", b"resent-reply-to"),
}
_REQUIRED: Final = {b"message-id", b"date", b"from"}
# Only these fields are read, because all of a header would take three times as long.
_READ: Final = b"|".join(sorted(_REQUIRED | _RESENT | _ADDRESSES))
_FIELD: Final = re.compile(rb"(?im)^((%b)[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+\n?+)" % _READ)
_MOST_GROWTH: Final = 65536  # octets that a header may grow by, because filters have to read it
_MOST_AUTHORS: Final = 20  # because each may be a query to a database
_BETWEEN_ADDRESSES: Final = re.compile(r"[\s<>(),:;]+")


def complete(envelope: Envelope, message: Message, head: bytes, hostname: str) -> None:
    """Add Message-ID, Date and From if they are missing, and Resent fields to a resent message.

    `head` is the header of the content, each of whose lines belongs to a field. The author is the
    reverse-path or else the login. Its domain has A-labels, because an added field must not be why
    a message needs SMTPUTF8. Bare names, such as cron's root, get `hostname`.
    """
    fields = [(raw, name.lower()) for raw, name in _FIELD.findall(head)]
    names = {name for _, name in fields}
    addressed = [raw for raw, name in fields if name in _ADDRESSES]
    changed = {raw: new for raw in addressed if (new := completed(raw, hostname)) != raw}
    for raw in changed:
        if not raw.endswith(b"\n"):  # the content of BDAT may end in the header (RFC 3030)
            changed[raw] += b"\r\n"
    growth = sum(len(changed[raw]) - len(raw) for raw in addressed if raw in changed)
    if 0 < growth <= _MOST_GROWTH:
        message.edit([changed.get(raw, raw) for raw in message.headers.raw_all()])
    resent = not names.isdisjoint(_RESENT)
    if names >= _REQUIRED and not resent:
        return
    local, at, domain = (envelope.sender or envelope.login or "").rpartition("@")
    added = {
        "Message-ID": f"<{envelope.id}@{hostname}>",
        "Date": date(envelope.arrived),
        "From": f"{local}@{to_ascii(domain)}" if at else f"MAILER-DAEMON@{hostname}",
    }
    for name, value in added.items():
        key = name.lower().encode()
        if resent and b"resent-" + key not in names:
            message.prepend(f"Resent-{name}", value)
        if key not in names and not (resent and name == "From"):
            message.prepend(name, value)


def add_sender(envelope: Envelope, message: Message) -> None:
    """Add Sender if From does not name the login (RFC 6409 section 8.1)."""
    headers, login = message.headers, envelope.login or ""
    if "@" in login and "Sender" not in headers and not _names(headers.get("From"), login):
        message.prepend("Sender", login)


def owns_sender(hooks: Hooks, session: Session, envelope: Envelope) -> bool:
    """Return whether the reverse-path belongs to the login.

    Every user may use the null reverse-path (RFC 6409 section 6.1).
    """
    sender, login = envelope.reverse_path, session.login
    return sender is None or login is None or _owns(hooks, session, envelope, sender)


def owns_authors(hooks: Hooks, session: Session, envelope: Envelope, message: Message) -> bool:
    """Return whether all addresses in From and Sender belong to the login.

    There must be one From field (RFC 5322 section 3.6.2), and at most one Sender field.
    """
    if session.login is None:
        return True
    authors, senders = message.headers.get_all("From"), message.headers.get_all("Sender")
    if len(authors) != 1 or len(senders) > 1:
        return False
    try:
        named = {address for value in authors + senders for address in mailboxes_of(value)}
    except ValueError:
        return False
    owned = (_owns(hooks, session, replace(envelope, recipients=[]), each) for each in named)
    return 0 < len(named) <= _MOST_AUTHORS and all(owned)


def _owns(hooks: Hooks, session: Session, envelope: Envelope, address: Address) -> bool:
    """Return whether an address is the login, or an alias that leads to the login's mailbox."""
    login, home = session.login or "", hooks.login_domain
    if "@" in login and is_owner(login, home, address):
        return True
    recipient = Recipient(address)
    try:
        recipient.route = hooks.route(session, envelope, recipient)
    except Reject:
        return False  # no mailbox has this address
    return any(is_owner(login, home, mailbox) for mailbox in recipient.mailboxes)


def is_owner(login: str, home: str, mailbox: Address) -> bool:
    """Return whether a mailbox belongs to a login, which without a domain is in the domain `home`.

    If `home` is not known and empty, only the local parts are compared.
    """
    try:
        address = Address.parse(login)
        local, domain = address.local, address.ascii_domain
    except ValueError:  # it has no domain, or its local part would have to be in quotes
        local, at, domain = login.rpartition("@")
        local, domain = (local, to_ascii(domain)) if at else (login, to_ascii(home))
    same = folded_local(local) == folded_local(mailbox.local)
    return same and domain in ("", mailbox.ascii_domain)


def _names(addresses: str, login: str) -> bool:
    """Return whether one address is among others. Python's parser recurses without a bound."""
    return login.lower() in _BETWEEN_ADDRESSES.split(addresses.lower())
