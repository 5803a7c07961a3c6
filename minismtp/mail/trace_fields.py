"""Trace fields: the one that the server adds, and earlier ones (RFC 5321 section 4.4)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final

from minismtp.mail.envelope import Envelope
from minismtp.mail.session import Session
from minismtp.smtp.grammar import is_host_name
from minismtp.values.address import Address

_NAME_LIMIT: Final = 255  # octets of the name in EHLO that the field repeats
_FOR_LIMIT: Final = 900  # octets of a recipient that fit into one line (RFC 5322 section 2.1.1)
_REMEMBERED: Final = 256  # names of clients, whose length `parse_helo` limits
_LATEST: Final = 253402300799  # 9999-12-31 23:59:59


def received(session: Session, envelope: Envelope) -> bytes:
    """Return the Received field of one message, folded, with its final CRLF.

    The recipient is named only if there is one, because several would disclose blind copies. It is
    named in ASCII or omitted, because this field must not make the next hop need SMTPUTF8.
    """
    keyword, peer = session.protocol, session.peer
    if envelope.smtputf8:
        # RFC 6531 section 4.3: UTF8SMTP, UTF8SMTPSA, UTF8LMTP ...
        keyword = "UTF8" + keyword.removeprefix("E")
    # The TCP-info of the peer: its name, if known, and an address literal; or "unix".
    origin = f"[IPv6:{peer}]" if ":" in peer else f"[{peer}]" if peer[:1].isdigit() else peer
    if session.name:
        origin = f"{session.name} {origin}"
    tls = f"\r\n\t({session.tls.version} {session.tls.cipher})" if session.tls else ""
    for_clause = ""
    match envelope.recipients:
        case [only]:
            address = only.address
            if not address.is_ascii:
                address = Address(address.local, address.ascii_domain)
            recipient = str(address)
            if address.is_ascii and len(recipient) <= _FOR_LIMIT:
                for_clause = f"\r\n\tfor <{recipient}>"
    text = (
        f"Received: from {_name(session.helo or 'unknown')} ({origin})\r\n"
        f"\tby {session.hostname} with {keyword} id {envelope.id}{tls}{for_clause};\r\n"
        f"\t{_date(int(envelope.arrived))}\r\n"
    )
    return text.encode()


@lru_cache(_REMEMBERED)
def _name(helo: str) -> str:
    """Return the name in EHLO, as a quoted string in ASCII (RFC 5322) unless it is a domain.

    So nothing in it can end the field, open a comment, or pass for another part of the field.
    """
    if is_host_name(helo):
        return helo
    octets = helo.encode("ascii", "backslashreplace")[:_NAME_LIMIT]
    text = octets.decode().replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def date(seconds: float) -> str:
    """Return a date in the format of RFC 5322 section 3.3, in UTC; the text is made once a second.

    A time before 1970 or after 9999, from a wrong clock, becomes the nearest date in that range.
    """
    return _date(int(seconds))


@lru_cache(2)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(min(max(second, 0), _LATEST), UTC))


def hops(head: bytes) -> int:
    """Return the number of trace fields in the header of an incoming message."""
    return (b"\n" + head.lower()).count(b"\nreceived:")
