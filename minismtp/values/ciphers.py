"""What TLS to other hosts must achieve, and the cipher suites for TLS 1.2.

Those for TLS 1.3 need no choice.

Between mail servers TLS is opportunistic. If a server refuses a suite, mail is sent in clear text
or has to wait (RFC 7435; RFC 9325 section 5.2). So other servers may use the suites that Postfix
allows by default (`tls_medium_cipherlist`), except those that RFC 9325 section 4 forbids: NULL, RC4
and anonymous suites, and suites below 112 bits. Suites with forward secrecy come first. The
server's users have current mail programs and get Python's own list, which has only such suites.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import ssl  # commands that only read the configuration have no use for it

TlsLevel: TypeAlias = Literal["none", "opportunistic", "required", "verified"]

#: The suites for other mail servers, best first.
GENEROUS: Final = (
    "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:DHE+AESGCM:DHE+CHACHA20:DHE+AES:HIGH:MEDIUM"
    ":!aNULL:!eNULL:!PSK:!SRP:!3DES:!RC4:!MD5"
)
# ffdhe2048 of RFC 7919. Without parameters a server offers no DHE. Larger groups cost the server
# more time than the client, and old versions of Java support at most 2048 bits.
_FFDHE2048: Final = b"""-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    """Set the suites of a context, "" for Python's own. Raise ValueError for unknown names."""
    if not ciphers:
        return
    try:
        context.set_ciphers(ciphers)
    except OSError:  # ssl.SSLError
        raise ValueError("expected cipher suites in the notation of OpenSSL") from None


def offer_dhe(context: ssl.SSLContext) -> None:
    """Let a server also use finite-field Diffie-Hellman, if its suites include it."""
    descriptor = os.memfd_create("ffdhe2048")  # the library reads only files
    try:
        os.write(descriptor, _FFDHE2048)
        context.load_dh_params(f"/proc/self/fd/{descriptor}")
    except OSError:
        pass  # a container may have no /proc; then only the other suites are offered
    finally:
        os.close(descriptor)
