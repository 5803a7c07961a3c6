"""Check users' passwords against hashes in a database."""

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
    hookimpl,
    plugin,
    warn_of_readers,
)

from ._database import Database, Query, db_api_module
from ._login import Bounded, PasswordCheck, acts_as_itself, may_be_asked

_log = logging.getLogger(__name__)
_CONNECTIONS = 16  # at once, in each worker


@plugin
class Sql:
    """Authenticate users by the hashes that a `query` finds in a database.

    The query has `:user` where the user name belongs; it is handed over as a parameter, never as
    text of the query. Its one row has the stored hash, as `minismtp passwd` writes them, and maybe
    in a second column the name that the user is known by after the login. No row, or a hash that is
    NULL, is nobody. `path` is an SQLite file, opened for each login and only to read. Or `module`
    names a DB-API module that is installed, such as psycopg, and the table `connect` the arguments
    of its `connect`; connections are kept, and replaced when they break. A login that has no answer
    within `patience`, and each other failure, gets 454: the client keeps its password. A password
    that was right is recognized for the time `remember` while its hash is the same; "0s" checks the
    hash each time.
    """

    query: str
    path: Path | None = None
    module: str = ""
    connect: dict[str, Any] = field(default_factory=dict, repr=False)
    remember: timedelta = timedelta(minutes=10)
    patience: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        if (self.path is None) == (not self.module):
            raise ValueError("path: expected either this, for SQLite, or module")
        if self.path is not None and self.connect:
            raise ValueError("connect: belongs to module, SQLite needs path alone")
        if not self.patience:
            raise ValueError("patience: expected more than no time")
        module = sqlite3 if self.path is not None else db_api_module(self.module)
        self._query = Query(self.query, module.paramstyle)
        self._database = Database(module, self._arguments(), keep=self.path is None)
        self._faults = (module.DataError, UnicodeError)
        self._breaker = Breaker(self.module or str(self.path))
        self._bounded = Bounded(self._breaker, self.patience, _CONNECTIONS)
        self._check = PasswordCheck(self.remember)
        self._decoy: str | None = None

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Try the query, and warn of a file that others can read."""
        if server.role != "check":
            return
        try:
            self._database.rows(self._query, "")
        except Exception as error:  # noqa: BLE001 - each module has errors of its own
            _log.warning("query: %s", error)
        if self.path is not None and self.path.exists():
            warn_of_readers("path", self.path)

    @hookimpl
    def on_stop(self) -> None:
        """Close the connections."""
        self._database.close()

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Give the name of the user for the right password; None for all others."""
        if not may_be_asked(credentials):
            return None
        stored, name = self._look_up(credentials.username)
        if stored is not None:
            self._decoy = stored  # so that an unknown user costs what a known one does
        right = self._check.passes(credentials, stored, self._decoy)
        return name if right and acts_as_itself(credentials) else None

    def _look_up(self, user: str) -> tuple[str | None, str]:
        found = self._bounded.run(lambda: self._rows(user))
        if isinstance(found, Exception):
            raise found
        if len(found) > 1:
            raise ValueError(f"the query finds several rows for {user!r}")
        if not found or found[0][0] is None:
            return None, user
        stored, name = (_text(column) for column in (*found[0], user)[:2])
        try:
            check_stored_password(stored)
        except ValueError as error:
            _log.warning("the hash of %r in the database: %s", user, error)
            return None, user
        return stored, name or user

    def _rows(self, user: str) -> list[Any] | Exception:
        """Ask; what is wrong with this name alone says nothing against the database."""
        try:
            return self._database.rows(self._query, user)
        except self._faults as fault:
            return fault

    def _arguments(self) -> dict[str, Any]:
        if self.path is None:
            return self.connect
        return {
            "database": f"{self.path.absolute().as_uri()}?mode=ro",
            "uri": True,
            "timeout": self.patience.total_seconds(),  # while somebody writes
        }


def _text(column: object) -> str:
    """Give a column's text; some modules have octets, and CHAR is filled with blanks."""
    if isinstance(column, (bytes, bytearray, memoryview)):
        return bytes(column).decode("utf-8", "replace").strip()
    return "" if column is None else str(column).strip()
