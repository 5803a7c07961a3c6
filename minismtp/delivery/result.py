"""What a host said, and what it means for a message (RFC 5321 section 4.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from minismtp.delivery.mx import UnreachableError
from minismtp.delivery.tls_security import Security
from minismtp.services.smtp_client import RecipientReply
from minismtp.smtp.client_reply import SERVICE_ENDS, HostReply

#: How hosts say that the rest of the recipients belongs into another transaction.
_TOO_MANY: Final = re.compile(
    r"too many|separate (?:transaction|message)|multiple (?:destination )?domains"
    r"|(?:limit|maximum|exceed)[^.]{0,40} (?:recipient|rcpt)|(?:recipient|rcpt)[^.]{0,40} limit",
    re.IGNORECASE,
)
_MAILBOX: Final = ("1", "2")  # subjects of enhanced codes: the address, the mailbox
_SPACE: Final = 452
_STORAGE: Final = 552

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


def results_of(replies: Iterable[RecipientReply], *, reports: bool) -> list[RecipientResult]:
    """Return what the replies of a transaction mean for its recipients.

    A reply of "too many" counts as such only behind a recipient who was accepted.
    """
    results: list[RecipientResult] = []
    some = False
    for each in replies:
        reply = each.reply
        if each.step == "lost":
            # Unless it is a refusal (421), the host may have the message: another one would
            # deliver it twice.
            elsewhere = reply.code == SERVICE_ENDS
            result = RecipientResult("queued", str(reply), elsewhere=elsewhere)
        elif each.step == "RCPT" and some and is_too_many(reply):
            result = RecipientResult("queued", str(reply), elsewhere=True, crowded=True)
        else:
            result = result_of(reply)
        if each.step in ("content", "lost"):
            some = True
            refused = result.state == "failed"
            result = replace(result, reports=reports, content_refused=refused)
        results.append(result)
    return results


def result_of(reply: HostReply) -> RecipientResult:
    """Return what a reply means for a recipient that was not accepted before."""
    if reply.accepts:
        return RecipientResult("delivered", str(reply))
    if reply.is_final and not (reply.code == _STORAGE and _names_too_many(reply)):
        return RecipientResult("failed", str(reply))
    return RecipientResult("queued", str(reply), elsewhere=reply.refuses)


def is_too_many(reply: HostReply) -> bool:
    """Return whether a reply to RCPT may mean that another transaction has to take the recipient.

    RFC 5321 section 4.5.3.1.10: 452, or 552 from older hosts. Both stand for a mailbox that is
    full as well; without an enhanced code only the other transaction tells.
    """
    subject = reply.enhanced[2:].partition(".")[0]
    if _names_too_many(reply):
        return subject not in _MAILBOX
    return (reply.code == _SPACE and subject not in _MAILBOX) or (
        reply.code == _STORAGE and subject in ("", "0")
    )


def _names_too_many(reply: HostReply) -> bool:
    return reply.enhanced[2:] == "5.3" or bool(_TOO_MANY.search(reply.text))
