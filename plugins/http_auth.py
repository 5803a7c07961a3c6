"""Let a web service check the passwords of users."""

import json
import urllib.parse
from datetime import timedelta
from pathlib import Path
from typing import Literal

from minismtp import (
    Credentials,
    RemoteError,
    Session,
    SocketAddress,
    WebService,
    hookimpl,
    plugin,
)

from ._login import authorities, may_be_asked
from ._options import check_time
from ._user_names import spellings_of

_REFUSED = (401, 403)
_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded"}


@plugin
class HttpAuth:
    """Authenticate users by a POST to `url` for each login.

    The body, JSON or a form as in `format`, has `username`, `password`, `authorization` (the user
    to act as, empty for the same), `peer` (the client's address) and `tls` (true inside TLS). The
    status 200 with a JSON object `{"identity": "alice"}` accepts the login under that name; 401 and
    403 refuse it. Any other status, also a redirect, and no answer within `patience` are failures,
    so the client gets 454 and keeps its password. Passwords are sent by https, or in clear text to
    loopback; `allow_http` permits other networks, which can then read them. `ca` is a file of
    authorities to trust instead of the system's.

    With `ignore_case` a refused login is tried again with the name in lower case and ordinary
    width, if that differs, and with the password in the normal form of RFC 8265, if that differs.
    """

    url: str
    format: Literal["json", "form"] = "json"
    ca: Path | None = None
    allow_http: bool = False
    ignore_case: bool = True
    patience: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        trust = authorities(self.ca)
        try:
            self._service = WebService(self.url, timeout=self.patience, tls=trust)
        except ValueError as error:
            raise ValueError(f"url: {error}") from error
        parts = urllib.parse.urlsplit(self.url)
        private = parts.scheme == "https" or SocketAddress(str(parts.hostname)).is_local
        if not private and not self.allow_http:
            raise ValueError(
                "url: expected https, because passwords are sent there (or allow_http = true)"
            )

    @hookimpl
    def authenticate(self, session: Session, credentials: Credentials) -> str | None:
        """Return the identity from the service; None if it refuses the login."""
        if not may_be_asked(credentials):
            return None
        spellings = spellings_of(credentials, ignore_case=self.ignore_case)
        return next(filter(None, (self._ask(session, each) for each in spellings)), None)

    def _ask(self, session: Session, credentials: Credentials) -> str | None:
        fields = {
            "username": credentials.username,
            "password": credentials.password,
            "authorization": credentials.authorization,
            "peer": session.peer,
            "tls": session.tls is not None,
        }
        headers = {"Content-Type": _TYPES[self.format], "Accept": "application/json"}
        answer = self._service.request("POST", self._body(fields), headers=headers)
        if answer.status in _REFUSED:
            return None
        if answer.status != 200:  # noqa: PLR2004 - OK
            raise RemoteError(f"{self.url} answers {answer.status} to a login")
        return _identity(self.url, answer.body)

    def _body(self, fields: dict[str, object]) -> bytes:
        if self.format == "json":
            return json.dumps(fields).encode()
        texts = fields | {"tls": "true" if fields["tls"] else "false"}
        return urllib.parse.urlencode(texts).encode()


def _identity(url: str, body: bytes) -> str:
    """Return the name in an answer; a page of a portal or proxy must not log a user in."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    identity = answer.get("identity") if isinstance(answer, dict) else None
    if not (isinstance(identity, str) and identity and identity.isprintable()):
        raise RemoteError(f'{url} answers 200 without {{"identity": "..."}}')
    return identity
