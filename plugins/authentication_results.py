"""Write what the checks of a sender have found into the header (RFC 8601)."""

import re

from minismtp import (
    Address,
    AuthResult,
    Envelope,
    Message,
    Reject,
    ServerInfo,
    Session,
    hookimpl,
    plugin,
    results_of,
)

from ._authres import claims, written

_FIELD = "Authentication-Results"
_ID = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


@plugin
class AuthenticationResults:
    """Put an Authentication-Results field on top of each message, and take forged ones away.

    It belongs after all that checks (`spf`, `dkim_verify`, `arc`, `dmarc` and others): what they
    have left is written in their order, `none` when there is nothing; `auth=pass` with the login
    comes first for users who have logged in. `authserv_id` is the name that mail programs trust,
    by default the server's hostname; servers of one organization may share it. Fields that have
    come with a message and claim this name in any spelling, or none that can be read, are removed:
    whatever their case, quoting, comments, folding, dots, encoding and version (RFC 8601 section
    5). A message whose header is so large (1 MiB,
    10,000 fields) that one could hide in it is refused.
    """

    authserv_id: str = ""

    def __post_init__(self) -> None:
        self._id = Address("", self.authserv_id).ascii_domain
        if self._id and not _ID.fullmatch(self._id):
            raise ValueError("authserv_id: expected a name such as mx.example.org")

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the server's name where none is given."""
        self._id = self._id or Address("", server.hostname).ascii_domain

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Remove, then write."""
        if message.headers.truncated:
            raise Reject("the header of the message is too large")
        message.remove(_FIELD, self._is_forged)
        results = results_of(envelope)
        if session.login is not None:
            results.insert(0, AuthResult("auth", "pass", properties={"smtp.auth": session.login}))
        message.prepend(_FIELD, written(self._id, results))

    def _is_forged(self, value: str) -> bool:
        return claims(value, self._id)
