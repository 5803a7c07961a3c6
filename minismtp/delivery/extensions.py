"""What a host's extensions allow: how a message may go there, or why it must come back.

RFC 1870 (SIZE), 3030 (BINARYMIME), 3461 (DSN), 6152 (8BITMIME), 6531 (SMTPUTF8), 8689 (REQUIRETLS),
9422 (LIMITS).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.values.address import Address

# size-value ::= 1*20DIGIT (RFC 1870 section 4)
_SIZE: Final = re.compile(r"[0-9]{1,20}")
# rcptmax-value = "RCPTMAX=" %x31-39 0*5DIGIT (RFC 9422 section 5.2)
_RCPTMAX: Final = re.compile(r"\bRCPTMAX=([1-9][0-9]{0,5})(?![0-9])", re.IGNORECASE)
_NO_XTEXT: Final = re.compile(r"[^!-*,-<>-~]")
_WIDE: Final = re.compile(r"[^\x00-\x7f]")


@dataclass(frozen=True, slots=True)
class Extensions:
    """The keywords of a host's reply to EHLO, in lower case, with their parameters."""

    host: str
    keywords: Mapping[str, str]

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def recipients(self) -> int:
        """How many recipients the host says that a transaction takes; 0 = it does not say."""
        match = _RCPTMAX.search(self.keywords.get("limits", ""))
        return int(match[1]) if match else 0

    def obstacle(self, entry: QueueEntry, message: Message) -> str:
        """Return why a message cannot travel here in any form, empty when it can."""
        limit = _SIZE.fullmatch(self.keywords.get("size", ""))
        if limit and 0 < int(limit[0]) < message.size:
            return f"552 5.3.4 {self.host} takes no message of {message.size} octets"
        if "smtputf8" not in self:
            in_ascii = _ascii_domain(entry.sender).isascii()
            if in_ascii and entry.smtputf8:
                in_ascii = b"".join(message.headers.raw_all()).isascii()
            if not in_ascii:
                return self._no_utf_8
        return ""

    def obstacle_to(self, target: QueuedRecipient) -> str:
        """Return why no message can go to a recipient here, empty when one can."""
        in_ascii = "smtputf8" in self or _ascii_domain(target.address).isascii()
        return "" if in_ascii else self._no_utf_8

    @property
    def _no_utf_8(self) -> str:
        return f"550 5.6.7 {self.host} takes no SMTPUTF8"

    def takes(self, entry: QueueEntry, form: Form) -> bool:
        """Return whether a message may come as it is: by DATA, BINARYMIME by BDAT."""
        if entry.body == "BINARYMIME":
            return "binarymime" in self and "chunking" in self
        return not form.long and ("8bitmime" in self or not form.wide)

    def takes_unbroken(self, entry: QueueEntry, form: Form) -> bool:
        """Return whether long lines may come by BDAT, where nobody looks for the ends of lines."""
        fits = "8bitmime" in self or not form.wide
        return "chunking" in self and fits and entry.body != "BINARYMIME"

    def mail(self, entry: QueueEntry, message: Message, *, wide: bool = False) -> str:
        """Return the MAIL command for a message, which may be `wide`: have 8-bit octets."""
        parts = [f"MAIL FROM:<{_ascii_domain(entry.sender)}>"]
        if "size" in self:
            parts.append(f"SIZE={message.size}")
        if entry.body == "BINARYMIME":
            parts.append("BODY=BINARYMIME")
        elif "8bitmime" in self and (entry.body == "8BITMIME" or wide):
            parts.append("BODY=8BITMIME")
        if entry.smtputf8 and "smtputf8" in self:
            parts.append("SMTPUTF8")
        if entry.require_tls:
            parts.append("REQUIRETLS")
        if "dsn" in self:
            parts += [f"RET={entry.dsn_return}"] if entry.dsn_return else []
            parts += [f"ENVID={_xtext(entry.dsn_id)}"] if entry.dsn_id else []
        return " ".join(parts)

    def rcpt(self, target: QueuedRecipient) -> str:
        """Return the RCPT command for a recipient."""
        parts = [f"RCPT TO:<{_ascii_domain(target.address)}>"]
        if "dsn" in self:
            parts += [f"NOTIFY={','.join(sorted(target.notify))}"] if target.notify else []
            parts += [f"ORCPT={self._original(target.original)}"] if target.original else []
        return " ".join(parts)

    def _original(self, original: str) -> str:
        """Return the address as the client encoded it, in ASCII where it must be (RFC 6533 3)."""
        if "smtputf8" in self:
            return original
        return _WIDE.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", original)


def _xtext(text: str) -> str:
    """Encode as RFC 3461 section 4 wants it."""
    return _NO_XTEXT.sub(
        lambda match: "".join(f"+{octet:02X}" for octet in match[0].encode()), text
    )


def _ascii_domain(address: str) -> str:
    if address.isascii():
        return address
    parsed = Address.parse(address)
    return str(Address(parsed.local, parsed.ascii_domain))
