"""The answers to challenges of a certificate authority by HTTP-01 (RFC 8555 section 8.3).

The authority asks http://NAME/.well-known/acme-challenge/TOKEN. Every web listener answers from the
directory `acme/challenges` in the state directory: the file TOKEN contains the key authorization.
So any process of the server's user can place an answer, and the answer is served at once, under any
host name and by all web listeners:

    challenges = Challenges(config.state_directory)
    path = challenges.put(token, key_authorization)  # then tell the authority that it may ask
    path.unlink()

The name of a file is the token, whose alphabet is that of base64url, so no request leads out of the
directory. A file is served only if its content is a key authorization for that very token.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from minismtp.values.durable_files import atomic_write, make_directory

PATH: Final = "/.well-known/acme-challenge/"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
_THUMBPRINT: Final = re.compile(rb"[A-Za-z0-9_-]{1,100}")  # RFC 8555 section 8.1
_LONGEST: Final = 301  # octets of a token, a dot and a thumbprint


class Challenges:
    """The answers that wait to be asked for. Threads and processes may share them."""

    def __init__(self, state_directory: Path) -> None:
        self.directory: Final = state_directory / "acme" / "challenges"
        self._state_directory = state_directory

    def put(self, token: str, key_authorization: str) -> Path:
        """Serve a key authorization for a token from now on, and return its file.

        Raise ValueError or OSError.
        """
        if not _is_answer(token, key_authorization.encode()):
            raise ValueError(f"expected a token and its key authorization, not {token!r}")
        make_directory(self.directory, within=self._state_directory)
        path = self.directory / token
        atomic_write(path, key_authorization.encode())
        return path

    def get(self, token: str) -> bytes | None:
        """Return the key authorization for a token, None without one."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self.directory / token, flags)
        except OSError:
            return None
        try:
            found = os.read(descriptor, _LONGEST + 1).rstrip(b"\r\n")
        except OSError:  # such as a directory
            return None
        finally:
            os.close(descriptor)
        return found if _is_answer(token, found) else None


def _is_answer(token: str, content: bytes) -> bool:
    name, _, thumbprint = content.partition(b".")
    known = _TOKEN.fullmatch(token) and name == token.encode()
    return bool(known and _THUMBPRINT.fullmatch(thumbprint))
