"""Check users' passwords against a file of hashes."""

import hashlib
import hmac
import secrets
import threading
import time
import zlib
from dataclasses import field
from datetime import timedelta
from pathlib import Path

from minismtp import (
    Credentials,
    ServerInfo,
    StoredKey,
    WatchedFiles,
    check_stored_password,
    hookimpl,
    plugin,
    verify_password,
    warn_of_readers,
)


@plugin
class PasswordFile:
    """Authenticate users by the lines `user:hash` or `user:hash:keys` of the file `path`.

    `minismtp passwd FILE USER` writes such lines; `#` at the start of a line makes it a comment.
    User names count exactly as written. A changed file is read again within a second; while it has
    a fault, the users read before stay. Refusing takes as long for an unknown user as for a known
    one. SCRAM-SHA-256 is offered while every user has keys for it. Keep the file readable by the
    server alone.

    Hashes are slow on purpose, which mail programs that log in for each message would feel. So a
    password that was right is recognized for the time `remember` by a keyed digest in memory; "0s"
    checks the hash each time. A wrong password always costs a whole check.
    """

    path: Path
    remember: timedelta = field(default=timedelta(minutes=10))

    def __post_init__(self) -> None:
        self._users = WatchedFiles(self._read, self.path)
        self._verifying = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._recent: dict[str, tuple[bytes, float]] = {}  # user: digest, until when

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What every user of the file can log in with now."""
        return self._users.get().mechanisms

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Warn of a file that others can read."""
        if server.role == "check":
            warn_of_readers("path", self.path)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Give the user name for the right password; None for all others and for tokens."""
        if not credentials.password:
            return None
        hashes = self._users.get().hashes
        stored = hashes.get(credentials.username)
        # Somebody else's hash stands in for a missing one. Chosen by name, so that in a file of
        # several schemes the time that an unknown user takes is no stranger than any user's.
        decoy = None
        if others := list(hashes.values()):
            decoy = others[
                zlib.crc32(credentials.username.encode("utf-8", "replace")) % len(others)
            ]
        right = self._is_recent(credentials, stored) or self._verify(credentials, stored, decoy)
        if stored and right:
            self._keep(credentials, stored)
        # RFC 4616 section 2: nobody here may act as somebody else.
        may_act = credentials.authorization in ("", credentials.username)
        return credentials.username if stored and right and may_act else None

    @hookimpl
    def stored_key(self, mechanism: str, username: str) -> StoredKey | None:
        """Give the user's keys for SCRAM-SHA-256; the server makes some up for unknown users."""
        return self._users.get().keys.get(username) if mechanism == "SCRAM-SHA-256" else None

    def _verify(self, credentials: Credentials, stored: str | None, decoy: str | None) -> bool:
        # One at a time in each worker: more would share the same cores and take 32 MiB each. Who
        # waited for a login like its own need not repeat the work.
        with self._verifying:
            return self._is_recent(credentials, stored) or verify_password(
                credentials.password, stored or decoy
            )

    def _is_recent(self, credentials: Credentials, stored: str | None) -> bool:
        digest, until = self._recent.get(credentials.username, (b"", 0.0))
        same = hmac.compare_digest(digest, self._digest(credentials, stored or ""))
        return same and stored is not None and time.monotonic() < until

    def _keep(self, credentials: Credentials, stored: str) -> None:
        if self.remember and not self._is_recent(credentials, stored):
            until = time.monotonic() + self.remember.total_seconds()
            self._recent[credentials.username] = self._digest(credentials, stored), until

    def _digest(self, credentials: Credentials, stored: str) -> bytes:
        """Tie a password to its user's hash, so that a new hash makes it unknown."""
        text = f"{stored}\0{credentials.password}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()

    def _read(self) -> "_Users":
        users = _Users()
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            if not line or line.startswith("#"):
                continue
            try:
                users.add(line)
            except ValueError as error:
                raise ValueError(f"path: {self.path}:{number}: {error}") from error
        users.mechanisms = _mechanisms(users)
        return users


class _Users:
    """What one state of the file says: hashes by user, and keys of those who have some."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.keys: dict[str, StoredKey] = {}
        self.mechanisms: tuple[str, ...] = ()

    def add(self, line: str) -> None:
        """Take in a line; raises ValueError."""
        user, *secrets = (part.strip() for part in line.split(":", 2))
        if not (user and secrets and all(secrets)):
            raise ValueError("expected `user:hash` or `user:hash:keys`")
        if user in self.hashes:
            raise ValueError(f"{user} stands here twice")
        check_stored_password(secrets[0])
        if len(secrets) > 1:
            self.keys[user] = StoredKey.parse(secrets[1])
        self.hashes[user] = secrets[0]


def _mechanisms(users: _Users) -> tuple[str, ...]:
    # Clients take the strongest mechanism and stay with it: a user without keys would be locked
    # out. A key of an unusual kind would tell that its user exists.
    everybody = 0 < len(users.hashes) == len(users.keys)
    scram = everybody and all(key.ordinary for key in users.keys.values())
    return ("SCRAM-SHA-256", "PLAIN", "LOGIN") if scram else ("PLAIN", "LOGIN")
