"""The result of a delivery for each recipient, from the replies of hosts (RFC 5321 section 4.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from minismtp.delivery.mx import UnreachableError
from minismtp.delivery.tls_security import Security
from minismtp.services.smtp_client import RecipientReply
from minismtp.smtp.client_reply import SERVICE_ENDS, HostReply

#: how hosts say that the other recipients belong in another transaction
_TOO_MANY: Final = re.compile(
    r"too many|separate (?:transaction|message)|multiple (?:destination )?domains"
    r"|(?:limit|maximum|exceed)[^.]{0,40} (?:recipient|rcpt)|(?:recipient|rcpt)[^.]{0,40} limit",
    re.IGNORECASE,
)
_MAILBOX: Final = ("1", "2")  # subjects of enhanced codes: address, mailbox (RFC 3463 section 3)
_SPACE: Final = 452
_STORAGE: Final = 552

State: TypeAlias = Literal["delivered", "deferred", "failed"]


class HostError(UnreachableError):
    """A host cannot be used, but another one may work. The reply gives the reason."""


class LoopError(HostError):
    """A host is this server itself, at an address that it does not know as its own."""


class TlsError(HostError):
    """TLS cannot be used, or the host is not the expected one; `fallback` may be tried."""

    def __init__(self, reply: str, fallback: Security | None) -> None:
        super().__init__(reply)
        self.fallback = fallback


class RecipientResult(Struct, frozen=True):
    """The outcome for one recipient, and the reply that decided it.

    - `reports`: the host is now responsible for reporting success (RFC 3461 section 5).
    - `content_refused`: the host accepted the recipient, but not this message.
    - `try_next_host`: another host may be asked, because this one does not have the message.
    - `too_many`: another transaction with the same host may take the recipient.
    - `host` and `tls`: the host that replied, and how the connection was secured.
    """

    state: State
    reply: str
    reports: bool = False
    content_refused: bool = False
    try_next_host: bool = False
    too_many: bool = False
    host: str = ""
    tls: str = ""


def results_of(replies: Iterable[RecipientReply], *, reports: bool) -> list[RecipientResult]:
    """Return the results for the replies of a transaction.

    A reply means "too many recipients" only after a recipient that was accepted.
    """
    results: list[RecipientResult] = []
    some = False
    for each in replies:
        reply = each.reply
        if each.step == "content" and reply.accepts:
            result = RecipientResult("delivered", str(reply), reports=reports)
        elif each.step == "lost":
            # Unless it is a refusal (421), the host may have the message: another one would
            # deliver it twice.
            try_next_host = reply.code == SERVICE_ENDS
            result = RecipientResult("deferred", str(reply), try_next_host=try_next_host)
        elif each.step == "RCPT" and some and is_too_many(reply):
            result = RecipientResult("deferred", str(reply), try_next_host=True, too_many=True)
        else:
            result = result_of(reply)
        if each.step in ("content", "lost"):
            some = True
            if result.state != "delivered":
                refused = result.state == "failed"
                result = replace(result, reports=reports, content_refused=refused)
        results.append(result)
    return results


def result_of(reply: HostReply) -> RecipientResult:
    """Return the result for a recipient that was not accepted before this reply."""
    if reply.accepts:
        return RecipientResult("delivered", str(reply))
    if reply.is_final and not (reply.code == _STORAGE and _names_too_many(reply)):
        return RecipientResult("failed", str(reply))
    return RecipientResult("deferred", str(reply), try_next_host=reply.refuses)


def is_too_many(reply: HostReply) -> bool:
    """Return whether a reply to RCPT may mean that another transaction has to take the recipient.

    RFC 5321 section 4.5.3.1.10: 452, or 552 from older hosts. Both may also mean that the
    mailbox is full. Without an enhanced code only another transaction shows which is meant.
    """
    subject = reply.enhanced[2:].partition(".")[0]
    if _names_too_many(reply):
        return subject not in _MAILBOX
    return (reply.code == _SPACE and subject not in _MAILBOX) or (
        reply.code == _STORAGE and subject in ("", "0")
    )


def _names_too_many(reply: HostReply) -> bool:
    return reply.enhanced[2:] == "5.3" or bool(_TOO_MANY.search(reply.text))
