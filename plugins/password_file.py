"""Check users' passwords against a file of hashes."""

import zlib
from collections.abc import Container
from pathlib import Path

from minismtp import (
    Credentials,
    WatchedFiles,
    check_stored_password,
    hookimpl,
    plugin,
    verify_password,
)


@plugin
class PasswordFile:
    """Authenticate users by the lines `user:hash` of the file `path`.

    `minismtp passwd FILE USER` writes such lines; `#` at the start of a line makes it a comment.
    User names count exactly as written. A changed file is read again within a second; while it has
    a fault, the users read before stay. Refusing takes as long for an unknown user as for a known
    one. Keep the file readable by the server alone.
    """

    path: Path

    def __post_init__(self) -> None:
        self._accounts = WatchedFiles(self._read, self.path)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        """Give the user name for the right password; None for all others and for tokens."""
        if not credentials.password:
            return None
        accounts = self._accounts.get()
        stored = accounts.get(credentials.username)
        # Somebody else's hash stands in for a missing one. Chosen by name, so that in a file of
        # several schemes the time that an unknown user takes is no stranger than any user's.
        decoy = None
        if others := list(accounts.values()):
            decoy = others[
                zlib.crc32(credentials.username.encode("utf-8", "replace")) % len(others)
            ]
        right = verify_password(credentials.password, stored or decoy)
        # RFC 4616 section 2: nobody here may act as somebody else.
        may_act = credentials.authorization in ("", credentials.username)
        return credentials.username if stored and right and may_act else None

    def _read(self) -> dict[str, str]:
        accounts: dict[str, str] = {}
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            if not line or line.startswith("#"):
                continue
            try:
                user, stored = _parse(line, accounts)
            except ValueError as error:
                raise ValueError(f"path: {self.path}:{number}: {error}") from error
            accounts[user] = stored
        return accounts


def _parse(line: str, known: Container[str]) -> tuple[str, str]:
    user, _, stored = (part.strip() for part in line.partition(":"))
    if not (user and stored):
        raise ValueError("expected `user:hash`")
    if user in known:
        raise ValueError(f"{user} stands here twice")
    check_stored_password(stored)
    return user, stored
