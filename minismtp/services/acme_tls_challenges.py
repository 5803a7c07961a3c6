"""The answers to challenges of a certificate authority by TLS-ALPN-01 (RFC 8737).

The authority connects to port 443, asks for the name and for the protocol `acme-tls/1` alone, and
looks at the certificate. Every web listener with TLS answers from the directory `tls-challenges` of
`[tls.acme]`, where the file NAME contains a key and a certificate that no other client gets:

    challenges = TlsChallenges(config.state_directory)
    path = challenges.put(name, key_authorization)  # then tell the authority that it may connect
    path.unlink()

The name of a file is a host name, so no name that a client asks for leads out of the directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from pathlib import Path
from typing import Final

from minismtp.services.self_signed import self_signed
from minismtp.values.durable_files import atomic_write, make_directory

PROTOCOL: Final = "acme-tls/1"
_ACME_IDENTIFIER: Final = "1.3.6.1.5.5.7.1.31"  # RFC 8737 section 3
_OCTET_STRING: Final = bytes([4, 32])  # the DER of a string of 32 octets
_NAME: Final = re.compile(rb"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){1,126}")


class TlsChallenges:
    """The certificates that wait to be asked for. Threads and processes may share them."""

    def __init__(self, state_directory: Path) -> None:
        self.directory: Final = state_directory / "acme" / "tls-challenges"
        self._state_directory = state_directory

    def put(self, name: str, key_authorization: str) -> Path:
        """Serve the certificate for a challenge from now on, and return its file.

        The name is in small letters. Raise ValueError or OSError.
        """
        if not _NAME.fullmatch(name.encode()):
            raise ValueError(f"expected a host name, not {name!r}")
        make_directory(self.directory, within=self._state_directory)
        digest = hashlib.sha256(key_authorization.encode()).digest()
        key, certificate = self_signed([name], proof=(_ACME_IDENTIFIER, _OCTET_STRING + digest))
        path = self.directory / name
        atomic_write(path, key + certificate)
        return path

    def are_there(self) -> bool:
        """Return whether any challenge waits."""
        try:
            with os.scandir(self.directory) as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def context(self, name: bytes, protocols: tuple[bytes, ...]) -> ssl.SSLContext | None:
        """Return the context for a client that checks a name, None for every other client.

        Raise OSError if the certificate is removed at this moment.
        """
        wanted = name.lower()
        if protocols != (PROTOCOL.encode(),) or not _NAME.fullmatch(wanted):
            return None
        path = self.directory / wanted.decode()
        if not path.is_file():
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([PROTOCOL])
        context.load_cert_chain(path, password="")
        return context
