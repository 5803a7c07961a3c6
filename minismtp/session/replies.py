"""Every reply with a fixed text, or one with the host's name, in the order of a session.

Refusals of the protocol, such as those of bad syntax, are worded in `smtp`, and those of plugins in
the plugins.
"""

from functools import lru_cache
from typing import Final

from minismtp.values.reply import Reply


@lru_cache(16)
def banner(hostname: str, protocol: str) -> Reply:
    """Return the reply that begins a session."""
    return Reply(220, f"{hostname} {protocol} minismtp")


@lru_cache(64)
def greeting(line: str, keywords: tuple[str, ...]) -> Reply:
    """Return the reply to EHLO, or to HELO without keywords."""
    return Reply(250, "\n".join([line, *keywords]))


def accepted(identifier: str) -> Reply:
    """Return the reply to a message that is stored."""
    return Reply(250, f"message accepted as {identifier}", "2.0.0")


@lru_cache(16)
def goodbye(hostname: str) -> Reply:
    """Return the reply to QUIT."""
    return Reply(221, f"{hostname} closing connection", "2.0.0")


@lru_cache(16)
def shutting_down(hostname: str) -> Reply:
    """Return the reply to any command once the process is about to end."""
    return Reply(421, f"{hostname} service shutting down", "4.3.2")


# Between transactions.
OK: Final = Reply(250, "ok", "2.0.0")
HELP: Final = Reply(214, "see RFC 5321; mail to postmaster reaches a person", "2.0.0")
# RFC 5321 section 3.5.3: 252 neither verifies nor refuses.
CANNOT_VERIFY: Final = Reply(252, "cannot verify, but will take mail and try", "2.5.2")
NO_EXPANSION: Final = Reply(502, "EXPN is not implemented", "5.5.1")
UNKNOWN_COMMAND: Final = Reply(500, "command not recognized", "5.5.2")
NO_XCLIENT: Final = Reply(550, "XCLIENT is not for you", "5.7.1")
TOO_MANY_ERRORS: Final = Reply(421, "too many bad commands, closing connection", "4.7.0")

# STARTTLS: RFC 3207 section 4.
TLS_READY: Final = Reply(220, "ready to start TLS", "2.0.0")
TLS_ACTIVE: Final = Reply(503, "TLS is already active", "5.5.1")
NO_TLS: Final = Reply(502, "STARTTLS is not offered here", "5.5.1")

# AUTH: RFC 4954 sections 4 and 6.
AUTHENTICATED: Final = Reply(235, "authentication succeeded", "2.7.0")
BAD_CREDENTIALS: Final = Reply(535, "authentication credentials invalid", "5.7.8")
AUTH_CANCELLED: Final = Reply(501, "authentication cancelled", "5.7.0")
AUTH_UNAVAILABLE: Final = Reply(454, "temporary authentication failure", "4.7.0")
ENCRYPTION_REQUIRED: Final = Reply(538, "encryption required for this mechanism", "5.7.11")
UNKNOWN_MECHANISM: Final = Reply(504, "mechanism not supported", "5.5.4")
AUTH_NOT_OFFERED: Final = Reply(502, "AUTH is not offered here", "5.5.1")
ALREADY_AUTHENTICATED: Final = Reply(503, "already authenticated", "5.5.1")
AUTH_WAIT: Final = Reply(454, "too many failed logins from your address, wait", "4.7.0")
TOO_MANY_LOGINS: Final = Reply(421, "too many failed logins, closing connection", "4.7.0")

# MAIL.
SENDER_OK: Final = Reply(250, "sender ok", "2.1.0")
AUTH_REQUIRED: Final = Reply(530, "authentication required", "5.7.0")
TLS_REQUIRED: Final = Reply(530, "REQUIRETLS needs TLS", "5.7.10")
NOT_YOURS: Final = Reply(553, "sender address does not belong to your login", "5.7.1")
TOO_BIG: Final = Reply(552, "message exceeds the maximum size", "5.3.4")

# RCPT.
RECIPIENT_OK: Final = Reply(250, "recipient ok", "2.1.5")
NEEDS_UTF8: Final = Reply(553, "this address needs SMTPUTF8 at MAIL", "5.6.7")
NO_ROUTE: Final = Reply(550, "relaying denied", "5.7.1")
NO_OUTBOUND: Final = Reply(451, "mail for other hosts is not taken now", "4.3.5")
TOO_MANY: Final = Reply(452, "too many recipients", "4.5.3")

# Content.
FAULT: Final = Reply(451, "local error in processing, try again later", "4.3.0")
GO_AHEAD: Final = Reply(354, "end data with <CR><LF>.<CR><LF>")
CHUNK_OK: Final = Reply(250, "chunk received", "2.0.0")
BINARY_DATA: Final = Reply(503, "BINARYMIME needs BDAT", "5.5.1")
AUTHOR_NOT_YOURS: Final = Reply(550, "From or Sender does not belong to your login", "5.7.1")
NO_SPACE: Final = Reply(452, "no space to receive the message", "4.3.1")
BARE_NEWLINE: Final = Reply(550, "message has a bare CR or LF", "5.6.0")
LONG_LINE: Final = Reply(500, "message has a line that is too long", "5.6.0")
LONG_HEADER: Final = Reply(552, "header section is too long", "5.3.4")
MANY_FIELDS: Final = Reply(552, "header section has too many fields", "5.3.4")
LOOP: Final = Reply(554, "message passed through too many hosts", "5.4.6")
NO_STORAGE: Final = Reply(451, "no storage takes this mailbox", "4.3.5")
SLOW: Final = Reply(451, "storage takes too long", "4.3.0")
FATAL: Final = Reply(451, "this message cannot be processed now", "4.3.0")
