"""Write the results of the checks of a sender into the header (RFC 8601)."""

import re

from minismtp import (
    Address,
    AuthResult,
    Envelope,
    Message,
    PluginCheck,
    Reject,
    ServerInfo,
    Session,
    hookimpl,
    plugin,
    results_of,
)

from ._authres import claims, written
from ._checks import RESULTS

_FIELD = "Authentication-Results"
_ID = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


@plugin
class AuthenticationResults:
    """Put an Authentication-Results field on top of each message, and remove forged ones.

    Put it after all plugins that check (`spf`, `dkim_verify`, `arc`, `dmarc` and others). Their
    results are written in their order, or `none` without results. For users after a login,
    `auth=pass` with the login comes first. `authserv_id` is the name that mail programs trust, by
    default the server's hostname; servers of one organization may share it. Fields in a message
    that claim this name, or an unreadable name, are removed (RFC 8601 section 5), whatever their
    case, quoting, comments, folding, dots, encoding and version. A message is refused if its header
    is so large (1 MiB or 10,000 fields) that a forged field could hide in it.
    """

    authserv_id: str = ""

    def __post_init__(self) -> None:
        self._id = Address("", self.authserv_id).ascii_domain
        if self._id and not _ID.fullmatch(self._id):
            raise ValueError("authserv_id: expected a name such as mx.example.org")

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the server's name as the default."""
        self._id = self._id or Address("", server.hostname).ascii_domain

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Warn if checks of the sender come later."""
        check.comes_after(*RESULTS, lest="writes the results of the checks above it only")

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Remove forged fields, then write the field."""
        if message.headers.truncated:
            raise Reject("the header of the message is too large")
        message.remove(_FIELD, lambda value: claims(value, self._id))
        results = results_of(envelope)
        if session.login is not None:
            results.insert(0, AuthResult("auth", "pass", properties={"smtp.auth": session.login}))
        message.prepend(_FIELD, written(self._id, results))
