"""What a host said, and what it means for a message (RFC 5321 section 4.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from minismtp.delivery.mx import UnreachableError
from minismtp.delivery.tls_security import Security

_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
#: How hosts say that the rest of the recipients belongs into another transaction.
_TOO_MANY: Final = re.compile(
    r"too many|separate (?:transaction|message)|multiple (?:destination )?domains"
    r"|(?:limit|maximum|exceed)[^.]{0,40} (?:recipient|rcpt)|(?:recipient|rcpt)[^.]{0,40} limit",
    re.IGNORECASE,
)
_MAILBOX: Final = ("1", "2")  # subjects of enhanced codes: the address, the mailbox
_UNPRINTABLE: Final = re.compile(r"[^ -~]+")
_SPACE: Final = 452
_STORAGE: Final = 552
_TEXT_LIMIT: Final = 500  # characters of a reply that are kept

State: TypeAlias = Literal["delivered", "queued", "failed"]


class HostError(UnreachableError):
    """A host cannot be used now; another one may. The reply says why."""


class LoopError(HostError):
    """A host is this server itself, behind an address that nobody here knows."""


class TlsError(HostError):
    """A handshake does not come about, or not with whom it should; `otherwise` may be tried."""

    def __init__(self, reply: str, otherwise: Security | None) -> None:
        super().__init__(reply)
        self.otherwise = otherwise


@dataclass(frozen=True, slots=True)
class HostReply:
    """A reply of a host; `str` gives it as one line that is safe in logs and notifications."""

    code: int
    text: str

    @classmethod
    def of(cls, code: int, lines: list[bytes]) -> HostReply:
        """Join the texts of a reply's lines, each without its code."""
        texts = [
            # It comes from a stranger: no controls, and no UTF-8 where ASCII is expected.
            _UNPRINTABLE.sub(
                " ", line.decode("utf-8", "replace").encode("ascii", "backslashreplace").decode()
            ).strip()
            for line in lines
        ]
        first = _ENHANCED.match(texts[0])
        if first:  # stands in each line (RFC 2034 section 4)
            texts[1:] = [text.removeprefix(first[1]).strip() for text in texts[1:]]
        return cls(code, " ".join(texts)[:_TEXT_LIMIT].strip())

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()

    @property
    def accepts(self) -> bool:
        """Whether the host has done what it was asked for."""
        return self.code // 100 == 2  # noqa: PLR2004 - 2yz, RFC 5321 section 4.2.1

    @property
    def is_final(self) -> bool:
        """Whether the same request will never be accepted."""
        return self.code // 100 == 5  # noqa: PLR2004 - 5yz

    @property
    def answer(self) -> RecipientResult:
        """What it means for a recipient that was not accepted before."""
        if self.accepts:
            return RecipientResult("delivered", str(self))
        if self.is_final and not (self.code == _STORAGE and self._names_too_many):
            return RecipientResult("failed", str(self))
        refuses = self.code // 100 in (4, 5)
        return RecipientResult("queued", str(self), elsewhere=refuses)

    @property
    def is_too_many(self) -> bool:
        """Whether it may mean, at RCPT, that another transaction has to take the recipient.

        RFC 5321 section 4.5.3.1.10: 452, or 552 from older hosts. Both stand for a mailbox that is
        full as well; without an enhanced code only the other transaction tells.
        """
        found = _ENHANCED.match(self.text)
        subject = found[1][2] if found else ""
        if self._names_too_many:
            return subject not in _MAILBOX
        return (self.code == _SPACE and subject not in _MAILBOX) or (
            self.code == _STORAGE and subject in ("", "0")
        )

    @property
    def _names_too_many(self) -> bool:
        found = _ENHANCED.match(self.text)
        return (found is not None and found[1][2:] == "5.3") or bool(_TOO_MANY.search(self.text))


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """What became of one recipient, and the reply that says so.

    `reports` tells that the host has taken over the duty to report success (RFC 3461 section 5),
    `content_refused` that it would have taken mail for this recipient, but not this one,
    `elsewhere` that another host may be asked, because this one has not got the message, and
    `crowded` that another transaction may take the recipient. `host` is who has said it, over a
    connection secured as `tls` says.
    """

    state: State
    reply: str
    reports: bool = False
    content_refused: bool = False
    elsewhere: bool = False
    crowded: bool = False
    host: str = ""
    tls: str = ""
