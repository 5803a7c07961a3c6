"""Let an LDAP directory check the passwords of users."""

import logging
import secrets
import urllib.parse
from datetime import timedelta
from pathlib import Path

from minismtp import (
    Address,
    Credentials,
    Remote,
    RemoteError,
    ServerInfo,
    SocketAddress,
    WatchedFiles,
    folded_name,
    hookimpl,
    plugin,
    read_file,
    warn_of_readers,
)

from ._ldap import AMBIGUOUS, REFUSALS, SUCCESS, Conversation, Entry
from ._ldap_ber import check_dn, encoded_filter, escaped
from ._login import acts_as_itself, authorities, may_be_asked
from ._options import check_time
from ._user_names import folded, spellings_of

_log = logging.getLogger(__name__)
_PORTS = {"ldap": 389, "ldaps": 636}


@plugin
class Ldap:
    """Authenticate users by a bind to an LDAP directory, such as OpenLDAP or Active Directory.

    Either `dn` is the name of each user's entry, `uid={user},ou=people,dc=example,dc=org`. Or the
    entry is searched below `base`, with a `filter` in which {user} is the user name. The search is
    done as `bind_dn`, whose password is in the file `bind_password_file`, or anonymously. Special
    characters of a user name are escaped. The one entry that the search finds has the DN to bind
    with and, if `identity` names an attribute, the user's name after the login. Otherwise the name
    after the login is the typed one in its plainest spelling: in lower case, without blanks.

    `url` is ldaps://host, or ldap://host with `starttls`; clear text is allowed only to this
    machine. `ca` is a file of authorities for the certificate, by default the system's. Each login
    has a connection of its own, because a bind changes the user of a connection. Referrals are not
    followed. If the directory is down, does not answer within `patience`, or answers with an
    unusual code, the client gets 454. With `ignore_case` a login that fails is tried again, with
    the name in lower case and the password in Unicode's form C.
    """

    url: str
    dn: str = ""
    base: str = ""
    filter: str = "(uid={user})"
    bind_dn: str = ""
    bind_password_file: Path | None = None
    identity: str = ""
    starttls: bool = False
    ca: Path | None = None
    patience: timedelta = timedelta(seconds=10)
    ignore_case: bool = True

    def __post_init__(self) -> None:
        if bool(self.dn) == bool(self.base):
            raise ValueError("dn: expected either dn or base")
        for option, text in (("dn", self.dn), ("filter", self.filter)):
            if text and "{user}" not in text:
                raise ValueError(f"{option}: expected {{user}} in place of the user name")
        if self.dn and self.identity:
            raise ValueError("identity: expected base, because only a search finds attributes")
        if bool(self.bind_dn) != (self.bind_password_file is not None):
            raise ValueError("bind_dn: expected bind_password_file with it")
        check_time("patience", self.patience)
        check_dn("dn", self.dn.replace("{user}", "x"))
        check_dn("base", self.base)
        try:
            encoded_filter(self.filter.replace("{user}", "x"))
        except ValueError as error:
            raise ValueError(f"filter: expected a search filter: {error}") from None
        self._address = self._checked_url()
        self._trust = authorities(self.ca)
        self._service = Remote(
            self._address,
            timeout=self.patience,
            tls=self._trust if self.url.startswith("ldaps:") else None,
        )
        self._bind_password: WatchedFiles[bytes] | None = None
        if path := self.bind_password_file:
            self._bind_password = WatchedFiles(lambda: _read_password(path), path)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Warn about a file that others can read."""
        if server.role == "check" and self.bind_password_file is not None:
            warn_of_readers("bind_password_file", self.bind_password_file)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Return the name of the user for the right password; None for a wrong one."""
        if not (may_be_asked(credentials) and acts_as_itself(credentials)):
            return None
        by_dn = self.ignore_case and bool(
            self.dn
        )  # a search tries spellings without a bind for each
        for each in spellings_of(credentials, ignore_case=by_dn):
            with self._service.connect() as line:
                try:
                    answer = self._ask(Conversation(line), each)
                except ValueError as error:
                    raise RemoteError(f"{self.url}: {error}") from error
            if isinstance(
                answer, RemoteError
            ):  # raised here, because an answer is no failure for the breaker
                raise answer
            if answer is not None:
                return answer
        return None

    def _ask(self, directory: Conversation, credentials: Credentials) -> str | RemoteError | None:
        if self.starttls and (code := directory.start_tls(self._trust, self._address.host)):
            return self._unusual("StartTLS", code)
        user, password = credentials.username, credentials.password.encode()
        if self.base:
            found = self._find(directory, user)
            if isinstance(found, RemoteError):
                return found
            # An unknown user costs a bind too, else the time would tell which users exist.
            entry = found or Entry(f"cn={secrets.token_hex(16)},{self.base}", "")
        else:
            found = entry = Entry(self._dn(user), user)
        code = directory.bind(entry.dn, password)
        if code == SUCCESS and found is not None:
            return entry.name if self.base else self._plain_name(directory, user, password)
        return None if code in REFUSALS else self._unusual("the user's bind", code)

    def _dn(self, user: str) -> str:
        return self.dn.replace("{user}", escaped(user))

    def _plain_name(self, directory: Conversation, user: str, password: bytes) -> str:
        """Return the plainest spelling of a name if the directory takes the password for it."""
        plain = folded(user)
        if plain in ("", user) or directory.bind(self._dn(plain), password) != SUCCESS:
            return user
        return plain

    def _find(self, directory: Conversation, user: str) -> Entry | RemoteError | None:
        """Find a user's entry, with the plainest spelling of the name that finds the same entry."""
        if self._bind_password is not None:
            code = directory.bind(self.bind_dn, self._bind_password.get())
            if code != SUCCESS:
                return self._unusual(f"the bind as {self.bind_dn}", code)
        found, plain = self._search(directory, user), folded(user)
        if plain in ("", user):
            return found
        same = self._search(directory, plain)  # for unknown users too, so that they cost the same
        if isinstance(found, Entry) and isinstance(same, Entry) and found.dn == same.dn:
            return same
        if found is not None or not self.ignore_case:
            return found
        lower = folded_name(user)
        return same if lower == plain else self._search(directory, lower)

    def _search(self, directory: Conversation, user: str) -> Entry | RemoteError | None:
        query = self.filter.replace("{user}", escaped(user))
        code, entries = directory.search(self.base, query, self.identity, user)
        if code == AMBIGUOUS or len(entries) > 1:
            _log.warning("several entries of %s match %s, so the login is refused", self.url, query)
            return None
        if code != SUCCESS:
            return self._unusual("the search", code)
        return entries[0] if entries else None

    def _unusual(self, what: str, code: int) -> RemoteError:
        return RemoteError(f"{self.url} answers {what} with result code {code}")

    def _checked_url(self) -> SocketAddress:
        try:
            parts = urllib.parse.urlsplit(self.url)
            host, port = Address("", parts.hostname or "").ascii_domain, parts.port
        except ValueError:
            raise ValueError('url: expected "ldaps://host", or "ldap://host:389"') from None
        if parts.scheme not in _PORTS or not host or parts.path.strip("/") or parts.username:
            raise ValueError('url: expected "ldaps://host", or "ldap://host:389"')
        address = SocketAddress(host, port or _PORTS[parts.scheme])
        if parts.scheme == "ldaps" and self.starttls:
            raise ValueError("starttls: expected a url with ldap://")
        if parts.scheme == "ldap" and not self.starttls and not address.is_local:
            raise ValueError(
                "url: expected ldaps, or starttls = true, because passwords are sent there"
            )
        return address


def _read_password(path: Path) -> bytes:
    password = read_file(path).strip()
    if not password:
        raise ValueError(f"bind_password_file: {path} is empty")
    return password
