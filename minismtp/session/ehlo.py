"""What the reply to EHLO offers: the keywords of a listener, as true for one session."""

from __future__ import annotations

from minismtp.mail.session import Session
from minismtp.session.listener_context import ListenerContext


def keywords(
    service: ListenerContext, session: Session, *, mechanisms: list[str], xclient: bool
) -> list[str]:
    """Return the keyword lines (RFC 5321 section 4.1.1.1), in Postfix's order.

    Naive clients look for `250-STARTTLS` and `250-AUTH`, so neither is ever the last line.
    `mechanisms` may be used with AUTH now; `xclient` says that this peer is trusted with XCLIENT.
    """
    limits = service.limits
    lines = [
        "PIPELINING",  # RFC 2920
        f"SIZE {int(limits.message_size)}",  # RFC 1870
    ]
    if service.starttls and session.tls is None:
        lines.append("STARTTLS")  # RFC 3207 section 4.2: not again inside TLS
    if session.tls is not None:
        lines.append("REQUIRETLS")  # RFC 8689 section 2: inside TLS only
    if mechanisms and session.login is None:
        lines.append(f"AUTH {' '.join(mechanisms)}")  # RFC 4954
    if xclient:
        lines.append("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR")
    lines += [
        "ENHANCEDSTATUSCODES",  # RFC 2034
        "8BITMIME",  # RFC 6152
        "DSN",  # RFC 3461
        "SMTPUTF8",  # RFC 6531
        "CHUNKING",  # RFC 3030
        "BINARYMIME",
        f"LIMITS RCPTMAX={limits.recipients}",  # RFC 9422
    ]
    return [*lines, *service.hooks.ehlo_keywords(session)]
