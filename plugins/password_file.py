"""Check the passwords of users against a file of hashes."""

import zlib
from dataclasses import field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from minismtp import (
    Credentials,
    Defer,
    EmptyFileError,
    PluginCheck,
    ServerInfo,
    StoredKey,
    WatchedFiles,
    check_stored_password,
    folded_name,
    hookimpl,
    plugin,
    read_file,
    warn_of_readers,
)

from ._login import PasswordCheck


@plugin
class PasswordFile:
    """Authenticate users by the lines `user:hash` or `user:hash:keys` of the file `path`.

    `minismtp passwd FILE USER` writes such lines; `#` at the start of a line makes it a comment. A
    changed file is read again within a second. If it has a malformed line, the earlier users stay.
    While the file is missing, unreadable or empty, every login is deferred with 454, because it is
    not known which users exist. A comment in the file says that it is empty on purpose.

    A refusal takes the same time for unknown and known users. SCRAM-SHA-256 is offered while every
    user has keys for it. Keep the file readable by the server alone.

    Hashes are slow on purpose, which delays mail programs that log in for each message. So a right
    password is recognized for the time `remember` by a keyed digest in memory; "0s" checks the hash
    each time. A wrong password always takes a whole check.

    With `ignore_case` users may type their names in upper case, in full-width letters, with another
    composition of accents, and with a domain in any spelling (RFC 8265); `straße` is still not
    `strasse`. After the login the user has the name in the file. A name that is in the file as it
    was typed always is that user. If two names in the file differ only in spelling, both have to be
    typed as they are there, and a warning names them, because `mailboxes` and `match_sender` make
    no such difference.
    """

    path: Path
    remember: timedelta = field(default=timedelta(minutes=10))
    ignore_case: bool = True

    def __post_init__(self) -> None:
        self._users = WatchedFiles(self._read, self.path, empty=_Users())
        self._check = PasswordCheck(self.remember)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The mechanisms for the users in the file."""
        return self._users.get().mechanisms

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Warn about a file that others can read."""
        if server.role == "check":
            warn_of_readers("path", self.path)

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Tell the users, and warn about a file without any, or with names that are alike."""
        users = self._users.get()
        check.facts.logins.update(dict.fromkeys(users.hashes))
        if not users.hashes and not self._users.problem:
            check.warn(
                f"path: {self.path} has no users, so no user can log in;"
                f" `minismtp passwd {self.path} NAME` adds one"
            )
        if self.ignore_case and users.alike:
            names = ", ".join(users.alike)
            check.warn(
                f"path: {self.path} has names that are alike: {names}; such users have to type"
                " them exactly so"
            )

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Return the user name for the right password; None for a wrong one and for tokens."""
        if not credentials.password:
            return None
        users = self._known()
        hashes, name = users.hashes, self._name(users, credentials.username)
        stored = hashes.get(name)
        # Another user's hash stands in for a missing one. It is chosen by name, so in a file of
        # several schemes an unknown user takes the same time at each attempt.
        decoy = None
        if others := users.decoys:
            decoy = others[zlib.crc32(name.encode("utf-8", "replace")) % len(others)]
        asked = self._name(users, credentials.authorization or name)
        if name != credentials.username:
            credentials = replace(credentials, username=name)
        right = self._check.passes(credentials, stored, decoy)
        return name if right and asked == name else None

    @hookimpl
    def stored_key(self, mechanism: str, username: str) -> StoredKey | None:
        """Return the user's keys for SCRAM-SHA-256; for unknown users the server invents keys."""
        if mechanism != "SCRAM-SHA-256":
            return None
        users = self._known()
        name = self._name(users, username)
        key = users.keys.get(name)
        return key and replace(key, username=name)

    def _name(self, users: "_Users", typed: str) -> str:
        """Return the name in the file for a typed one; an unknown name is only folded."""
        if typed in users.hashes or not self.ignore_case:
            return typed
        folded = folded_name(typed)
        found = users.spelled.get(folded, folded)
        return found or typed

    def _known(self) -> "_Users":
        """Return the users. Raise Defer if the file cannot be read or is empty."""
        users = self._users.get()
        if problem := self._users.problem:
            text = "the passwords cannot be read now"
            raise Defer(text, code=454, enhanced="4.7.0") from OSError(problem)
        return users

    def _read(self) -> "_Users":
        users = _Users()
        text = read_file(self.path).decode("utf-8", "replace")
        if not text.strip("\0 \t\r\n"):
            raise EmptyFileError(
                f"path: {self.path} is empty, so no user can log in; `minismtp passwd` adds one,"
                " and a comment in it says that this is on purpose"
            )
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            if not line or line.startswith("#"):
                continue
            try:
                users.add(line)
            except ValueError as error:
                text = f"{error}; `minismtp passwd` writes such lines"
                raise ValueError(f"path: {self.path}:{number}: {text}") from error
        return users


class _Users:
    """The content of the file: the hashes of users, and the keys of those that have keys."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.keys: dict[str, StoredKey] = {}
        self.spelled: dict[str, str] = {}  # the user by the folded name, "" for two users
        self.alike: list[str] = []

    @cached_property
    def mechanisms(self) -> tuple[str, ...]:
        """Return the mechanisms that work for all users, once all lines are read.

        Clients use the strongest mechanism offered, so a user without keys would be locked out. A
        key with unusual parameters would tell that its user exists.
        """
        everybody = 0 < len(self.hashes) == len(self.keys)
        scram = everybody and all(key.ordinary for key in self.keys.values())
        return ("SCRAM-SHA-256", "PLAIN", "LOGIN") if scram else ("PLAIN", "LOGIN")

    @cached_property
    def decoys(self) -> list[str]:
        """The hashes as a list, once all lines are read; a login must not copy all of them."""
        return [*self.hashes.values()]

    def add(self, line: str) -> None:
        """Add the user of a line. Raise ValueError."""
        user, *secrets = (part.strip() for part in line.split(":", 2))
        if not (user and secrets and all(secrets)):
            raise ValueError("expected `user:hash` or `user:hash:keys`")
        if user in self.hashes:
            raise ValueError(f"{user} stands here twice")
        check_stored_password(secrets[0])
        if len(secrets) > 1:
            self.keys[user] = StoredKey.parse(secrets[1])
        self.hashes[user] = secrets[0]
        self.note(user)

    def note(self, user: str) -> None:
        """Add the spellings of a name."""
        folded = folded_name(user)
        if folded in self.spelled:
            self.alike.append(user)
        self.spelled[folded] = "" if folded in self.spelled else user
