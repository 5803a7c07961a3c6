"""Check the passwords of users against hashes in a database."""

import contextlib
import logging
import sqlite3
from dataclasses import field
from datetime import timedelta
from pathlib import Path
from typing import Any

from minismtp import (
    Breaker,
    Credentials,
    ServerInfo,
    check_stored_password,
    folded_name,
    hookimpl,
    plugin,
    warn_of_readers,
)

from ._database import Database, Query, db_api_module
from ._login import BoundedCalls, PasswordCheck, acts_as_itself, may_be_asked
from ._options import check_time
from ._user_names import spellings

_log = logging.getLogger(__name__)
_CONNECTIONS = 16  # at once, in each worker


@plugin
class Sql:
    """Authenticate users by the hashes that a `query` finds in a database.

    The query has `:user` in place of the user name, which is passed as a parameter, never as text
    of the query. Its one row has the stored hash, as `minismtp passwd` writes it, and optionally in
    a second column the user's name after the login. Without that column the name is the plainest
    spelling that finds the same hash, so use the column if the collation ignores differences. No
    row, or a hash that is NULL, means that there is no such user. `path` is an SQLite file, opened
    for each login and only for reading. Or `module` is an installed DB-API module, such as psycopg,
    and the table `connect` has the arguments of its `connect`; connections are kept, and replaced
    when they break. If a login has no answer within `patience`, or fails otherwise, the client gets
    454 and keeps its password. A right password is recognized for the time `remember` while its
    hash is the same; "0s" checks the hash each time.

    With `ignore_case` a name that the query does not find is tried again in lower case and ordinary
    width (RFC 8265), so store names in that form. A name that it finds is always that user. If the
    query has a second column, the name there counts.
    """

    query: str
    path: Path | None = None
    module: str = ""
    connect: dict[str, Any] = field(default_factory=dict, repr=False)
    remember: timedelta = timedelta(minutes=10)
    patience: timedelta = timedelta(seconds=10)
    ignore_case: bool = True

    def __post_init__(self) -> None:
        if (self.path is None) == (not self.module):
            raise ValueError("path: expected either path, for SQLite, or module")
        if self.path is not None and self.connect:
            raise ValueError("connect: expected module with it, because SQLite needs path alone")
        check_time("patience", self.patience)
        module = sqlite3 if self.path is not None else db_api_module(self.module)
        self._query = Query(self.query, module.paramstyle)
        self._database = Database(module, self._arguments(), keep=self.path is None)
        self._faults = (module.DataError, UnicodeError)
        self._error = module.Error
        self._breaker = Breaker(self.module or str(self.path))
        self._calls = BoundedCalls(self._breaker, self.patience, _CONNECTIONS)
        self._check = PasswordCheck(self.remember)
        self._decoy: str | None = None
        self._sample = self._query.sample

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Try the query, find a hash for unknown users, and warn about readers of a file."""
        if server.role == "outbound":
            return
        try:
            self._rows("")
        except Exception as error:  # noqa: BLE001 - each module has errors of its own
            if server.role == "check":
                _log.warning("query: %s", error)
        if server.role != "check":
            return
        if self._decoy is None and not self._sample:
            _log.warning(
                "query: no `column = :user`, so until a user logs in, unknown users cost"
                " what a hash of the default scheme costs"
            )
        if self.path is not None and self.path.exists():
            warn_of_readers("path", self.path)

    @hookimpl
    def on_stop(self) -> None:
        """Close the connections."""
        self._database.close()

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Return the name of the user for the right password; None for a wrong one."""
        if not may_be_asked(credentials):
            return None
        stored, name = self._look_up(credentials.username)
        if stored is not None:
            self._decoy = stored  # so that an unknown user takes the same time as a known one
        right = self._check.passes(credentials, stored, self._decoy)
        return name if right and acts_as_itself(credentials) else None

    def _look_up(self, user: str) -> tuple[str | None, str]:
        """Return the user's hash, None for an unknown user, and the name after the login.

        Without a second column the name is the plainest spelling that finds the same hash.
        """
        found, plain = self._find(user), folded_name(user)
        others = spellings(user)
        if self.ignore_case and plain not in ("", user):
            folded = self._find(plain)  # for known users too, so that they take the same time
            if found[0] is None:
                user, found = plain, folded
        stored, name = found
        same = [other for other in others if self._find(other) == found]
        return stored, name or (same[0] if same else user)

    def _find(self, user: str) -> tuple[str | None, str]:
        """Return the user's hash, None for an unknown user, and the second column's name or ""."""
        found = self._calls.run(lambda: self._rows(user))
        if isinstance(found, Exception):
            raise found
        if len(found) > 1:
            raise ValueError(f"the query finds several rows for {user!r}")
        if not found or found[0][0] is None:
            return None, ""
        stored, name = (_text(column) for column in (*found[0], "")[:2])
        try:
            check_stored_password(stored)
        except ValueError as error:
            _log.warning("the hash of %r in the database: %s", user, error)
            return None, ""
        return stored, name

    def _rows(self, user: str) -> list[Any] | Exception:
        """Run the query; an error for this name alone is no failure of the database."""
        try:
            found = self._database.rows(self._query.text, self._query.parameters(user))
        except self._faults as fault:
            return fault
        if self._decoy is None and self._sample:
            self._decoy = self._any_hash()
        return found

    def _any_hash(self) -> str | None:
        """Find any user's hash, which decides the time that the first unknown user takes."""
        try:
            found = self._database.rows(self._sample)
        except self._error:
            self._sample = ""  # the query cannot be reversed
            return None
        for row in found:
            with contextlib.suppress(ValueError):  # such as a user without a password
                check_stored_password(stored := _text(row[0]))
                return stored
        return None

    def _arguments(self) -> dict[str, Any]:
        if self.path is None:
            return self.connect
        return {
            "database": f"{self.path.absolute().as_uri()}?mode=ro",
            "uri": True,
            "timeout": self.patience.total_seconds(),  # while another process writes
        }


def _text(column: object) -> str:
    """Return a column as text, also from octets, without the blanks that fill CHAR."""
    if isinstance(column, (bytes, bytearray, memoryview)):
        return bytes(column).decode("utf-8", "replace").strip()
    return "" if column is None else str(column).strip()
