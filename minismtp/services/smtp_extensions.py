"""What a host's extensions allow: how a message may travel, or why the host cannot take it.

RFC 1870 (SIZE), 3030 (BINARYMIME), 3461 (DSN), 6152 (8BITMIME), 6531 (SMTPUTF8), 8689 (REQUIRETLS),
9422 (LIMITS).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from minismtp.mail.envelope import Envelope
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form
from minismtp.mail.queue_entry import QueueEntry
from minismtp.smtp.client_reply import HostReply
from minismtp.smtp.grammar import encode_xtext
from minismtp.values.address import Address

# size-value ::= 1*20DIGIT (RFC 1870 section 4)
_SIZE: Final = re.compile(r"[0-9]{1,20}")
# rcptmax-value = "RCPTMAX=" %x31-39 0*5DIGIT (RFC 9422 section 5.2)
_RCPTMAX: Final = re.compile(r"\bRCPTMAX=([1-9][0-9]{0,5})(?![0-9])", re.IGNORECASE)
_WIDE: Final = re.compile(r"[^\x00-\x7f]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

#: What MAIL is made of; both have the same names for it.
Sending: TypeAlias = Envelope | QueueEntry


@dataclass(frozen=True, slots=True)
class Extensions:
    """The keywords of a host's reply to EHLO, in upper case, with their parameters.

    `host` names the host in the replies that say why it cannot take a message. It takes messages of
    `size` octets and `recipients` in a transaction, 0 if it does not say.
    """

    host: str
    keywords: Mapping[str, str]
    size: int = field(init=False)
    recipients: int = field(init=False)

    def __post_init__(self) -> None:
        size = _SIZE.fullmatch(self.keywords.get("SIZE", ""))
        object.__setattr__(self, "size", int(size[0]) if size else 0)
        recipients = _RCPTMAX.search(self.keywords.get("LIMITS", ""))
        object.__setattr__(self, "recipients", int(recipients[1]) if recipients else 0)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    def obstacle(self, entry: Sending, message: Message) -> HostReply | None:
        """Return why a message cannot travel to this host in any form, None if it can."""
        if 0 < self.size < message.size:
            return HostReply(552, (f"5.3.4 {self.host} takes no message of {message.size} octets",))
        obstacle = self.obstacle_to(entry.sender)
        if obstacle is None and entry.smtputf8 and "SMTPUTF8" not in self.keywords:
            in_ascii = b"".join(message.headers.raw_all()).isascii()
            obstacle = None if in_ascii else self._no_utf_8
        return obstacle

    def obstacle_to(self, address: str) -> HostReply | None:
        """Return why an address cannot be named to this host, None if it can."""
        if _CONTROL.search(address):
            return HostReply(553, ("5.1.3 address with control characters",))
        if address.isascii() or "SMTPUTF8" in self.keywords or _ascii_domain(address).isascii():
            return None
        return self._no_utf_8

    @property
    def _no_utf_8(self) -> HostReply:
        return HostReply(550, (f"5.6.7 {self.host} takes no SMTPUTF8",))

    @property
    def takes_binary(self) -> bool:
        """Whether BINARYMIME content may come by BDAT (RFC 3030)."""
        return "BINARYMIME" in self.keywords and "CHUNKING" in self.keywords

    def takes(self, entry: Sending, form: Form) -> bool:
        """Return whether a message may come as it is: by DATA, or by BDAT if it is BINARYMIME."""
        if entry.body == "BINARYMIME":
            return self.takes_binary
        return not form.long and ("8BITMIME" in self.keywords or not form.wide)

    def takes_unbroken(self, entry: Sending, form: Form) -> bool:
        """Return whether long lines may come by BDAT, where the host does not look for lines."""
        fits = "8BITMIME" in self.keywords or not form.wide
        return "CHUNKING" in self.keywords and fits and entry.body != "BINARYMIME"

    def mail(self, entry: Sending, message: Message, *, wide: bool = False) -> str:
        """Return the MAIL command for a message, which may be `wide`: have 8-bit octets."""
        parts = [f"MAIL FROM:<{_ascii_domain(entry.sender)}>"]
        if "SIZE" in self.keywords:
            parts.append(f"SIZE={message.size}")
        if entry.body == "BINARYMIME":
            parts.append("BODY=BINARYMIME")
        elif "8BITMIME" in self.keywords and (entry.body == "8BITMIME" or wide):
            parts.append("BODY=8BITMIME")
        if entry.smtputf8 and "SMTPUTF8" in self.keywords:
            parts.append("SMTPUTF8")
        if entry.require_tls:
            parts.append("REQUIRETLS")
        if "DSN" in self.keywords:
            parts += [f"RET={entry.dsn_return}"] if entry.dsn_return else []
            parts += [f"ENVID={encode_xtext(entry.dsn_id)}"] if entry.dsn_id else []
        return " ".join(parts)

    def rcpt(self, address: str, notify: Collection[str] = (), original: str = "") -> str:
        """Return the RCPT command for a recipient, with its wishes (RFC 3461 section 4)."""
        parts = [f"RCPT TO:<{_ascii_domain(address)}>"]
        if "DSN" in self.keywords:
            parts += [f"NOTIFY={','.join(sorted(notify))}"] if notify else []
            parts += [f"ORCPT={self._original(original)}"] if original else []
        return " ".join(parts)

    def _original(self, original: str) -> str:
        """Return the address as the client encoded it, in ASCII where it must be (RFC 6533 3)."""
        if "SMTPUTF8" in self.keywords:
            return original
        return _WIDE.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", original)


def _ascii_domain(address: str) -> str:
    if address.isascii():
        return address
    parsed = Address.parse(address)
    return str(Address(parsed.local, parsed.ascii_domain))
